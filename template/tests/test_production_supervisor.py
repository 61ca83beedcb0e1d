"""The server under its supervisor: neither a crash nor a hang ends the client's session.

The template's: replaced as a whole by every update. Each test names the rules it holds the server to.
"""

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import anyio
import pytest
from mcp import Client, MCPError

from production_helpers.process import (
    BUSY_MACHINE_S,
    ERAS,
    HANDSHAKE,
    MODERN,
    START_S,
    ServerProcess,
    read_until,
    text_of,
    wait_for,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="the supervisor is for POSIX"),
]

FAILED = -32000
"""The code of a supervisor's errors."""
EXIT_S = 0.5
"""How long it may take to stop where nothing is left to do."""
GONE_S = 2.0
"""How long anything may outlive its client, or its supervisor."""
PATIENT = {"WATCHDOG_MAX_RESTARTS": 100, "WATCHDOG_STABLE_S": 0}


class Running(NamedTuple):
    """A supervisor and its client."""

    server: ServerProcess
    client: Client

    async def text(self, tool: str, **arguments: object) -> str:
        return text_of(await self.client.call_tool(tool, arguments))

    async def error(self, tool: str) -> MCPError:
        """The error with which a call of several minutes ends."""
        with pytest.raises(MCPError) as caught:
            await self.client.call_tool(tool, {"seconds": 600} if tool == "sleep" else {})
        assert caught.value.code == FAILED
        return caught.value


@pytest.fixture(scope="module", params=ERAS)
async def running(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """A supervisor that the tests share; each of its servers prints before anything protects stdout."""
    with ServerProcess("stdio", PATIENT, {"HOSTILE_START": "prints"}, supervised=True) as server:
        async with server.connected(request.param) as client:
            yield Running(server, client)
        assert server.stray_lines == []


@pytest.fixture
def supervised() -> Iterator[ServerProcess]:
    """A supervisor of the test's own."""
    with ServerProcess("stdio", PATIENT, supervised=True) as server:
        yield server
        assert server.stray_lines == []


# ---- the session lives on ------------------------------------------------------------------------------------------


async def test_a_crash_in_the_middle_of_a_call(running: Running) -> None:  # R21, R26, R27
    """The call in flight gets an error, the next one waits for the next server; twice, because once may be luck."""
    for number in (1, 2):
        before = await running.text("process_id")
        errors: list[MCPError] = []

        async def call() -> None:
            errors.append(await running.error("sleep"))  # noqa: B023 - it ends before the next round

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            with anyio.fail_after(START_S):
                while len([line for line in running.server.logs() if line["event"] == "sleep begins"]) < number:
                    await anyio.sleep(0.01)
            os.kill(int(before), signal.SIGKILL)
        assert "outcome unknown" in str(errors[0])
        assert await running.text("process_id") != before
    assert (await running.client.list_tools()).tools


async def test_what_is_no_message_never_reaches_the_client(running: Running) -> None:  # R5, R18
    """Neither what a server prints at its very start, nor what a tool prints; the fixture's end looks at every line."""
    assert await running.text("write_to_stdout") == "written"
    for line in ("printed before anything is protected", "a print", "child "):
        await running.server.logged(f"printed to stdout: {line}")


@pytest.mark.parametrize(("era", "tool"), [(HANDSHAKE, "block_the_loop"), (MODERN, "hold_the_interpreter")])
async def test_a_hang_is_shown_and_cured(era: str, tool: str) -> None:  # R26
    with ServerProcess("stdio", {**PATIENT, "HANG_TIMEOUT_S": 1}, supervised=True) as server:
        async with server.connected(era) as client:
            running = Running(server, client)
            assert "outcome unknown" in str(await running.error(tool))
            assert await running.text("echo", text="next") == "next"
            await server.logged("the server has ended", cause="hang")
            assert f"in {tool}" in server.stderr()


@pytest.mark.parametrize("era", ERAS)
def test_a_server_that_is_given_up_is_still_answered_for(era: str) -> None:  # R29
    with ServerProcess("stdio", {"WATCHDOG_MAX_RESTARTS": 0}, supervised=True) as server:
        server.begin(era)
        server.call(1, "process_id")
        os.kill(int(server.answer(1)["result"]["content"][0]["text"]), signal.SIGKILL)
        wait_for(server, "the server is given up")
        server.call(2, "echo", text="x")
        assert server.answer(2)["error"]["code"] == FAILED
        server.stdin.close()
        assert server.exit_code(within_s=EXIT_S) == 1


def test_wrong_settings_are_answered_and_not_tried_again() -> None:  # R29
    with ServerProcess("stdio", {"TOOL_TIMEOUT_S": "soon"}, supervised=True) as server:
        server.request(1, "initialize")
        assert "settings are wrong" in server.answer(1)["error"]["message"]
        server.stdin.close()
        assert server.exit_code(within_s=EXIT_S) == 2
        assert server.stderr().count("is not valid: it must be") == 1


# ---- R31: it stops for good ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("era", "number"), list(zip(ERAS, (signal.SIGINT, signal.SIGTERM), strict=True)))
def test_a_signal_lets_the_call_in_flight_finish(supervised: ServerProcess, era: str, number: int) -> None:  # R30, R31
    supervised.begin(era)
    supervised.call(1, "sleep", seconds=0.7, mark="in flight")
    wait_for(supervised, "sleep begins")
    supervised.signal(number)
    assert supervised.answer(1)["result"]["content"][0]["text"] == "slept in flight"
    assert supervised.exit_code(within_s=EXIT_S) == 0
    assert supervised.log("cleanup is complete")


def test_a_signal_ends_an_idle_server_at_once(supervised: ServerProcess) -> None:  # R31
    supervised.begin(MODERN)
    supervised.signal(signal.SIGTERM)
    assert supervised.exit_code(within_s=EXIT_S) == 0
    assert supervised.log("cleanup is complete")


def test_what_was_asked_before_the_end_of_input_is_answered(supervised: ServerProcess) -> None:  # R31
    supervised.begin(HANDSHAKE)
    for number in range(20):
        supervised.call(number, "sleep", seconds=0.2, mark=str(number))
    supervised.stdin.close()
    answers = {m["id"]: m["result"]["content"][0]["text"] for m in supervised.answers() if "result" in m}
    assert answers == {number: f"slept {number}" for number in range(20)}
    assert supervised.exit_code(within_s=EXIT_S) == 0


@pytest.mark.parametrize(
    ("gone", "tool"),
    [
        ("stdin", "sleep"),
        ("stdin", "block_the_loop"),
        ("stdout", "block"),
        ("supervisor", "sleep"),
        ("supervisor", "block_the_loop"),
    ],
)
def test_nothing_outlives_the_client_or_the_supervisor(gone: str, tool: str) -> None:  # R31
    """Whatever the server does: with it goes what it has started. Their stderr ends with the last of them."""
    (lines, stderr), (answers, stdout) = os.pipe(), os.pipe()
    with ServerProcess("stdio", PATIENT, supervised=True, stderr=stderr, stdout=stdout) as supervised:
        os.close(stderr)
        os.close(stdout)
        try:
            supervised.send(
                b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25",'
                b'"capabilities":{},"clientInfo":{"name":"production-tests","version":"1"}}}\n'
            )
            supervised.call(1, "start_child")
            read_until(answers, b'"id":1', START_S)
            supervised.call(2, tool, **({} if tool == "block_the_loop" else {"seconds": 600}))
            read_until(lines, f"{tool} begins".encode(), START_S)
            if gone == "stdin":
                supervised.stdin.close()
            elif gone == "stdout":
                os.close(answers)
            else:
                supervised.process.kill()
            read_until(lines, None, GONE_S + BUSY_MACHINE_S)
        finally:
            os.close(lines)
            if gone != "stdout":
                os.close(answers)
