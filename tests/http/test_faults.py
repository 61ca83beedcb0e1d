"""The HTTP client behind a network that fails: every fault ends in time, as the right error, and nothing is lost.

Rules R47 (separate limits), R55 (transport errors are failures), R38 (a broken connection is not used again).
"""

from __future__ import annotations

import gzip
import itertools
import socket
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import anyio
import pytest
from reliability.circuit_breaker import State
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.errors import (
    CircuitOpen,
    ConnectionBroken,
    DependencyBusy,
    DependencyError,
    DependencyFailed,
    DependencyTimeout,
)
from reliability.http_client import HttpLimits

from tests.http.support import SHORT, api, client_of, flat
from tests.support_proxy import cut, instead, latency, reset, silence, trickle
from tests.unit.support import FakeClock, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.http.conftest import Server
    from tests.support_proxy import Fault, FaultProxy, Wire

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\n"


def endless(begin: bytes, again: bytes) -> Fault:
    return instead(lambda: itertools.chain([begin], itertools.repeat(again)))


def once(*pieces: bytes) -> Fault:
    return instead(lambda: pieces)


FAULTS: dict[str, tuple[Fault, type[DependencyError], str]] = {
    "late": (latency(5), DependencyTimeout, "did not answer within 0.3 s"),
    "half open": (silence, DependencyTimeout, "did not answer within 0.3 s"),
    "trickling head": (trickle(every_s=0.05), DependencyTimeout, "did not answer within 0.6 s"),
    "trickling body": (
        instead(lambda: itertools.chain([HEAD + b"\r\n"], itertools.repeat(b"x")), every_s=0.05),
        DependencyTimeout,
        "did not answer within 0.6 s",
    ),
    "silence in the body": (once(HEAD + b"Content-Length: 9\r\n\r\n12345"), ConnectionBroken, "cut off"),
    "reset at once": (reset(), ConnectionBroken, "was interrupted|cut off"),
    "reset in the head": (reset(after_bytes=10), ConnectionBroken, "was interrupted|cut off"),
    "reset in the body": (reset(after_bytes=200), ConnectionBroken, "was interrupted|cut off"),
    "closed at once": (cut(after_bytes=0), ConnectionBroken, "not HTTP, or is cut off"),
    "closed in the head": (cut(after_bytes=10), ConnectionBroken, "not HTTP, or is cut off"),
    "closed in the body": (cut(after_bytes=200), ConnectionBroken, "not HTTP, or is cut off"),
    "rubbish": (once(b"\x16\x03\x01\x02\x00rubbish\r\n\r\n"), ConnectionBroken, "not HTTP, or is cut off"),
    "rubbish without end": (endless(b"", b"\x00" * 65_536), ConnectionBroken, "not HTTP, or is cut off"),
    "another protocol": (once(b"220 mail.example ESMTP\r\n"), ConnectionBroken, "not HTTP, or is cut off"),
    "headers without end": (endless(HEAD, b"x: " + b"y" * 1000 + b"\r\n"), ConnectionBroken, "not HTTP, or is cut off"),
    "a header without end": (endless(HEAD + b"x: ", b"y" * 65_536), ConnectionBroken, "not HTTP, or is cut off"),
    "informing without end": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), DependencyTimeout, "within 0.6 s"),
    "a body without end": (endless(HEAD + b"\r\n", b"y" * 65_536), DependencyFailed, "more than 100000 bytes"),
    "chunks without end": (
        endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\ny\r\n"),
        DependencyTimeout,
        "within 0.6 s",
    ),
    "a chunk's header without end": (
        endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65_536),
        ConnectionBroken,
        "not HTTP, or is cut off",
    ),
    "a body of two lengths": (
        once(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n12"),
        ConnectionBroken,
        "not HTTP, or is cut off",
    ),
    "a packed body that is cut": (
        once(HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"x" * 1000)[:-9]),
        ConnectionBroken,
        "the body is cut off",
    ),
    "a packed body that is none": (
        once(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnone"),
        DependencyFailed,
        "cannot be unpacked",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_r47_every_fault_ends_in_time_as_the_right_error_and_nothing_is_lost(
    name: str, server: Server, proxy: FaultProxy
) -> None:
    fault, error, text = FAULTS[name]
    dependency = api(attempt_timeout_s=0.6 if error is DependencyTimeout else 2)
    limits = HttpLimits(connect_timeout_s=0.5, read_timeout_s=0.3, max_body_bytes=100_000)
    async with client_of(proxy.port, dependency=dependency, limits=limits) as client:
        assert (await client.get("items")).status == 200  # there is a connection already, and it breaks
        proxy.fault = fault
        began = time.monotonic()
        with pytest.raises(error, match=text) as caught:
            await client.get("items/" + "x" * 200)
        took = time.monotonic() - began
        assert type(caught.value) is error
        assert took < 2, f"{took:.2f} s"  # far more than any fault takes: the machine may be busy
        assert dependency.statistics().totals.failures == 1
        proxy.fault = None
        assert (await client.get("items")).status == 200
        await flat(client, proxy, connections=1)
    await flat(client, proxy, connections=0)


async def stale(wire: Wire, piece: bytes) -> None:
    """The server closes a connection after its first answer, and the next request is on its way already."""
    if wire.sent_bytes:
        wire.reset()
    else:
        await wire.send(piece)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE"])
async def test_r59_a_kept_connection_that_turns_out_dead_is_a_failure_like_any_other(
    method: str, server: Server, proxy: FaultProxy
) -> None:
    proxy.fault = stale
    dependency = api(attempts=2)
    async with client_of(proxy.port, dependency=dependency) as client:
        await client.get("slow/0.05")
        assert (proxy.accepted, client.statistics().idle_connections) == (1, 1)
        if method == "POST":
            with pytest.raises(ConnectionBroken):
                await client.request(method, "items")
            assert proxy.accepted == 1
        else:
            assert (await client.request(method, "items")).status < 500
            assert proxy.accepted == 2
        assert dependency.statistics().totals.failures == 1


async def test_r47_a_server_that_is_gone_is_an_error_at_once(server: Server, proxy: FaultProxy) -> None:
    async with client_of(proxy.port, limits=SHORT) as client:
        await client.get("items")
        await proxy.refuse()
        with pytest.raises(ConnectionBroken, match="it was refused") as caught:
            await client.get("items")
        assert caught.value.retryable
        await flat(client, connections=0)
        await proxy.listen()
        assert (await client.get("items")).status == 200


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue refuses")
async def test_r47_a_connection_that_is_not_taken_up_ends_in_time(full_queue: int) -> None:
    async with client_of(full_queue, limits=SHORT) as client:
        with pytest.raises(DependencyTimeout, match=r"within 0\.5 s"):
            await client.get("items")
        await flat(client, connections=0)


async def test_r59_more_requests_than_connections_wait_and_then_are_refused(server: Server, proxy: FaultProxy) -> None:
    limits = HttpLimits(connect_timeout_s=0.2, max_connections=1)
    async with client_of(proxy.port, dependency=api(max_concurrent=2), limits=limits) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "slow/0.6")
            await until(lambda: proxy.accepted)
            with pytest.raises(DependencyBusy, match=r"No connection to 'api' came free within 0\.2 s"):
                await client.get("items")
        await flat(client, proxy, connections=1)


async def test_r56_the_breaker_opens_and_one_probe_window_later_all_is_well(server: Server, proxy: FaultProxy) -> None:
    clock = FakeClock()
    breaker = CircuitBreakerConfig(
        minimum_number_of_calls=5, wait_duration_in_open_state_s=60, permitted_number_of_calls_in_half_open_state=2
    )
    dependency = api(breaker=breaker, clock=clock)
    async with client_of(proxy.port, dependency=dependency, limits=SHORT) as client:
        await client.get("items")
        proxy.fault = reset()
        for _ in range(4):
            with pytest.raises(ConnectionBroken):
                await client.get("items")
        asked = proxy.accepted
        with pytest.raises(CircuitOpen) as caught:
            await client.get("items")
        assert caught.value.retry_after_s == pytest.approx(60, rel=0.1)

        clock.now += 61 * 1.1
        with pytest.raises(ConnectionBroken):  # still broken: one probe says so, and it is left alone again
            await client.get("items")
        with pytest.raises(CircuitOpen):
            await client.get("items")
        assert proxy.accepted == asked + 1

        proxy.fault = None
        clock.now += 61 * 1.5 * 1.1
        for _ in range(2):
            assert (await client.get("items")).status == 200
        assert dependency.statistics().state is State.CLOSED
        await flat(client, proxy, connections=1)


async def test_r59_a_dead_server_gets_hardly_more_requests_than_callers(server: Server, proxy: FaultProxy) -> None:
    proxy.fault = reset()
    dependency = api(attempts=3, max_concurrent=10, max_queued=100, attempt_timeout_s=5)
    failed = 0

    async def call() -> None:
        nonlocal failed
        with pytest.raises(ConnectionBroken):
            await client.get("items")
        failed += 1

    async with client_of(proxy.port, dependency=dependency, limits=HttpLimits()) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(call)
        await flat(client, proxy, connections=0)
    assert (failed, proxy.accepted) == (100, 110)


@pytest.fixture
def full_queue() -> Iterator[int]:
    """A port whose queue of connections is full: the handshake of another one is not answered."""
    with socket.socket() as listening, ExitStack() as waiting:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            other = waiting.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]
