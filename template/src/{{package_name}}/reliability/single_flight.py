"""One piece of work for all who ask for it at the same time (R49).

A flight is a task of its own, outside of its callers' cancel scopes: it goes on when the caller who began it leaves,
and is cancelled when nobody waits for it any more. It may also run in the background, with nobody waiting at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Generic, TypeVar

import anyio

from .cancellation import is_cancelled
from .deadlines import cleanup, context_without_deadlines, deadline, remaining_s
from .errors import DeadlineExceeded, ReliabilityError, ShuttingDown

logger = logging.getLogger(__name__)

V = TypeVar("V")
_CLOSE_S = 5


class SingleFlight(Generic[V]):
    """Flights by key.

    Args:
        name: Names them in the log.
        max_background: Flights that may run in the background at the same time.
        background_timeout_s: Limit of each of them, in seconds; the others have their first caller's deadline.
    """

    def __init__(self, name: str, *, max_background: int, background_timeout_s: float) -> None:
        self.name = name
        self.shared = 0
        """Callers that joined another one's flight."""
        self._max_background = max_background
        self._background_timeout_s = background_timeout_s
        self._flights: dict[Hashable, _Flight[V]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    @property
    def in_flight(self) -> int:
        """Tasks that run now, those that are being cancelled included."""
        return len(self._tasks)

    async def run(self, key: Hashable, work: Callable[[], Awaitable[V]]) -> V:
        """What `work` returns, or the work of another caller with this key that runs already.

        Raises:
            DeadlineExceeded: The deadline of the caller who began it has passed.
            ShuttingDown: `aclose` was called.
            Exception: Whatever the work raised; all who wait get it.
        """
        flight = self._flights.get(key)
        if flight is not None:
            self.shared += 1
            try:
                return await self._wait_for(key, flight)
            except DeadlineExceeded:
                if not flight.expired:
                    raise
        # Nobody does it, or the one who began it had less time than this caller has.
        flight = self._flights.get(key) or self._begin(key, work, limit_s=round(remaining_s(), 3))
        return await self._wait_for(key, flight)

    def run_in_background(self, key: Hashable, work: Callable[[], Awaitable[V]]) -> None:
        """Begin `work` unless it runs already, too much runs, or the server is about to stop. A failure is logged."""
        running = sum(flight.background for flight in self._flights.values())
        if not self._draining and key not in self._flights and running < self._max_background:
            self._begin(key, work, limit_s=self._background_timeout_s, background=True)

    def drain(self) -> None:
        """Begin nothing in the background from now on (R68)."""
        self._draining = True

    async def aclose(self) -> None:
        """Cancel every flight, and wait until they have ended, for at most 5 s."""
        for flight in self._flights.values():
            flight.scope.cancel()
        with cleanup(_CLOSE_S, what=f"closing {self.name!r}"):
            while self._tasks:
                await asyncio.wait(self._tasks)

    def _begin(
        self, key: Hashable, work: Callable[[], Awaitable[V]], *, limit_s: float, background: bool = False
    ) -> _Flight[V]:
        flight = self._flights[key] = _Flight(background=background)
        task = asyncio.create_task(self._fly(key, flight, work, limit_s), context=context_without_deadlines())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return flight

    async def _wait_for(self, key: Hashable, flight: _Flight[V]) -> V:
        flight.waiting += 1
        try:
            await flight.done.wait()
            return flight.outcome()
        finally:
            flight.waiting -= 1
            if flight.waiting == 0:
                flight.failure = None  # its traceback holds this very frame
                if not flight.background:
                    self._land(key, flight)  # nobody may join it while it ends
                    flight.scope.cancel()

    async def _fly(self, key: Hashable, flight: _Flight[V], work: Callable[[], Awaitable[V]], limit_s: float) -> None:
        try:
            with flight.scope, deadline(limit_s):
                await flight.do(work)
        except DeadlineExceeded as error:
            flight.expired = True
            flight.failure = error, error.__traceback__
        finally:
            self._land(key, flight)
            if flight.waiting == 0:
                self._report_failure(flight)
            flight.done.set()

    def _land(self, key: Hashable, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _report_failure(self, flight: _Flight[V]) -> None:
        if flight.background and flight.failure is not None:
            error = flight.failure[0]
            unexpected = None if isinstance(error, ReliabilityError) else error
            about = {"what": self.name, "reason": str(error)}
            logger.warning("failed in the background", exc_info=unexpected, extra=about)
        flight.failure = None


class _Flight(Generic[V]):
    """What became of it, and how many wait for that."""

    __slots__ = ("background", "done", "expired", "failure", "scope", "values", "waiting")

    def __init__(self, *, background: bool) -> None:
        self.background = background
        self.waiting = 0
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()
        self.expired = False
        self.values: list[V] = []
        self.failure: tuple[Exception, TracebackType | None] | None = None

    async def do(self, work: Callable[[], Awaitable[V]]) -> None:
        try:
            self.values.append(await work())
        except Exception as error:  # noqa: BLE001 - for those who wait
            self.failure = error, error.__traceback__
        except asyncio.CancelledError as error:
            if is_cancelled(error):
                raise
            foreign = RuntimeError("something that the call awaited was cancelled")
            foreign.__cause__ = error
            self.failure = foreign, None

    def outcome(self) -> V:
        if self.failure is not None:
            raise self.failure[0].with_traceback(self.failure[1])  # the frames of several waiters would pile up
        if not self.values:  # cancelled, although somebody waits
            raise ShuttingDown
        return self.values[0]
