"""The real server in a process of its own, with its pipes and signals in the test's hands."""

import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp_types import CallToolResult, TextContent, jsonrpc_message_adapter

from .project import PACKAGE, PREFIX, STORAGE, TRANSPORTS

START_S = 30.0
"""Time for a server to start on a busy machine."""
ANSWER_S = 20.0
"""Time for an answer on a busy machine."""
BUSY_MACHINE_S = 1.0
"""Added to every promised time, because the machine that runs tests does other things, too."""

CLEANUP = "HOSTILE_CLEANUP"
"""Environment variable: "hangs" or "blocks" makes the cleanup of the hostile tools' lifespan never end."""
LAUNCHER = Path(__file__).with_name("launcher.py")
HANDSHAKE = "legacy"
MODERN = "auto"
ERAS = (HANDSHAKE, MODERN)
"""The two protocol eras, as the official client's `mode`."""

_CLIENT = {"name": "production-tests", "version": "1"}
_FIRST_REQUEST: dict[str, tuple[str, dict[str, Any]]] = {
    HANDSHAKE: ("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": _CLIENT}),
    MODERN: ("server/discover", {}),
}
_PARAMS: dict[str, dict[str, Any]] = {
    HANDSHAKE: {},
    MODERN: {
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": _CLIENT,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    },
}
"""What every request carries."""


def command(transport: str, *, hostile: bool = True, supervised: bool = False) -> list[str]:
    """The command line that starts the server, with the hostile tools or without, under its supervisor or not."""
    program = [str(LAUNCHER)] if hostile else ["-m", PACKAGE]
    mode = ["supervise"] if supervised else [transport] if len(TRANSPORTS) > 1 else []
    return [sys.executable, *program, *mode]


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """This process's environment with these settings of the server and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {**inherited, **{PREFIX + name: str(value) for name, value in settings.items()}}


def _own_settings(transport: str, directory: Path) -> dict[str, object]:
    """What keeps the servers of the tests apart, and away from everything that is yours."""
    open_door = {"HTTP_PORT": 0, "HTTP_ALLOW_UNAUTHENTICATED": True, "HTTP_RATE_LIMIT_PER_MINUTE": 0}
    port = open_door if transport == "http" else {}
    database = {"DATABASE_PATH": directory / "data.db"} if STORAGE == "sqlite" else {}
    return {**port, **database}


class ServerProcess:
    """One server.

    Args:
        transport: "stdio" or "http".
        settings: Values of settings by their names without the prefix.
        variables: Other environment variables.
        hostile: Whether the hostile tools are there.
        supervised: Whether it runs as the child of its supervisor, which is then `process`.
        arguments: What goes to `subprocess.Popen`.
    """

    def __init__(
        self,
        transport: str,
        settings: Mapping[str, object] | None = None,
        variables: Mapping[str, str] | None = None,
        *,
        hostile: bool = True,
        supervised: bool = False,
        **arguments: Any,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="server-", ignore_cleanup_errors=True)
        chosen = {**_own_settings(transport, Path(self._directory.name)), **(settings or {})}
        self.transport = transport
        self._era = HANDSHAKE
        self._stderr = Path(self._directory.name) / "stderr"
        self._environment = {**environment(chosen), **(variables or {})}
        descriptor = os.open(self._stderr, os.O_WRONLY | os.O_CREAT)
        self.process = subprocess.Popen(
            command(transport, hostile=hostile, supervised=supervised),
            **{
                "stdin": subprocess.PIPE if transport == "stdio" else subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": descriptor,
                "env": self._environment,
                "bufsize": 0,
                **arguments,
            },
        )
        os.close(descriptor)
        self.stray_lines: list[bytes] = []
        """What came over stdout and is no message of the protocol: nothing ever should."""
        self._received: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self._reader is not None:  # the pipe is its own: a program that the server has left behind may hold it open
            self._reader.join(BUSY_MACHINE_S)
        elif self.process.stdout is not None:
            self.process.stdout.close()
        if exc is not None:
            sys.stderr.write(self.stderr())  # pytest shows it beside the failure
        self._directory.cleanup()

    # ---- the process -------------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        self.process.send_signal(number)

    def exit_code(self, *, within_s: float) -> int:
        """Wait for the end of the process.

        Raises:
            AssertionError: It lives on.
        """
        try:
            return self.process.wait(within_s + BUSY_MACHINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"The server still runs after {within_s} s.") from None

    async def ends(self, *, within_s: float) -> int:
        """`exit_code` for coroutines."""
        return await anyio.to_thread.run_sync(lambda: self.exit_code(within_s=within_s))

    def probe(self, *arguments: str, **settings: object) -> tuple[int, str]:
        """What `probe` says about the process: its exit code and its line."""
        chosen = {PREFIX + name: str(value) for name, value in settings.items()}
        asked = subprocess.run(
            [sys.executable, "-m", PACKAGE, "probe", *arguments],
            env={**self._environment, **chosen},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=START_S,
        )
        return asked.returncode, asked.stdout.strip()

    def stderr(self) -> str:
        """Everything on stderr so far."""
        return self._stderr.read_text(encoding="utf-8", errors="replace")

    def logs(self) -> list[dict[str, Any]]:
        """The JSON lines on stderr so far."""
        return [json.loads(line) for line in self.stderr().splitlines() if line.startswith("{")]

    def log(self, event: str, **fields: object) -> dict[str, Any] | None:
        """The first log line with this event and these fields so far."""
        for line in self.logs():
            if line["event"] == event and fields.items() <= line.items():
                return line
        return None

    async def logged(self, event: str, *, within_s: float = ANSWER_S, **fields: object) -> dict[str, Any]:
        """Wait for a log line.

        Raises:
            TimeoutError: There is none.
        """
        with anyio.fail_after(within_s):
            while (line := self.log(event, **fields)) is None:
                await anyio.sleep(0.01)
        return line

    async def url(self) -> str:
        """Where an HTTP server listens."""
        return str((await self.logged("listening", within_s=START_S))["url"])

    # ---- raw lines over stdio ----------------------------------------------------------------------------------------

    @property
    def stdin(self) -> IO[bytes]:
        """The pipe to the server."""
        return cast(IO[bytes], self.process.stdin)

    def send(self, *messages: Mapping[str, Any] | bytes) -> None:
        """Write messages, or lines that only look like them."""
        lines = [m if isinstance(m, bytes) else line_of(m) for m in messages]
        data = memoryview(b"".join(lines))
        while data:
            data = data[os.write(self.stdin.fileno(), data) :]

    def begin(self, era: str) -> None:
        """Send the first request of an era and wait for its answer."""
        self._era = era
        method, params = _FIRST_REQUEST[era]
        self.request("begin", method, **params)
        assert "result" in self.answer("begin", within_s=START_S)
        if era == HANDSHAKE:
            self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def request(self, request_id: object, method: str, **params: object) -> None:
        """Send a request without waiting for its answer."""
        self.send({"jsonrpc": "2.0", "id": request_id, "method": method, "params": {**params, **_PARAMS[self._era]}})

    def call(self, request_id: object, tool: str, **arguments: object) -> None:
        """Send a call without waiting for its answer."""
        self.request(request_id, "tools/call", name=tool, arguments=arguments)

    def alive(self) -> bool:
        """Whether a call is answered as it should be."""
        request_id = f"alive-{time.monotonic()}"
        self.call(request_id, "echo", text="alive")
        return bool(self.answer(request_id)["result"]["content"] == [{"type": "text", "text": "alive"}])

    def answer(self, request_id: int | str | None, *, within_s: float = ANSWER_S) -> dict[str, Any]:
        """Wait for the answer to one request; other answers that come before it are passed over.

        Raises:
            AssertionError: It did not come.
        """
        for message in self.answers(within_s=within_s):
            if message.get("id") == request_id and ("result" in message or "error" in message):
                return message
        raise AssertionError(f"No answer to {request_id!r} within {within_s} s.\n{self.stderr()[-5000:]}")

    def answers(self, *, within_s: float = ANSWER_S) -> Iterable[dict[str, Any]]:
        """Every message from the server until it closes the pipe or is silent for `within_s` seconds."""
        self._start_reader(self._received.put, lambda: self._received.put(None))
        until = time.monotonic() + within_s
        while True:
            try:
                message = self._received.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            if message is None:
                return
            yield message

    def _start_reader(self, deliver: Any, end: Any) -> None:
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, args=(deliver, end), daemon=True)
            self._reader.start()

    def _read(self, deliver: Any, end: Any) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe, open(pipe.fileno(), "rb", closefd=False) as stdout:
            for line in stdout:
                try:
                    jsonrpc_message_adapter.validate_json(line)
                except ValueError:
                    self.stray_lines.append(line)
                else:
                    deliver(json.loads(line))
        end()

    # ---- the official client -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def connected(self, era: str) -> AsyncIterator[Client]:
        """The official client, connected to this process in one of the two protocol eras."""
        if self.transport == "http":
            client = Client(streamable_http_client(await self.url()), mode=era, read_timeout_seconds=ANSWER_S)
        else:
            client = Client(self._pipes(), mode=era, read_timeout_seconds=ANSWER_S)
        with anyio.fail_after(START_S) as starting:
            async with client:
                await client.list_tools()
                starting.deadline = float("inf")
                assert (client.protocol_version >= "2026") == (era == MODERN)
                yield client

    @asynccontextmanager
    async def _pipes(self) -> AsyncIterator[Any]:
        """The process's pipes as a transport of the SDK: unlike its own, this one leaves the process alone."""
        to_client, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](float("inf"))
        to_server, from_client = anyio.create_memory_object_stream[SessionMessage](0)
        loop = anyio.lowlevel.current_token()

        def deliver(message: dict[str, Any]) -> None:
            item = SessionMessage(jsonrpc_message_adapter.validate_python(message))
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.RunFinishedError):
                anyio.from_thread.run_sync(to_client.send_nowait, item, token=loop)

        def end() -> None:
            with suppress(anyio.RunFinishedError):
                anyio.from_thread.run_sync(to_client.close, token=loop)

        async def write() -> None:
            with suppress(BrokenPipeError):
                async for item in from_client:
                    self.send(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")

        async with anyio.create_task_group() as tasks, to_client, from_server, to_server, from_client:
            self._start_reader(deliver, end)
            tasks.start_soon(write)
            yield from_server, to_server
            tasks.cancel_scope.cancel()


class Condemned:
    """Servers whose cleanup never ends, asked to stop as soon as they are ready: they need seconds to be ended.

    Start them before the tests and look at them after the others.

    Args:
        transport: "stdio" or "http".
        faults: Values of `CLEANUP`, each for a server of its own.
    """

    def __init__(self, transport: str, *faults: str) -> None:
        self.servers = [ServerProcess(transport, {"SHUTDOWN_GRACE_S": 0}, {CLEANUP: fault}) for fault in faults]
        self._thread = threading.Thread(target=self._stop, daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        for server in self.servers:
            wait_for(server, "ready")
            server.process.terminate()

    def ended_by_force_after(self, *, limit_s: float) -> list[float]:
        """Wait for their end; the seconds that each one took between the signal and its last line."""
        self._thread.join()
        durations = []
        for server in self.servers:
            assert server.exit_code(within_s=limit_s) == 1
            last = wait_for(server, "ended by force: the orderly stop took too long", reason="SIGTERM")
            begin, end = (datetime.fromisoformat(line["time"]) for line in (wait_for(server, "stopping"), last))
            durations.append((end - begin).total_seconds())
        return durations

    def close(self) -> None:
        """Kill what is left."""
        for server in self.servers:
            with server:
                pass


def text_of(result: CallToolResult) -> str:
    """The text of a result."""
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


def failure_of(result: CallToolResult) -> dict[str, Any]:
    """What a failed result says to programs: kind, retryable, reference."""
    assert result.is_error, result
    assert result.meta is not None, result
    return cast(dict[str, Any], dict(result.meta)["reliability/error"])


async def statistics_of(client: Client, tool: str) -> dict[str, Any]:
    """The figures of one tool in `get-metrics`."""
    content = cast(dict[str, Any], (await client.call_tool("get-metrics")).structured_content)
    return next(series for series in content["calls"] if series["name"] == tool)


def line_of(message: Mapping[str, Any]) -> bytes:
    """A message as the SDKs write it: without spaces."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def wait_for(server: ServerProcess, event: str, *, within_s: float = START_S, **fields: object) -> dict[str, Any]:
    """Wait for a line in the server's log.

    Raises:
        AssertionError: There is none, or the server ended without it.
    """
    until = time.monotonic() + within_s
    while True:
        ended = server.process.poll() is not None
        if (line := server.log(event, **fields)) is not None:
            return line
        assert not ended, server.stderr()
        assert time.monotonic() < until, server.stderr()
        time.sleep(0.005)


def read_until(fd: int, text: bytes | None, within_s: float) -> None:
    """Read until `text` is seen, or the end."""
    until, seen = time.monotonic() + within_s, b""
    while True:
        readable, _, _ = select.select([fd], [], [], max(0.0, until - time.monotonic()))
        assert readable, f"not within {within_s} s: {seen[-2000:]!r}"
        if not (chunk := os.read(fd, 65536)):
            assert text is None, seen
            return
        seen += chunk
        if text is not None and text in seen:
            return
