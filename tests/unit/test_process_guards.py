"""Processes that hang, crash or leak, for real and over both transports: rules R69 and R70, and the end of a hang."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from reliability.process_contract import EXIT_MEMORY, HANG_FD, RESTART_REQUEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

if sys.platform == "win32":
    pytest.skip("POSIX signals and descriptors", allow_module_level=True)

HANG_S = 1.0
HANGS = ["block_loop", "spin_loop", "hold_lock"]
TRANSPORTS = ["stdio", "http"]
FULL_PIPE = b"x" * 1_000_000

INITIALIZE = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}


def request(request_id: int, method: str, **params: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


class Server:
    """A real server over one of the transports, whose stderr a test may leave unread."""

    def __init__(
        self, transport: str, *, limits: dict[str, float], environment: dict[str, str], stderr: int, pass_fds: list[int]
    ) -> None:
        self.transport = transport
        program = str(Path(__file__).with_name("child_server.py"))
        self.process = subprocess.Popen(
            [sys.executable, program, transport, "5", json.dumps(limits)],
            stdin=subprocess.PIPE if transport == "stdio" else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, **environment},
            pass_fds=pass_fds,
        )
        self._log = b""
        if stderr == subprocess.PIPE:
            self.wait_for_log('"ready"')
        if transport == "stdio":
            self._send(request(0, "initialize", **INITIALIZE))
            self.answer()

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next answer over stdio."""
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def begin(self, tool: str, **arguments: object) -> None:
        """Send a call and do not wait for its answer."""
        call = request(1, "tools/call", name=tool, arguments=arguments)
        if self.transport == "stdio":
            self._send(call)
        else:
            threading.Thread(target=self._post, args=(call,), daemon=True).start()

    def _post(self, message: dict[str, Any]) -> None:
        found = re.search(r"http://127\.0\.0\.1:(\d+)/mcp", self.wait_for_log("/mcp"))
        assert found
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=10)
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/mcp", json.dumps(message), headers)
            connection.getresponse().read()
        connection.close()

    def wait_for_log(self, words: str) -> str:
        """Wait until stderr holds these words; gives everything so far."""
        give_up = time.monotonic() + 20
        while words.encode() not in self._log:
            assert self._read_log(give_up - time.monotonic()), self._log.decode()
        return self._log.decode()

    def _read_log(self, timeout_s: float) -> bool:
        assert self.process.stderr is not None
        if not select.select([self.process.stderr], [], [], max(0, timeout_s))[0]:
            return False
        chunk = os.read(self.process.stderr.fileno(), 65_536)
        self._log += chunk
        return bool(chunk)

    def end(self, *, within_s: float = 10) -> tuple[int, str]:
        """Wait for the end; gives the exit code and the rest of stderr."""
        code = self.process.wait(within_s)
        while self.process.stderr is not None and self._read_log(0):
            pass
        return code, self._log.decode()


@pytest.fixture
def start(root: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []
    source = root / "template" / "src" / "{{package_name}}"

    def begin(
        transport: str,
        *,
        stderr: int = subprocess.PIPE,
        pass_fds: list[int] | None = None,
        variables: Any = None,
        **limits: float,
    ) -> Server:
        environment = {"PYTHONPATH": str(source), **(variables or {})}
        servers.append(
            Server(transport, limits=limits, environment=environment, stderr=stderr, pass_fds=pass_fds or [])
        )
        return servers[-1]

    yield begin
    for server in servers:
        with server.process as process:
            process.kill()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("tool", HANGS)
def test_a_hang_ends_the_process_and_shows_where(start: Callable[..., Server], transport: str, tool: str) -> None:
    server = start(transport, hang_timeout_s=HANG_S)
    server.begin(tool)
    server.wait_for_log(f"started {tool}")
    began = time.monotonic()
    code, log = server.end()
    assert code == 1
    assert HANG_S * 0.9 < time.monotonic() - began < HANG_S * 1.1 + 2  # and some time on a busy machine
    assert "Timeout (0:00:01.100000)!" in log
    assert f"in {tool}" in log  # the culprit's line


def test_a_server_that_is_only_idle_or_slow_does_not_hang(start: Callable[..., Server]) -> None:
    server = start("stdio", hang_timeout_s=0.3)
    server.begin("slow", seconds=1)
    assert server.answer()["result"]["content"][0]["text"] == "done"
    time.sleep(1)
    server.begin("say", words="alive")
    assert server.answer()["result"]["content"][0]["text"] == "alive"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a pipe has no second mode of its own")
def test_a_stderr_that_nobody_reads_does_not_keep_a_hung_process_alive(
    start: Callable[..., Server], pipe: tuple[int, int]
) -> None:
    server = start("stdio", hang_timeout_s=HANG_S, stderr=pipe[1])
    os.set_blocking(pipe[1], False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(pipe[1], FULL_PIPE)
    os.set_blocking(pipe[1], True)
    # Not a tool that says "started": that word would wait in the pipe, too.
    server.begin("hold_lock_in_silence")
    assert server.end()[0] == 1


def test_a_supervisor_gets_the_stacks_on_a_descriptor_of_its_own(
    start: Callable[..., Server], pipe: tuple[int, int]
) -> None:
    server = start("stdio", hang_timeout_s=HANG_S, pass_fds=[pipe[1]], variables={HANG_FD: str(pipe[1])})
    os.close(pipe[1])
    server.begin("hold_lock")
    code, log = server.end()
    stacks = os.read(pipe[0], 65_536).decode()
    assert code == 1
    assert "Timeout" not in log
    assert stacks.startswith("Timeout")
    assert "in hold_lock" in stacks


def test_after_an_orderly_end_a_supervisor_has_got_nothing(start: Callable[..., Server], pipe: tuple[int, int]) -> None:
    server = start("stdio", hang_timeout_s=HANG_S, pass_fds=[pipe[1]], variables={HANG_FD: str(pipe[1])})
    os.close(pipe[1])
    server.process.send_signal(signal.SIGTERM)
    assert server.end()[0] == 0
    assert os.read(pipe[0], 100) == b""


def test_a_crash_in_c_code_shows_its_stack(start: Callable[..., Server]) -> None:
    server = start("stdio")
    server.begin("crash")
    code, log = server.end()
    assert code in (-signal.SIGSEGV, -signal.SIGBUS)
    assert "Fatal Python error" in log
    assert "in crash" in log


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_r69_a_leak_over_the_hard_limit_ends_the_process_between_calls(
    start: Callable[..., Server], pipe: tuple[int, int], transport: str
) -> None:
    supervised = {"pass_fds": [pipe[1]], "variables": {HANG_FD: str(pipe[1])}} if transport == "stdio" else {}
    server = start(transport, memory_hard_limit_mb=250, tool_timeout_s=5, **supervised)
    server.begin("leak", megabytes=300, seconds=0.5)
    if transport == "stdio":
        assert server.answer()["result"]["content"][0]["text"] == "leaked"
    code, log = server.end(within_s=20)  # a supervisor that does not act on it gets ten seconds more than a call
    assert code == EXIT_MEMORY
    assert "over the hard limit of 250 MB" in log
    assert "cleaned up" in log


def test_r69_a_supervisor_is_asked_to_choose_the_moment(start: Callable[..., Server], pipe: tuple[int, int]) -> None:
    server = start("stdio", memory_hard_limit_mb=250, pass_fds=[pipe[1]], variables={HANG_FD: str(pipe[1])})
    server.begin("leak", megabytes=300)
    assert server.answer()["result"]["content"][0]["text"] == "leaked"
    assert os.read(pipe[0], 100) == RESTART_REQUEST
    server.begin("say", words="still served")
    assert server.answer()["result"]["content"][0]["text"] == "still served"
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert server.end()[0] == 0


def test_r69_one_large_call_is_no_leak(start: Callable[..., Server], pipe: tuple[int, int]) -> None:
    server = start("stdio", memory_hard_limit_mb=250, pass_fds=[pipe[1]], variables={HANG_FD: str(pipe[1])})
    server.begin("leak", megabytes=300, seconds=0.5, keep=False)
    assert server.answer()["result"]["content"][0]["text"] == "leaked"
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    assert server.end()[0] == 0


def test_r69_whom_nobody_starts_again_serves_on(start: Callable[..., Server]) -> None:
    server = start("stdio", memory_hard_limit_mb=250)
    server.begin("leak", megabytes=300)
    assert server.answer()["result"]["content"][0]["text"] == "leaked"
    time.sleep(0.5)
    server.begin("say", words="alive")
    assert server.answer()["result"]["content"][0]["text"] == "alive"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_r70_a_service_manager_hears_everything_from_the_first_call_to_the_end(
    start: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory, transport: str, kind: str
) -> None:
    if kind == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    name = f"server-{secrets.token_hex(4)}"
    path = f"/tmp/{name}"  # noqa: S108 - pytest's own paths are too long for a socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path if kind == "path" else "\0" + name)
        manager.settimeout(10)
        try:
            address = path if kind == "path" else "@" + name
            server = start(transport, variables={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"})
            heard = [manager.recv(100).decode() for _ in range(6)]
            assert {*heard} == {"READY=1", "WATCHDOG=1"}
            assert heard.count("READY=1") == 1
            server.process.send_signal(signal.SIGTERM)
            assert server.end()[0] == 0
            while heard[-1] in ("READY=1", "WATCHDOG=1"):
                heard.append(manager.recv(100).decode())
            assert heard[-1] == "STOPPING=1"
        finally:
            Path(path).unlink(missing_ok=True)


def test_r70_the_watchdog_hears_nothing_from_a_stuck_loop(start: Callable[..., Server]) -> None:
    name = f"server-{secrets.token_hex(4)}"
    if sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        server = start("http", variables={"NOTIFY_SOCKET": "@" + name, "WATCHDOG_USEC": "100000"})
        server.begin("block_loop")
        server.wait_for_log("started block_loop")
        manager.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                manager.recv(100)
        assert not select.select([manager], [], [], 0.5)[0]
        server.process.send_signal(signal.SIGABRT)  # what systemd does then
        code, log = server.end()
        assert code == -signal.SIGABRT
        assert "in block_loop" in log
