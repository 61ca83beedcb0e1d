"""The real server process on a port: probes, hostile requests, shutdown.

The template's: replaced as a whole by every update. Each test names the rules it holds the server to.
"""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import anyio
import httpx2
import pytest
from mcp_types import CallToolResult

from production_helpers.process import (
    BUSY_MACHINE_S,
    ERAS,
    HANDSHAKE,
    START_S,
    Condemned,
    ServerProcess,
    text_of,
    wait_for,
)

pytestmark = pytest.mark.anyio
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_S = 0.5
"""How long an idle server may take to end."""
DELAY_S = 3
"""How long clients are given to notice a stop: time enough on a busy machine."""
CLEANUP_S = 5.0
"""How long the lifespan's cleanup may take."""
REQUEST_S = 20.0
"""How long a request may take to arrive."""

HEADERS = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2025-11-25",
}


class Shared(NamedTuple):
    """A server that most tests share."""

    server: ServerProcess
    url: str
    port: int
    http: httpx2.Client
    slow: dict[str, socket.socket]
    """Connections whose requests never become complete, opened at the very beginning."""
    opened_at: float

    def call(self, tool: str, **arguments: object) -> httpx2.Response:
        return self.post(call(tool, **arguments))

    def post(self, content: bytes, **headers: str) -> httpx2.Response:
        return self.http.post(self.url, content=content, headers={**HEADERS, **headers})

    def alive(self) -> bool:
        content = self.call("echo", text="alive").json()["result"]["content"]
        return bool(content == [{"type": "text", "text": "alive"}])


def call(tool: str, **arguments: object) -> bytes:
    params = {"name": tool, "arguments": arguments}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()


def request(port: int, body: bytes) -> bytes:
    """A whole request, as it goes over a connection."""
    lines = [
        "POST /mcp HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        f"content-length: {len(body)}",
        *(f"{k}: {v}" for k, v in HEADERS.items()),
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body


def raw_call(port: int, tool: str, **arguments: object) -> socket.socket:
    """A connection over which a call was sent, and nothing read."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(request(port, call(tool, **arguments)))
    return connection


def listening(server: ServerProcess) -> str:
    return str(wait_for(server, "listening")["url"])


def port_of(url: str) -> int:
    return int(url.split(":")[2].split("/")[0])


@pytest.fixture(scope="module", autouse=True)
def condemned() -> Iterator[Condemned]:
    """Servers that take their time to end, started before all other tests of this module."""
    condemned = Condemned("http", "hangs")
    yield condemned
    condemned.close()


@pytest.fixture(scope="module", autouse=True)
def leaking() -> Iterator[ServerProcess]:
    """A server over its hard memory limit, which it keeps only ten seconds after its start."""
    limits = {"MEMORY_SOFT_LIMIT_MB": 200, "MEMORY_HARD_LIMIT_MB": 250}
    with ServerProcess("http", limits) as server, raw_call(port_of(listening(server)), "leak", megabytes=300):
        yield server


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with ServerProcess("http", {"MAX_INPUT_BYTES": 100_000, "HTTP_ALLOWED_ORIGINS": "https://good.example"}) as server:
        url = listening(server)
        beginnings = {
            "nothing": b"",
            "half a request line": b"POST /mc",
            "half the headers": b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nX-",
            "half the body": b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
            b"Accept: application/json, text/event-stream\r\nContent-Length: 1000\r\n\r\n{" % port_of(url),
        }
        slow = {name: socket.create_connection(("127.0.0.1", port_of(url))) for name in beginnings}
        for name, data in beginnings.items():
            slow[name].sendall(data)
        with httpx2.Client(timeout=30) as http:
            yield Shared(server, url, port_of(url), http, slow, time.monotonic())
        for connection in slow.values():
            connection.close()
        if sys.platform != "win32":
            server.signal(signal.SIGTERM)
            assert server.exit_code(within_s=EXIT_S) == 0
            assert server.log("cleanup is complete")


# ---- R9, R13, R16: probes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["livez", "readyz", "healthz"])
def test_probes_answer_whatever_the_host_header_is(shared: Shared, path: str) -> None:  # R9, R16
    url = shared.url.replace("/mcp", f"/{path}")
    response = shared.http.get(url, headers={"host": "10.0.0.7:8000"})
    assert response.status_code == 200
    assert response.json()[{"livez": "live", "readyz": "ready", "healthz": "ready"}[path]] is True


def test_the_detailed_report(shared: Shared) -> None:  # R14
    report = shared.http.get(shared.url.replace("/mcp", "/healthz")).json()
    assert report["status"] == "ok"
    assert report["version"]
    assert report["uptime_s"] > 0
    assert {check["name"] for check in report["checks"]} >= {"memory"}


@pytest.fixture
def probed(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that `probe` finds by its heartbeat, whatever its port is."""
    with ServerProcess("http", {"HEARTBEAT_PATH": tmp_path / "beat", "SHUTDOWN_DELAY_S": DELAY_S}) as server:
        listening(server)
        until = time.monotonic() + START_S
        while server.probe() != (0, "ready"):
            assert time.monotonic() < until
        yield server


def test_the_probe_asks_the_server_itself(probed: ServerProcess) -> None:  # R66
    port = port_of(listening(probed))
    assert probed.probe("http", HTTP_PORT=port) == (0, "ready")
    assert probed.probe("http", "--live", HTTP_PORT=port) == (0, "live")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        silent = nobody.getsockname()[1]
        assert probed.probe("http", "--timeout", "0.2", HTTP_PORT=silent) == (1, "unhealthy: no answer within 0.2 s")


@posix
def test_the_probe_notices_a_server_that_is_stopped_and_one_that_goes_on(probed: ServerProcess) -> None:  # R66
    probed.signal(signal.SIGSTOP)
    assert probed.probe("--timeout", "0.2") == (1, "unhealthy: no answer within 0.2 s")
    probed.signal(signal.SIGCONT)
    assert probed.probe() == (0, "ready")


@posix
def test_before_it_stops_it_says_so_and_still_takes_calls(probed: ServerProcess) -> None:  # R66, R68
    url = listening(probed)
    with httpx2.Client() as http:
        answer = http.post(url, content=call("echo", text="x"), headers=HEADERS)
        assert "connection" not in answer.headers
        probed.signal(signal.SIGTERM)
        wait_for(probed, "stopping")
        last = http.post(url, content=call("echo", text="last"), headers=HEADERS)
        assert last.json()["result"]["content"][0]["text"] == "last"
        assert last.headers["connection"] == "close"  # the client's next one goes elsewhere
        assert http.post(url, content=call("echo", text="new"), headers=HEADERS).status_code == 200
        assert probed.probe() == (1, "unhealthy: the server is stopping")
        assert httpx2.get(url.replace("/mcp", "/livez")).status_code == 200
    assert probed.exit_code(within_s=DELAY_S + EXIT_S) == 0
    assert probed.probe()[0] == 1


# ---- R70: who may ask ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "127.0.0.1:1", "localhost:", "", "[::1"])
def test_a_foreign_host_header_is_refused(shared: Shared, host: str) -> None:  # R70
    assert shared.post(call("echo", text="x"), host=host).status_code in (400, 421)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_loopback_names_are_accepted(shared: Shared, name: str) -> None:  # R70
    assert shared.post(call("echo", text="x"), host=f"{name}:{shared.port}").status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://good.example", 200),
        ("https://evil.example", 403),
        ("https://good.example.evil.example", 403),
        ("http://localhost", 403),
        ("null", 403),
    ],
)
def test_only_chosen_origins_are_accepted(shared: Shared, origin: str, status: int) -> None:  # R70
    assert shared.post(call("echo", text="x"), origin=origin).status_code == status


def test_all_addresses_still_check_the_host() -> None:  # R70
    with ServerProcess("http", {"HTTP_HOST": "0.0.0.0"}) as server:
        port = port_of(listening(server))
        url = f"http://127.0.0.1:{port}/mcp"
        content = call("echo", text="x")
        assert httpx2.post(url, content=content, headers=HEADERS).status_code == 200
        for host in ("evil.example", f"0.0.0.0:{port}", f"evil.example:{port}"):
            assert httpx2.post(url, content=content, headers={**HEADERS, "host": host}).status_code == 421


# ---- R4, R7: hostile requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b"hello", {400}),
        (b"", {400}),
        (b'{"jsonrpc":"2.0","id":1,"meth', {400}),
        (b"\xff\xfe\x00", {400}),
        (b"[" * 50_000, {400}),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001, {400}),
        (b"[]", {400}),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', {400}),
        (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', {202, 400}),
        (b'{"jsonrpc":"2.0","id":1,"method":5}', {400}),
        (b'{"jsonrpc":"2.0","id":1,"method":"no/such"}', {200, 404}),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', {202}),
        (b'{"jsonrpc":"2.0","method":"notifications/nonsense"}', {202}),
    ],
)
def test_a_body_that_is_no_request_is_refused(shared: Shared, body: bytes, statuses: set[int]) -> None:  # R4
    response = shared.post(body)
    assert response.status_code in statuses
    assert "Traceback" not in response.text
    assert len(response.text) < 3000
    assert shared.alive()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 400),
        ({"content-type": "multipart/form-data; boundary=x"}, 400),
        ({"accept": "text/html"}, 406),
        ({"mcp-protocol-version": "1999-01-01"}, 400),
    ],
)
def test_wrong_headers_are_refused(shared: Shared, headers: dict[str, str], status: int) -> None:  # R4
    assert shared.post(call("echo", text="x"), **headers).status_code in (status, 415)
    assert shared.alive()


@pytest.mark.parametrize("chunked", [False, True])
def test_an_oversize_body_is_refused(shared: Shared, chunked: bool) -> None:  # R7
    body = call("echo", text="x" * 200_000)
    response = shared.http.post(shared.url, content=iter([body[:50], body[50:]]) if chunked else body, headers=HEADERS)
    assert response.status_code == 413
    assert shared.alive()


def test_the_connection_of_a_refused_body_stays_in_step(shared: Shared) -> None:  # R7
    """The refusal comes before the body: what still arrives of that is not taken for another request."""
    refused, wanted = (
        request(shared.port, call("echo", text="x" * 300_000)),
        request(shared.port, call("echo", text="next")),
    )
    with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as connection:
        connection.sendall(refused[:50_000])
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413")
        with suppress(ConnectionError):  # closing it would be right as well
            connection.sendall(refused[50_000:] + wanted)
            while b"next" not in answer and (more := connection.recv(65536)):
                answer += more
    assert b"HTTP/1.1 400" not in answer


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"X-Long: " + b"x" * 200_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 1000 + b"\r\n\r\n",
    ],
)
def test_bytes_that_are_no_http_are_refused(shared: Shared, data: bytes) -> None:  # R4
    with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as connection:
        connection.sendall(data)
        answer = connection.recv(65536)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505"))
    assert shared.alive()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_refused(shared: Shared, method: str) -> None:  # R4
    """The default is stateless: a stream for notifications could never carry one."""
    with shared.http.stream(method, shared.url, headers=HEADERS) as response:
        assert response.status_code == 405


def test_a_client_that_reads_nothing_delays_nobody(shared: Shared) -> None:
    sockets = [raw_call(shared.port, "produce", size=90_000) for _ in range(5)]
    assert shared.alive()
    for connection in sockets:
        connection.close()


def test_a_client_that_hangs_up_stops_its_call(shared: Shared) -> None:  # R46
    with raw_call(shared.port, "sleep", seconds=20, mark="hung up"):
        wait_for(shared.server, "sleep begins", mark="hung up")
    wait_for(shared.server, "sleep was cancelled", mark="hung up", within_s=5)


def test_too_many_connections_are_refused() -> None:  # R59
    with ServerProcess("http", {"HTTP_MAX_CONNECTIONS": 5}) as server:
        port = port_of(listening(server))
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
        for connection in held:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.recv(65536)
        assert httpx2.post(f"http://127.0.0.1:{port}/mcp", json={}).status_code == 503
        assert httpx2.get(f"http://127.0.0.1:{port}/livez").status_code == 200  # R13: busy is not dead
        for connection in held:
            connection.close()
        until = time.monotonic() + 5
        while httpx2.post(f"http://127.0.0.1:{port}/mcp", json={}).status_code == 503:
            assert time.monotonic() < until, "the closed connections still count"
            time.sleep(0.01)


# ---- R68: the end --------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(("era", "number"), list(zip(ERAS, SIGNALS, strict=True)))
async def test_a_signal_lets_the_call_in_flight_finish(era: str, number: int) -> None:  # R68
    results: list[CallToolResult] = []
    with ServerProcess("http") as server:
        async with server.connected(era) as client:

            async def call() -> None:
                results.append(await client.call_tool("sleep", {"seconds": 0.7, "mark": "in flight"}))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await server.logged("sleep begins")
                server.signal(number)
            assert text_of(results[0]) == "slept in flight"
            assert await server.ends(within_s=EXIT_S) == 0
        assert server.log("cleanup is complete")


@posix
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("tool", ["sleep", "block"])
def test_a_signal_waits_no_longer_than_the_grace_period(tool: str, plain: bool) -> None:  # R47, R68
    with ServerProcess("http", {"SHUTDOWN_GRACE_S": 1, "HTTP_JSON_RESPONSE": plain}) as server:
        port = port_of(listening(server))
        with raw_call(port, tool, seconds=600):
            wait_for(server, f"{tool} begins")
            server.signal(signal.SIGTERM)
            assert server.exit_code(within_s=1 + EXIT_S) == 0
        assert server.log("cleanup is complete")
        assert "Traceback" not in server.stderr()


@posix
async def test_a_signal_does_not_wait_for_open_streams() -> None:  # R68
    """The stream that a client of the handshake era keeps open for notifications, and an idle connection."""
    with ServerProcess("http", {"HTTP_STATELESS": "false", "HTTP_JSON_RESPONSE": "false"}) as server:
        async with server.connected(HANDSHAKE) as client:
            await client.call_tool("echo", {"text": "x"})
            with socket.create_connection(("127.0.0.1", port_of(await server.url()))):
                server.signal(signal.SIGTERM)
                assert await server.ends(within_s=2) == 0
        assert server.log("cleanup is complete")


@posix
def test_a_signal_does_not_wait_for_a_half_sent_request() -> None:  # R68
    with ServerProcess("http") as server:
        port = port_of(listening(server))
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: 100\r\n\r\nhalf".encode())
            assert httpx2.get(f"http://127.0.0.1:{port}/livez").status_code == 200  # by now it has been read
            server.signal(signal.SIGTERM)
            assert server.exit_code(within_s=5) == 0


# ---- start-up ------------------------------------------------------------------------------------------------------


def test_child_processes_cannot_read_stdin() -> None:  # R8
    """A service that is started from a terminal: the hostile tools' import runs a child that reads to the end."""
    with ServerProcess("http", stdin=subprocess.PIPE) as server:
        assert listening(server)


def test_a_port_in_use_is_said_clearly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with ServerProcess("http", {"HTTP_PORT": port}) as server:
            assert server.exit_code(within_s=30) == 2
            (line,) = [line for line in server.logs() if line["level"] == "error"]
    assert "in use" in line["event"]
    assert line["port"] == port


def test_an_address_of_another_machine_is_said_clearly() -> None:
    with ServerProcess("http", {"HTTP_HOST": "203.0.113.1"}) as server:
        assert server.exit_code(within_s=30) == 2
        (line,) = [line for line in server.logs() if line["level"] == "error"]
    assert line["event"].startswith("cannot listen")


# ---- last, because it takes the server's patience, which the tests above have used ---------------------------------


def test_requests_that_never_become_complete_are_closed(shared: Shared) -> None:  # R7
    for name, connection in shared.slow.items():
        connection.settimeout(max(0.1, shared.opened_at + REQUEST_S + BUSY_MACHINE_S - time.monotonic()))
        try:
            while connection.recv(65536):
                pass
        except TimeoutError:
            pytest.fail(f"{name}: still open")
        except ConnectionResetError:
            pass
    assert shared.alive()


@posix
def test_a_cleanup_that_never_ends_is_ended_by_force(condemned: Condemned) -> None:  # R68
    for duration_s in condemned.ended_by_force_after(limit_s=CLEANUP_S):
        assert duration_s < CLEANUP_S + BUSY_MACHINE_S


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="memory is not measured")
def test_a_leak_ends_the_process_between_two_calls(leaking: ServerProcess) -> None:  # R69
    assert leaking.exit_code(within_s=25) == 75
    assert leaking.log("call", tool="leak", outcome="ok")
    assert leaking.log("cleanup is complete")
