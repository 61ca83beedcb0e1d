"""Many clients over HTTP: rules R7, R9, R13, R16, R68 and R70."""
# ruff: noqa: S104 - listening everywhere is a case like any other

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import anyio
import pytest
import uvicorn
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from reliability import http_server
from reliability.health import Check, Unhealthy
from reliability.http_requests import RequestGate
from reliability.http_server import ImpatientProtocol, allowed_host_headers
from reliability.probes import add_probes
from reliability.server import Limits, ReliableServer
from reliability.shutdown import Shutdown
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.anyio


def accepts(headers: list[str], host: str) -> bool:
    """Ask the SDK itself whether it would accept this Host header."""
    return TransportSecurityMiddleware(TransportSecuritySettings(allowed_hosts=headers))._validate_host(host)


@pytest.mark.parametrize(
    ("bound", "port", "extra", "accepted", "refused"),
    [
        ("127.0.0.1", 8000, [], ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"], ["127.0.0.1", "localhost", "evil"]),
        ("0.0.0.0", 8000, [], ["127.0.0.1:8000"], ["0.0.0.0:8000", "evil:8000", "10.0.0.1:8000"]),
        ("::", 8000, [], ["[::1]:8000"], ["[::]:8000", "evil:8000"]),
        ("*", 8000, [], ["127.0.0.1:8000"], ["*:8000", "evil:8000"]),
        ("10.0.0.1", 8000, [], ["10.0.0.1:8000", "localhost:8000"], ["10.0.0.1", "10.0.0.1:80", "10.0.0.11:8000"]),
        ("fd00::1", 8000, [], ["[fd00::1]:8000"], ["fd00::1:8000", "[fd00::1]"]),
        ("0.0.0.0", 8000, ["api.example.com"], ["api.example.com", "api.example.com:8000"], ["api.example.com:81"]),
        (
            "0.0.0.0",
            8000,
            ["api.example.com:443"],
            ["api.example.com:443"],
            ["api.example.com", "api.example.com:8000"],
        ),
        ("0.0.0.0", 80, [], ["localhost", "localhost:80"], ["localhost:8000"]),
        ("0.0.0.0", 8000, ["[fd00::2]"], ["[fd00::2]", "[fd00::2]:8000"], ["[fd00::2"]),
    ],
)
def test_r70_only_hosts_that_are_spelled_out_are_accepted(
    bound: str, port: int, extra: list[str], accepted: list[str], refused: list[str]
) -> None:
    headers = allowed_host_headers(bound, port, extra)
    assert [host for host in accepted if not accepts(headers, host)] == []
    attacks = ["localhost.evil.com:8000", "localhost:8000.evil.com", "evil.com#localhost:8000", "localhost:80001", ""]
    assert [host for host in [*refused, *attacks] if accepts(headers, host)] == []


@pytest.mark.parametrize("extra", ["*", "*.example.com"])
def test_r70_a_wildcard_lets_nobody_in(extra: str) -> None:
    headers = allowed_host_headers("0.0.0.0", 8000, [extra])
    for host in ("evil.com:8000", "x.example.com:8000", ".example.com:8000"):
        assert not accepts(headers, host)


def make(*checks: Check) -> ReliableServer[None]:
    @asynccontextmanager
    async def lifespan(server: ReliableServer[None]) -> AsyncIterator[None]:
        yield

    server = ReliableServer(
        "x", version="1.2.3", lifespan=lifespan, limits=Limits(), checks=checks, subscriptions=False
    )
    add_probes(server)
    return server


async def unwell() -> str:
    raise Unhealthy("the database does not answer")


@pytest.fixture
def failed() -> tuple[ReliableServer[None], TestClient]:
    server = make(Check(name="database", probe=unwell))
    return server, TestClient(server.streamable_http_app(stateless_http=True), base_url="http://anything")


def test_r13_a_failed_dependency_fails_readiness_and_never_liveness(
    failed: tuple[ReliableServer[None], TestClient],
) -> None:
    _, client = failed
    report = client.get("/healthz")
    assert (report.status_code, report.json()["status"]) == (503, "failed")
    assert report.json()["checks"][0]["detail"] == "the database does not answer"
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json() == {"ready": False, "reason": "database: the database does not answer"}
    live = client.get("/livez")
    assert (live.status_code, live.json()) == (200, {"live": True})


def test_r9_before_the_dependencies_were_looked_at_the_server_is_alive_and_not_ready() -> None:
    client = TestClient(make().streamable_http_app(stateless_http=True), base_url="http://anything")
    assert [client.get(path).status_code for path in ("/livez", "/readyz")] == [200, 503]


def test_r68_while_draining_the_server_is_alive_and_not_ready() -> None:
    server = make()
    client = TestClient(server.streamable_http_app(stateless_http=True), base_url="http://anything")
    assert [client.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]
    server.drain()
    assert [client.get(path).status_code for path in ("/livez", "/readyz", "/healthz")] == [200, 503, 503]


async def test_r9_a_worker_does_not_say_that_it_is_well_before_it_knows() -> None:
    may_answer, reported = anyio.Event(), list[str]()

    async def probe() -> str:
        await may_answer.wait()
        raise Unhealthy("it is gone")

    class Worker:
        async def connect(self) -> None:
            pass

        async def report(self, unready_because: Callable[[], str]) -> None:
            reported.append(unready_because())

    server = make(Check(name="database", probe=probe))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(http_server._report, cast("Any", Worker()), server, Shutdown(grace_s=0))
        await anyio.wait_all_tasks_blocked()
        server.ready.set()
        await anyio.wait_all_tasks_blocked()
        assert reported == []
        may_answer.set()
    assert reported == ["database: it is gone"]


def test_r9_probes_answer_without_a_host_check_and_only_to_reading() -> None:
    client = TestClient(make().streamable_http_app(stateless_http=True), base_url="http://10.1.2.3:9999")
    assert [client.get(path).status_code for path in ("/livez", "/healthz", "/readyz")] == [200, 200, 200]
    assert client.post("/livez").status_code == 405


TIMEOUT_S = 0.15


class Waiting:
    """An application that answers when it is told to, after it has read the body."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Any], send: Callable[..., Any]) -> None:
        if scope["path"] != "/early":
            while (await receive()).get("more_body"):
                pass
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.opened = time.monotonic()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> bytes:
        with anyio.fail_after(5):
            head = await self.reader.readuntil(b"\r\n\r\n")
            assert b"200 OK" in head
            return await self.reader.readexactly(2)

    async def closed_after(self) -> float:
        """Wait for the server to close it; gives the seconds since it was opened."""
        with anyio.fail_after(5):
            while True:
                try:
                    if not await self.reader.read(1000):
                        break
                except ConnectionResetError:
                    break
        return time.monotonic() - self.opened


class Site:
    def __init__(self) -> None:
        self.app = Waiting()
        self.config = uvicorn.Config(
            self.app, http=ImpatientProtocol, log_config=None, lifespan="off", timeout_keep_alive=60, ws="none"
        )
        self.config.load()
        self.http = uvicorn.Server(self.config)
        self.connections: list[Connection] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(
            lambda: ImpatientProtocol(self.config, self.http.server_state, {}), "127.0.0.1", 0
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.app.go_on.set()
        for connection in self.connections:
            connection.writer.close()
        self.listener.close()
        await anyio.wait_all_tasks_blocked()

    async def connect(self) -> Connection:
        address = self.listener.sockets[0].getsockname()
        self.connections.append(Connection(*await asyncio.open_connection(*address)))
        return self.connections[-1]


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(http_server, "_REQUEST_TIMEOUT_S", TIMEOUT_S)
    async with Site() as made:
        yield made


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"P",
        b"POST /x HTTP/1.1\r\nHost: x\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf",
        b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"POST /x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n",
    ],
)
async def test_r7_a_request_that_never_arrives_in_full_is_closed(site: Site, begun: bytes) -> None:
    connection = await site.connect()
    await connection.send(begun)
    assert TIMEOUT_S * 0.9 < await connection.closed_after() < TIMEOUT_S + 2


async def test_r68_before_the_end_every_answer_closes_its_connection() -> None:
    arrived, go_on = anyio.Event(), anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        arrived.set()
        await go_on.wait()
        await PlainTextResponse("answer")(scope, receive, send)

    gate = RequestGate(
        app, path="/mcp", stateless=True, max_request_bytes=100, max_connections=9, connections=lambda: 1
    )
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def serve() -> None:
        await gate({"type": "http", "method": "POST", "path": "/mcp", "headers": []}, receive, send)

    def is_closed(start: dict[str, Any]) -> bool:
        return (b"connection", b"close") in start["headers"]

    go_on.set()
    await serve()
    go_on = anyio.Event()
    async with anyio.create_task_group() as tasks:
        arrived = anyio.Event()
        tasks.start_soon(serve)
        await arrived.wait()
        gate.close_connections()  # one that is on its way, too
        go_on.set()
    assert [is_closed(message) for message in sent if message["type"] == "http.response.start"] == [False, True]


async def test_r7_headers_without_end_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_REQUEST_TIMEOUT_S", 60)
    connection = await site.connect()
    await connection.send(b"POST /x HTTP/1.1\r\nHost: x\r\n")
    with contextlib.suppress(ConnectionError):
        for _ in range(20):
            await connection.send(b"X-Filler: " + b"x" * 8_000 + b"\r\n")
    with contextlib.suppress(ConnectionError):
        assert b"400 Bad Request" in await connection.reader.readline()
    assert await connection.closed_after() < 5


async def test_r7_headers_in_many_pieces_are_fine_request_after_request(site: Site) -> None:
    connection = await site.connect()
    for _ in range(10):
        await connection.send(b"GET /x HTTP/1.1\r\nHost: x\r\n")
        await connection.send(b"X-Filler: " + b"x" * 8_000 + b"\r\n\r\n")
        assert await connection.answer() == b"ok"


@pytest.mark.parametrize("head", [b"", b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"])
async def test_r7_a_byte_now_and_then_does_not_move_the_deadline(site: Site, head: bytes) -> None:
    connection = await site.connect()
    await connection.send(head)

    async def drip() -> None:
        while True:
            connection.writer.write(b"P")
            await anyio.sleep(TIMEOUT_S / 10)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drip)
        assert await connection.closed_after() < TIMEOUT_S + 2
        tasks.cancel_scope.cancel()


async def test_r7_an_answer_may_take_longer_than_the_request_may(site: Site) -> None:
    site.app.go_on.clear()
    connection = await site.connect()
    await connection.send(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok")
    await anyio.sleep(2 * TIMEOUT_S)
    site.app.go_on.set()
    assert await connection.answer() == b"ok"


async def test_r7_a_connection_that_rests_between_two_requests_is_left_to_the_keep_alive_limit(site: Site) -> None:
    connection = await site.connect()
    for _ in range(2):
        await connection.send(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await connection.answer() == b"ok"
        await anyio.sleep(1.5 * TIMEOUT_S)


async def test_r7_the_second_request_of_a_connection_has_a_deadline_too(site: Site) -> None:
    connection = await site.connect()
    await connection.send(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await connection.answer() == b"ok"
    await connection.send(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
    assert await connection.closed_after() < TIMEOUT_S + 2


async def test_r7_two_requests_in_one_piece_are_both_answered(site: Site) -> None:
    connection = await site.connect()
    await connection.send(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
    assert [await connection.answer(), await connection.answer()] == [b"ok", b"ok"]


async def test_r7_a_body_whose_answer_was_sent_early_has_a_deadline_too(site: Site) -> None:
    connection = await site.connect()
    await connection.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
    assert await connection.answer() == b"ok"
    await connection.send(b"more")
    assert await connection.closed_after() < TIMEOUT_S + 2


async def test_r7_a_body_whose_answer_was_sent_early_has_a_deadline_even_if_nothing_more_comes(site: Site) -> None:
    site.config.timeout_keep_alive = 1
    connection = await site.connect()
    await connection.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
    assert await connection.answer() == b"ok"
    assert await connection.closed_after() < 3


class Process:
    """A real server over HTTP."""

    def __init__(self, source: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("child_server.py")), "http", "5"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(source)},
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self.wait_for_log('"ready"')
        found = re.search(r"http://127\.0\.0\.1:(\d+)/mcp", "".join(self.log))
        assert found
        self.port = int(found[1])

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.decode())

    def wait_for_log(self, words: str) -> None:
        give_up = time.monotonic() + 10
        while not any(words in line for line in self.log):
            assert time.monotonic() < give_up, "".join(self.log)
            time.sleep(0.002)

    def post(self, message: object, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        fixed = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        connection.request("POST", "/mcp", json.dumps(message), {**fixed, **headers})
        response = connection.getresponse()
        found = response.status, response.read().decode()
        connection.close()
        return found

    def end(self) -> tuple[int, str]:
        code = self.process.wait(10)
        self._reader.join(5)
        return code, "".join(self.log)


@pytest.fixture
def process(root: Path) -> Iterator[Process]:
    made = Process(root / "template" / "src" / "{{package_name}}")
    yield made
    made.process.kill()
    made.end()


def tool_call(name: str, **arguments: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["SIGTERM", "SIGINT, echoed"]
)
def test_r68_a_call_in_flight_is_answered_after_a_signal_and_the_process_ends_with_zero(
    process: Process, signals: list[signal.Signals]
) -> None:
    answers: list[tuple[int, str]] = []
    caller = threading.Thread(target=lambda: answers.append(process.post(tool_call("slow", seconds=0.8))))
    caller.start()
    process.wait_for_log("started slow")
    for number in signals:
        process.process.send_signal(number)
        process.wait_for_log('"stopping"')
    caller.join(10)
    code, log = process.end()
    assert code == 0
    ((status, body),) = answers
    assert (status, json.loads(body)["result"]["content"][0]["text"]) == (200, "done")
    assert "cleaned up" in log
    assert "second SIGINT" not in log


def test_r70_a_foreign_host_or_origin_is_refused_and_the_probes_are_not_concerned(process: Process) -> None:
    assert process.post(tool_call("say", words="x"))[0] == 200
    assert process.post(tool_call("say", words="x"), Host="evil.example.com")[0] == 421
    assert process.post(tool_call("say", words="x"), Origin="http://evil.example.com")[0] == 403
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=10)
    connection.request("GET", "/livez", headers={"Host": "10.1.2.3"})
    assert connection.getresponse().status == 200
    connection.close()
    assert process.process.stdout is not None
    process.process.kill()
    assert process.process.stdout.read() == b""  # R5: nothing is said on stdout


def test_r70_a_port_that_is_taken_is_told_in_a_sentence_with_exit_code_two() -> None:
    with socket_in_use() as port:
        source = (
            "from reliability.http_server import *\nfrom reliability.logs import configure_logging\n"
            f"configure_logging('info')\nrun_http(None, HttpOptions(port={port}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", source],
            capture_output=True,
            check=False,
            timeout=20,
            env={**os.environ, "PYTHONPATH": str(Path(http_server.__file__).parent.parent)},
        )
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert json.loads(line)["event"].startswith("cannot listen: ")
    assert json.loads(line)["port"] == port


def test_r59_requests_that_are_none_do_not_fill_the_disk(process: Process) -> None:
    started, requests = time.monotonic(), 200
    for number in range(requests):
        with socket.create_connection(("127.0.0.1", process.port), timeout=10) as connection:
            upgrade = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
            connection.sendall(upgrade if number % 2 else b"nonsense\r\n\r\n")
            connection.recv(1000)
    process.process.send_signal(signal.SIGTERM)
    code, log = process.end()
    warnings = [line for line in log.splitlines() if "Invalid HTTP" in line or "pgrade" in line]
    assert 0 < len(warnings) <= 2 + time.monotonic() - started
    assert code == 0


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("*", "refused: HTTP_HOST=* is reached from other machines"),
        ("0", "refused: HTTP_HOST=0 is reached from other machines"),
        ("a" * 64, "cannot listen: "),
        ("a..b", "cannot listen: "),
        ("no-such-name.invalid", "cannot listen: "),
    ],
)
def test_r70_what_is_listened_on_counts_and_not_what_the_setting_looks_like(
    host: str, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http_server, "end_process", sys.exit)
    with pytest.raises(SystemExit) as caught:
        http_server.run_http(cast("Any", None), http_server.HttpOptions(host=host, port=0))
    assert caught.value.code == 2
    assert told in caplog.text


def socket_in_use() -> Any:
    @contextlib.contextmanager
    def listening() -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            yield taken.getsockname()[1]

    return listening()
