"""One client over stdio, over real pipes and in a process of its own: rules R4, R5, R7, R31 and R68."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse
from reliability import stdio_server
from reliability.shutdown import Shutdown
from reliability.stdio_server import EOF_GRACE_S, Inbox, Outbox
from reliability.stdio_wire import Wire

from tests.unit.support import cancel_at_every_await, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

if sys.platform == "win32":
    pytest.skip("pipes that can be polled", allow_module_level=True)

pytestmark = pytest.mark.anyio

MAX_BYTES = 10_000


class Ends:
    """Both ends of the two pipes between a client and a server, and the streams on them."""

    def __init__(self) -> None:
        self.server_in, self.client_out = os.pipe()
        self.client_in, self.server_out = os.pipe()
        self.shutdown = Shutdown(grace_s=1)
        self.outbox = Outbox(self.server_out, self.shutdown)
        self.inbox = Inbox(Wire(self.server_in, self.server_out, os.getpid()), self.outbox, self.shutdown, MAX_BYTES)
        self._open = {self.server_in, self.client_out, self.client_in, self.server_out}
        self._received = b""

    def write(self, data: bytes) -> None:
        """As the client, write at once."""
        assert os.write(self.client_out, data) == len(data)

    def request(self, request_id: object, method: str = "tools/call", **params: object) -> None:
        self.write(_line({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}))

    async def read_lines(self, count: int) -> list[dict[str, Any]]:
        """As the client, read `count` whole lines."""

        def read() -> None:
            while self._received.count(b"\n") < count and select.select([self.client_in], [], [], 5)[0]:
                chunk = os.read(self.client_in, 65_536)
                if not chunk:
                    return
                self._received += chunk

        await anyio.to_thread.run_sync(read)
        *lines, self._received = self._received.split(b"\n", count)
        assert len(lines) == count, "the answers did not come"
        return [json.loads(line) for line in lines]

    def close(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            os.close(fd)

    async def close_all(self) -> None:
        self.close(self.client_in)
        self.close(self.client_out)  # ends the reader, which must not find a stranger's descriptor
        reader = [t for t in threading.enumerate() if t.name == "stdin-reader"]
        for thread in reader:
            await anyio.to_thread.run_sync(thread.join, 1)
        for fd in list(self._open):
            self.close(fd)


def _line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made = Ends()
    yield made
    made.inbox.end()
    made.outbox.abandon()
    await made.close_all()


async def received(ends: Ends) -> JSONRPCMessage:
    with anyio.fail_after(5):
        item = await ends.inbox.receive()
    assert isinstance(item, SessionMessage)
    return item.message


def answer(request_id: int, size: int = 1) -> JSONRPCResponse:
    return JSONRPCResponse(jsonrpc="2.0", id=request_id, result={"data": "x" * size})


async def test_r4_messages_arrive_whole_and_in_order_however_they_are_cut(ends: Ends) -> None:
    ends.inbox.start()
    lines = b"".join(_line({"jsonrpc": "2.0", "id": n, "method": "x"}) for n in range(50))

    async def write_slowly() -> None:
        for at in range(0, len(lines), 7):
            ends.write(lines[at : at + 7])
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write_slowly)
        found = [await received(ends) for _ in range(50)]
    assert [m.id for m in found if isinstance(m, JSONRPCRequest)] == list(range(50))


async def test_r4_a_malformed_line_is_answered_and_the_next_one_is_served(ends: Ends) -> None:
    ends.inbox.start()
    ends.write(b"hello\n\n[]\n")
    ends.request(7)
    message = await received(ends)
    assert isinstance(message, JSONRPCRequest)
    assert message.id == 7
    errors = await ends.read_lines(2)
    assert [(e["id"], e["error"]["code"]) for e in errors] == [(None, -32700), (None, -32600)]


@pytest.mark.parametrize("written", [b"5", b'"\xff"', b'"\t"', b"007", b"1.5"])
async def test_r7_an_oversize_line_is_answered_and_the_next_one_is_served(ends: Ends, written: bytes) -> None:
    ends.inbox.start()
    ends.write(b'{"jsonrpc":"2.0","id":' + written + b',"method":"x","params":{"x":"' + b"x" * 2 * MAX_BYTES + b'"}}\n')
    ends.request(7)
    assert isinstance(await received(ends), JSONRPCRequest)
    (error,) = await ends.read_lines(1)
    assert error["id"] == (5 if written == b"5" else None)
    assert f"limit of {MAX_BYTES} bytes" in error["error"]["message"]


@pytest.mark.parametrize(
    "params", [b'{"requestId":[1]}', b'{"requestId":{}}', b'{"requestId":null}', b"{}", b'{"requestId":99}']
)
async def test_r4_a_strange_cancellation_is_passed_on_and_costs_nothing(ends: Ends, params: bytes) -> None:
    ends.inbox.start()
    ends.write(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":' + params + b"}\n")
    ends.request(7)
    assert isinstance(await received(ends), JSONRPCNotification)
    assert isinstance(await received(ends), JSONRPCRequest)
    await ends.outbox.send_message(answer(7))
    assert ends.inbox._room._used == 0


async def test_r4_an_unexpected_failure_of_the_reader_stops_the_server_instead_of_making_it_deaf(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(line: bytes) -> None:
        raise ValueError(line)

    monkeypatch.setattr("reliability.stdio_server.parse_line", broken)
    ends.inbox.start()
    ends.request(1)
    with anyio.fail_after(5):
        await ends.shutdown.requested.wait()
    assert "reading failed" in caplog.text


@pytest.fixture
def narrow(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> Ends:
    """The same with room for 20 small requests."""
    monkeypatch.setattr(stdio_server, "_ITEM_BYTES", 1_000)
    ends.inbox._room._limit = 20 * 1_100
    return ends


async def test_r7_a_flood_waits_in_the_client_s_pipe_and_not_in_memory(narrow: Ends) -> None:
    narrow.inbox.start()
    total = 200

    def flood() -> None:
        for number in range(total):
            narrow.request(number)

    writer = threading.Thread(target=flood)
    writer.start()
    for number in range(total):
        await received(narrow)
        assert narrow.inbox._room._used <= narrow.inbox._room._limit
        await narrow.outbox.send_message(answer(number))
        await narrow.read_lines(1)
    await anyio.to_thread.run_sync(writer.join)
    assert narrow.inbox._room._used == 0


async def test_r7_requests_that_nobody_answers_stop_the_reading(narrow: Ends) -> None:
    narrow.inbox.start()
    for number in range(40):
        narrow.request(number)
    taken = [await received(narrow) for _ in range(18)]
    with anyio.move_on_after(0.3):
        while True:
            taken.append((await narrow.inbox.receive()).message)  # type: ignore[union-attr]
    assert 18 <= len(taken) <= 22
    for number in range(40):
        narrow.outbox.forget(number)  # answered or given up: the rest may come
    assert isinstance(await received(narrow), JSONRPCRequest)


async def test_r31_the_end_of_input_is_noticed_even_while_nothing_is_read(narrow: Ends) -> None:
    narrow.inbox.start()
    for number in range(40):
        narrow.request(number)
    narrow.close(narrow.client_out)
    with anyio.fail_after(5):
        await narrow.shutdown.requested.wait()
    assert narrow.shutdown.reason == "the client closed stdin"


async def test_r31_the_end_of_input_asks_for_a_stop_after_everything_was_delivered(ends: Ends) -> None:
    ends.inbox.start()
    ends.request(1)
    ends.write(b'{"jsonrpc":"2.0","id":2,"method":"x"}')  # without a line break
    ends.close(ends.client_out)
    with anyio.fail_after(5):
        await ends.shutdown.requested.wait()
    assert (ends.shutdown.reason, ends.shutdown.grace_s) == ("the client closed stdin", EOF_GRACE_S)
    assert ends.inbox.at_end
    found = [await received(ends), await received(ends)]
    assert [m.id for m in found if isinstance(m, JSONRPCRequest)] == [1, 2]


async def test_r31_a_client_that_closes_only_the_answers_is_noticed(ends: Ends) -> None:
    ends.inbox.start()
    ends.close(ends.client_in)
    with anyio.fail_after(5):
        await ends.shutdown.requested.wait()
    assert (ends.shutdown.reason, ends.shutdown.grace_s) == ("the client closed stdout", 0)


async def test_r31_after_the_end_the_server_sees_the_end_of_the_stream(ends: Ends) -> None:
    ends.inbox.start()
    ends.request(1)
    await until(lambda: ends.inbox._received)
    ends.inbox.end()
    with pytest.raises(anyio.EndOfStream):
        await ends.inbox.receive()
    assert [item async for item in ends.inbox] == []


async def test_r31_the_end_wakes_a_server_that_waits_for_messages(ends: Ends) -> None:
    ends.inbox.start()
    waiting = asyncio.ensure_future(ends.inbox.__anext__())
    await anyio.wait_all_tasks_blocked()
    ends.inbox.end()
    with anyio.fail_after(5), pytest.raises(StopAsyncIteration):
        await waiting


async def test_r68_a_stop_waits_for_every_request_that_is_open_even_if_still_queued(ends: Ends) -> None:
    ends.inbox.start()
    ends.request(1)
    ends.request("two")
    await until(lambda: len(ends.inbox._received) == 2)
    answered = asyncio.ensure_future(ends.outbox.all_answered())
    await anyio.wait_all_tasks_blocked()
    await ends.outbox.send_message(answer(1))
    await anyio.wait_all_tasks_blocked()
    assert not answered.done()
    await ends.outbox.send_message(JSONRPCNotification(jsonrpc="2.0", method="notifications/message", params={}))
    await anyio.wait_all_tasks_blocked()
    assert not answered.done()
    ends.write(_line({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "two"}}))
    with anyio.fail_after(5):
        await answered


async def test_r68_a_stop_does_not_wait_for_a_stream_that_has_no_end(ends: Ends) -> None:
    ends.inbox.start()
    ends.request(1, "subscriptions/listen")
    await received(ends)
    with anyio.fail_after(5):
        await ends.outbox.all_answered()


async def test_r5_lines_of_many_senders_are_never_mixed(ends: Ends) -> None:
    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(ends.outbox.send_message, answer(n, size=n * 2000))
        lines = await ends.read_lines(20)
    assert sorted(line["id"] for line in lines) == list(range(20))
    assert all(len(line["result"]["data"]) == line["id"] * 2000 for line in lines)


async def test_r5_a_client_that_does_not_read_does_not_block_the_event_loop(ends: Ends) -> None:
    sending = asyncio.ensure_future(ends.outbox.send_message(answer(1, size=500_000)))
    ticks = 0
    for _ in range(100):
        await asyncio.sleep(0)
        ticks += 1
    assert ticks == 100
    assert not sending.done()
    (line,) = await ends.read_lines(1)
    assert len(line["result"]["data"]) == 500_000
    await sending


async def test_r5_a_call_that_is_cancelled_while_its_answer_is_written_leaves_no_half_line(ends: Ends) -> None:
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ends.outbox.send_message, answer(1, size=500_000))
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            reader = asyncio.ensure_future(ends.read_lines(1))
    (first,) = await reader
    await ends.outbox.send_message(answer(2))
    (second,) = await ends.read_lines(1)
    assert (first["id"], second["id"]) == (1, 2)


async def test_r5_cancelled_at_any_await_an_answer_is_written_whole_or_not_at_all(ends: Ends) -> None:
    sent = 0

    async def send() -> None:
        nonlocal sent
        sent += 1
        await ends.outbox.send_message(answer(sent, size=200_000))

    async def whole_lines_only() -> None:
        await ends.outbox.send_message(answer(-sent))
        while (await ends.read_lines(1))[0]["id"] != -sent:
            pass

    async def send_while_somebody_reads() -> None:
        reading = asyncio.ensure_future(ends.read_lines(1))
        try:
            await send()
        finally:
            with anyio.CancelScope(shield=True):
                await ends.outbox.send_message(answer(0))
                await reading

    assert await cancel_at_every_await(send_while_somebody_reads, whole_lines_only, how="scope") >= 2


async def test_r5_a_call_that_is_cancelled_while_it_waits_for_its_turn_writes_nothing(ends: Ends) -> None:
    first = asyncio.ensure_future(ends.outbox.send_message(answer(1, size=500_000)))
    await anyio.wait_all_tasks_blocked()
    with anyio.move_on_after(0.001):
        await ends.outbox.send_message(answer(2))
    third = asyncio.ensure_future(ends.outbox.send_message(answer(3)))
    assert [line["id"] for line in await ends.read_lines(2)] == [1, 3]
    await asyncio.gather(first, third)


async def test_r5_a_pipe_in_non_blocking_mode_loses_nothing(ends: Ends) -> None:
    os.set_blocking(ends.server_out, False)
    sending = asyncio.ensure_future(ends.outbox.send_message(answer(1, size=500_000)))
    (line,) = await ends.read_lines(1)
    await sending
    assert len(line["result"]["data"]) == 500_000


@pytest.mark.parametrize("size", [1, 500_000])
async def test_r31_a_client_that_is_gone_is_told_apart_and_asks_for_a_stop(ends: Ends, size: int) -> None:
    ends.close(ends.client_in)
    with pytest.raises(anyio.BrokenResourceError):
        await ends.outbox.send_message(answer(1, size=size))
    assert ends.shutdown.reason == "the client closed stdout"


async def test_r31_lines_that_the_client_does_not_read_are_given_up_at_the_end(ends: Ends) -> None:
    sending = asyncio.ensure_future(ends.outbox.send_message(answer(1, size=500_000)))
    await anyio.wait_all_tasks_blocked()
    ends.outbox.abandon()
    with anyio.fail_after(5), pytest.raises(anyio.BrokenResourceError):
        await sending


async def test_r4_an_error_for_nobody_can_be_written(ends: Ends) -> None:
    error = JSONRPCError.model_validate({"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "x"}})
    await ends.outbox.send_message(error)
    assert await ends.read_lines(1) == [{"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "x"}}]


HANDSHAKE: list[dict[str, Any]] = [
    {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}},
    },
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
]


def tool_call(request_id: int, name: str, **arguments: object) -> dict[str, Any]:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


class Process:
    """A real server over stdio."""

    def __init__(self, source: Path, *, grace_s: float, read_answers: bool = True) -> None:
        command = [sys.executable, str(Path(__file__).with_name("child_server.py")), "stdio", str(grace_s)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(source)},
        )
        self.log: list[str] = []
        self.answers: dict[int, dict[str, Any]] = {}
        self.stray: list[bytes] = []
        readers = [self._read_log, self._read_answers] if read_answers else [self._read_log]
        self._threads = [threading.Thread(target=reader, daemon=True) for reader in readers]
        for thread in self._threads:
            thread.start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.decode())

    def _read_answers(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                message = json.loads(line)
                self.answers[message["id"]] = message
            except (ValueError, KeyError):
                self.stray.append(line)

    def send(self, *messages: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(_line(message) for message in messages))
        self.process.stdin.flush()

    def wait_for(self, condition: Callable[[], object]) -> None:
        give_up = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < give_up, "".join(self.log)
            time.sleep(0.002)

    def wait_for_log(self, words: str) -> None:
        self.wait_for(lambda: any(words in line for line in self.log))

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end(self, *, within_s: float = 10) -> tuple[int, str]:
        code = self.process.wait(within_s)
        for thread in self._threads:
            thread.join(5)
        return code, "".join(self.log)

    def text(self, request_id: int) -> str:
        found: str = self.answers[request_id]["result"]["content"][0]["text"]
        return found


@pytest.fixture
def start(root: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def begin(*, grace_s: float = 5, read_answers: bool = True) -> Process:
        source = root / "template" / "src" / "{{package_name}}"
        processes.append(Process(source, grace_s=grace_s, read_answers=read_answers))
        return processes[-1]

    yield begin
    for process in processes:
        process.process.kill()
        process.end()


def test_r31_requests_that_are_piped_in_are_answered_before_the_end(start: Callable[..., Process]) -> None:
    server = start()
    server.send(
        *HANDSHAKE, *[tool_call(n, "say", words=str(n)) for n in range(1, 6)], tool_call(6, "slow", seconds=0.2)
    )
    server.close_stdin()
    code, log = server.end()
    assert code == 0
    assert [server.text(n) for n in range(1, 6)] == ["1", "2", "3", "4", "5"]
    assert server.text(6) == "done"
    assert "cleaned up" in log


def test_r5_nothing_but_protocol_leaves_on_stdout_whoever_prints(start: Callable[..., Process]) -> None:
    server = start()
    server.send(*HANDSHAKE, tool_call(1, "babble"), tool_call(2, "say", words="alive"))
    server.wait_for(lambda: {1, 2} <= set(server.answers))
    server.close_stdin()
    code, log = server.end()
    assert code == 0
    assert server.stray == []
    assert (server.text(1), server.text(2)) == ("quiet", "alive")
    for words in ("by an import", "by a tool", "by C", "by a child process", "by another"):
        assert words in log


def test_r5_c_code_that_prints_more_than_a_pipe_holds_does_not_freeze_the_server(start: Callable[..., Process]) -> None:
    server = start()
    server.send(*HANDSHAKE, tool_call(1, "babble_at_length"))
    server.wait_for(lambda: 1 in server.answers)
    assert server.stray == []


def test_r4_no_tool_and_no_line_ends_the_server(start: Callable[..., Process]) -> None:
    server = start()
    server.send(*HANDSHAKE, tool_call(1, "cancelled_inside"), tool_call(2, "leave"), tool_call(3, "fail"))
    server.wait_for(lambda: {1, 2, 3} <= set(server.answers))
    assert server.process.stdin is not None
    server.process.stdin.write(b'\xff\n{"jsonrpc":"2.0","id":"\xff","x":"' + b"x" * 200_000 + b'"}\n')
    server.process.stdin.write(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":[1]}}\n')
    server.send(tool_call(4, "say", words="alive"))
    server.wait_for(lambda: 4 in server.answers)
    assert [server.answers[n]["result"]["isError"] for n in (1, 2, 3, 4)] == [True, True, True, False]
    server.close_stdin()
    assert server.end()[0] == 0


def test_r68_a_call_in_flight_is_answered_after_a_signal_and_new_ones_are_refused(
    start: Callable[..., Process],
) -> None:
    server = start()
    server.send(*HANDSHAKE, tool_call(1, "slow", seconds=0.7))
    server.wait_for_log("started slow")
    server.process.send_signal(signal.SIGINT)
    server.wait_for_log('"stopping"')
    server.send(tool_call(2, "say", words="too late"))
    code, log = server.end()
    assert code == 0
    assert server.text(1) == "done"
    assert server.text(2).startswith("The server is shutting down")
    assert "cleaned up" in log


@pytest.mark.parametrize(("name", "stop", "code"), [("block_loop", "end of input", 1), ("block_thread", "SIGTERM", 0)])
def test_r31_a_tool_that_never_returns_does_not_keep_the_server_alive(
    start: Callable[..., Process], name: str, stop: str, code: int
) -> None:
    server = start(grace_s=0.1)
    server.send(*HANDSHAKE, tool_call(1, name))
    server.wait_for_log(f"started {name}")
    asked = time.monotonic()
    if stop == "SIGTERM":
        server.process.terminate()
    else:
        server.close_stdin()
    found, log = server.end()
    assert time.monotonic() - asked < 5
    assert found == code
    assert ("cleaned up" in log) == (code == 0)


def test_r31_the_server_ends_when_the_client_closes_only_its_side_of_the_answers(start: Callable[..., Process]) -> None:
    server = start(read_answers=False)
    server.wait_for_log('"ready"')
    assert server.process.stdout is not None
    server.process.stdout.close()
    assert server.end()[0] == 0
