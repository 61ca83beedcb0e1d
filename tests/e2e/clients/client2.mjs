// Version 2 of the npm client: `node client2.mjs MODE URL`, or `node client2.mjs MODE COMMAND`; MODE is legacy or auto.
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";

const [mode, target] = process.argv.slice(2);
const transport = target.startsWith("http://")
  ? new StreamableHTTPClientTransport(new URL(target))
  : new StdioClientTransport({ command: target });
const client = new Client({ name: "client2", version: "1.0.0" }, { versionNegotiation: { mode } });
await client.connect(transport);
const { tools } = await client.listTools();
const saved = await client.callTool({ name: "save_note", arguments: { title: "a", text: "b" } });
const wrong = await client.callTool({ name: "save_note", arguments: {} });
const { contents } = await client.readResource({ uri: "notes://a" });
const seen = { server: client.getServerVersion(), tools, saved, wrong, contents };
await client.close();
console.log(JSON.stringify(seen));
