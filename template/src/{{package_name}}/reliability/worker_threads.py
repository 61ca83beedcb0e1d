"""Runs blocking functions in threads, a bounded number of each kind (R8, R47).

A thread cannot be cancelled. When its caller gives up, the thread runs on and keeps its place until it is done: so a
function that hangs uses up its own places, and never those of another.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar, cast

import anyio
import anyio.to_thread

from .load_shedding import LoadShedder

P = ParamSpec("P")
T = TypeVar("T")


class WorkerThreads:
    """At most `max_threads` threads at once. As many callers again may wait; more are refused.

    Args:
        max_threads: Upper bound, at least 1.
        queue_timeout_s: Longest wait for a thread, in seconds.
        what: Names the function in errors.
    """

    def __init__(self, max_threads: int, *, queue_timeout_s: float, what: str) -> None:
        self._places = LoadShedder(
            max_concurrent=max_threads, max_queued=max_threads, queue_timeout_s=queue_timeout_s, what=what
        )
        self._no_limit = anyio.CapacityLimiter(float("inf"))  # the SDK's shared limiter lets hung threads pile up

    @property
    def busy(self) -> int:
        """Threads that run now, those that nobody waits for any more included."""
        return self._places.in_flight

    def wrap(self, function: Callable[P, T]) -> Callable[P, Awaitable[T]]:
        """An asynchronous function with `function`'s signature that runs it here."""

        @functools.wraps(function)
        async def in_thread(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.run(functools.partial(function, *args, **kwargs))

        return in_thread

    async def run(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread. A cancelled caller leaves at once; the thread keeps its place until it ends.

        Raises:
            Overloaded: No thread is free, and none came free in time.
        """
        await self._places.acquire()
        place = _Place(self._places)

        def call() -> T | None:
            if not place.claim():
                return None  # the caller has gone, and has given the place back
            try:
                return function()
            finally:
                place.give_back_from_thread()

        try:
            result = await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._no_limit)
            return cast("T", result)
        finally:
            if place.claim():  # cancelled before a thread took it up
                place.give_back()


class _Place:
    """One place. Whoever claims it gives it back: the thread, or a caller whose thread never began."""

    def __init__(self, places: LoadShedder) -> None:
        self._places = places
        self._unclaimed = threading.Lock()
        self._loop = asyncio.get_running_loop()

    def claim(self) -> bool:
        return self._unclaimed.acquire(blocking=False)

    def give_back(self) -> None:
        self._places.release()

    def give_back_from_thread(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self.give_back)
        except RuntimeError:
            return  # the loop is closed: the process is about to end, and nobody counts any more
