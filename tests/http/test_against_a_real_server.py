"""The HTTP client and a real server that does its part, or says that it cannot: R7, R51, R55, R58, R59."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest
from reliability.errors import DependencyFailed, HostNotAllowed
from reliability.http_client import HttpLimits
from reliability.http_response import HttpStatusError

from tests.http.support import api, client_of, flat

if TYPE_CHECKING:
    from pathlib import Path

    from tests.http.conftest import Server
    from tests.support_proxy import FaultProxy

pytestmark = pytest.mark.anyio


async def test_what_is_sent_arrives(server: Server) -> None:
    async with client_of(server.port, headers={"X-Key": "k"}) as client:
        answer = await client.post("items", params={"q": "ä b"}, json={"a": 1})
    assert (answer.status, answer.json()) == (200, {"path": "/items"})
    assert (server.seen, server.body) == (["POST /items"], b'{"a":1}')
    assert server.headers == {
        "host": f"127.0.0.1:{server.port}",
        "accept": "*/*",
        "accept-encoding": "gzip",
        "user-agent": "mcp-server",
        "x-key": "k",
        "content-length": "7",
        "content-type": "application/json",
    }


async def test_a_connection_is_used_again_and_closed_at_the_end(server: Server, proxy: FaultProxy) -> None:
    async with client_of(proxy.port) as client:
        for _ in range(20):
            await client.get("items")
        assert (proxy.accepted, proxy.open) == (1, 1)
        assert client.statistics().connections == client.statistics().idle_connections == 1
    await flat(client, proxy, connections=0)


async def test_r59_as_many_connections_as_calls_are_allowed_at_once(server: Server, proxy: FaultProxy) -> None:
    async with client_of(proxy.port, dependency=api(max_concurrent=3, max_queued=50)) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(client.get, "slow/0.001")
        assert proxy.accepted == 3
        assert client.statistics().connections == client.statistics().idle_connections == 3


async def test_an_idle_connection_is_not_kept_for_longer_than_it_may(server: Server, proxy: FaultProxy) -> None:
    async with client_of(proxy.port, limits=HttpLimits(idle_connection_s=0)) as client:
        await client.get("items")
        await anyio.sleep(0.01)
        await client.get("items")
    assert proxy.accepted == 2


async def test_a_connection_that_the_server_closed_while_idle_is_not_used(server: Server, proxy: FaultProxy) -> None:
    async with client_of(proxy.port) as client:
        await client.get("items")
        await proxy.refuse()
        await proxy.listen()
        assert (await client.post("items")).status == 200  # a POST is not retried


async def test_a_packed_body_is_unpacked(server: Server) -> None:
    async with client_of(server.port) as client:
        assert (await client.get("gzip")).json() == {"packed": True}
        head = await client.request("HEAD", "gzip")
    assert (head.status, head.content, head.headers["content-encoding"]) == (200, b"", "gzip")


async def test_r55_a_failure_carries_what_the_server_said_about_it(server: Server) -> None:
    async with client_of(server.port) as client:
        with pytest.raises(HttpStatusError) as caught:
            await client.post("status/503")
        assert (caught.value.status, caught.value.response.json()) == (503, {"problem": "it is broken"})
        assert (await client.get("status/404")).status == 404
        await flat(client, connections=1)


async def test_r59_a_server_that_is_busy_for_a_moment_is_asked_again(server: Server) -> None:
    server.statuses = [503, 429]
    server.retry_after = "0"
    dependency = api(attempts=3)
    async with client_of(server.port, dependency=dependency) as client:
        assert (await client.get("next")).status == 200
    assert len(server.seen) == 3
    assert dependency.statistics().totals.retries == 2


async def test_r7_nothing_is_taken_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password s3cret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with client_of(server.port) as client:
        await client.get("items")
    assert "authorization" not in server.headers


# What a server could send without end


@pytest.mark.parametrize("path", ["endless", "bomb"])
async def test_r7_a_body_without_end_is_cut_at_the_limit(server: Server, proxy: FaultProxy, path: str) -> None:
    async with client_of(proxy.port, limits=HttpLimits(max_body_bytes=1_000_000)) as client:
        with pytest.raises(DependencyFailed, match="more than 1000000 bytes") as caught:
            await client.get(path)
        assert not caught.value.retryable
        await flat(client, proxy, connections=0)
        assert (await client.get("items")).status == 200


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("loop", "redirected more than 5 times"),
        ("redirect/302?http://localhost:PORT/", "must not be asked"),
        ("redirect/307?http://127.0.0.1:1/", "must not be asked"),
        ("redirect/302?http://169.254.169.254/latest/meta-data", "must not be asked"),
        ("redirect/302?http://2130706433:PORT/", "must not be asked"),
        ("redirect/302?file:///etc/passwd", "must not be asked"),
    ],
)
async def test_r7_a_redirect_that_leads_nowhere_good_is_not_followed(
    server: Server, proxy: FaultProxy, path: str, text: str
) -> None:
    async with client_of(proxy.port) as client:
        with pytest.raises(DependencyFailed, match=text):
            await client.get(path)
        await flat(client, proxy, connections=1)
    assert len(server.seen) == (6 if path == "loop" else 1)


async def test_a_redirect_uses_the_connection_again(server: Server, proxy: FaultProxy) -> None:
    async with client_of(proxy.port) as client:
        answer = await client.post("redirect/303?/items", json=1)
    assert (answer.json(), answer.url) == ({"path": "/items"}, f"http://127.0.0.1:{proxy.port}/items")
    assert (server.seen, proxy.accepted) == (["POST /redirect/303", "GET /items"], 1)


async def test_r7_a_url_that_must_not_be_asked_opens_no_connection(server: Server, proxy: FaultProxy) -> None:
    urls: list[Any] = [f"http://localhost:{proxy.port}/", f"http://2130706433:{proxy.port}/", f"http://0:{proxy.port}"]
    async with client_of(proxy.port) as client:
        for url in urls:
            with pytest.raises(HostNotAllowed):
                await client.get(url)
    assert proxy.accepted == 0
