"""The tool `git-churn`."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import anyio.to_thread
from mcp.server.mcpserver import Context
from pydantic import BaseModel, Field

from ...app import App
from ...reliability import ToolFailure, tool
from ...reliability.child_processes import ProgramResult, run_program
from .audit_tool import ProjectPath

TIMEOUT_S = 10
MAX_COMMITS = 10_000
MAX_HISTORY_BYTES = 10_000_000
SAFELY = ("--no-pager", "-c", "core.fsmonitor=false", "-c", "protocol.allow=never", "-c", "log.showSignature=false")
"""A repository may bring settings that start programs or reach the network."""
ENVIRONMENT = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1"}


class Churn(BaseModel):
    """What changed most often."""

    root: str
    days: int
    commits: int
    authors: dict[str, int]
    """Commits of each, the busiest first."""
    hot_files: list[str]
    """Files that changed most often: there a problem costs most, and a test pays off first."""
    complete: bool
    """Whether all of the history of these days was read."""


@tool(name="git-churn", title="Find hot files", read_only=True)
async def git_churn(
    ctx: Context[App],
    path: ProjectPath = ".",
    days: Annotated[int, Field(ge=1, le=3650, description="How far to look back")] = 90,
    limit: Annotated[int, Field(ge=1, le=200)] = 20,
) -> Churn:
    """Show which files of a git repository changed most often of late, by how much, and by how many people."""
    app = ctx.request_context.lifespan_context
    root = app.paths.resolve(path)
    directory = root if root.is_dir() else root.parent
    repository = await _git(app, directory, "rev-parse", "--path-format=absolute", "--git-common-dir")
    app.paths.resolve(repository.text.strip())  # a file called `.git` may lead to any other one
    log = await _git(
        app,
        directory,
        *("log", f"--since={days} days ago", f"--max-count={MAX_COMMITS}", "--no-merges", "--format=%x01%as%x01%aN"),
        *("-z", "--numstat", "--no-renames", "--no-ext-diff", "--no-textconv", "--relative", "--", str(root)),
    )
    return await anyio.to_thread.run_sync(lambda: _churn(log, root, directory, days, limit), abandon_on_cancel=True)


def _churn(log: ProgramResult, root: Path, directory: Path, days: int, limit: int) -> Churn:
    """It takes a second for a long history, and looks at files."""
    history = History()
    for part in log.text.split("\0"):
        history.add(part.strip("\n"))
    files = sorted(history.files.items(), key=lambda item: (-item[1].commits, -item[1].added - item[1].deleted))
    hot_files = (f"{name}: {changes}" for name, changes in files if (directory / name).exists())
    return Churn(
        root=str(root),
        days=days,
        commits=history.commits.total(),
        authors=dict(history.commits.most_common(10)),
        hot_files=list(itertools.islice(hot_files, limit)),
        complete=not log.truncated and history.commits.total() < MAX_COMMITS,
    )


async def _git(app: App, directory: Path, *arguments: str) -> ProgramResult:
    result = await app.git.call(
        lambda: run_program(
            ["git", *SAFELY, *arguments],
            timeout_s=TIMEOUT_S,
            max_output_bytes=MAX_HISTORY_BYTES,
            cwd=directory,
            env=ENVIRONMENT,
        ),
        timeout_s=TIMEOUT_S,
    )
    if result.exit_code not in (0, None):
        raise ToolFailure(f"git: {result.stderr.decode(errors='replace').strip()[:300]}")
    return result


@dataclass
class Changes:
    """What happened to one file."""

    latest: str
    commits: int = 0
    added: int = 0
    deleted: int = 0
    authors: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        people = f"{len(self.authors)} author" + "s" * (len(self.authors) > 1)
        times = f"{self.commits} commit" + "s" * (self.commits > 1)
        return f"{times}, +{self.added} -{self.deleted} lines, {people}, last {self.latest}"


class History:
    """Adds up the parts of `git log -z --numstat`: `\\1date\\1author` for a commit, `added deleted file` for a file."""

    def __init__(self) -> None:
        self.commits: Counter[str] = Counter()
        self.files: dict[str, Changes] = {}
        self._date = self._author = ""

    def add(self, part: str) -> None:
        """Add the next part; a commit comes before its files, the newest commit first."""
        if part.startswith("\1"):
            _, self._date, self._author = part.split("\1", 2)
            self.commits[self._author] += 1
        elif part.count("\t") >= 2:
            added, deleted, name = part.split("\t", 2)
            changes = self.files.setdefault(name, Changes(self._date))
            changes.commits += 1
            changes.authors.add(self._author)
            if added.isdigit() and deleted.isdigit():  # a binary file has no lines
                changes.added += int(added)
                changes.deleted += int(deleted)
