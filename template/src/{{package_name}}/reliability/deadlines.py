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

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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


@contextmanager
def deadline(limit_s: float, *, what: str = "The call") -> Iterator[None]:
    """Cancel the body after `limit_s` seconds, or when the surrounding deadline ends, whichever is first.

    Args:
        limit_s: The limit in seconds; greater than zero.
        what: Names the work in the error's text.

    Raises:
        DeadlineExceeded: This limit expired. The end of a surrounding deadline is reported by that one.
    """
    own = anyio.current_time() + limit_s
    if own >= anyio.current_effective_deadline():  # that one is going to cancel the body: another would only cost
        yield
        return
    token = _expires_at.set(own)
    try:
        with anyio.CancelScope(deadline=own) as scope:
            yield
    finally:
        _expires_at.reset(token)
    if scope.cancelled_caught:
        raise DeadlineExceeded(limit_s, what=what)
