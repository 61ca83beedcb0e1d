"""The same tool on the bare SDK, started the way its documentation shows."""

import sys

from mcp.server import MCPServer
from pydantic import BaseModel

server = MCPServer("bare")


class Note(BaseModel):
    title: str
    text: str


@server.tool()
async def save_note(title: str, text: str) -> Note:
    return Note(title=title, text=text)


if sys.argv[1] == "stdio":
    server.run()
else:
    server.run("streamable-http", port=int(sys.argv[2]))
