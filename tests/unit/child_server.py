"""A small server over stdio or HTTP, for tests that need a process: `child_server.py stdio|http GRACE_S [LIMITS]`.

LIMITS is JSON with fields of `Limits`.
It says "started NAME" on stderr when a tool begins and "cleaned up" when its lifespan ends.
"""
# ruff: noqa: E402 - the order of the imports is the point

from __future__ import annotations

import sys

TRANSPORT, GRACE_S = sys.argv[1], float(sys.argv[2])

if TRANSPORT == "stdio":
    from reliability.stdio_wire import claim_wire

    WIRE = claim_wire("child")
    print("printed by an import")

import ctypes
import json
import os
import subprocess
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
from reliability import Limits, ReliableServer, ToolFailure, memory_limit, tool
from reliability import shutdown as shutdown_module
from reliability.hang_detection import report_crashes
from reliability.logs import configure_logging

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

report_crashes()
configure_logging("info")
memory_limit._SETTLE_S = memory_limit._INTERVAL_S = 0.05
shutdown_module._DELIBERATE_S = 60  # a busy machine must not turn an echoed SIGINT into a second one


def note(words: str) -> None:
    os.write(2, words.encode() + b"\n")


@asynccontextmanager
async def lifespan(server: ReliableServer[None]) -> AsyncIterator[None]:
    yield
    await anyio.lowlevel.checkpoint()
    note("cleaned up")


@tool()
async def say(words: str) -> str:
    return words


@tool()
async def slow(seconds: float) -> str:
    note("started slow")
    await anyio.sleep(seconds)
    return "done"


@tool()
async def block_loop() -> str:
    note("started block_loop")
    time.sleep(60)  # noqa: ASYNC251 - that is the point
    return ""


@tool()
async def spin_loop() -> str:
    note("started spin_loop")
    while True:
        pass


@tool()
def hold_lock() -> str:
    note("started hold_lock")
    ctypes.PyDLL(None).sleep(60)  # C code that keeps the interpreter's lock
    return ""


@tool()
def hold_lock_in_silence() -> str:
    ctypes.PyDLL(None).sleep(60)
    return ""


@tool()
async def crash() -> str:
    ctypes.string_at(0)
    return ""


LEAKED: list[bytes] = []


@tool()
async def leak(megabytes: int, seconds: float = 0, keep: bool = True) -> str:
    note("started leak")
    LEAKED.append(b"x" * megabytes * 1_000_000)
    await anyio.sleep(seconds)
    if not keep:
        LEAKED.clear()
    return "leaked"


@tool()
def block_thread() -> str:
    note("started block_thread")
    time.sleep(60)
    return ""


@tool()
async def babble() -> str:
    print("printed by a tool")
    sys.stdout.write("half a line")
    os.write(1, b'{"jsonrpc":"2.0","id":1,"result":{}}\n')
    ctypes.CDLL(None).puts(b"printed by C")
    ctypes.CDLL(None).fflush(None)
    await anyio.run_process(["sh", "-c", "echo printed by a child process; cat"], stdout=None, stdin=None)
    subprocess.run(["sh", "-c", "echo and by another; cat"], check=True)  # noqa: ASYNC221
    return "quiet"


@tool()
def babble_at_length() -> str:
    ctypes.PyDLL(None).write(1, b"x" * 200_000, 200_000)  # C code that keeps the interpreter's lock
    return "quiet"


@tool()
async def cancelled_inside() -> str:
    import asyncio

    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task
    return ""


@tool()
async def leave() -> str:
    sys.exit(3)


@tool()
async def fail() -> str:
    raise ToolFailure("foreseen")


LIMITS = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
server = ReliableServer("child", version="1", lifespan=lifespan, limits=Limits(**LIMITS), subscriptions=False)
for function in list(globals().values()):
    if callable(function):
        server.register(function)

if TRANSPORT == "stdio":
    from reliability.stdio_server import run_stdio

    run_stdio(server, WIRE, max_message_bytes=100_000, grace_s=GRACE_S)
else:
    from reliability.http_server import HttpOptions, run_http

    run_http(server, HttpOptions(port=0, grace_s=GRACE_S))
