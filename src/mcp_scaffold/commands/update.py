"""`mcp-scaffold update`: brings a later release of the template into a project."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcp_scaffold.console import Console, count
from mcp_scaffold.errors import Exit, Interrupted

if TYPE_CHECKING:
    from mcp_scaffold.upgrade import Updated


def update(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The project's directory.")] = Path(),
    to: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="Version to update to; default: that of mcp-scaffold.", show_default=False
        ),
    ] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the diff; change nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and warnings.")] = False,
) -> int:
    """Bring a later release of the template into a project.

    Your edits are merged; your tools are never touched. What needs a look is named file by file, with exit code 1.
    Nothing is committed: review with `git diff`, or undo with `git reset --hard && git clean -d --force`.
    """
    from mcp_scaffold import upgrade

    console = Console(quiet=quiet)
    act = upgrade.preview if dry_run else upgrade.update
    try:
        with console.spinner(f"Updating `{path.absolute().name}`"):
            found = act(path, to, warn=console.warn)
    except KeyboardInterrupt:
        raise Interrupted("Stopped. The project is as it was.") from None
    if dry_run:
        sys.stdout.write(found.diff)
        sys.stdout.flush()
    return report(found, console, is_done=not dry_run)


def report(found: Updated, console: Console, *, is_done: bool) -> int:
    """Tell what happened to the files that need a look, then all of it in one line; return the exit code."""
    name = found.project.name
    if found.before == found.after and not found.changed:
        console.done(f"Nothing to do: `{name}` is at {found.after} already.")
        return Exit.OK
    for line in problems(found):
        console.warn(line)
    verb = "Updated" if is_done else "Would update"
    summary = f"{verb} `{name}` from {found.before} to {found.after}: {count(len(found.changed), 'file')} changed"
    console.done(f"{summary}{follow_up(found, is_done=is_done)}.")
    return Exit.ATTENTION if found.attention else Exit.OK


def problems(found: Updated) -> list[str]:
    """Return a sentence for each file that needs a look: what happened, and what to do."""
    lines = [
        f"`{name}`: your edits and the template's conflict. Choose between the lines marked `<<<<<<<` and `>>>>>>>`, "
        f"then `git add {shlex.quote(name)}`."
        for name in found.conflicts
    ]
    for name in found.lost:
        is_gone = not (found.project / name).exists()
        why = "the template has no such file any more" if is_gone else "the template's version replaced yours"
        lines.append(
            f"`{name}`: your edits are gone, because {why}. `{show_command(found, name)}` prints your version."
        )
    lines += [
        f"`{name}`: deleted, because the template has no such file any more. "
        f"`git checkout HEAD -- {shlex.quote(name)}` brings it back."
        for name in found.deleted
    ]
    return lines


def show_command(found: Updated, name: str) -> str:
    """Return the command that prints the committed version of a file."""
    return f"git show {shlex.quote(f'HEAD:{found.prefix}{name}')}"


def follow_up(found: Updated, *, is_done: bool) -> str:
    """Return what to do next, as the end of a sentence."""
    if found.attention:
        return f", {count(found.attention, 'file')} to look at"
    if not is_done:
        return ""
    lock = "run `uv lock`, " if found.is_stale_lock else ""
    return f"; {lock}review with `git diff`, then commit"
