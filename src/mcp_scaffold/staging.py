"""A place beside the destination in which a project grows until it is complete."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_scaffold import signals
from mcp_scaffold.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWERS_FILE = ".copier-answers.yml"


def check_destination(destination: Path) -> None:
    """Raise StateError unless `destination` is free: missing, or an empty directory."""
    obstacle = next((path for path in destination.parents if path.exists() and not path.is_dir()), None)
    if obstacle:
        raise StateError(f"`{destination}` cannot be created: `{obstacle}` is a file.")
    if destination.is_symlink() and not destination.exists():
        raise StateError(f"`{destination}` is a link to nowhere.")
    if not destination.exists():
        return
    if not destination.is_dir():
        raise StateError(f"`{destination}` is a file.", hint="Choose another destination.")
    entry = next(destination.iterdir(), None)
    if entry is not None:
        raise StateError(
            f"`{destination}` exists and is not empty: it holds `{entry.name}`.", hint=_way_out(destination)
        )


def _way_out(destination: Path) -> str:
    if (destination / ANSWERS_FILE).exists():
        return "It was generated from a template: `mcp-scaffold update` brings in the newest one."
    return "Choose another destination, or empty this one."


def existing_part(destination: Path) -> Path:
    """Return the destination itself or the nearest directory above it that exists."""
    return next(path for path in (destination, *destination.parents) if path.exists())


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Yield the path under which to build; move it to `destination` when the block ends, remove it on any error.

    It lies on the destination's file system: beside it, or inside if it is an existing empty directory, which is
    filled rather than replaced (a shell may be in it). The last part of its name is that of the destination.
    """
    beside = existing_part(destination)
    try:
        staging = Path(tempfile.mkdtemp(prefix=".mcp-scaffold-", dir=beside))
    except OSError as error:
        error.filename = str(beside)  # the name that could not be made says nothing to anybody
        raise
    try:
        project = staging / destination.name
        yield project
        with signals.ignored():
            _publish(project, destination, staging)
    finally:
        with signals.ignored():
            shutil.rmtree(staging, ignore_errors=True)


def _publish(project: Path, destination: Path, staging: Path) -> None:
    """Move the finished project into place; undo what was moved if that fails."""
    if destination.exists():
        _fill(project, destination, staging)
        return
    created = [path for path in destination.parents if not path.exists()]
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        project.rename(destination)
    except OSError:
        for path in created:
            if path.exists():
                path.rmdir()
        raise


def _fill(project: Path, destination: Path, staging: Path) -> None:
    other = next((path for path in destination.iterdir() if path != staging), None)
    if other:
        raise StateError(f"`{destination}` is no longer empty: it holds `{other.name}`.")
    moved: list[Path] = []
    try:
        for path in sorted(project.iterdir()):
            moved.append(path.rename(destination / path.name))  # noqa: PERF401 - the list must hold those that moved
    except OSError:
        for path in moved:
            path.rename(project / path.name)
        raise
