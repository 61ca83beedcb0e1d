"""One total deadline per call, seen by everything below it (R43, R44).

    with deadline(25):
        ...
        with deadline(5):        # never longer than what is left of the 25 s
            await fetch()

The outermost deadline that expires is the one that is reported: a tool can therefore tell its own
`TimeoutError`s from the end of the call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import anyio

from .errors import DeadlineExceeded

_expires_at: ContextVar[float] = ContextVar("deadline_expires_at", default=math.inf)


def remaining_s() -> float:
    """Seconds that are left of the current deadline: never negative, infinite outside of any."""
    return max(0.0, _expires_at.get() - anyio.current_time())


@contextmanager
def deadline(limit_s: float, *, what: str = "The call") -> Iterator[None]:
    """Cancel the body after `limit_s` seconds, or when the surrounding deadline ends, whichever is first.

    Args:
        limit_s: The limit in seconds; greater than zero.
        what: Names the work in the error's text.

    Raises:
        DeadlineExceeded: This limit expired. The end of a surrounding deadline is reported by that one.
    """
    outer = _expires_at.get()
    own = anyio.current_time() + limit_s
    if own >= outer:  # the surrounding scope is going to cancel this body: a scope of our own would only cost
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
