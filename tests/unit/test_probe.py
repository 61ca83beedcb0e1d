"""The command that asks a running server how it is: rule R66."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from reliability import probe as module
from reliability.probe import Misused, Sick, ask, examine, probe, read_beat

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

READY = b'HTTP/1.1 200 OK\r\ncontent-length: 28\r\n\r\n{"ready":true,"reason":""}'
NOT_READY = b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"ready":false,"reason":"database: it is gone"}'


class Answering:
    """A server on a port that gives one answer to everybody, after a while, in pieces or never."""

    def __init__(self, answer: bytes | None, *, pieces: bool = False) -> None:
        self._answer = answer
        self._pieces = pieces
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(65536))
                if self._answer is None:
                    self.ended.wait()
                    continue
                with suppress(ConnectionError):  # who asks may have heard enough
                    if not self._pieces:
                        connection.sendall(self._answer)
                    for byte in self._answer if self._pieces else b"":
                        connection.sendall(bytes([byte]))
                        if self.ended.wait(0.02):
                            break

    def close(self) -> None:
        self.ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@contextmanager
def answering(answer: bytes | None, *, pieces: bool = False) -> Iterator[Answering]:
    server = Answering(answer, pieces=pieces)
    try:
        yield server
    finally:
        server.close()


def write_beat(path: Path, **changes: Any) -> str:
    beat = {"pid": os.getpid(), "monotonic_s": time.monotonic(), "beat_s": 2, "reason": ""}
    path.write_text(json.dumps({**beat, "address": None, **changes}), encoding="utf-8")
    return str(path)


# ---- over HTTP -----------------------------------------------------------------------------------------------------


def test_r66_a_server_that_is_ready_is_healthy() -> None:
    with answering(READY) as server:
        assert ask("127.0.0.1", server.port, live=False, timeout_s=5) == "ready"
        assert server.requests[0].startswith(b"GET /readyz HTTP/1.1\r\n")


def test_r66_whether_it_lives_is_another_question() -> None:
    with answering(READY) as server:
        assert ask("127.0.0.1", server.port, live=True, timeout_s=5) == "live"
        assert server.requests[0].startswith(b"GET /livez HTTP/1.1\r\n")


def test_r66_a_server_that_is_not_ready_says_why() -> None:
    with answering(NOT_READY) as server, pytest.raises(Sick, match=r"^database: it is gone$"):
        ask("127.0.0.1", server.port, live=False, timeout_s=5)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 500 Oh\r\n\r\n<h1>", "status 500"),
        (b"HTTP/1.1 503 No\r\n\r\n[]", "status 503"),
        (b"220 smtp.example.com\r\n", "is no HTTP server"),
        (b"HTTP/1.1 xyz\r\n\r\n", "is no HTTP server"),
        (b"", "is no HTTP server"),
    ],
)
def test_r66_any_other_answer_is_unhealthy(answer: bytes, why: str) -> None:
    with answering(answer) as server, pytest.raises(Sick, match=why):
        ask("127.0.0.1", server.port, live=False, timeout_s=5)


@pytest.mark.parametrize("pieces", [False, True])
def test_r66_a_server_that_hangs_or_trickles_is_unhealthy_in_time(pieces: bool) -> None:
    with answering(READY * 20 if pieces else None, pieces=pieces) as server:
        started = time.monotonic()
        with pytest.raises(Sick, match=r"no answer within 0\.3 s"):
            ask("127.0.0.1", server.port, live=False, timeout_s=0.3)
        assert time.monotonic() - started < 2


def test_r66_nobody_on_the_port_is_unhealthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Sick, match=f"port {port} does not answer"):
        ask("127.0.0.1", port, live=False, timeout_s=5)


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "127.0.0.1", "localhost", ""])  # noqa: S104
def test_r66_a_server_on_every_address_is_asked_on_this_machine(host: str) -> None:
    with answering(READY) as server:
        assert ask(host, server.port, live=False, timeout_s=5) == "ready"


def test_an_endless_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 1000)
    with answering(READY + b"x" * 10_000_000) as server:
        assert ask("127.0.0.1", server.port, live=False, timeout_s=5) == "ready"


# ---- by the heartbeat ----------------------------------------------------------------------------------------------


def test_r66_a_fresh_heartbeat_is_healthy(tmp_path: Path) -> None:
    assert read_beat(write_beat(tmp_path / "beat"), live=False)["pid"] == os.getpid()


@pytest.mark.parametrize(("age_s", "why"), [(6.5, "is 6 s old"), (-1, "is from before the last start of the machine")])
def test_r66_an_old_heartbeat_or_one_from_before_a_reboot_is_unhealthy(tmp_path: Path, age_s: float, why: str) -> None:
    path = write_beat(tmp_path / "beat", monotonic_s=1000)
    with pytest.raises(Sick, match=why):
        read_beat(path, live=True, now=1000 + age_s)
    assert read_beat(path, live=True, now=1006)


def test_r66_an_unready_server_is_unhealthy_and_alive(tmp_path: Path) -> None:
    path = write_beat(tmp_path / "beat", reason="database: it is gone")
    with pytest.raises(Sick, match=r"^database: it is gone$"):
        read_beat(path, live=False)
    assert read_beat(path, live=True)


def test_r66_a_server_that_was_killed_is_unhealthy_at_once(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    if sys.platform != "win32":
        with pytest.raises(Sick, match=f"the process {ended.pid} is gone"):
            read_beat(write_beat(tmp_path / "beat", pid=ended.pid), live=True)


def test_a_server_of_another_user_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert read_beat(write_beat(tmp_path / "beat"), live=True)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"pid": 1}', "\x00", "[" * 60_000, " " * 100_000])
def test_r66_a_file_that_is_no_heartbeat_is_unhealthy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "beat"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Sick, match="holds no heartbeat"):
        read_beat(str(path), live=True)


STRANGE: dict[str, list[Any]] = {
    "pid": [None, "1", 0, -1, 2**31, 10**400, 1.5, []],
    "beat_s": [None, "2", []],
    "monotonic_s": [None, "2", 10**400],
    "reason": [None, 5, ["x"]],
    "address": [5, "x", [], ["h"], [[], 80], ["h", "80"], ["h", 0], ["h", 70_000]],
}


@pytest.mark.parametrize("strange", [{name: value} for name, values in STRANGE.items() for value in values])
def test_r4_r66_nothing_that_is_strange_in_it_is_believed(tmp_path: Path, strange: dict[str, Any]) -> None:
    path = write_beat(tmp_path / "beat", **strange)
    with pytest.raises(Sick, match="holds no heartbeat"):
        examine({"HEARTBEAT_PATH": path}, None, "stdio", live=True, timeout_s=5)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
def test_r66_what_can_be_read_for_ever_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero", str(tmp_path)):
        with pytest.raises(Sick, match="holds no heartbeat"):
            read_beat(path, live=True)


def test_r66_no_file_is_unhealthy(tmp_path: Path) -> None:
    with pytest.raises(Sick, match=r"no heartbeat in .*beat \(No such file"):
        read_beat(str(tmp_path / "beat"), live=True)


# ---- which of the two ----------------------------------------------------------------------------------------------


def test_r66_without_an_argument_the_default_transport_is_asked() -> None:
    with answering(READY) as server:
        assert examine({"HTTP_PORT": str(server.port)}, None, "http", live=False, timeout_s=5) == "ready"


def test_r66_with_a_heartbeat_one_command_is_right_for_both_transports(tmp_path: Path) -> None:
    settings = {"HEARTBEAT_PATH": write_beat(tmp_path / "beat"), "HTTP_PORT": "1"}
    for default in ("http", "stdio"):
        assert examine(settings, None, default, live=False, timeout_s=5) == "ready"
    with answering(NOT_READY) as server:
        write_beat(tmp_path / "beat", address=["0.0.0.0", server.port])  # noqa: S104
        with pytest.raises(Sick, match="database"):
            examine(settings, None, "stdio", live=False, timeout_s=5)
        assert examine(settings, "stdio", "stdio", live=False, timeout_s=5) == "ready"  # the file alone


def test_r66_a_heartbeat_that_has_stopped_is_enough_to_know(tmp_path: Path) -> None:
    with answering(READY) as server:
        path = write_beat(tmp_path / "beat", monotonic_s=0, address=["127.0.0.1", server.port])
        with pytest.raises(Sick, match="s old"):
            examine({"HEARTBEAT_PATH": path}, None, "http", live=False, timeout_s=5)


@pytest.mark.parametrize("port", ["0", "x", "-1", "65536", "8 0"])
def test_a_port_that_cannot_be_asked_is_a_wrong_setting(port: str) -> None:
    with pytest.raises(Misused, match="HTTP_PORT"):
        examine({"HTTP_PORT": port}, "http", "http", live=False, timeout_s=5)


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example.com"])
def test_a_host_that_cannot_be_asked_is_a_wrong_setting(host: str) -> None:
    with pytest.raises(Misused, match=r"^HTTP_HOST='.* is no host that can be asked\.$"):
        examine({"HTTP_HOST": host}, "http", "http", live=False, timeout_s=5)


@pytest.mark.parametrize("host", ["::1", "fe80::1%lo", "localhost."])
def test_r66_a_host_that_is_only_not_there_is_unhealthy(host: str) -> None:
    with pytest.raises(Sick, match="port 1 does not answer"):
        examine({"HTTP_HOST": host, "HTTP_PORT": "1"}, "http", "http", live=False, timeout_s=5)


def test_a_stdio_server_without_a_heartbeat_cannot_be_asked() -> None:
    with pytest.raises(Misused, match="HEARTBEAT_PATH is not set"):
        examine({}, None, "stdio", live=False, timeout_s=5)


# ---- the command ---------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, **settings: str) -> int:
    for name in list(os.environ):
        if name.startswith("MY_SERVER_"):
            monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(f"MY_SERVER_{name}", value)
    with pytest.raises(SystemExit) as ended:
        probe("my-server", prefix="MY_SERVER_", transports=["stdio", "http"], arguments=arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_r66_one_line_and_the_exit_code_say_how_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "beat"
    assert run(monkeypatch, HEARTBEAT_PATH=write_beat(path)) == 0
    assert run(monkeypatch, "--live", HEARTBEAT_PATH=write_beat(path, reason="it\nstops")) == 0
    assert run(monkeypatch, HEARTBEAT_PATH=str(path)) == 1
    assert capsys.readouterr().out.splitlines() == ["ready", "live", "unhealthy: it stops"]


def test_wrong_arguments_and_settings_are_told_apart_from_a_sick_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds in ("0", "-1", "nan", "inf", "soon"):
        assert run(monkeypatch, "http", "--timeout", seconds) == 2
        assert "--timeout" in capsys.readouterr().err
    assert run(monkeypatch, "stdio") == 2
    assert "MY_SERVER_HEARTBEAT_PATH" in capsys.readouterr().err
    assert run(monkeypatch, "http", HTTP_PORT="abc") == 2
    assert "MY_SERVER_HTTP_PORT='abc'" in capsys.readouterr().err
    assert run(monkeypatch, "carrier-pigeon") == 2


def test_the_probe_starts_quickly_because_it_imports_next_to_nothing(root: Path) -> None:
    code = "import sys; import reliability.probe; print(*sys.modules)"
    path = root / "template" / "src" / "{{package_name}}"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=path, capture_output=True, text=True, check=True).stdout
    assert not {"asyncio", "typing", "http.client", "logging", "anyio", "pydantic", "mcp", "dataclasses"} & set(
        loaded.split()
    )
