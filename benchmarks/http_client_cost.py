"""What a request costs over our HTTP client with everything on, over bare httpx2, and over httpx2 with stamina.

    python benchmarks/http_client_cost.py

The server is the smallest one that answers, in a process of its own; what is measured is this process's time on the
processor. The contestants take turns within one run, so that a busy machine slows each of them alike; a ratio is the
median of the ratios of the turns.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx2
import stamina

sys.path.insert(0, str(Path(__file__).parent.parent / "template" / "src" / "{{package_name}}"))

from reliability.deadlines import deadline
from reliability.dependency import Dependency
from reliability.http_client import HttpClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection

    Ask = Callable[[], Awaitable[object]]

TURNS = 7
REQUESTS = 500
AT_A_TIME = (1, 10)
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"answer":42}'


def serve(ready: Connection) -> None:
    """Answer every request with the same bytes."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            writer.write(ANSWER)

    async def main() -> None:
        server = await asyncio.start_server(connection, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


async def microseconds(ask: Ask, at_a_time: int) -> float:
    """Of the processor, for one request, when so many are under way at the same time."""

    async def some() -> None:
        for _ in range(REQUESTS // at_a_time):
            await ask()

    began = time.process_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(at_a_time):
            tasks.start_soon(some)
    return (time.process_time() - began) / REQUESTS * 1e6


async def compare(port: int) -> None:
    """Print a line for each contestant and each number of requests at a time."""
    url = f"http://127.0.0.1:{port}/answer"
    async with HttpClient(Dependency("api"), base_url=f"http://127.0.0.1:{port}") as ours, httpx2.AsyncClient() as bare:

        async def guarded() -> None:
            with deadline(25):
                (await ours.get("answer")).json()

        async def alone() -> None:
            (await bare.get(url)).json()

        async def retried() -> None:
            async for attempt in stamina.retry_context(on=httpx2.HTTPError):
                with attempt:
                    (await bare.get(url)).raise_for_status().json()

        contestants = {"ours": guarded, "httpx2": alone, "httpx2 + stamina": retried}
        for at_a_time in AT_A_TIME:
            turns = [[await microseconds(ask, at_a_time) for ask in contestants.values()] for _ in range(TURNS + 1)][1:]
            for n, name in enumerate(contestants):
                cost = statistics.median(turn[n] for turn in turns)
                ratio = statistics.median(turn[n] / turn[1] for turn in turns)
                print(f"{at_a_time:2} at a time  {name:16} {cost:6.0f} us  {ratio:.2f} : httpx2")


def main() -> None:
    """Start the server, and compare."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there,), daemon=True)
    server.start()
    anyio.run(compare, here.recv())
    server.kill()


if __name__ == "__main__":
    main()
