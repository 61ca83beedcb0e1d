"""The real server process on its pipes: signals, clients that die, lines that are no messages.

The template's: replaced as a whole by every update. Each test names the rules it holds the server to.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from mcp_types import CallToolResult

from production_helpers.process import (
    BUSY_MACHINE_S,
    ERAS,
    HANDSHAKE,
    MODERN,
    START_S,
    Condemned,
    ServerProcess,
    command,
    environment,
    failure_of,
    read_until,
    text_of,
    wait_for,
)
from production_helpers.project import NAME

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals, and pipes that can be polled"),
]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_S = 0.5
"""How long an idle server may take to end."""
GONE_S = 2.0
"""How long any server may take to end once its client is gone."""
HEARTBEAT_S = 10.0
"""How long a server that is stuck may look healthy."""
CLEANUP_S = 5.0
"""How long the lifespan's cleanup may take."""
INITIALIZE = (
    b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    b'"clientInfo":{"name":"production-tests","version":"1"}}}\n'
)


@pytest.fixture(scope="module", autouse=True)
def condemned() -> Iterator[Condemned]:
    """Servers that take their time to end, started before all other tests of this module."""
    condemned = Condemned("stdio", "hangs", "blocks")
    yield condemned
    condemned.close()


@pytest.fixture(scope="module", autouse=True)
def stuck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose event loop stands still from the beginning of the tests on."""
    settings = {"HEARTBEAT_PATH": tmp_path_factory.mktemp("stuck") / "beat", "HANG_TIMEOUT_S": 3600}
    with ServerProcess("stdio", settings) as server:
        server.begin(HANDSHAKE)
        server.call("stuck", "block_the_loop")
        yield server


@pytest.fixture(scope="module")
def spare() -> Iterator[list[ServerProcess]]:
    """The server of the next test: it starts while this one still waits for something."""
    servers = [ServerProcess("stdio")]
    yield servers
    for server in servers:
        with server:
            pass


@pytest.fixture
def server(spare: list[ServerProcess]) -> Iterator[ServerProcess]:
    """A server of the test's own with default settings, without a client."""
    spare.append(ServerProcess("stdio"))
    with spare.pop(0) as server:
        yield server
        assert server.stray_lines == []


@pytest.fixture(scope="module", params=ERAS)
def shared(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server that the tests of hostile input share: it must survive all of them."""
    with ServerProcess("stdio", {"MAX_INPUT_BYTES": 1_000_000}) as server:
        server.begin(request.param)
        yield server
        assert server.stray_lines == []
        server.signal(signal.SIGTERM)  # no request was forgotten that the server would now wait for
        assert server.exit_code(within_s=EXIT_S) == 0


# ---- R31, R68: signals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("era", "number"), list(zip(ERAS, SIGNALS, strict=True)))
async def test_a_signal_lets_the_call_in_flight_finish(server: ServerProcess, era: str, number: int) -> None:  # R68
    results: list[CallToolResult] = []
    async with server.connected(era) as client:

        async def call() -> None:
            results.append(await client.call_tool("sleep", {"seconds": 0.7, "mark": "in flight"}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await server.logged("sleep begins")
            server.signal(number)
            await server.logged("stopping", reason=signal.Signals(number).name)
            late = failure_of(await client.call_tool("echo", {"text": "late"}))
        assert text_of(results[0]) == "slept in flight"
        assert (late["kind"], late["retryable"]) == ("busy", True)
        assert await server.ends(within_s=EXIT_S) == 0
    assert server.log("cleanup is complete")


@pytest.mark.parametrize(("era", "number"), [(None, signal.SIGINT), (MODERN, signal.SIGTERM)])
def test_a_signal_ends_an_idle_server_at_once(server: ServerProcess, era: str | None, number: int) -> None:  # R68
    if era is None:
        wait_for(server, "ready")
    else:
        server.begin(era)
    server.signal(number)
    assert server.exit_code(within_s=EXIT_S) == 0
    assert server.log("cleanup is complete")


def test_a_signal_does_not_wait_for_a_stuck_thread() -> None:  # R47, R68
    with ServerProcess("stdio", {"SHUTDOWN_GRACE_S": 0.5}) as server:
        server.begin(HANDSHAKE)
        server.call(1, "block", seconds=600)
        wait_for(server, "block begins")
        server.signal(signal.SIGINT)
        assert server.exit_code(within_s=0.5 + EXIT_S) == 0
        assert server.log("cleanup is complete")


def test_a_second_interrupt_ends_it_at_once(server: ServerProcess) -> None:
    server.begin(HANDSHAKE)
    server.call(1, "sleep", seconds=60)
    wait_for(server, "sleep begins")
    server.signal(signal.SIGINT)
    wait_for(server, "stopping")
    time.sleep(0.6)  # a person's second Ctrl-C; one that follows sooner is an echo of the first
    server.signal(signal.SIGINT)
    assert server.exit_code(within_s=EXIT_S) == 128 + signal.SIGINT


def test_a_signal_during_the_start_ends_it_at_once() -> None:  # R68
    """The hostile tools' import prints: by then the server has taken the signals over."""
    with ServerProcess("stdio") as server:
        wait_for(server, "printed to stdout: a print")
        server.signal(signal.SIGTERM)
        assert server.exit_code(within_s=EXIT_S) == 0


# ---- R66: how it is, for whoever is not its client -----------------------------------------------------------------


def wait_for_probe(server: ServerProcess, *arguments: str, says: tuple[int, str]) -> None:
    until = time.monotonic() + START_S
    while (found := server.probe(*arguments)) != says:
        assert time.monotonic() < until, found


def test_the_probe_follows_the_server_from_its_start_to_its_end(tmp_path: Path) -> None:  # R66
    path = tmp_path / "beat"
    with ServerProcess("stdio", {"HEARTBEAT_PATH": path}) as server:
        wait_for_probe(server, says=(0, "ready"))
        wait_for_probe(server, "stdio", "--live", says=(0, "live"))
        server.stdin.close()
        assert server.exit_code(within_s=GONE_S) == 0
        assert server.probe() == (1, f"unhealthy: no heartbeat in {path} (No such file or directory)")


def test_the_probe_notices_at_once_that_a_server_was_killed(tmp_path: Path) -> None:  # R66
    with ServerProcess("stdio", {"HEARTBEAT_PATH": tmp_path / "beat"}) as server:
        wait_for_probe(server, says=(0, "ready"))
        server.process.kill()
        server.process.wait()
        assert server.probe() == (1, f"unhealthy: the process {server.process.pid} is gone")


def test_the_probe_needs_to_know_where_the_heartbeat_is(server: ServerProcess) -> None:  # R66
    assert server.probe("stdio")[0] == 2


# ---- R31: the client is gone ---------------------------------------------------------------------------------------


def test_the_end_of_input_ends_an_idle_server(server: ServerProcess) -> None:  # R31
    server.begin(HANDSHAKE)
    server.stdin.close()
    assert server.exit_code(within_s=EXIT_S) == 0
    assert server.log("cleanup is complete")


@pytest.mark.parametrize("era", ERAS)
def test_what_was_asked_before_the_end_of_input_is_answered(server: ServerProcess, era: str) -> None:
    server.begin(era)
    for number in range(20):
        server.call(number, "sleep", seconds=0.2, mark=str(number))
    server.stdin.close()
    answers = {m["id"]: m["result"]["content"][0]["text"] for m in server.answers() if "result" in m}
    assert answers == {number: f"slept {number}" for number in range(20)}
    assert server.exit_code(within_s=EXIT_S) == 0


@pytest.mark.parametrize("tool", ["sleep", "block"])
def test_the_end_of_input_waits_for_no_long_call(server: ServerProcess, tool: str) -> None:  # R31, R47
    server.begin(MODERN)
    server.call(1, tool, seconds=600)
    wait_for(server, f"{tool} begins")
    server.stdin.close()
    assert server.exit_code(within_s=GONE_S) == 0
    assert server.log("cleanup is complete")
    assert tool == "block" or server.log("sleep was cancelled")


@pytest.mark.parametrize("tool", [None, "block"])
def test_a_broken_stdout_ends_it(server: ServerProcess, tool: str | None) -> None:  # R31
    """Stdin stays open: only the pipe of the answers breaks."""
    read_end, write_end = os.pipe()
    with ServerProcess("stdio", stdout=write_end) as server:
        os.close(write_end)
        wait_for(server, "ready")
        if tool is not None:
            server.send(INITIALIZE)
            server.call(1, tool, seconds=600)
            wait_for(server, f"{tool} begins")
        os.close(read_end)
        assert server.exit_code(within_s=GONE_S) == 0
        assert server.log("cleanup is complete")


BLOCK = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"block","arguments":{"seconds":600}}}\n'
CLIENT = f"""
import subprocess, sys, time
own = sys.argv[1] == "own"
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE if own else None, stdout=subprocess.PIPE if own else None)
if own:
    server.stdin.write({INITIALIZE + BLOCK!r})
    server.stdin.flush()
time.sleep(600)
"""


@pytest.mark.parametrize("pipes", ["own", "held"])
def test_the_client_is_killed(pipes: str) -> None:  # R31
    """Once with pipes of its own and a stuck call, once with pipes that another process holds open, too."""
    lines, stderr = os.pipe()
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, pipes, *command("stdio")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=environment({}),
        start_new_session=True,
    )
    os.close(stderr)
    try:
        read_until(lines, b"block begins" if pipes == "own" else b'"ready"', START_S)
        client.kill()
        read_until(lines, None, GONE_S + BUSY_MACHINE_S)  # the pipe ends with the last process that holds it
    finally:
        os.close(lines)
        with suppress(ProcessLookupError):
            os.killpg(client.pid, signal.SIGKILL)
        client.communicate()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_closed_at_the_start(closed: str) -> None:  # R8
    script = ["sh", "-c", f'exec "$@" {closed}', "sh", *command("stdio", hostile=False)]
    done = subprocess.run(script, capture_output=True, text=True, env=environment({}), timeout=START_S, check=False)
    assert done.returncode == 1
    assert done.stderr == f"{NAME}: stdin or stdout is closed; a client must keep both open to talk to it.\n"
    assert done.stdout == ""


# ---- a client that is slow, or reads nothing -----------------------------------------------------------------------


def blocked_server() -> ServerProcess:
    """A server whose answers nobody has read yet: 40 times 100 kB do not fit into a pipe."""
    server = ServerProcess("stdio", {"SHUTDOWN_GRACE_S": 0.5, "MAX_OUTPUT_BYTES": 200_000, "MAX_QUEUED_CALLS": 100})
    server.send(INITIALIZE)
    for number in range(1, 41):
        server.call(number, "produce", size=100_000)
    server.call("last", "sleep", seconds=0.01, mark="beside the blocked pipe")
    return server


def test_a_client_that_pauses_loses_nothing() -> None:
    with blocked_server() as server:
        wait_for(server, "sleep begins")  # the event loop is not blocked
        answers = {0}
        while answers != {*range(41), "last"}:
            answers.add(next(iter(server.answers()))["id"])
        assert server.alive()
        assert server.stray_lines == []


def test_a_client_that_never_reads_does_not_hinder_a_signal() -> None:  # R68
    with blocked_server() as server:
        wait_for(server, "sleep begins")
        server.signal(signal.SIGTERM)
        server.exit_code(within_s=0.5 + CLEANUP_S + EXIT_S)
        assert server.log("cleanup is complete")


def test_a_client_that_never_reads_and_leaves() -> None:  # R31
    with blocked_server() as server:
        wait_for(server, "sleep begins")
        server.stdin.close()
        server.exit_code(within_s=GONE_S)
        assert server.log("cleanup is complete")


def test_logs_that_nobody_reads_delay_no_call() -> None:  # R6, R19
    lines, stderr = os.pipe()
    with ServerProcess("stdio", {"LOG_LEVEL": "debug"}, stderr=stderr) as server:
        os.close(stderr)
        server.begin(HANDSHAKE)
        for number in range(700):  # some 400 fill the pipe
            server.call(number, "echo", text="x")
            server.answer(number)
        server.signal(signal.SIGTERM)
        assert server.exit_code(within_s=EXIT_S) == 0
    os.close(lines)


@pytest.mark.parametrize("stderr", ["closed", "broken"])
def test_no_stderr_is_no_harm(stderr: str) -> None:  # R5, R6
    lines, write_end = os.pipe()
    os.close(lines)
    script = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command("stdio")] if stderr == "closed" else command("stdio")
    with subprocess.Popen(
        script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=write_end, env=environment({})
    ) as process:
        os.close(write_end)
        output, _ = process.communicate(
            INITIALIZE
            + b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"x"}}}\n',
            timeout=START_S,
        )
    assert [line[:22] for line in output.splitlines()] == [b'{"jsonrpc":"2.0","id":'] * 2
    assert process.returncode == 0


# ---- R4, R7: hostile lines -----------------------------------------------------------------------------------------

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602

ANSWERED: dict[str, tuple[bytes, int]] = {
    "no JSON": (b"hello", PARSE_ERROR),
    "cut off": (b'{"jsonrpc":"2.0","id":1,"meth', PARSE_ERROR),
    "two messages": (b'{"jsonrpc":"2.0","id":1,"method":"ping"}{"jsonrpc":"2.0","id":2,"method":"ping"}', PARSE_ERROR),
    "invalid UTF-8": (b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}', PARSE_ERROR),
    "a NUL": (b'{"jsonrpc":"2.0",\x00"id":1,"method":"ping"}', PARSE_ERROR),
    "UTF-16": ('{"jsonrpc":"2.0","id":1,"method":"ping"}'.encode("utf-16-le"), PARSE_ERROR),
    "half a surrogate pair": (b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}', PARSE_ERROR),
    "deep lists": (b"[" * 100_000, PARSE_ERROR),
    "deep and closed": (
        b'{"jsonrpc":"2.0","id":1,"method":"x","params":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
        PARSE_ERROR,
    ),
    "a number": (b"42", INVALID_REQUEST),
    "a batch": (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', INVALID_REQUEST),
    "an empty batch": (b"[]", INVALID_REQUEST),
    "another version": (b'{"jsonrpc":"1.0","id":"v","method":"ping"}', INVALID_REQUEST),
    "no version": (b'{"id":"v","method":"ping"}', INVALID_REQUEST),
    "an id that is null": (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', INVALID_REQUEST),
    "an id that is an object": (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', INVALID_REQUEST),
    "an id that is true": (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', INVALID_REQUEST),
    "an id that is a fraction": (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', INVALID_REQUEST),
    "params that are a list": (b'{"jsonrpc":"2.0","id":"v","method":"ping","params":[1]}', INVALID_REQUEST),
    "a method that is a number": (b'{"jsonrpc":"2.0","id":"v","method":5}', INVALID_REQUEST),
    "too long": (
        b'{"jsonrpc":"2.0","id":"v","method":"ping","params":{"x":"' + b"x" * 2_000_000 + b'"}}',
        INVALID_REQUEST,
    ),
    "too long and no message": (b"x" * 3_000_000, INVALID_REQUEST),
}
UNANSWERED: dict[str, bytes] = {
    "blank": b"  \r",
    "a malformed notification": b'{"jsonrpc":"2.0","method":5}',
    "an unknown notification": b'{"jsonrpc":"2.0","method":"notifications/nonsense","params":{"x":1}}',
    "a result nobody asked for": b'{"jsonrpc":"2.0","id":99,"result":{}}',
    "an error nobody asked for": b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}',
    "a cancellation of nothing": b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":12345}}',
    "a cancellation without an id": b'{"jsonrpc":"2.0","method":"notifications/cancelled"}',
    "a cancellation of an object": b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":{}}}',
    "progress of nothing": b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}',
}


@pytest.mark.parametrize("case", ANSWERED)
def test_a_line_that_is_no_message_is_answered(shared: ServerProcess, case: str) -> None:  # R4, R7
    line, code = ANSWERED[case]
    shared.send(line + b"\n")
    answer = shared.answer("v" if b'"id":"v"' in line else None)
    assert answer["error"]["code"] == code
    assert len(answer["error"]["message"]) < 200
    assert shared.alive()


@pytest.mark.parametrize("case", UNANSWERED)
def test_a_line_that_wants_no_answer_gets_none(shared: ServerProcess, case: str) -> None:  # R4
    shared.send(UNANSWERED[case] + b"\n")
    shared.call("next", "echo", text="x")
    assert next(iter(shared.answers()))["id"] == "next"


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("no/such", {}, METHOD_NOT_FOUND),
        ("x" * 100_000, {}, METHOD_NOT_FOUND),
        ("tools/call", {}, INVALID_PARAMS),
        ("tools/call", {"name": 5}, INVALID_PARAMS),
        ("tools/call", {"name": "echo", "arguments": [1]}, INVALID_PARAMS),
        ("resources/read", {"uri": "nothing://at-all"}, INVALID_PARAMS),
        ("prompts/get", {"name": "none"}, INVALID_PARAMS),
    ],
)
def test_a_wrong_request_is_an_error_without_a_traceback(
    shared: ServerProcess, method: str, params: dict[str, object], code: int
) -> None:  # R4
    shared.request("wrong", method, **params)
    error = shared.answer("wrong")["error"]
    assert error["code"] == code
    assert "Traceback" not in str(error)
    assert shared.alive()


@pytest.mark.parametrize("request_id", [0, -1, 2**53, "", "7", "x" * 10_000, "ü\n\x00\u2028"])
def test_every_valid_id_comes_back_as_it_is(shared: ServerProcess, request_id: object) -> None:  # R4
    shared.call(request_id, "echo", text="x")
    assert next(iter(shared.answers()))["id"] == request_id


def test_an_id_that_is_still_in_use(shared: ServerProcess) -> None:
    shared.call("twice", "sleep", seconds=0.3, mark="first")
    shared.call("twice", "sleep", seconds=0.1, mark="second")
    assert shared.answer("twice")
    assert shared.alive()


def test_unfinished_lines_and_line_ends_do_not_matter(shared: ServerProcess) -> None:
    shared.send(b'{"jsonrpc":"2.0","id":"crlf","method":"no/such"}\r\n')
    assert "error" in shared.answer("crlf")
    for piece in (b'{"jsonrpc":"2.0",', b'"id":"pieces",', b'"method":"no/such"}', b"\n"):
        shared.send(piece)
        time.sleep(0.02)
    assert "error" in shared.answer("pieces")


def test_hostile_lines_cost_no_memory(shared: ServerProcess) -> None:  # R7
    """Twice the same flood: what the first one made the process keep, the second one must find there."""
    lines = [line + b"\n" for line in [*(line for line, _ in ANSWERED.values()), *UNANSWERED.values()]]

    def flood(name: str) -> float:
        for number in range(10):
            for line in lines:
                shared.send(line)
            shared.call(f"{name}-{number}", "echo", text="x")
            shared.answer(f"{name}-{number}")
        shared.call(name, "health-check")
        return float(shared.answer(name)["result"]["structuredContent"]["rss_mb"])

    first = flood("first")
    assert flood("second") < first + 10


def test_a_tool_that_closes_the_standard_streams(shared: ServerProcess) -> None:  # R5
    """The last of the shared server's tests: nothing that it prints is seen from here on."""
    shared.call("closing", "close_stdout")
    assert shared.answer("closing")["result"]["content"][0]["text"] == "closed"
    assert shared.alive()


# ---- last, because it takes seconds, which the tests above have used -----------------------------------------------


def test_the_probe_notices_that_the_event_loop_stands_still(stuck: ServerProcess) -> None:  # R66
    until = time.monotonic() + HEARTBEAT_S
    while (found := stuck.probe("--live"))[0] == 0:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert found[1].startswith("unhealthy: the last heartbeat is ")


def test_a_cleanup_that_never_ends_is_ended_by_force(condemned: Condemned) -> None:  # R68
    for duration_s in condemned.ended_by_force_after(limit_s=CLEANUP_S):
        assert duration_s < CLEANUP_S + BUSY_MACHINE_S
