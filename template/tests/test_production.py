"""The real server process under the faults of production, over every transport and in both protocol eras.

The template's: replaced as a whole by every update. Each test names the rules it holds the server to.
"""

import re
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from typing import NamedTuple

import anyio
import pytest
from mcp import Client, MCPError
from mcp_types import CallToolResult

from production_helpers.process import (
    ANSWER_S,
    BUSY_MACHINE_S,
    ERAS,
    HANDSHAKE,
    ServerProcess,
    failure_of,
    statistics_of,
    text_of,
)
from production_helpers.project import NAME, PACKAGE, PREFIX, TRANSPORTS

pytestmark = pytest.mark.anyio

SECRET = "hunter2"
CONNECTIONS = [pytest.param((t, era), id=f"{t}-{era}") for t in TRANSPORTS for era in ERAS]


class Running(NamedTuple):
    """A server and its client."""

    server: ServerProcess
    client: Client
    era: str

    async def call(self, tool: str, **arguments: object) -> CallToolResult:
        return await self.client.call_tool(tool, arguments)


@asynccontextmanager
async def run(connection: tuple[str, str], **settings: object) -> AsyncIterator[Running]:
    transport, era = connection
    with ServerProcess(transport, settings) as server:
        async with server.connected(era) as client:
            yield Running(server, client, era)
        assert server.stray_lines == []


@pytest.fixture(scope="module", params=CONNECTIONS)
async def running(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """A server with default settings that the tests share: it must survive all of them."""
    async with run(request.param) as running:
        yield running


@pytest.fixture(scope="module", params=CONNECTIONS)
async def limited(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """A server with small limits."""
    async with run(
        request.param,
        TOOL_TIMEOUT_S=1.5,
        MAX_CONCURRENT_CALLS=2,
        MAX_QUEUED_CALLS=1,
        QUEUE_TIMEOUT_S=3,
        MAX_OUTPUT_BYTES=1000,
    ) as limited:
        yield limited


# ---- R3, R8, R16, R63: what a client sees first --------------------------------------------------------------------


async def test_the_server_names_itself_and_its_own_version(running: Running) -> None:  # R8
    info = running.client.server_info
    assert info is not None
    assert (info.name, info.version) == (NAME, import_module(PACKAGE).__version__)


async def test_every_tool_has_an_object_schema(running: Running) -> None:  # R3, R16
    tools = (await running.client.list_tools()).tools
    assert {"health-check", "get-metrics"} <= {tool.name for tool in tools}
    assert {tool.input_schema["type"] for tool in tools} == {"object"}


async def test_health_check_reports(running: Running) -> None:  # R12, R14
    report = (await running.call("health-check")).structured_content
    assert report is not None
    assert report["status"] == "ok"
    assert report["live"]
    assert report["ready"]


# ---- R5: nothing but protocol on stdout ----------------------------------------------------------------------------


async def test_writing_to_stdout_harms_nobody(running: Running) -> None:  # R5, R8
    """Prints at import have already happened by now: over stdio the fixture's end looks at every line."""
    assert text_of(await running.call("write_to_stdout")) == "written"
    assert text_of(await running.call("echo", text="still here")) == "still here"
    assert running.server.stray_lines == []
    if running.server.transport == "stdio":
        for line in ("a print", "a write", "a write to descriptor 1", "child ", "a print on the event loop"):
            await running.server.logged(f"printed to stdout: {line}")


# ---- R4, R52: errors -----------------------------------------------------------------------------------------------


async def test_an_unexpected_error_is_masked_and_can_be_found_in_the_log(running: Running) -> None:  # R4, R6, R52
    result = await running.call("fail_with_secret")
    failure = failure_of(result)
    assert SECRET not in result.model_dump_json()
    assert "db.internal" not in result.model_dump_json()
    assert failure["kind"] == "error"
    assert failure["retryable"] is False
    assert failure["reference"] in text_of(result)

    line = await running.server.logged("call failed unexpectedly", reference=failure["reference"])
    assert "Traceback" in line["exception"]
    assert "ConnectionError" in line["exception"]
    assert line["tool"] == "fail_with_secret"
    assert SECRET not in running.server.stderr()  # R6: neither by its key, nor in an address, nor in an error's text


@pytest.mark.parametrize(
    "error",
    [
        "SystemExit",
        "KeyboardInterrupt",
        "CancelledError",
        "GeneratorExit",
        "MemoryError",
        "RecursionError",
        "StopIteration",
        "ExceptionGroup",
    ],
)
async def test_whatever_a_tool_raises_the_server_lives(running: Running, error: str) -> None:  # R4, R52
    with anyio.fail_after(10):
        assert failure_of(await running.call("raise_error", name=error))["reference"]
        assert text_of(await running.call("echo", text="alive")) == "alive"


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt", "StopIteration"])
async def test_whatever_a_thread_raises_the_server_lives(running: Running, error: str) -> None:  # R4, R52
    with anyio.fail_after(10):
        assert failure_of(await running.call("raise_error_in_thread", name=error))["reference"]
        assert text_of(await running.call("echo", text="alive")) == "alive"


async def test_an_unknown_tool_is_named_and_the_nearest_suggested(running: Running) -> None:  # R4
    result = await running.call("health-chek")
    assert failure_of(result)["retryable"] is False
    assert text_of(result) == "Unknown tool: 'health-chek'. Did you mean 'health-check'?"
    assert len(text_of(await running.call("x" * 1000))) < 300


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [({}, "text: Field required"), ({"text": 5}, "text: Input should be a valid string")],
)
async def test_bad_arguments_are_explained(running: Running, arguments: dict[str, object], problem: str) -> None:  # R4
    result = await running.call("echo", **arguments)
    assert failure_of(result)["kind"] == "tool_error"
    assert text_of(result) == f"Invalid arguments: {problem}."


@pytest.mark.parametrize("tool", ["produce_unencodable", "produce_unserialisable"])
async def test_a_result_that_cannot_be_sent_is_answered_all_the_same(running: Running, tool: str) -> None:  # R4
    with anyio.fail_after(10):
        with suppress(MCPError):  # the SDK's own answer; that there is one is what counts
            await running.call(tool)
        assert text_of(await running.call("echo", text="alive")) == "alive"


# ---- R8, R43-R47: time ---------------------------------------------------------------------------------------------


async def test_a_slow_tool_is_cut_at_the_deadline_and_its_work_is_cancelled(limited: Running) -> None:  # R43, R44
    started = time.monotonic()
    failure = failure_of(await limited.call("sleep", seconds=60, mark="deadline"))
    assert 1.5 <= time.monotonic() - started < 1.5 + BUSY_MACHINE_S
    assert failure["kind"] == "timeout"
    assert failure["retryable"] is True
    await limited.server.logged("sleep was cancelled", mark="deadline")
    assert (await statistics_of(limited.client, "sleep"))["timeout"] >= 1


async def test_a_slow_thread_is_left_at_the_deadline(limited: Running) -> None:  # R43, R47
    assert failure_of(await limited.call("block", seconds=60))["kind"] == "timeout"
    assert text_of(await limited.call("echo", text="next")) == "next"


async def test_a_cancelled_call_stops_and_is_no_error(running: Running) -> None:  # R46
    if (running.server.transport, running.era) == ("http", HANDSHAKE):
        pytest.skip("its cancellation is a request of its own, which a stateless server cannot connect with the call")
    errors = (await statistics_of(running.client, "sleep"))["errors"]
    with pytest.raises((MCPError, TimeoutError)):
        await running.client.call_tool("sleep", {"seconds": 20, "mark": "cancelled"}, read_timeout_seconds=0.5)
    await running.server.logged("sleep was cancelled", mark="cancelled", within_s=5)
    with anyio.fail_after(5):
        while (figures := await statistics_of(running.client, "sleep"))["in_flight"]:
            await anyio.sleep(0.01)
    assert figures["cancelled"] >= 1
    assert figures["errors"] == errors


async def test_a_blocking_tool_delays_nobody(running: Running) -> None:  # R8
    """Beside a sleeping and a busy thread, calls are answered within 50 ms.

    One slow answer says nothing on a machine that does other things, so the median counts, and what the same calls
    cost without the blocking tools is added. A server that were blocked would answer nothing for `blocked_s`: the worst
    answer must stay far below that.
    """
    blocked_s = 2.0

    async def duration_ms() -> float:
        started = time.perf_counter()
        await running.call("echo", text="quick")
        return (time.perf_counter() - started) * 1000

    usual = [await duration_ms() for _ in range(50)]
    found = []
    async with anyio.create_task_group() as tasks:
        for tool in ("sleep_in_thread", "spin_in_thread"):
            tasks.start_soon(running.client.call_tool, tool, {"seconds": blocked_s})
        until = time.monotonic() + blocked_s - 0.2
        while time.monotonic() < until:
            found.append(await duration_ms())
    assert statistics.median(found) < 50 + 3 * statistics.median(usual)
    assert max(found) < blocked_s * 1000 / 2


async def test_hung_threads_of_one_tool_leave_the_others_alone(running: Running) -> None:  # R8, R47
    async with anyio.create_task_group() as tasks:
        for _ in range(45):
            tasks.start_soon(running.client.call_tool, "block", {"seconds": 20})
        with anyio.fail_after(ANSWER_S):
            hung = {"calls": 0, "in_flight": 0}
            while hung["calls"] + hung["in_flight"] < 45:  # those that find no place are refused
                hung = await statistics_of(running.client, "block")
        answer = await running.call("echo_in_thread", text="quick")
        assert (await statistics_of(running.client, "block"))["in_flight"] > 0
        await running.call("release")
    assert text_of(answer) == "quick"


# ---- R7, R59: load -------------------------------------------------------------------------------------------------


async def test_too_many_calls_are_refused_with_a_time_to_retry(limited: Running) -> None:  # R59
    results: list[CallToolResult] = []

    async def call() -> None:
        results.append(await limited.call("sleep", seconds=0.6))

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(call)
    refused = [failure_of(result) for result in results if result.is_error]
    assert len(refused) == 3  # two run, one waits
    assert {failure["kind"] for failure in refused} == {"busy"}
    assert all(failure["retryable"] and failure["retry_after_s"] > 0 for failure in refused)
    assert (await statistics_of(limited.client, "sleep"))["rejected"] >= 3


async def test_health_check_answers_under_load(limited: Running) -> None:  # R16, R59
    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(limited.client.call_tool, "sleep", {"seconds": 0.5})
        report = (await limited.call("health-check")).structured_content
    assert report is not None
    assert report["live"]


async def test_a_large_result_is_cut_with_a_notice(limited: Running) -> None:  # R7
    text = text_of(await limited.call("produce", size=50_000))
    assert text.startswith("x" * 1000 + "\n\n[Truncated")
    assert len(text) < 1200


async def test_a_large_structure_is_refused_and_not_broken(limited: Running) -> None:  # R7
    result = await limited.call("produce_structure", size=50_000)
    assert failure_of(result)["kind"] == "tool_error"
    assert "too large" in text_of(result)


# ---- R6, R61-R63: logs and metrics ---------------------------------------------------------------------------------


async def test_every_call_is_logged_with_its_names_and_its_time(running: Running) -> None:  # R6
    await running.call("echo", text="logged")
    line = await running.server.logged("call", tool="echo", outcome="ok")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert line["level"] == "info"
    assert line["request_id"]
    assert line["reference"]
    assert line["duration_ms"] >= 0


async def test_metrics_are_numbers_of_registered_names(running: Running) -> None:  # R61, R62, R63
    await running.call("no-such-tool")
    figures = await statistics_of(running.client, "unknown")
    assert figures["tool_error"] >= 1
    figures = await statistics_of(running.client, "echo")
    assert figures["calls"] == figures["ok"] + figures["errors"] + figures["cancelled"]
    assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]


# ---- Hangs: the process ends, so that it can be started again --------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "transport"), [("block_the_loop", TRANSPORTS[0]), ("hold_the_interpreter", TRANSPORTS[-1])]
)
async def test_a_hang_ends_the_process_and_shows_where(tool: str, transport: str) -> None:
    with ServerProcess(transport, {"HANG_TIMEOUT_S": 1}) as server:
        with suppress(Exception):  # a connection that breaks is told in many ways
            async with server.connected(HANDSHAKE) as client:
                await client.call_tool(tool)
        assert await server.ends(within_s=2) == 1
        assert "Timeout (0:00:01" in server.stderr()
        assert f"in {tool}" in server.stderr()


# ---- R1, R2, R8: start-up ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("TOOL_TIMEOUT_S", "soon", "a number greater than 0 and at most 3600"),
        ("MAX_CONCURRENT_CALLS", "0", "a whole number at least 1 and at most 10000"),
        ("LOG_LEVEL", "loud", "one of debug, info, warning, error"),
    ],
)
def test_a_wrong_setting_stops_the_start(setting: str, value: str, allowed: str) -> None:
    with ServerProcess(TRANSPORTS[-1], {setting: value}, hostile=False) as server:
        assert server.exit_code(within_s=30) == 2
        assert server.stderr() == f"{NAME}: {PREFIX}{setting}={value!r} is not valid: it must be {allowed}.\n"
        assert server.process.stdout is not None
        assert server.process.stdout.read() == b""
