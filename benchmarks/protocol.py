"""A client that costs next to nothing, so that the server is what is measured."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = "2025-11-25"
_INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "benchmark", "version": "1"}},
}
_INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def call(request_id: int) -> bytes:
    """A call of the tool that every contestant has."""
    arguments = {"title": "groceries", "text": "milk, bread and a little butter"}
    message = {
        "jsonrpc": "2.0",
        "id": request_id,
        "method": "tools/call",
        "params": {"name": "save_note", "arguments": arguments},
    }
    return json.dumps(message).encode()


class StdioSession:
    """One server process over pipes, after the handshake."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        started = time.perf_counter()
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.send(json.dumps(_INITIALIZE).encode())
        self.receive()
        self.seconds_to_first_answer = time.perf_counter() - started
        self.send(json.dumps(_INITIALIZED).encode())

    def calls_per_second(self, calls: int, *, in_flight: int) -> float:
        """Make `calls` calls, `in_flight` at a time."""
        started = time.perf_counter()
        for number in range(1, calls + in_flight + 1):
            if number <= calls:
                self.send(call(number))
            if number > in_flight:
                answer = self.receive()
                if b'"result"' not in answer or b'"isError":true' in answer:
                    raise RuntimeError(f"not a result: {answer[:200]!r}")
        return calls / (time.perf_counter() - started)

    def resident_mb(self) -> float:
        """Resident memory of the server in MB (10^6 bytes)."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def processor_s(self) -> float:
        """Seconds of a processor that the process has taken, without its children."""
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9

    def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def receive(self) -> bytes:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if b'"id"' in line:
                return line
        raise RuntimeError(f"the server ended with {self.process.wait()}")


@contextmanager
def stdio_session(command: list[str], environment: dict[str, str]) -> Iterator[StdioSession]:
    """A session that is ended by closing the server's stdin."""
    session = StdioSession(command, environment)
    try:
        yield session
    finally:
        assert session.process.stdin is not None
        session.process.stdin.close()
        try:
            session.process.wait(10)
        except subprocess.TimeoutExpired:
            session.process.kill()
            session.process.wait()


async def http_calls_per_second(port: int, calls: int, *, connections: int) -> float:
    """Make `calls` calls over `connections` kept-open connections, one at a time on each."""
    session = await _open_session(port)
    started = time.perf_counter()
    each = calls // connections
    await asyncio.gather(*(_calls(port, range(n * each, (n + 1) * each), session) for n in range(connections)))
    return calls / (time.perf_counter() - started)


async def wait_for_port(port: int) -> None:
    """Wait until something answers on `port`."""
    for _ in range(600):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise RuntimeError(f"nothing listens on port {port}")


async def _open_session(port: int) -> str | None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    headers, _ = await _post(reader, writer, port, json.dumps(_INITIALIZE).encode(), None)
    session = headers.get("mcp-session-id")
    await _post(reader, writer, port, json.dumps(_INITIALIZED).encode(), session)
    writer.close()
    return session


async def _calls(port: int, numbers: range, session: str | None) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in numbers:  # unique in the session, or the server would take two calls for one
        _, answer = await _post(reader, writer, port, call(number), session)
        if b'"result"' not in answer or b'"isError":true' in answer:
            raise RuntimeError(f"not a result: {answer[:200]!r}")
    writer.close()


def post_request(port: int, body: bytes, session: str | None = None) -> bytes:
    """A request over HTTP as it is sent."""
    lines = [
        "POST /mcp HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Content-Type: application/json",
        "Accept: application/json, text/event-stream",
        f"MCP-Protocol-Version: {VERSION}",
        f"Content-Length: {len(body)}",
        *([f"Mcp-Session-Id: {session}"] if session else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def _post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, body: bytes, session: str | None
) -> tuple[dict[str, str], bytes]:
    writer.write(post_request(port, body, session))
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *fields = head.split("\r\n")
    if status.split()[1] not in ("200", "202"):
        raise RuntimeError(status)
    headers = {key.lower(): value for key, _, value in (field.partition(": ") for field in fields if field)}
    if "content-length" in headers:
        return headers, await reader.readexactly(int(headers["content-length"]))
    return headers, await _chunked(reader)


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body
