"""What the supervisor says: JSON lines on stderr, as the server's own."""

from __future__ import annotations

import json
import os
import select
import time

from .supervisor_pipes import quietly

_LOGGER = __name__.removesuffix("_log")
_LEVELS = ("debug", "info", "warning", "error")


class StderrLog:
    """Writes as much as there is room for: what nobody reads is dropped, because nothing here may block.

    Args:
        level: The lowest one that is written.
    """

    def __init__(self, level: str) -> None:
        self._lowest = _LEVELS.index(level) if level in _LEVELS else 1
        self._poll = select.poll()
        self._poll.register(2, select.POLLOUT)

    def __call__(self, level: str, event: str, **fields: object) -> None:
        """Write one event."""
        if _LEVELS.index(level) < self._lowest:
            return
        seconds = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"
        line = {"time": stamp, "level": level, "event": event, "logger": _LOGGER, **fields}
        self.write(json.dumps(line, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n")

    def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        for begin in range(0, len(data), select.PIPE_BUF):  # what a pipe that polls writable takes without blocking
            if not any(event & select.POLLOUT for _, event in self._poll.poll(0)):
                return
            quietly(os.write, 2, data[begin : begin + select.PIPE_BUF])
