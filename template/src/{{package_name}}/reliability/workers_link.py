"""What the processes of one service say to each other: the parent to each of its workers, and back.

One line of JSON is one message, over a pair of sockets that a worker inherits. A worker says how it is (`state`), asks
all the others something (`ask`), answers that (`answer`), or tells them something (`share`); the parent passes it on.
It says why others are not ready (`others`), and that all of them are to stop (`stop`), which a signal goes with.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Self, cast

import anyio

from .listener import SharedListener

logger = logging.getLogger(__name__)

Message = dict[str, Any]

WORKER: Final = "_MCP_SERVER_WORKER"
"""Environment variable of a worker: its number, and the descriptors of the listening socket and of its link.

No project's settings begin with an underscore.
"""
_MOMENT_S = 0.1
BEAT_S = 1.0
"""Time between two messages that say how a worker is."""
_LOSABLE: Final = ("state", "share")
"""Kinds of messages that may be lost: a worker says again how it is, and a client gets a little more than it may."""
_MAX_WAITING_BYTES = 1_000_000


class Link(asyncio.Protocol):
    """One end of the pair.

    Args:
        on_message: Is given every message.
        on_close: Is called when the other end is gone.
    """

    def __init__(self, on_message: Callable[[Message], None], on_close: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_close = on_close
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def over(
        cls, own: socket.socket, on_message: Callable[[Message], None], on_close: Callable[[], None] = lambda: None
    ) -> Self:
        """The end that `own` is; it is closed with the link."""
        own.setblocking(False)
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(lambda: cls(on_message, on_close), sock=own)
        return link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio's protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Deliver the messages that are complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                self._on_message(json.loads(line))
            except Exception:
                logger.exception("a message of another process could not be read")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it ended does not matter
        """Part of asyncio's protocol."""
        self._on_close()

    def send(self, **message: object) -> None:
        """Send a message; to an end that is gone it is lost.

        To one that does not read, because it is stuck or stopped, it waits; if much waits already, what may be lost is.
        """
        if self._transport is None or self._transport.is_closing():
            return
        if message["kind"] not in _LOSABLE or self._transport.get_write_buffer_size() < _MAX_WAITING_BYTES:
            self._transport.write(json.dumps(message, default=str).encode() + b"\n")

    def close(self) -> None:
        """Say no more."""
        if self._transport is not None:
            self._transport.close()


@dataclass(frozen=True, kw_only=True)
class Member:
    """One worker as the parent knows it."""

    number: int
    pid: int | None
    """None while it is being started."""
    restarts: int


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the other workers answered."""

    bodies: dict[int, Any] = field(default_factory=dict)
    """By their numbers; one that did not answer in time is missing."""
    members: list[Member] = field(default_factory=list)
    """Every worker that there should be, whoever asked included."""


class Worker:
    """This process as one of several workers.

    Args:
        number: Which one it is, from 1.
        listener: The socket on which all of them listen.
        own: Its end of the link to the parent.
    """

    def __init__(self, number: int, listener: socket.socket, own: socket.socket) -> None:
        self.number = number
        self.listener = listener
        self.is_orphan = False
        """Whether the parent is gone."""
        self.others_unready_because = ""
        """Why another worker is not ready for calls; empty while all of them are."""
        self.all_stop = asyncio.Event()
        """Set when the whole service stops, and not this worker alone."""
        self.on_orphaned: Callable[[], None] = lambda: None
        self.on_share: Callable[[Any], None] = lambda _: None
        """Is given what another worker shares."""
        self._own = own
        self._link: Link | None = None
        self._handlers: dict[str, Callable[[], Awaitable[Any]]] = {}
        self._asked: dict[int, asyncio.Future[Answers]] = {}
        self._questions = 0
        self._answering: set[asyncio.Task[None]] = set()

    @classmethod
    def from_environment(cls) -> Self | None:
        """What the parent has given to this process; None for one that is no worker."""
        given = os.environ.pop(WORKER, "")  # neither it nor the descriptors are for child processes
        if not given:
            return None
        number, *descriptors = map(int, given.split())
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return cls(number, SharedListener(fileno=descriptors[0]), socket.socket(fileno=descriptors[1]))

    def answer(self, what: str, with_what: Callable[[], Awaitable[Any]]) -> None:
        """Answer the question `what` of other workers with what this returns, which JSON can hold."""
        self._handlers[what] = with_what

    async def connect(self) -> None:
        """Begin to hear what the parent says."""
        self._link = await Link.over(self._own, self._hear, self._lose_parent)

    async def report(self, unready_because: Callable[[], str]) -> None:
        """Tell the parent again and again how this worker is, and every change soon, until cancelled.

        Args:
            unready_because: Why no calls should be sent to any worker; empty while they should.
        """
        said_at, said = 0.0, ""
        while True:
            now, reason = time.monotonic(), unready_because()
            if reason != said or now >= said_at + BEAT_S:
                self._send(kind="state", reason=reason)
                said_at, said = now, reason
            await anyio.sleep(BEAT_S / 10)

    async def ask(self, what: str, *, limit_s: float) -> Answers:
        """Ask all the other workers, and wait for their answers for `limit_s` seconds."""
        if self._link is None or self.is_orphan:
            return Answers()
        self._questions += 1
        question = self._questions
        future: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()
        self._asked[question] = future
        self._send(kind="ask", question=question, what=what, limit_s=limit_s)
        try:
            with anyio.move_on_after(limit_s + BEAT_S):  # the parent keeps the time; this is for one that hangs
                return await future
        finally:
            del self._asked[question]
        return Answers()

    async def stops_alone(self) -> bool:
        """Whether this worker stops and the others go on. Who stops all of them says so before a moment is over."""
        with anyio.move_on_after(0 if self.is_orphan else _MOMENT_S):
            await self.all_stop.wait()
        return not self.all_stop.is_set()

    def share(self, body: object) -> None:
        """Tell all the other workers."""
        self._send(kind="share", body=body)

    def _send(self, **message: object) -> None:
        if self._link is not None:
            self._link.send(**message)

    def _hear(self, message: Message) -> None:
        match message["kind"]:
            case "others":
                self.others_unready_because = message["reason"]
            case "share":
                self.on_share(message["body"])
            case "stop":
                self.all_stop.set()
            case "ask":
                task = asyncio.ensure_future(self._answer(message["question"], message["what"]))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case "answers":
                self._settle(message)

    async def _answer(self, question: int, what: str) -> None:
        try:
            self._send(kind="answer", question=question, body=await self._handlers[what]())
        except Exception:
            logger.exception("another worker got no answer", extra={"question": what})

    def _settle(self, message: Message) -> None:
        future = self._asked.get(message["question"])
        if future is not None and not future.done():
            bodies = {int(number): body for number, body in message["bodies"].items()}
            future.set_result(Answers(bodies=bodies, members=[Member(**member) for member in message["members"]]))

    def _lose_parent(self) -> None:
        self.is_orphan = True
        self.on_orphaned()
