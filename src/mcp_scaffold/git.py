"""Runs git: the only program besides `uv` that is started here."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from mcp_scaffold.errors import OutsideError
from mcp_scaffold.pack import GIT_VARIABLES

if TYPE_CHECKING:
    from pathlib import Path


class GitError(OutsideError):
    """A git command failed; `reason` is the line of its output that says why."""

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"`git {command}` failed: {reason}")
        self.reason = reason


def git(where: Path, *arguments: str, stdin: str = "") -> str:
    """Return what a git command prints in the directory `where`; GitError if it fails.

    Never asks for a password and never opens an editor; output is not translated.
    """
    return git_bytes(where, *arguments, stdin=stdin).decode("utf-8", "surrogateescape")


def git_bytes(where: Path, *arguments: str, stdin: str = "") -> bytes:
    """Return what a git command prints, as bytes; GitError if it fails."""
    try:
        result = subprocess.run(
            ["git", *arguments],
            cwd=where,
            env=environment(),
            input=stdin.encode("utf-8", "surrogateescape"),
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise OutsideError(
            "git is not on the PATH.", hint="Install git; templates and updates are built on it."
        ) from error
    if result.returncode:
        command = next((part for part in arguments if part[:1] != "-" and "=" not in part), "")
        raise GitError(command, reason_in(result.stderr.decode(errors="replace")))
    return result.stdout


def try_git(where: Path, *arguments: str) -> str | None:
    """Return what a git command prints, stripped, or None if it fails."""
    try:
        return git(where, *arguments).strip()
    except GitError:
        return None


def names(output: str) -> list[str]:
    """Split the output of a command that was given `-z`."""
    return [name for name in output.split("\0") if name]


def reason_in(stderr: str) -> str:
    """Pick the line of git's output that says why it failed."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for mark in ("fatal: ", "error: "):
        for line in lines:
            if line.startswith(mark):
                return line.removeprefix(mark)
    return lines[-1] if lines else "it gave no reason"


def environment() -> dict[str, str]:
    """Return the environment for git: ours, without what a hook of another repository set."""
    inherited = {name: value for name, value in os.environ.items() if name not in GIT_VARIABLES}
    return {**inherited, "GIT_TERMINAL_PROMPT": "0", "GIT_EDITOR": ":", "LC_ALL": "C.UTF-8"}
