"""Tells a service manager how the server is: `sd_notify` of systemd, and of whoever speaks it (R70).

It asks for it with the environment variable NOTIFY_SOCKET. READY is sent when calls are served, STOPPING when a stop
begins, and WATCHDOG from the event loop, so that a loop that is stuck is noticed there, too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Self

import anyio

logger = logging.getLogger(__name__)

_RETRY_S = 0.1
_ATTEMPTS = 50
_WATCHDOGS_PER_LIMIT = 2
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceNotifier:
    """The messages to a service manager. None of them ever blocks, and none that fails is an error of the server.

    Args:
        address: A socket's path, or `@` and an abstract name.
        watchdog_s: Limit for the next WATCHDOG message, in seconds; None if none is expected.
        sleep: Waits that many seconds.
    """

    def __init__(
        self,
        address: str,
        *,
        watchdog_s: float | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._sleep = sleep
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    @classmethod
    def from_environment(cls) -> Self | None:
        """What the environment asks for, taken out of it because it is not meant for child processes."""
        address, limit_us, pid = (os.environ.pop(name, "") for name in _VARIABLES)
        if not address:
            return None
        if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
            logger.warning("the service manager cannot be told anything", extra={"notify_socket": address})
            return None
        is_meant = limit_us.isdecimal() and int(limit_us) > 0 and pid in ("", str(os.getpid()))
        return cls(address, watchdog_s=int(limit_us) / 1e6 if is_meant else None)

    async def announce(self, ready: asyncio.Event, stopping: asyncio.Event) -> None:
        """Say when the server is ready and when it begins to stop."""
        await ready.wait()
        await self._insist("READY=1")
        await stopping.wait()
        await self._insist("STOPPING=1")

    async def keep_alive(self) -> None:
        """Say again and again that the event loop runs, twice as often as asked for."""
        while self.watchdog_s is not None:
            self._send("WATCHDOG=1")
            await self._sleep(self.watchdog_s / _WATCHDOGS_PER_LIMIT)

    async def _insist(self, message: str) -> None:
        for _ in range(_ATTEMPTS):
            problem = self._send(message)
            if problem is None:
                return
            await self._sleep(_RETRY_S)
        logger.warning("the service manager was not told", extra={"notice": message, "error": str(problem)})

    def _send(self, message: str) -> OSError | None:
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:  # its queue is full, or it is being restarted itself
            return error
        return None
