"""Tools that bring their own process down, and two that tell what it knows; copied into a generated project."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context  # noqa: TC002 - the SDK looks it up
from mcp_types import EmptyResult, SetLevelRequestParams, SubscribeRequestParams, UnsubscribeRequestParams
from pydantic import BaseModel
from reliability import ReliableServer, tool

from .at_start import PLANNED, STDOUT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_known: dict[str, Any] = {"level": None, "subscriptions": []}
_leaked: list[bytes] = []


def add_handlers(server: ReliableServer[Any]) -> None:
    """Let clients subscribe and choose a log level, and let a server die of its first request."""

    async def set_level(_: Any, params: SetLevelRequestParams) -> EmptyResult:
        _known["level"] = params.level
        return EmptyResult()

    async def subscribe(_: Any, params: SubscribeRequestParams) -> EmptyResult:
        _known["subscriptions"].append(str(params.uri))
        return EmptyResult()

    async def unsubscribe(_: Any, params: UnsubscribeRequestParams) -> EmptyResult:
        _known["subscriptions"].remove(str(params.uri))
        return EmptyResult()

    server.lowlevel.add_request_handler("logging/setLevel", SetLevelRequestParams, set_level)
    server.lowlevel.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)
    server.lowlevel.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, unsubscribe)

    async def at_every_request(ctx: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        if PLANNED == "dies-when-asked":
            os.kill(os.getpid(), signal.SIGKILL)
        if PLANNED == "silent-when-asked":
            await anyio.sleep_forever()
        return await call_next(ctx)

    server.lowlevel.middleware.append(at_every_request)


def say(event: str) -> None:
    """Write a line of the log at once: the thread that writes the others may not come to it."""
    os.write(2, json.dumps({"event": event}).encode() + b"\n")


@tool()
async def append(path: str, text: str, pause_s: float = 0) -> str:
    """Add a line to a file, and then take some time."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{text}\n".encode())
    os.close(file)
    await anyio.sleep(pause_s)
    return text


@tool()
async def echo(text: str) -> str:
    """Give the text back."""
    return text


@tool()
async def measure(text: str) -> int:
    """Count characters."""
    return len(text)


@tool()
async def produce(size: int) -> str:
    """Return that many characters."""
    return "x" * size


@tool()
async def sleep(seconds: float) -> str:
    """Take that long."""
    say("sleep begins")
    await anyio.sleep(seconds)
    return "slept"


@tool()
async def end(code: int) -> str:
    """End the process at once."""
    os._exit(code)


@tool()
async def block_the_loop(seconds: float) -> str:
    """Block the event loop."""
    say("block_the_loop begins")
    time.sleep(seconds)  # noqa: ASYNC251
    return "blocked"


@tool()
def hold_the_interpreter(seconds: float) -> str:
    """Block in C code that keeps the interpreter's lock."""
    say("hold_the_interpreter begins")
    ctypes.PyDLL(None).sleep(int(seconds))
    return "held"


@tool()
async def leak(megabytes: int) -> str:
    """Use memory and never give it back."""
    _leaked.append(os.urandom(1_000_000) * megabytes)
    return "leaked"


@tool()
async def flood_stderr(megabytes: int) -> str:
    """Write to stderr as a C library does, from a thread."""

    def write() -> None:
        for _ in range(megabytes * 10):
            os.write(2, b"x" * 99_999 + b"\n")

    await anyio.to_thread.run_sync(write)
    return "flooded"


@tool()
async def print_rubbish() -> str:
    """Write to the real stdout what is no message."""
    for rubbish in (b"plain text", b'{"no": "message"}', b"[1, 2]", b"\xff\xfe\x00", b"x" * 3_000_000, b"", b"{" * 999):
        await anyio.to_thread.run_sync(_write_all, rubbish + b"\n")
    return "printed"


@tool()
async def print_a_long_line(megabytes: int, begin: str = "") -> str:
    """Write to the real stdout a line that has no end for a long time."""
    await anyio.to_thread.run_sync(_write_all, begin.encode())
    for _ in range(megabytes):
        await anyio.to_thread.run_sync(_write_all, b"x" * 1_000_000)
    await anyio.to_thread.run_sync(_write_all, b"\n")
    return "printed"


@tool()
async def say_and_die(text: str) -> str:
    """Write to the real stdout, without a line break, and be killed."""
    await anyio.to_thread.run_sync(_write_all, text.encode())
    os.kill(os.getpid(), signal.SIGKILL)
    return "dead"


def _write_all(data: bytes) -> None:
    while data:
        try:
            data = data[os.write(STDOUT, data) :]
        except BlockingIOError:
            time.sleep(0.001)


@tool()
async def start_grandchild() -> int:
    """Start a process that outlives everybody who does not end it."""
    return subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL).pid  # noqa: ASYNC220


class Answer(BaseModel):
    """What a person says."""

    yes: bool


@tool()
async def ask(question: str, ctx: Context[Any]) -> str:
    """Ask the person."""
    answer = await ctx.elicit(question, Answer)
    return str(answer.data.yes) if answer.action == "accept" else answer.action


@tool()
async def known() -> dict[str, Any]:
    """Tell what the client has told this process."""
    return _known


@tool()
async def touch(uri: str, ctx: Context[Any]) -> str:
    """Tell those who subscribed that a resource has changed."""
    await ctx.notify_resource_updated(uri)
    if uri in _known["subscriptions"]:
        await ctx.session.send_resource_updated(uri)
    return "touched"
