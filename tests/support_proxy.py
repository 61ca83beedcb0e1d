"""A TCP proxy that breaks what passes through it, in the ways in which networks and servers break.

    async with FaultProxy(target_port=server_port) as proxy:
        client = ... f"http://127.0.0.1:{proxy.port}"
        proxy.fault = latency(2)      # from now on, for open connections and for new ones
        proxy.fault = None            # all is well again

In a test that is not asynchronous: `with FaultProxy.in_thread(server_port) as proxy`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from anyio.from_thread import start_blocking_portal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    Fault = Callable[["Wire", bytes], Awaitable[None]]
    """Gets a piece of the server's answer, and sends of it to the client what it likes."""

_PIECE_BYTES = 65_536


class Wire:
    """One connection of a client, as a fault sees it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.sent_bytes = 0

    @property
    def is_closed(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._writer.is_closing()

    async def send(self, data: bytes) -> None:
        """Send to the client."""
        self._writer.write(data)
        self.sent_bytes += len(data)
        await self._writer.drain()

    def close(self) -> None:
        """End the connection as a server does that has no more to say."""
        self._writer.close()

    def reset(self) -> None:
        """End the connection as a host does that has crashed: with a TCP reset."""
        transport = self._writer.transport
        raw: socket.socket = transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def latency(seconds: float) -> Fault:
    """Every piece of an answer comes late."""

    async def fault(wire: Wire, piece: bytes) -> None:
        await asyncio.sleep(seconds)
        await wire.send(piece)

    return fault


def trickle(*, every_s: float, size: int = 1) -> Fault:
    """An answer comes a few bytes at a time: never silent for long, and never done."""

    async def fault(wire: Wire, piece: bytes) -> None:
        for start in range(0, len(piece), size):
            await wire.send(piece[start : start + size])
            await asyncio.sleep(every_s)

    return fault


def cut(*, after_bytes: int) -> Fault:
    """The connection is closed in the middle of an answer."""

    async def fault(wire: Wire, piece: bytes) -> None:
        await wire.send(piece[: max(0, after_bytes - wire.sent_bytes)])
        wire.close()

    return fault


def reset(*, after_bytes: int = 0) -> Fault:
    """The connection is reset in the middle of an answer."""

    async def fault(wire: Wire, piece: bytes) -> None:
        await wire.send(piece[: max(0, after_bytes - wire.sent_bytes)])
        wire.reset()

    return fault


async def silence(wire: Wire, piece: bytes) -> None:
    """The connection is half open: the host is gone, and nobody says so."""


def instead(pieces: Callable[[], Iterable[bytes]], *, every_s: float = 0) -> Fault:
    """Something else is sent than what the server answered: rubbish, or a stream without end."""

    async def fault(wire: Wire, piece: bytes) -> None:
        for other in pieces():
            await wire.send(other)
            await asyncio.sleep(every_s)
        wire.close()

    return fault


class FaultProxy:
    """Passes connections on to a local port.

    Args:
        target_port: Where the real server listens, on 127.0.0.1.

    Attributes:
        port: Where clients connect to.
        fault: What happens to answers; None for nothing.
        accepted: Connections since the start.
        open: Connections now.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.port = 0
        self.fault: Fault | None = None
        self.accepted = 0
        self._serving: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def open(self) -> int:
        return len(self._open)

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    async def listen(self) -> None:
        """Accept connections, at the same port as before."""
        self._serving = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._serving.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse connections, and end those that are open: the server's process is gone."""
        assert self._serving is not None
        self._serving.close()
        for writer in self._open:
            writer.transport.abort()
        while self._open:  # noqa: ASYNC110 - they end by themselves
            await asyncio.sleep(0.001)
        await self._serving.wait_closed()

    @classmethod
    @contextmanager
    def in_thread(cls, target_port: int) -> Iterator[FaultProxy]:
        """The same, in an event loop of its own."""
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(cls(target_port)) as proxy:
            yield proxy

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self.accepted += 1
        try:
            with suppress(OSError):
                await self._pass_on(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection("127.0.0.1", self._target_port)
        both = [
            asyncio.create_task(self._forward(reader, requests)),
            asyncio.create_task(self._answer(answers, Wire(writer))),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            requests.close()
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE_BYTES):
            target.write(piece)
            await target.drain()

    async def _answer(self, answers: asyncio.StreamReader, wire: Wire) -> None:
        while not wire.is_closed and (piece := await answers.read(_PIECE_BYTES)):
            if self.fault is None:
                await wire.send(piece)
            else:
                await self.fault(wire, piece)
