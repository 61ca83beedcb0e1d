// Version 1 of the npm SDK: `node sdk1.mjs URL`, or `node sdk1.mjs COMMAND`; prints what it saw as JSON.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [target] = process.argv.slice(2);
const transport = target.startsWith("http://")
  ? new StreamableHTTPClientTransport(new URL(target))
  : new StdioClientTransport({ command: target });
const client = new Client({ name: "sdk1", version: "1.0.0" });
await client.connect(transport);
const { tools } = await client.listTools();
const saved = await client.callTool({ name: "save_note", arguments: { title: "a", text: "b" } });
const wrong = await client.callTool({ name: "save_note", arguments: {} });
const { contents } = await client.readResource({ uri: "notes://a" });
const seen = { server: client.getServerVersion(), tools, saved, wrong, contents };
await client.close();
console.log(JSON.stringify(seen));
