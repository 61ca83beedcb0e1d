"""The same tool on FastMCP, with the middlewares that come nearest to what a generated server does."""

import sys

from fastmcp import FastMCP
from fastmcp.server.middleware.error_handling import ErrorHandlingMiddleware
from fastmcp.server.middleware.logging import StructuredLoggingMiddleware
from fastmcp.server.middleware.response_limiting import ResponseLimitingMiddleware
from fastmcp.server.middleware.timing import TimingMiddleware
from pydantic import BaseModel

server: FastMCP[None] = FastMCP(
    "peer",
    middleware=[
        ErrorHandlingMiddleware(),
        StructuredLoggingMiddleware(),
        TimingMiddleware(),
        ResponseLimitingMiddleware(max_size=100_000),
    ],
)


class Note(BaseModel):
    title: str
    text: str


@server.tool(timeout=25)
async def save_note(title: str, text: str) -> Note:
    return Note(title=title, text=text)


if sys.argv[1] == "stdio":
    server.run(show_banner=False)
else:
    server.run("http", port=int(sys.argv[2]), path="/mcp", show_banner=False, stateless_http=True, json_response=True)
