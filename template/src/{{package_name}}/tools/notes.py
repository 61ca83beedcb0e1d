"""An example to replace: notes that live as long as the server."""

from typing import Annotated

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from pydantic import BaseModel, Field

from ..app import App
from ..reliability import ToolFailure, prompt, resource, tool

MAX_NOTES = 1_000

Title = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w-]+$", description="Letters, digits, - and _")]
Text = Annotated[str, Field(max_length=10_000)]


class Note(BaseModel):
    """A note."""

    title: str
    text: str


@tool(title="Save a note", idempotent=True)
async def save_note(title: Title, text: Text, ctx: Context[App]) -> Note:
    """Save a note under its title; an older one of that title is replaced."""
    notes = ctx.request_context.lifespan_context.notes
    if len(notes) >= MAX_NOTES and title not in notes:
        raise ToolFailure(f"There are {MAX_NOTES} notes already; replace one of them.")
    notes[title] = text
    return Note(title=title, text=text)


@resource("notes://{title}", title="A note")
async def read_note(title: str, ctx: Context[App]) -> str:
    """The text of one note."""
    try:
        return ctx.request_context.lifespan_context.notes[title]
    except KeyError:
        raise ResourceNotFoundError(f"No note is called {title!r}.") from None


@prompt(title="Improve a note")
async def improve_note(title: str) -> str:
    """Ask for a clearer version of a note."""
    return f"Read the resource notes://{title}, rewrite the note so that it is shorter and clearer, and save it."
