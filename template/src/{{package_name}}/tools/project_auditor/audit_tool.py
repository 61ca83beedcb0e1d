"""The tool `audit-project`."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from mcp.server.mcpserver import Context
from pydantic import BaseModel, Field

from ...app import App
from ...reliability import ToolFailure, stale_cache, tool
from .analysis import audit
from .files import SourceFile, Sources
from .findings import ORDER, RULES
from .patterns import scan
from .process import analyse

SHOWN_OF_A_RULE = 8
SCAN_S = 4.0
_turn = threading.Lock()

ProjectPath = Annotated[
    str, Field(max_length=1_000, description="A directory or a file; relative paths begin at the first allowed root")
]


class Audit(BaseModel):
    """What was looked at and what was found."""

    root: str
    method: Literal["syntax tree", "patterns"]
    """Patterns find less than a syntax tree; they are used when that is not to be had in time."""
    files: dict[str, int]
    lines: int
    rules: dict[str, int]
    """Findings of each rule, the most important rule first."""
    worst_files: dict[str, int]
    """Files with several findings that are more than notes."""
    findings: list[str]
    """`file:line: rule: text`, the most important first."""
    not_shown: int
    """Findings beyond those; name a rule to see them."""
    skipped: dict[str, int]
    """Files that were not looked at, by the reason."""


class Found(BaseModel):
    """What `analysis.audit` returns."""

    files: dict[str, int]
    lines: int
    skipped: dict[str, int]
    rules: dict[str, int]
    worst_files: dict[str, int]
    findings: dict[str, list[tuple[str, int, str]]]

    def report(self, root: Path, method: Literal["syntax tree", "patterns"], rule: str | None, limit: int) -> Audit:
        """As much of it as a model can use."""
        rules = sorted(self.rules, key=ORDER.__getitem__)
        shown = [
            f"{file}:{line}: {name}: {text}"
            for name in rules
            if rule in (None, name)
            for file, line, text in self.findings[name][: limit if rule else SHOWN_OF_A_RULE]
        ][:limit]
        total = sum(self.rules.values()) if rule is None else self.rules.get(rule, 0)
        return Audit(
            root=str(root),
            method=method,
            files=self.files,
            lines=self.lines,
            rules={name: self.rules[name] for name in rules},
            worst_files=self.worst_files,
            findings=shown,
            not_shown=total - len(shown),
            skipped=self.skipped,
        )


class _InTurns(Sources):
    """One thread at a time reads a file and looks at it.

    Eight that compute side by side are no faster, and the event loop gets its turn after all of them, up to 0.1 s late.
    """

    def __iter__(self) -> Iterator[SourceFile]:
        files = super().__iter__()
        while True:
            with _turn:
                if (file := next(files, None)) is None:
                    return
                yield file


def scan_project(ctx: Context[App], path: ProjectPath = ".", rule: str | None = None, max_findings: int = 40) -> Audit:
    """The fallback of `audit_project`: quick, in this process, and with little that could go wrong."""
    root = ctx.request_context.lifespan_context.paths.resolve(path)
    found = Found.model_validate(audit(_InTurns(root, until=time.monotonic() + SCAN_S), scan))
    return found.report(root, "patterns", rule, max_findings)


@tool(
    name="audit-project",
    title="Audit a project",
    read_only=True,
    fallback=stale_cache(ttl_s=0, max_stale_s=3600, otherwise=scan_project, reserve_s=SCAN_S + 1),
)
async def audit_project(
    ctx: Context[App],
    path: ProjectPath = ".",
    rule: Annotated[str | None, Field(description="Show this rule alone, and all of its findings")] = None,
    max_findings: Annotated[int, Field(ge=1, le=500)] = 40,
) -> Audit:
    """Look for problems in a code base, the most important first.

    Python is judged by its syntax tree: errors, complex, long and deeply nested functions, swallowed errors, mutable
    defaults, blocking calls in async functions, dead imports, missing docstrings and types, and more. Other languages
    are searched for patterns such as secrets, conflicts and TODOs.
    """
    if rule is not None and rule not in RULES:
        raise ToolFailure(f"There is no rule {rule[:50]!r}. Rules: {', '.join(RULES)}.")
    app = ctx.request_context.lifespan_context
    root = app.paths.resolve(path)
    found = await analyse(app, "audit", root, Found)
    return found.report(root, "syntax tree", rule, max_findings)
