"""The tool `test-mapping`."""

from typing import Annotated

from mcp.server.mcpserver import Context
from pydantic import BaseModel, Field

from ...app import App
from ...reliability import tool
from .audit_tool import ProjectPath
from .process import analyse

SHOWN_TESTS = 5


class TestMapping(BaseModel):
    """Which source files have tests, as far as names and imports tell."""

    sources: int
    tests: int
    tested_percent: float
    untested: list[str]
    """The largest first."""
    mapping: dict[str, str]
    """The tests of each source file."""
    orphans: list[str]
    """Tests that seem to belong to no source file; often they test the whole."""
    not_shown: int
    skipped: dict[str, int]
    """Files that were not looked at, by the reason."""


class _Found(BaseModel):
    sources: int
    tests: int
    mapping: dict[str, list[str]]
    untested: dict[str, int]
    orphans: list[str]
    skipped: dict[str, int]


@tool(name="test-mapping", title="Map tests to sources", read_only=True)
async def map_tests(
    ctx: Context[App],
    path: ProjectPath = ".",
    only: Annotated[str, Field(max_length=200, description="Only source files whose path contains this")] = "",
    limit: Annotated[int, Field(ge=1, le=500, description="Longest list")] = 30,
) -> TestMapping:
    """Tell which source files have tests and which have none, by the names of the files and by Python's imports.

    The path must hold sources and tests. A test that reaches a file only through others is not seen.
    """
    app = ctx.request_context.lifespan_context
    found = await analyse(app, "tests", app.paths.resolve(path), _Found)
    mapping = {source: _listed(tests) for source, tests in found.mapping.items() if only in source}
    untested = [f"{source} ({lines} lines)" for source, lines in found.untested.items() if only in source]
    lists = (untested, list(mapping), found.orphans)
    return TestMapping(
        sources=found.sources,
        tests=found.tests,
        tested_percent=round(100 * len(found.mapping) / max(found.sources, 1), 1),
        untested=untested[:limit],
        mapping=dict(list(mapping.items())[:limit]),
        orphans=found.orphans[:limit],
        not_shown=sum(max(0, len(listed) - limit) for listed in lists),
        skipped=found.skipped,
    )


def _listed(tests: list[str]) -> str:
    more = f" and {len(tests) - SHOWN_TESTS} more" if len(tests) > SHOWN_TESTS else ""
    return ", ".join(tests[:SHOWN_TESTS]) + more
