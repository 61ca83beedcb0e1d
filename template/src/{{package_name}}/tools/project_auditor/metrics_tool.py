"""The tool `file-metrics`."""

from typing import Annotated, Literal

from mcp.server.mcpserver import Context
from pydantic import BaseModel, Field

from ...app import App
from ...reliability import tool
from .audit_tool import ProjectPath
from .figures import Figures
from .process import analyse


class FileMetrics(BaseModel):
    """What the files are made of."""

    root: str
    languages: dict[str, str]
    largest: list[str]
    """The files that come first in the chosen order."""
    skipped: dict[str, int]


class _AllFigures(BaseModel):
    files: list[Figures]
    skipped: dict[str, int]


@tool(name="file-metrics", title="Measure files", read_only=True)
async def file_metrics(
    ctx: Context[App],
    path: ProjectPath = ".",
    order: Annotated[
        Literal["lines", "complexity", "longest_function", "functions"], Field(description="What comes first")
    ] = "lines",
    limit: Annotated[int, Field(ge=1, le=200)] = 20,
) -> FileMetrics:
    """Count lines, comments and functions of each file, and how long and how complex its worst function is."""
    app = ctx.request_context.lifespan_context
    root = app.paths.resolve(path)
    found = await analyse(app, "figures", root, _AllFigures)
    first = sorted(found.files, key=lambda file: -getattr(file, order))[:limit]
    return FileMetrics(
        root=str(root),
        languages={
            language: _in_words(found.files, language) for language in sorted({f.language for f in found.files})
        },
        largest=[f"{f.file}: {_line(f)}" for f in first],
        skipped=found.skipped,
    )


def _in_words(files: list[Figures], language: str) -> str:
    of = [file for file in files if file.language == language]
    code, comments = sum(file.code for file in of), sum(file.comments for file in of)
    return f"{len(of)} files, {code:,} lines of code, {comments:,} of comments"


def _line(file: Figures) -> str:
    text = f"{file.lines} lines ({file.comments} comments), {file.functions} functions"
    return f"{text}, longest {file.longest_function} lines, complexity {file.complexity}" if file.complexity else text
