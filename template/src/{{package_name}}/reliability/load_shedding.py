"""Admission control: a bounded number of calls in flight, a bounded queue, then a clear "busy" (R59).

Without it every client that retries a slow server makes it slower: work piles up that nobody waits for any more.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from .errors import Overloaded, ReliabilityError, ShuttingDown


class LoadShedder:
    """First come, first served admission of calls.

    Args:
        max_concurrent: Calls in flight at the same time; at least 1.
        max_queued: Calls that may wait for a place; 0 refuses at once.
        queue_timeout_s: Longest wait for a place, in seconds.
        what: Names what is protected in errors.
        busy: Makes the error of a refusal from its text and `retry_after_s`.
    """

    def __init__(
        self,
        *,
        max_concurrent: int,
        max_queued: int,
        queue_timeout_s: float,
        what: str = "The server",
        busy: Callable[..., ReliabilityError] = Overloaded,
    ) -> None:
        self.max_concurrent = max_concurrent
        self.max_queued = max_queued
        self.queue_timeout_s = queue_timeout_s
        self.what = what
        self.queued = 0
        self.refused = 0
        self.draining = False
        self._busy = busy
        self._places = anyio.Semaphore(max_concurrent, max_value=max_concurrent, fast_acquire=True)

    @property
    def in_flight(self) -> int:
        """Calls that hold a place now."""
        return self.max_concurrent - self._places.value

    async def acquire(self) -> None:
        """Take a place; give it back with `release`.

        Raises:
            Overloaded: The queue is full, or no place came free within `queue_timeout_s`. Or what `busy` makes.
            ShuttingDown: `drain` was called.
        """
        if not self.acquire_nowait():
            await self._wait_for_place()

    def acquire_nowait(self) -> bool:
        """Take a place if one is free and nobody waits for it; give it back with `release`.

        Raises:
            ShuttingDown: `drain` was called.
        """
        if self.draining:
            raise ShuttingDown
        try:
            self._places.acquire_nowait()
        except anyio.WouldBlock:
            return False
        return True

    async def reacquire(self) -> None:
        """Take a place again that a call gave back on its way: it waits for its turn, and is never refused."""
        self.queued += 1
        try:
            await self._places.acquire()
        finally:
            self.queued -= 1

    def release(self) -> None:
        """Give a place back; whoever waits longest gets it."""
        self._places.release()

    def drain(self) -> None:
        """Refuse every new call from now on. Calls that already wait or run are not disturbed (R68)."""
        self.draining = True

    async def _wait_for_place(self) -> None:
        if self.queued >= self.max_queued:
            raise self._refuse(f"{self.max_concurrent} calls are running and {self.queued} are waiting")
        with anyio.move_on_after(self.queue_timeout_s):
            await self.reacquire()
            return
        raise self._refuse(f"no place came free within {self.queue_timeout_s:g} s")

    def _refuse(self, why: str) -> ReliabilityError:
        self.refused += 1
        return self._busy(f"{self.what} is busy: {why}.", retry_after_s=self.queue_timeout_s)
