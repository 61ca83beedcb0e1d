"""One total deadline per call, seen by everything below it (R43, R44).

    with deadline(25):
        ...
        with deadline(5):        # never longer than what is left of the 25 s
            await fetch()

The outermost deadline that expires is the one that is reported: a tool can therefore tell its own
`TimeoutError`s from the end of the call. A deadline asks the work to stop, by cancelling it: code that swallows the
cancellation goes on, and the health check `calls` reports it.

Beside it: `leaving` keeps time for what comes after the body, `require_s` refuses work that has no chance, `paused`
stops the clock while a person is being asked, and `cleanup` lets code end well that has been cancelled.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import Context, ContextVar, Token, copy_context
from types import TracebackType

import anyio

from .errors import DeadlineExceeded, NotEnoughTime

logger = logging.getLogger(__name__)

_innermost: ContextVar[Deadline | None] = ContextVar("deadline", default=None)
"""Also for worker threads, which have a copy of the context but no cancel scope."""


def deadline(limit_s: float, *, what: str = "The call") -> Deadline:
    """Cancel the body after `limit_s` seconds, or when the surrounding deadline ends, whichever is first.

    Args:
        limit_s: The limit in seconds; greater than zero.
        what: Names the work in the error's text.

    Raises:
        DeadlineExceeded: This limit expired. The end of a surrounding deadline is reported by that one.
    """
    return Deadline(limit_s, what)


def leaving(reserve_s: float, *, what: str = "The call") -> Deadline:
    """Cancel the body `reserve_s` seconds before the surrounding deadline, so that a fallback still fits (R44, R48).

    At least half of what is left goes to the body, however large the reserve. Without a surrounding deadline there is
    no limit.

    Raises:
        DeadlineExceeded: As in `deadline`.
    """
    left = remaining_s()
    return Deadline(round(max(left - reserve_s, left / 2), 3), what)


def remaining_s() -> float:
    """Seconds that are left of the current deadline: never negative, infinite outside of any.

    It works in worker threads, too.
    """
    try:
        now = asyncio.get_running_loop().time()  # anyio's clock, without asking for its backend
        left = anyio.current_effective_deadline() - now
    except RuntimeError:
        left = expires_at() - time.monotonic()
    return max(0.0, left)


def expires_at() -> float:
    """When the first of the surrounding deadlines ends, by the event loop's clock; infinite outside of any.

    It looks at deadlines alone, where `remaining_s` looks at an author's own cancel scopes and shields, too.
    """
    earliest, limit = math.inf, _innermost.get()
    while limit is not None:
        earliest = min(earliest, limit.expires_at)  # infinite for one that a background task has outlived
        limit = limit.outer
    return earliest


def require_s(needed_s: float, *, what: str = "The call") -> None:
    """Refuse what would only be cancelled on its way: `needed_s` seconds must be left (R44).

    Raises:
        NotEnoughTime: Less is left.
    """
    left = remaining_s()
    if left < needed_s:
        raise NotEnoughTime(left, needed_s, what=what)


@contextmanager
def paused() -> Iterator[None]:
    """Stop the clock of every deadline around the body: a person takes as long as a person takes.

    Deadlines within the body run, and so do those of other tasks. Give the body a limit of its own.
    """
    around = list(_surrounding())
    for limit in around:
        limit.pause()
    try:
        yield
    finally:
        for limit in around:
            limit.resume()


def cleanup(limit_s: float, *, what: str = "The cleanup") -> AbstractContextManager[None]:
    """Let the body finish although the work around it was cancelled, for at most `limit_s` seconds.

    A cancellation is level-triggered: without this, every `await` of a `finally` is cancelled again. A body that is
    not done in time is cancelled, which is logged and raises nothing: there is nobody left who could do better.

    Args:
        limit_s: The limit in seconds.
        what: Names the work in the log.
    """
    return _Cleanup(limit_s, what)


def context_without_deadlines() -> Context:
    """A copy of the context for a task that may outlive its caller: the deadlines around the caller are not its own."""
    context = copy_context()
    context.run(_innermost.set, None)
    return context


def _surrounding() -> Iterator[Deadline]:
    limit = _innermost.get()
    while limit is not None:
        if limit.is_running:  # not in a background task that a call left behind
            yield limit
        limit = limit.outer


@functools.cache
def _scope_class() -> type[anyio.CancelScope]:
    """What `anyio.CancelScope()` makes. It looks for it anew each time, which takes a third of a deadline's time."""
    return type(anyio.CancelScope())


class Deadline(AbstractContextManager[None]):
    """See `deadline`. A class, because it costs half of what a generator does, and it is around every call."""

    __slots__ = ("_left_s", "_limit_s", "_pauses", "_scope", "_token", "_what", "outer")

    def __init__(self, limit_s: float, what: str) -> None:
        self._limit_s = limit_s
        self._what = what
        self._scope: anyio.CancelScope | None = None
        self._pauses = 0

    @property
    def is_running(self) -> bool:
        """Whether its body has begun and has not ended."""
        return self._scope is not None

    @property
    def expires_at(self) -> float:
        """When it ends, by the event loop's clock, which is `time.monotonic`; infinite while paused or not running."""
        return math.inf if self._scope is None else self._scope.deadline

    def overdue_s(self) -> float:
        """Seconds since it expired, while its body goes on all the same; negative before."""
        return asyncio.get_running_loop().time() - self.expires_at

    def pause(self) -> None:
        """Stop its clock; see `paused`. Two parts of a call may do so at the same time."""
        if self._pauses == 0 and self._scope is not None:
            self._left_s = self._scope.deadline - asyncio.get_running_loop().time()
            self._scope.deadline = math.inf
        self._pauses += 1

    def resume(self) -> None:
        """Let its clock go on, when the last pause ends."""
        self._pauses -= 1
        if self._pauses == 0 and self._scope is not None:
            self._scope.deadline = asyncio.get_running_loop().time() + self._left_s

    def __enter__(self) -> None:
        self.outer: Deadline | None = _innermost.get()
        self._token: Token[Deadline | None] = _innermost.set(self)
        self._scope = scope = _scope_class()(deadline=asyncio.get_running_loop().time() + self._limit_s)
        scope.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        scope, self._scope = self._scope, None
        assert scope is not None  # noqa: S101 - entered
        _innermost.reset(self._token)
        swallowed = scope.__exit__(exc_type, exc, traceback)
        if scope.cancelled_caught:
            self._expired()
        return swallowed

    def _expired(self) -> None:
        raise DeadlineExceeded(self._limit_s, what=self._what) from None


class _Cleanup(Deadline):
    """See `cleanup`. It stands alone: what surrounds it has ended, or may."""

    __slots__ = ()

    def __enter__(self) -> None:
        super().__enter__()
        self.outer = None
        if self._scope is not None:
            self._scope.shield = True

    def _expired(self) -> None:
        logger.warning("stopped before it was done", extra={"what": self._what, "limit_s": self._limit_s})
