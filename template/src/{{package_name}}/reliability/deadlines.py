"""One total deadline per call, seen by everything below it (R43, R44).

    with deadline(25):
        ...
        with deadline(5):        # never longer than what is left of the 25 s
            await fetch()

The outermost deadline that expires is the one that is reported: a tool can therefore tell its own
`TimeoutError`s from the end of the call. A deadline asks the work to stop, by cancelling it: code that swallows the
cancellation goes on, and the health check `calls` reports it.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType

import anyio

from .errors import DeadlineExceeded

_expires_at: ContextVar[float] = ContextVar("deadline_expires_at", default=math.inf)
"""For worker threads, which have a copy of the context but no cancel scope."""


def remaining_s() -> float:
    """Seconds that are left of the current deadline: never negative, infinite outside of any.

    It works in worker threads, too.
    """
    try:
        left = anyio.current_effective_deadline() - anyio.current_time()
    except anyio.NoEventLoopError:
        left = _expires_at.get() - time.monotonic()
    return max(0.0, left)


def deadline(limit_s: float, *, what: str = "The call") -> AbstractContextManager[None]:
    """Cancel the body after `limit_s` seconds, or when the surrounding deadline ends, whichever is first.

    Args:
        limit_s: The limit in seconds; greater than zero.
        what: Names the work in the error's text.

    Raises:
        DeadlineExceeded: This limit expired. The end of a surrounding deadline is reported by that one.
    """
    return _Deadline(limit_s, what)


class _Deadline(AbstractContextManager[None]):
    """A class, because it costs half of what a generator does, and it is around every call."""

    __slots__ = ("_limit_s", "_scope", "_token", "_what")

    def __init__(self, limit_s: float, what: str) -> None:
        self._limit_s = limit_s
        self._what = what
        self._scope: anyio.CancelScope | None = None

    def __enter__(self) -> None:
        own = asyncio.get_running_loop().time() + self._limit_s  # anyio's clock, without asking for its backend
        if own < anyio.current_effective_deadline():  # otherwise that one is going to cancel the body
            self._token = _expires_at.set(own)
            self._scope = anyio.CancelScope(deadline=own)
            self._scope.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._scope is None:
            return None
        _expires_at.reset(self._token)
        swallowed = self._scope.__exit__(exc_type, exc, traceback)
        if self._scope.cancelled_caught:
            raise DeadlineExceeded(self._limit_s, what=self._what) from None
        return swallowed
