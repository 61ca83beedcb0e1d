"""Has the process restarted, between two calls, when its memory has grown over the hard limit (R69).

A leak is nobody's plan, so nobody repairs it at run time: a fresh process is the only cure. What one large call uses
and gives back is no leak; so it is judged when no call runs, and after everything that can be freed is freed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import anyio

from .health import rss_mb
from .memory import free_what_can_be_freed

logger = logging.getLogger(__name__)

_INTERVAL_S = 5.0
_SETTLE_S = 10.0
"""No restart sooner after the start: a limit that is too low must not look like a crash loop to a supervisor."""
_PAUSE_POLL_S = 0.02


class MemoryLimit:
    """Watches the resident memory; see the module.

    Args:
        limit_mb: The hard limit in MB (10^6 bytes).
        is_busy: Whether a call runs at this moment.
        restart: Begins the restart; gets a sentence for the log.
        patience_s: Longest wait for a pause between calls, in seconds; when it is over calls are refused to make one.
        used_mb: Measures; None where the platform does not tell, and then there is no limit.
        free: Gives back what can be given back.
        clock: Monotonic seconds.
        sleep: Waits that many seconds.
    """

    def __init__(
        self,
        limit_mb: float,
        *,
        is_busy: Callable[[], bool],
        restart: Callable[[str], None],
        patience_s: float,
        used_mb: Callable[[], float | None] = rss_mb,
        free: Callable[[], None] = free_what_can_be_freed,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.limit_mb = limit_mb
        self._is_busy = is_busy
        self._restart = restart
        self._patience_s = patience_s
        self._used_mb = used_mb
        self._free = free
        self._clock = clock
        self._sleep = sleep

    async def run(self) -> None:
        """Watch until a restart has begun. To be started as soon as the server is ready."""
        if not self._can_help():
            return
        await self._sleep(_SETTLE_S)
        while not await self._is_exceeded():
            await self._sleep(_INTERVAL_S)
        self._restart(f"{self._used():g} MB resident, over the hard limit of {self.limit_mb:g} MB")

    def _can_help(self) -> bool:
        """Whether a restart would: a server that needs more than the limit from its start is left alone."""
        used = self._used()
        if used > self.limit_mb:
            logger.error(
                "the hard memory limit is not kept: the server needs more already when it starts",
                extra={"rss_mb": used, "limit_mb": self.limit_mb},
            )
        return 0 < used <= self.limit_mb

    async def _is_exceeded(self) -> bool:
        if self._used() <= self.limit_mb:
            return False
        await self._pause_between_calls()
        if self._used() > self.limit_mb:
            self._free()  # takes as long as a slow call, so that a pause is the moment for it
        return self._used() > self.limit_mb

    async def _pause_between_calls(self) -> None:
        give_up = self._clock() + self._patience_s
        while self._is_busy() and self._clock() < give_up:
            await self._sleep(_PAUSE_POLL_S)

    def _used(self) -> float:
        return self._used_mb() or 0.0
