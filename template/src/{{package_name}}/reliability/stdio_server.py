"""Serves one client over stdio.

What the SDK's own runner lacks and this one has: it ends cleanly on SIGTERM and SIGINT, on end of input, and within two
seconds of the client's death, even when the event loop or a synchronous tool is stuck; it answers malformed lines and
refuses oversize ones; it never blocks the event loop on a client that does not read. A daemon thread reads the
requests, so that nothing has to be joined at the end; answers are written at once where the pipe has room. Pipes that
do not block, such as a supervisor's, need neither the thread nor small steps.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import anyio
import anyio.to_thread
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from .json_lines import LineSplitter, OversizeLine, oversize_error, parse_line
from .process_guards import guarded, is_supervised
from .server import ReliableServer
from .shutdown import Shutdown, end_process
from .stdio_wire import Wire

logger = logging.getLogger(__name__)

EOF_GRACE_S = 1.0
"""Time for calls in flight after the end of input (`printf ... | my-server` expects its answers)."""
_EOF_CLEANUP_S = 0.8
_CHUNK_BYTES = 65_536
_ATOMIC_BYTES = getattr(select, "PIPE_BUF", 512)
"""A pipe that polls writable takes this many bytes without blocking."""
_SLICE_MS = 100
_ITEM_BYTES = 16_384
"""What one queued message or open request costs beside its own bytes, amply counted."""
_MIN_ROOM_BYTES = 20_000_000
_STREAM_METHODS = frozenset({"subscriptions/listen"})
"""Requests that stay open for the whole session; a shutdown does not wait for them."""


def run_stdio(
    server: ReliableServer[Any],
    wire: Wire,
    *,
    max_message_bytes: int,
    grace_s: float,
    heartbeat_path: Path | None = None,
) -> NoReturn:
    """Serve until the client leaves or the process is told to stop, clean up, and end the process.

    Args:
        server: What to serve.
        wire: The protocol's private descriptors.
        max_message_bytes: Longest request that is accepted.
        grace_s: Seconds that calls in flight get after SIGTERM or SIGINT.
        heartbeat_path: File for the heartbeat; none by default.
    """
    serve = partial(
        _serve, server, wire, max_message_bytes=max_message_bytes, grace_s=grace_s, heartbeat_path=heartbeat_path
    )
    try:
        exit_code = anyio.run(serve)
    except Exception:
        logger.exception("the server failed")
        end_process(1)
    end_process(exit_code)


async def _serve(
    server: ReliableServer[Any], wire: Wire, *, max_message_bytes: int, grace_s: float, heartbeat_path: Path | None
) -> int:
    shutdown = Shutdown(grace_s=grace_s, parent_pid=wire.parent_pid)
    outbox = Outbox(wire.write_fd, shutdown)
    inbox = Inbox(wire, outbox, shutdown, max_message_bytes)
    with shutdown.watching():
        inbox.start()
        async with guarded(server, shutdown, is_restarted=is_supervised(), heartbeat_path=heartbeat_path) as tasks:
            tasks.start_soon(_drain_when_asked, shutdown, server, inbox, outbox)
            await server.lowlevel.run(inbox, outbox, server.lowlevel.create_initialization_options())
    shutdown.cleaned_up()
    return shutdown.exit_code


async def _drain_when_asked(shutdown: Shutdown, server: ReliableServer[Any], inbox: Inbox, outbox: Outbox) -> None:
    await shutdown.requested.wait()
    if not inbox.at_end:  # what was sent before the end of input is still to be served, and nothing new can come
        server.drain()
    with anyio.move_on_after(shutdown.grace_s):
        await outbox.all_answered()
    inbox.end()
    outbox.abandon()


class Outbox:
    """The write stream of the SDK's server: one whole line per message, in order."""

    def __init__(self, fd: int, shutdown: Shutdown) -> None:
        self._fd = fd
        self._shutdown = shutdown
        self._lock = anyio.Lock(fast_acquire=True)
        self._unanswered: dict[int | str, int] = {}
        self.on_settled: Callable[[int], None] = lambda _: None
        """Called with the size of a request that is answered or given up."""
        self._abandoned = False
        self._answered = asyncio.Event()
        self._answered.set()
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)
        self._never_blocks = _never_blocks(fd)

    def expect_answer(self, request_id: int | str, size: int) -> None:
        """A request of `size` bytes has arrived that a shutdown should wait for."""
        self._unanswered[request_id] = self._unanswered.get(request_id, 0) + size
        self._answered.clear()

    def forget(self, request_id: object) -> None:
        """The request is answered, or its client has given it up."""
        if isinstance(request_id, int | str):
            self.on_settled(self._unanswered.pop(request_id, 0))
        if not self._unanswered:
            self._answered.set()

    async def all_answered(self) -> None:
        """Wait until no request is open."""
        await self._answered.wait()

    def abandon(self) -> None:
        """Give up lines that the client does not read: the process is about to end."""
        self._abandoned = True

    async def send(self, item: SessionMessage, /) -> None:
        """Write one message.

        Raises:
            anyio.BrokenResourceError: The client has closed its end.
        """
        await self.send_message(item.message)

    async def send_message(self, message: JSONRPCMessage) -> None:
        """`send` for a bare message."""
        line = memoryview(message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
        try:
            async with self._lock:
                rest = self._write_what_fits(line)
                if rest:  # half a line would ruin the stream, so that a cancelled call must not stop it
                    with anyio.CancelScope(shield=True):
                        await anyio.to_thread.run_sync(self._write_all, rest)
        except OSError as error:
            self._shutdown.request("the client closed stdout", grace_s=0, cleanup_s=1)
            raise anyio.BrokenResourceError from error
        if isinstance(message, JSONRPCResponse | JSONRPCError):
            self.forget(message.id)

    def _write_what_fits(self, data: memoryview) -> memoryview:
        if self._never_blocks:
            with suppress(BlockingIOError):
                data = data[os.write(self._fd, data) :]
            return data
        while self._poll and data and self._poll.poll(0):
            data = data[os.write(self._fd, data[:_ATOMIC_BYTES]) :]
        return data

    def _write_all(self, data: memoryview) -> None:
        while data:
            if self._poll is None:
                data = data[os.write(self._fd, data) :]
            elif self._poll.poll(_SLICE_MS):
                data = data[os.write(self._fd, data if self._never_blocks else data[:_ATOMIC_BYTES]) :]
            elif self._abandoned:
                raise BrokenPipeError("the client does not read")

    async def aclose(self) -> None:
        """Part of the SDK's protocol; the descriptor belongs to the process."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class Inbox:
    """The read stream of the SDK's server, filled by a daemon thread, or by the event loop where that cannot block."""

    def __init__(self, wire: Wire, outbox: Outbox, shutdown: Shutdown, max_message_bytes: int) -> None:
        self._wire = wire
        self._outbox = outbox
        self._shutdown = shutdown
        self._lines = LineSplitter(max_message_bytes)
        self._loop = asyncio.get_running_loop()
        self._received: deque[tuple[SessionMessage | JSONRPCError, int]] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self.at_end = False
        self._room = _ByteBudget(max(2 * max_message_bytes, _MIN_ROOM_BYTES))
        outbox.on_settled = self._give_back
        self._is_paused = False
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(wire.read_fd, select.POLLIN)
            self._poll.register(wire.write_fd, 0)  # reports only that the other side is gone

    def start(self) -> None:
        """Begin to read."""
        if _never_blocks(self._wire.read_fd):
            self._loop.add_reader(self._wire.read_fd, self._read_in_loop)
            self._loop.add_reader(self._wire.write_fd, self._stop_reading)  # nothing comes but the end of the reader
        else:
            threading.Thread(target=self._read, name="stdin-reader", daemon=True).start()

    def end(self) -> None:
        """Let the server see the end of input; what is still queued is dropped."""
        self._ended = True
        self._received.clear()
        self._arrived.set()

    async def receive(self) -> SessionMessage | Exception:
        """The next message; malformed ones are answered here and never reach the server.

        Raises:
            anyio.EndOfStream: `end` was called.
        """
        while True:
            while not self._received:
                if self._ended:
                    raise anyio.EndOfStream
                self._arrived.clear()
                await self._arrived.wait()
            item, size = self._received.popleft()
            if isinstance(item, SessionMessage):
                if not _is_awaited(item.message):  # the room of a request is given back with its answer
                    self._give_back(size)
                return item
            with suppress(anyio.BrokenResourceError):  # the end is on its way already
                await self._outbox.send_message(item)
            self._give_back(size)

    def _note(self, message: JSONRPCMessage, size: int) -> None:
        if isinstance(message, JSONRPCRequest) and _is_awaited(message):
            self._outbox.expect_answer(message.id, size)
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            self._outbox.forget((message.params or {}).get("requestId"))

    def _read(self) -> None:
        try:
            while chunk := self._next_chunk():
                self._deliver_lines(self._lines.feed(chunk))
        except Exception:
            logger.exception("reading failed")
            self._shutdown.request("reading failed")

    def _deliver_lines(self, lines: Iterator[bytes | OversizeLine]) -> None:
        for item, size in self._messages(lines):
            self._deliver(item, size)

    def _messages(self, lines: Iterator[bytes | OversizeLine]) -> Iterator[tuple[SessionMessage | JSONRPCError, int]]:
        for line in lines:
            if isinstance(line, OversizeLine):
                yield oversize_error(line, self._lines.max_bytes), len(line.prefix)
            elif (message := parse_line(line)) is not None:
                yield message, len(line)

    def _read_in_loop(self) -> None:
        """Take what is there. While there is no room nothing more is read, and whoever started us sees to the end."""
        try:
            chunk = os.read(self._wire.read_fd, _CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            logger.warning("stdin cannot be read", extra={"error": str(error)})
            chunk = b""
        for item, size in self._messages(self._lines.feed(chunk) if chunk else self._lines.end()):
            self._room.take_all_the_same(size + _ITEM_BYTES)
            self._append(item, size + _ITEM_BYTES)
        if not chunk:
            self._loop.remove_reader(self._wire.read_fd)
            self.at_end = True
            self._end_of_input()
        elif self._room.is_full:
            self._loop.remove_reader(self._wire.read_fd)
            self._is_paused = True

    def _give_back(self, size: int) -> None:
        self._room.give_back(size)
        if self._is_paused and not self._room.is_full:
            self._is_paused = False
            self._loop.add_reader(self._wire.read_fd, self._read_in_loop)

    def _stop_reading(self) -> None:
        self._is_paused = False
        for fd in (self._wire.read_fd, self._wire.write_fd):
            self._loop.remove_reader(fd)
        self._shutdown.request("the client closed stdout", grace_s=0, cleanup_s=1)

    def _next_chunk(self) -> bytes | None:
        """Bytes from the client; None when it is gone, or has closed either of the two pipes."""
        if self._poll and any(fd == self._wire.write_fd for fd, _ in self._poll.poll()):
            self._shutdown.request("the client closed stdout", grace_s=0, cleanup_s=1)
            return None
        try:
            chunk = os.read(self._wire.read_fd, _CHUNK_BYTES)
        except OSError as error:
            logger.warning("stdin cannot be read", extra={"error": str(error)})
            chunk = b""
        if not chunk:
            self._deliver_lines(self._lines.end())
            self.at_end = True
            self._end_of_input()
            return None
        return chunk

    def _deliver(self, item: SessionMessage | JSONRPCError, size: int) -> None:
        while not self._room.take(size + _ITEM_BYTES, timeout_s=_SLICE_MS / 1000):
            self._notice_end_of_input()
        with suppress(RuntimeError):  # the loop has closed: nobody is served any more
            self._loop.call_soon_threadsafe(self._append, item, size + _ITEM_BYTES)

    def _notice_end_of_input(self) -> None:
        """Nothing is read while there is no room, so that the end of input would not be seen either."""
        if self._poll and any(fd == self._wire.read_fd and event & select.POLLHUP for fd, event in self._poll.poll(0)):
            self._end_of_input()

    def _end_of_input(self) -> None:
        self._shutdown.request("the client closed stdin", grace_s=EOF_GRACE_S, cleanup_s=_EOF_CLEANUP_S)

    def _append(self, item: SessionMessage | JSONRPCError, size: int) -> None:
        if self._ended:
            return
        if isinstance(item, SessionMessage):
            self._note(item.message, size)  # not when it is taken: a shutdown must not overlook what is still queued
        self._received.append((item, size))
        self._arrived.set()

    async def aclose(self) -> None:
        """Part of the SDK's protocol; the reader is a daemon thread."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _is_awaited(message: JSONRPCMessage) -> bool:
    """Whether a shutdown waits for the answer to it."""
    return isinstance(message, JSONRPCRequest) and message.method not in _STREAM_METHODS


def _never_blocks(fd: int) -> bool:
    """Whether it is a pipe in non-blocking mode."""
    return sys.platform != "win32" and stat.S_ISFIFO(os.fstat(fd).st_mode) and not os.get_blocking(fd)


class _ByteBudget:
    """Makes the reader wait while too much is queued or unanswered, so that a flood stays in the client's pipe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._freed = threading.Condition()

    def take(self, size: int, *, timeout_s: float) -> bool:
        with self._freed:
            fits = self._freed.wait_for(lambda: self._used == 0 or self._used + size <= self._limit, timeout_s)
            self._used += size if fits else 0
            return fits

    def take_all_the_same(self, size: int) -> None:
        with self._freed:
            self._used += size

    @property
    def is_full(self) -> bool:
        return self._used > self._limit

    def give_back(self, size: int) -> None:
        with self._freed:
            self._used -= size
            self._freed.notify()
