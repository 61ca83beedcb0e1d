"""An example to replace: what the HTTP API of the setting `API_URL` answers."""

from typing import Annotated

from mcp.server.mcpserver import Context
from pydantic import BaseModel, Field, JsonValue

from ..app import App
from ..reliability import ToolFailure, stale_cache, tool

Path = Annotated[
    str,
    Field(max_length=500, pattern=r"^[\w.~%-]+(/[\w.~%-]+)*$", description="Such as `repos/python/cpython`"),
]


class Answer(BaseModel):
    """What the API answered."""

    path: str
    body: JsonValue


@tool(title="Ask the API", read_only=True, open_world=True, fallback=stale_cache())
async def ask_api(path: Path, ctx: Context[App]) -> Answer:
    """Read one path of the API. When the API fails, its last answer is given, and labelled as such."""
    response = await ctx.request_context.lifespan_context.api.get(path)
    if response.status != 200:
        raise ToolFailure(f"The API has no answer for {path!r}: status {response.status} ({response.reason}).")
    return Answer(path=path, body=response.json())
