"""Ends the process when its event loop is stuck, and shows where.

No thread of Python can do that: while C code holds the interpreter's lock none of them runs. `faulthandler` has a timer
in a thread of C that needs no lock. A heartbeat of the event loop winds that timer up again and again; when the loop
stops beating, the timer writes the stack of every thread and ends the process with exit code 1.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .process_contract import HANG_FD

logger = logging.getLogger(__name__)

_BEATS_PER_LIMIT = 10
_STDERR = 2


def is_debugged() -> bool:
    """Whether a debugger (or a measurement of coverage) sees every line: it may stop at one for as long as it likes."""
    if sys.gettrace() is not None:
        return True
    monitoring = getattr(sys, "monitoring", None)  # since Python 3.12
    return monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None


class HangDetector:
    """The heartbeat of the running event loop.

    Args:
        limit_s: How long the loop may be stuck, in seconds. The process lives at least that long, and at most a tenth
            longer. A process that was stopped from outside for as long (SIGSTOP) ends when it goes on.
        descriptor: Where the stacks are written.
        arm: Takes a time in seconds, `exit` and `file`; replaces the timer of the last time.
        disarm: Stops the timer.
        is_debugged: Whether a debugger may be holding the loop at this moment; then there is no timer.
    """

    def __init__(
        self,
        limit_s: float,
        *,
        descriptor: int = _STDERR,
        arm: Callable[..., None] = faulthandler.dump_traceback_later,
        disarm: Callable[[], None] = faulthandler.cancel_dump_traceback_later,
        is_debugged: Callable[[], bool] = is_debugged,
    ) -> None:
        self.beat_s = limit_s / _BEATS_PER_LIMIT
        self._limit_s = limit_s
        self._descriptor = descriptor
        self._arm = arm
        self._disarm = disarm
        self._is_debugged = is_debugged

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Beat while the body runs, the first time at once. Only inside the event loop."""
        self._beat(asyncio.get_running_loop())
        try:
            yield
        finally:
            self._next.cancel()
            self._disarm()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next = loop.call_later(self.beat_s, self._beat, loop)  # first: one failure must not end the heartbeat
        if self._is_debugged():
            self._disarm()
            return
        try:
            self._arm(self._limit_s + self.beat_s, exit=True, file=self._descriptor)
        except RuntimeError as error:  # the system gives no more threads
            logger.warning("a hang would not be noticed now", extra={"error": str(error)})


def report_crashes() -> None:
    """Write the stack of every thread to stderr when C code crashes or a service manager aborts the process."""
    faulthandler.enable(file=_stderr_that_never_blocks())


def descriptor_for_stacks() -> int:
    """Where the stacks of a hang go: to the supervisor if there is one, else to stderr. To be asked once."""
    given = os.environ.pop(HANG_FD, "")  # child processes neither get the descriptor nor hear of it
    if given:
        try:
            os.set_blocking(int(given), False)
            os.set_inheritable(int(given), False)
        except (ValueError, OSError) as error:
            logger.warning("the supervisor's descriptor cannot be used", extra={"value": given, "error": str(error)})
        else:
            return int(given)
    return _stderr_that_never_blocks()


def _stderr_that_never_blocks() -> int:
    """Another way to what stderr leads to: a pipe that nobody reads must not keep a hung process alive.

    Descriptor 2 itself stays as it is, because others share its mode. Where the system offers no other way, or none is
    needed, it is this one.
    """
    with suppress(OSError):
        mode = os.fstat(_STDERR).st_mode
        if sys.platform == "linux" and (stat.S_ISFIFO(mode) or os.isatty(_STDERR)):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{_STDERR}", flags)
    return _STDERR
