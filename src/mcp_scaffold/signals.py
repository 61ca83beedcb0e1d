"""Turns signals that end the process into an exception, so that what was begun is undone first."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_ALL = [signal.SIGINT, *_ENDING]


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; not an Exception, so that nothing on the way swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def install() -> None:
    """Raise Terminated on SIGTERM and SIGHUP from now on (SIGINT raises KeyboardInterrupt by itself)."""
    for number in _ENDING:
        signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
    raise Terminated(number)


@contextmanager
def ignored() -> Iterator[None]:
    """Ignore the ending signals while a few steps are undone: a second Ctrl-C must not stop halfway."""
    try:
        before = [(number, signal.signal(number, signal.SIG_IGN)) for number in _ALL]
    except ValueError:  # not in the main thread, where no signal handler can run anyway
        before = []
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
