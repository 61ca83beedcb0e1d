"""Stops the process in order, and in time whatever happens (R31, R68).

Signals are noticed by a thread of their own, so that neither a blocked event loop nor a synchronous tool that never
returns can swallow them. The same thread ends the process when the orderly stop does not finish: a server is never
left hanging. A second Ctrl-C ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from .logs import flush_logs

logger = logging.getLogger(__name__)

STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it on purpose
    STOP_SIGNALS.append(signal.SIGHUP)

CLEANUP_S = 5.0
"""Time for the lifespan's cleanup after the last call has ended, in seconds."""
_TICK_S = 0.25
_DELIBERATE_S = 0.5
"""A SIGINT that follows another one sooner is its echo (a terminal and a launcher both send it)."""


class Shutdown:
    """The one place that knows whether, why and how fast this process is to stop.

    Create it inside the running event loop.

    Args:
        grace_s: Seconds that calls in flight get after a signal.
        delay_s: Seconds before that in which the server still takes calls, so that others notice that it stops.
        parent_pid: Stop as soon as this process is not our parent any more (right for stdio, wrong for a service).
    """

    def __init__(self, *, grace_s: float, delay_s: float = 0, parent_pid: int | None = None) -> None:
        self.grace_s = grace_s
        self.delay_s = delay_s
        self.reason: str | None = None
        self.exit_code = 0
        self.requested = asyncio.Event()
        self._parent_pid = parent_pid
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._kill_at = float("inf")
        self._cleaned_up = False
        self._interrupted_at = float("inf")

    def request(
        self, reason: str, *, grace_s: float | None = None, cleanup_s: float = CLEANUP_S, exit_code: int = 0
    ) -> None:
        """Begin to stop; only the first reason counts. May be called from any thread.

        A stop for good is another matter than a restart that has begun, and takes its place.

        Args:
            reason: For the log: "SIGTERM", "the client closed stdin".
            grace_s: Seconds for calls in flight, when it is not the usual time.
            cleanup_s: Seconds for the lifespan's cleanup after that; then the process is ended by force.
            exit_code: How the process ends; not 0 asks to be started again.
        """
        with self._lock:
            if self.reason is not None and (exit_code or not self.exit_code):
                return
            self.reason = reason
            self.exit_code = exit_code
            if grace_s is not None:
                self.grace_s = grace_s
            self._kill_at = min(self._kill_at, time.monotonic() + self.delay_s + self.grace_s + cleanup_s)
        logger.info("stopping", extra={"reason": reason, "grace_s": self.grace_s})
        with suppress(RuntimeError):  # the loop has closed: the end is near anyway
            self._loop.call_soon_threadsafe(self.requested.set)

    def cleaned_up(self) -> None:
        """Cleanup has run: what is left to do (joining threads) must not take longer than half a second."""
        with self._lock:
            self._cleaned_up = True
            self._kill_at = min(self._kill_at, time.monotonic() + 0.5)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listen for `STOP_SIGNALS` while the body runs. Only for the main thread."""
        receive, send = socket.socketpair()
        send.setblocking(False)
        for number in STOP_SIGNALS:
            signal.signal(number, _noted_by_the_wakeup_fd)
        signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(receive,), name="shutdown-watcher", daemon=True).start()
        yield  # the watcher stays: it also guards what happens between here and the end of the process

    def _watch(self, signals: socket.socket) -> None:
        while True:
            readable, _, _ = select.select([signals], [], [], _TICK_S)
            if readable:
                for number in signals.recv(64):
                    self._on_signal(number)
            if self._parent_pid not in (None, os.getppid()) and self.reason is None:
                self.request("the parent process is gone", grace_s=0, cleanup_s=1)
            if time.monotonic() >= self._kill_at:
                self._end_by_force()

    def _on_signal(self, number: int) -> None:
        if number not in STOP_SIGNALS:
            return
        now = time.monotonic()
        if number == signal.SIGINT and now > self._interrupted_at + _DELIBERATE_S:
            logger.warning("ended by a second SIGINT")
            flush_logs()
            os._exit(128 + number)
        if number == signal.SIGINT:
            self._interrupted_at = min(self._interrupted_at, now)
        self.request(signal.Signals(number).name)

    def _end_by_force(self) -> None:
        if not self._cleaned_up:
            logger.error("ended by force: the orderly stop took too long", extra={"reason": self.reason})
        flush_logs()
        os._exit(self.exit_code if self._cleaned_up else self.exit_code or 1)


def _noted_by_the_wakeup_fd(number: int, frame: FrameType | None) -> None:
    """Takes the place of Python's default handlers; the watcher thread acts."""


def end_process(code: int) -> NoReturn:
    """Leave with `code`, without waiting for threads that never end.

    A normal exit joins every worker thread, so one stuck synchronous tool would keep the process alive for ever.
    """
    flush_logs()
    give_up = time.monotonic() + 0.2
    while time.monotonic() < give_up:
        if not any(t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon):
            raise SystemExit(code)
        time.sleep(0.01)
    os._exit(code)
