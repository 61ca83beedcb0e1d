"""The event loop's heartbeat in a file, for whoever looks from outside: `my-server probe` (R66).

A client owns a stdio server's pipes, so that nobody else can ask it anything. It leaves word instead. The loop writes
the file itself: one that is stuck leaves an old one behind.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

BEAT_S = 2.0
"""Time between two beats; after three without one the server counts as stuck."""
_UNREADY_BEATS = 10
"""So many beats in that time while the server is not ready, so that nobody waits longer for it than it takes."""


class Heartbeat:
    """Writes the file, as a whole or not at all. On a local file system that takes a tenth of a millisecond.

    Args:
        path: The file; every server needs one of its own.
        reason: Says why no calls should be sent to the server; empty while they should.
        address: Host and port of a server that can be asked over HTTP, too.
        beat_s: Time between two beats, in seconds.
        clock: Monotonic seconds, the same for every process of the machine.
    """

    def __init__(
        self,
        path: Path,
        *,
        reason: Callable[[], str],
        address: tuple[str, int] | None = None,
        beat_s: float = BEAT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._new = path.with_name(f"{path.name}.{os.getpid()}")
        self._reason = reason
        self._address = address
        self._beat_s = beat_s
        self._clock = clock
        self._problem: str | None = None

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat while the body runs, the first time at once; then remove the file. Only inside the event loop."""
        self._beat(asyncio.get_running_loop())
        try:
            yield
        finally:
            self._next.cancel()
            self._remove()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        reason = self._reason()
        pause_s = self._beat_s / _UNREADY_BEATS if reason else self._beat_s
        self._next = loop.call_later(pause_s, self._beat, loop)
        try:
            self.write(reason)
        except OSError as error:
            if str(error) != self._problem:  # not with every beat
                logger.warning("the heartbeat cannot be written", extra={"error": str(error)})
            self._problem = str(error)
        else:
            self._problem = None

    def write(self, reason: str) -> None:
        """One beat.

        Args:
            reason: Why the server is not ready, if it is not.

        Raises:
            OSError: The file cannot be written.
        """
        beat = {
            "pid": os.getpid(),
            "monotonic_s": self._clock(),
            "beat_s": self._beat_s,
            "reason": reason,
            "address": self._address,
        }
        self._new.unlink(missing_ok=True)  # never written through: in a directory for all somebody may have put a link
        with self._new.open("x", encoding="utf-8") as file:
            json.dump(beat, file)
        self._new.replace(self._path)

    def _remove(self) -> None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(self._path.read_text(encoding="utf-8"))["pid"] == os.getpid():
                self._path.unlink()
