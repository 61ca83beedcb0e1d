"""Runs programs that cannot hang a call, flood the memory, or stay behind (R5, R8, R47).

    result = await run_program(["git", "log", "--oneline"], timeout_s=5, cwd=directory)

A program is a dependency: run it through one, `git.call(lambda: run_program(...))`, and it has a breaker, a bulkhead
and statistics. What it started ends with it, unless that made a session of its own, as daemons do; on Windows only the
program itself is ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, Literal, cast

import anyio

from .deadlines import cleanup, deadline
from .errors import DeadlineExceeded, DependencyBusy, DependencyFailed, DependencyTimeout, Overloaded
from .load_shedding import LoadShedder

_TERMINATE_S: Final = 0.5
"""What a program gets between SIGTERM and SIGKILL, for example to remove its lock files."""
_VANISH_S: Final = 0.5
"""What the kernel gets to end a killed program, and pipes to end that a daemon still holds open."""
_PASSED_ON: Final = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT")
_places = LoadShedder(max_concurrent=16, max_queued=64, queue_timeout_s=5, what="The server's place for programs")
_alive: set[asyncio.Task[None]] = set()
"""The event loop holds its tasks weakly."""


@dataclass(frozen=True, kw_only=True)
class ProgramResult:
    """How a program ended and what it wrote."""

    exit_code: int | None
    """Minus the signal's number when a signal ended it; None when it was stopped because it wrote too much."""
    stdout: bytes
    stderr: bytes
    duration_s: float

    @property
    def truncated(self) -> bool:
        """Whether it wrote more than was kept."""
        return self.exit_code is None

    @property
    def text(self) -> str:
        """Standard output as text; what is not UTF-8 is replaced."""
        return self.stdout.decode(errors="replace")


async def run_program(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float,
    max_output_bytes: int = 1_000_000,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> ProgramResult:
    """Run a program to its end, with nothing to read. It is killed when its time is over or the caller is cancelled.

    Args:
        argv: The program and its arguments; no shell reads them.
        timeout_s: Its time in seconds, the wait for a place not included; never more than is left of the deadline.
        max_output_bytes: What is kept of each stream. A program that writes more is stopped.
        cwd: The directory to run in.
        env: Variables beside PATH, HOME and the like; the server's others may hold secrets and are not passed on.

    Returns:
        Its result, whatever its exit code: what that means, the caller knows.

    Raises:
        DependencyFailed: It cannot be started; not retryable when it is missing.
        DependencyTimeout: It ran longer than `timeout_s`.
        DependencyBusy: Too many programs are running.
    """
    name = PurePath(argv[0]).name
    started = time.monotonic()
    try:
        await _places.acquire()
    except Overloaded as busy:
        raise DependencyBusy(name, busy.text, retry_after_s=busy.retry_after_s) from None
    try:
        program = _Program(max_output_bytes)
        running = asyncio.get_running_loop().create_task(program.live(argv, cwd, _environment(env)))
        _alive.add(running)
        running.add_done_callback(_forget)
        try:
            with deadline(timeout_s):
                await asyncio.wait([running])
        except DeadlineExceeded:
            raise DependencyTimeout(name, timeout_s) from None
        finally:
            program.stop()
            with cleanup(_TERMINATE_S + 4 * _VANISH_S, what=f"the end of {name!r}"):
                await asyncio.wait([running])
    finally:
        _places.release()
    try:
        running.result()
    except OSError as error:
        lacking = isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError)
        text = f"The program {name!r} could not be started: {error.strerror}."
        raise DependencyFailed(name, text, retryable=not lacking) from None
    return program.result(time.monotonic() - started)


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | dict(more or {})


def _forget(task: asyncio.Task[None]) -> None:
    _alive.discard(task)
    if not task.cancelled():
        task.exception()  # its caller may have gone; nobody else is to be told


class _Program(asyncio.SubprocessProtocol):
    """One run, in a task of its own that nobody cancels: so there is no moment at which a child could get lost."""

    def __init__(self, max_output_bytes: int) -> None:
        self._ending = asyncio.Event()  # it ended, wrote too much, or is to be stopped
        self._exited = asyncio.Event()
        self._disconnected = asyncio.Event()
        self._output = {1: bytearray(), 2: bytearray()}
        self._overflown = False
        self._exit_code: int | None = None
        self._max_output_bytes = max_output_bytes

    def stop(self) -> None:
        """End it soon."""
        self._ending.set()

    def result(self, duration_s: float) -> ProgramResult:
        """What is known by now."""
        return ProgramResult(
            exit_code=None if self._overflown else self._exit_code,
            stdout=bytes(self._output[1]),
            stderr=bytes(self._output[2]),
            duration_s=duration_s,
        )

    async def live(
        self, argv: Sequence[str | os.PathLike[str]], cwd: str | os.PathLike[str] | None, environment: dict[str, str]
    ) -> None:
        """Start it, and see it to its end.

        Raises:
            OSError: It could not be started.
        """
        await asyncio.get_running_loop().subprocess_exec(
            lambda: self,
            *argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )
        try:
            await self._ending.wait()
        finally:  # the event loop itself may be closing
            await self._end()

    async def _end(self) -> None:
        try:
            if not self._exited.is_set():
                self._signal("SIGTERM")
                await _within(_TERMINATE_S, self._exited)
        finally:  # its children, too, when it has ended by itself: they would hold the pipes open
            self._signal("SIGKILL")
        await _within(_VANISH_S, self._exited)
        if not self._overflown:
            await _within(_VANISH_S, self._disconnected)  # what is left in the pipes
        self._transport.close()
        await _within(_VANISH_S, self._disconnected)

    def _signal(self, name: Literal["SIGTERM", "SIGKILL"]) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                self._transport.kill()  # the one way to end a program there
            else:
                os.killpg(self._transport.get_pid(), signal.Signals[name])

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.SubprocessTransport", transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        kept = self._output[fd]
        room = self._max_output_bytes - len(kept)
        kept += data[:room]
        if len(data) > room:
            self._overflown = True
            self._ending.set()

    def process_exited(self) -> None:
        self._exit_code = self._transport.get_returncode()
        self._exited.set()
        self._ending.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._disconnected.set()


async def _within(limit_s: float, event: asyncio.Event) -> None:
    with anyio.move_on_after(limit_s):
        await event.wait()
