"""A request that is cancelled gives everything back, wherever it is (R46): connections, places, permits, threads.

Connections are counted at both ends: in the pool, and by the proxy in front of the server.
"""

from __future__ import annotations

import asyncio
import gc
import random
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import pytest
from reliability.errors import DependencyError

from tests.http.support import api, client_of, flat
from tests.unit.support import CANCELLERS, cancel_at_every_await, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reliability.http_client import HttpClient

    from tests.http.conftest import Server
    from tests.support_proxy import FaultProxy

pytestmark = pytest.mark.anyio

WAYS = {
    "an answer": "items",
    "a failure": "status/500",
    "a redirect": "redirect/302?/items",
    "a body in pieces": "pieces",
    "a packed body": "gzip",
}


@pytest.fixture(autouse=True)
def nothing_is_left_to_the_collector() -> Iterator[None]:
    """A socket or a transport that only the garbage collector closes is a leak."""
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


async def settled(client: HttpClient, proxy: FaultProxy) -> None:
    """What is open at both ends is the same, idle, and no more than one."""
    statistics = client.statistics()
    assert statistics.connections <= 1
    await flat(client, proxy, connections=statistics.connections)


@pytest.mark.parametrize("how", CANCELLERS)
@pytest.mark.parametrize("is_connected", [False, True])
@pytest.mark.parametrize("way", WAYS)
async def test_r46_cancelled_at_every_await_nothing_is_lost(
    way: str, is_connected: bool, how: str, server: Server, proxy: FaultProxy
) -> None:
    dependency = api(max_concurrent=1)
    path = WAYS[way]
    clients: list[HttpClient] = []

    async def request() -> None:
        with suppress(DependencyError):
            await clients[-1].get(path)

    async def afterwards() -> None:
        client = clients.pop()
        assert dependency.statistics().in_flight == 0
        await settled(client, proxy)
        assert (await client.get("items")).status == 200
        await client.__aexit__(None, None, None)
        await flat(client, proxy, connections=0)
        await begin()

    async def begin() -> None:
        clients.append(client_of(proxy.port, dependency=dependency))
        if is_connected:
            await clients[-1].get("items")

    await begin()
    tried = await cancel_at_every_await(request, afterwards, how=how, limit=200)
    assert tried >= 2
    await clients.pop().__aexit__(None, None, None)


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r46_after_240_cancellations_every_connection_is_alive(
    how: str, server: Server, proxy: FaultProxy
) -> None:
    chance = random.Random(7)  # noqa: S311
    dependency = api(max_concurrent=4, max_queued=300)
    cancelled = 0

    async def call(client: HttpClient, after_s: float) -> None:
        nonlocal cancelled
        if how == "scope":
            with anyio.move_on_after(after_s) as scope:
                await client.get("slow/0.01")
            cancelled += scope.cancelled_caught
        else:
            task = asyncio.ensure_future(client.get("slow/0.01"))
            await asyncio.wait([task], timeout=after_s)
            task.cancel()
            await asyncio.wait([task])
            cancelled += task.cancelled()

    async with client_of(proxy.port, dependency=dependency) as client:
        while cancelled < 240:
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(call, client, chance.uniform(0, 0.02))
        assert dependency.statistics().in_flight == dependency.statistics().queued == 0
        await until(lambda: client.statistics().connections == proxy.open)
        assert client.statistics().connections <= 4

        async with anyio.create_task_group() as tasks:  # all four places work, each with a connection of its own
            for _ in range(4):
                tasks.start_soon(client.get, "slow/0.05")
        await flat(client, proxy, connections=4)
    await flat(client, proxy, connections=0)


async def test_r46_a_cancelled_request_stops_at_the_server(server: Server, proxy: FaultProxy) -> None:
    async with client_of(proxy.port) as client:
        with anyio.move_on_after(0.1) as scope:
            await client.get("slow/5")
        assert scope.cancelled_caught
        await flat(client, proxy, connections=0)


async def test_a_client_that_is_closed_under_load_ends_every_request(server: Server, proxy: FaultProxy) -> None:
    ended = 0

    async def call(client: HttpClient) -> None:
        nonlocal ended
        try:
            await client.get("slow/5")
        except Exception:  # noqa: BLE001 - whatever it is, it ends
            ended += 1

    async with anyio.create_task_group() as tasks, client_of(proxy.port) as client:
        for _ in range(5):
            tasks.start_soon(call, client)
        await until(lambda: proxy.open == 5)
        await anyio.wait_all_tasks_blocked()
    assert ended == 5
    await flat(client, proxy, connections=0)
