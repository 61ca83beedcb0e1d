"""Pipes that never block: which of them are ready, and what waits for room in them (R17)."""

from __future__ import annotations

import errno
import os
import select
import stat
from collections import deque

from .client_pipes import widen

TYPE_CHECKING = False  # of `typing`, which is not imported: the supervisor is small
if TYPE_CHECKING:
    from collections.abc import Callable

    from .rpc_lines import Line

CHUNK_BYTES = 65_536
_PIECES_AT_ONCE = 64
_LONGEST_WAIT_MS = 60_000
"""The system takes no time of weeks, and a loop that wakes up once a minute costs nothing."""


class Poller:
    """Waits for descriptors and calls what is to be done about them."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._events: dict[int, int] = {}
        self._handlers: dict[int, Callable[[float], None]] = {}

    def watch(self, fd: int, events: int, handler: Callable[[float], None]) -> None:
        """Have `handler` called with the time when one of `events` is there, or an error or a hang-up."""
        self._handlers[fd] = handler
        self._events[fd] = events
        self._poll.register(fd, events)

    def is_watched(self, fd: int) -> bool:
        """Whether anything is expected of it."""
        return fd in self._handlers

    def expect(self, fd: int, events: int) -> None:
        """Wait for other events, if it is watched at all."""
        if self._events.get(fd, events) != events:
            self._events[fd] = events
            self._poll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Wait no longer for it."""
        if self._handlers.pop(fd, None) is not None:
            del self._events[fd]
            self._poll.unregister(fd)

    def wait(self, timeout_ms: float | None, clock: Callable[[], float]) -> float:
        """Wait until something is ready, or a minute at most unless for ever; handle it, and say when it became so."""
        ready = self._poll.poll(None if timeout_ms is None else min(timeout_ms, _LONGEST_WAIT_MS))
        now = clock()
        for fd, event in ready:
            handler = self._handlers.get(fd)  # gone, if an event before this one has ended the server
            if handler is not None and event != select.POLLOUT:  # for which whoever writes tries again
                handler(now)
        return now


class Outgoing:
    """Lines on their way into a pipe.

    Args:
        fd: Its writing end, which does not block.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.is_closed = False
        self.size = 0
        """Bytes that are not written yet."""
        self._pieces: deque[tuple[bytes, Line | None]] = deque()
        """What is to be written, and the line that begins with it."""
        self._written = 0
        """How much of the first piece is written."""

    def write(self, lines: list[Line]) -> None:
        """Write what there is room for, and keep the rest.

        Raises:
            OSError: Nobody reads any more.
        """
        if len(lines) == 1 and not self._pieces and isinstance(line := lines[0], bytes):  # nearly always
            try:
                done = os.write(self.fd, line)
            except BlockingIOError:
                done = 0
            except OSError:
                self._keep(line)
                raise
            if done == len(line):
                return
            self._written = done
            self.size -= done
        for line in lines:
            self._keep(line)
        while self._pieces and self._write_once():
            pass

    def write_piece(self, piece: bytes) -> None:
        """Let a part of a line follow what is there; the next `write` writes it."""
        if not self.is_closed:
            self._pieces.append((piece, None))
            self.size += len(piece)

    def unsent(self) -> list[Line]:
        """Lines of which nothing is written."""
        begun = 1 if self._written else 0
        return [line for _, line in list(self._pieces)[begun:] if line is not None]

    def close(self) -> None:
        """Let the reader see the end; what is not written is dropped."""
        if not self.is_closed:
            self.is_closed = True
            self.size = 0
            os.close(self.fd)

    def _keep(self, line: Line) -> None:
        self.size += len(line)
        first, *rest = [line] if isinstance(line, bytes) else line.pieces
        self._pieces.append((first, line))
        self._pieces.extend((piece, None) for piece in rest)

    def _write_once(self) -> bool:
        more = [self._pieces[i][0] for i in range(1, min(len(self._pieces), _PIECES_AT_ONCE))]
        try:
            done = os.writev(self.fd, [memoryview(self._pieces[0][0])[self._written :], *more])
        except BlockingIOError:
            return False
        self.size -= done
        self._written += done
        while self._pieces and self._written >= len(self._pieces[0][0]):
            self._written -= len(self._pieces.popleft()[0])
        return True


def read(fd: int) -> bytes | None:
    """What is there, at most `CHUNK_BYTES`; empty at the end, None where nothing is there yet."""
    try:
        return os.read(fd, CHUNK_BYTES)
    except BlockingIOError:
        return None
    except OSError as error:
        return None if error.errno == errno.EINTR else b""


def new_pipe() -> tuple[int, int]:
    """A wide pipe: its reading end and its writing end."""
    read_end, write_end = os.pipe()
    widen(write_end)
    return read_end, write_end


def make_ready(fd: int) -> None:
    """Keep an inherited pipe or socket from blocking, and let long lines pass in few steps."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        os.set_blocking(fd, False)  # noqa: FBT003
        widen(fd)


def quietly(function: Callable[..., object], *arguments: object) -> None:
    """Call what may fail because the other side is gone."""
    try:
        function(*arguments)
    except OSError:
        return
