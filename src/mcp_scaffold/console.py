"""What a person sees: data goes to stdout, everything else to stderr, and colour only adds to words."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mcp_scaffold.errors import ScaffoldError

_COLOURS = {"error": "31", "warning": "33", "hint": "36", "done": "32", "bold": "1"}


@dataclass(frozen=True)
class Console:
    """Prints messages; `quiet` leaves errors and warnings alone and drops the rest."""

    quiet: bool = False

    def say(self, text: str = "") -> None:
        """Print a message that `--quiet` drops."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def done(self, text: str) -> None:
        """Print the one line that says that it worked."""
        first, _, rest = text.partition(" ")
        self.say(f"{paint(first, 'done')} {rest}")

    def warn(self, text: str) -> None:
        """Print a warning; the command goes on."""
        print(f"{paint('warning', 'warning')}: {text}", file=sys.stderr, flush=True)

    def fail(self, error: ScaffoldError) -> None:
        """Print an error and its hint."""
        print(f"{paint('error', 'error')}: {error.message}", file=sys.stderr, flush=True)
        if error.hint:
            print(f"\n{paint('hint', 'hint')}: {error.hint}", file=sys.stderr, flush=True)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show a spinner with `text` while something takes its time; a plain line without a terminal."""
        if not sys.stderr.isatty():
            self.say(text)
        with self.spinner(text):
            yield

    @contextmanager
    def spinner(self, text: str) -> Iterator[None]:
        """Show a spinner with `text` in a terminal, and nothing elsewhere."""
        if self.quiet or not sys.stderr.isatty():
            yield
            return
        from rich.console import Console as RichConsole

        with RichConsole(stderr=True, highlight=False).status(text):
            yield


def paint(text: str, role: str, stream: TextIO | None = None) -> str:
    """Colour `text` if the stream (stderr) is a terminal and `NO_COLOR` is not set."""
    target = stream or sys.stderr
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not target.isatty():
        return text
    return f"\033[{_COLOURS[role]}m{text}\033[0m"


def is_interactive() -> bool:
    """Say whether questions can be asked: stdin is a terminal, and so is what the questions are drawn on."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def count(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
