"""What ends a server, or keeps it from working, does not end the client's session (R17-R33, R69)."""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from reliability.rpc_lines import encoded

from tests.e2e.supervised import BUSY_MACHINE_S, ERAS, HANDSHAKE, MODERN, Supervised, until
from tests.e2e.test_endurance import SEED, garbage

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.platform == "win32":
    pytest.skip("the supervisor is for POSIX", allow_module_level=True)

QUEUED = 256
LARGE = 5_000_000
MUCH_BYTES = 40_000_000
STALLED_S = 2.0
LEAK_S = 60.0
"""Until a leak is noticed: the server looks every few seconds, and not at once."""
both_eras = pytest.mark.parametrize("era", ERAS)


# ---- a server that does not start ------------------------------------------------------------------------------------


@both_eras
def test_a_crash_before_the_first_answer_is_retried(start: Callable[..., Supervised], era: str) -> None:  # R33
    """In its imports, and again when it reads the client's first request."""
    supervised = start("exit-1 killed dies-when-asked well", era=era)
    assert supervised.works()
    assert supervised.lives == 4
    assert [line["cause"] for line in supervised.logged("the server has ended", count=3)] == [
        "crash",
        "killed",
        "killed",
    ]
    assert supervised.leave() == 0


def test_a_client_that_does_not_introduce_itself(start: Callable[..., Supervised]) -> None:  # R32, R33
    """In the modern era it need not: its first request may be any."""
    supervised = start("exit-1 well", {"HANG_TIMEOUT_S": 1})
    supervised.process._era = MODERN
    supervised.process.request("first", "tools/list")
    assert supervised.answer("first")["result"]["tools"]
    os.kill(supervised.server(), signal.SIGSTOP)
    supervised.call("in flight", "echo", text="x")
    assert supervised.error("in flight")["kind"] == "outcome_unknown"
    assert supervised.works()
    assert supervised.leave() == 0


@both_eras
def test_a_crash_while_it_is_told_what_it_must_know(
    start: Callable[..., Supervised], era: str
) -> None:  # R21, R26, R27
    supervised = start("well dies-when-asked exit-1 dies-when-asked well", era=era)
    supervised.kill_server()
    supervised.call("waits", "append", path=str(supervised.directory / "done"), text="once")
    assert supervised.text("waits") == "once"
    assert supervised.lives == 5
    assert (supervised.directory / "done").read_text() == "once\n"
    assert supervised.leave() == 0


@both_eras
def test_a_server_that_does_not_answer_its_first_request(start: Callable[..., Supervised], era: str) -> None:  # R21
    supervised = start("well silent-when-asked well", {"WATCHDOG_START_TIMEOUT_S": 4}, era=era)
    supervised.kill_server()
    assert supervised.works()
    (line,) = supervised.logged("the server has ended", cause="useless")
    assert "did not answer its first request within 4 s" in line["reason"]
    assert supervised.leave() == 0


@both_eras
def test_a_crash_loop_ends_with_answers_and_can_end_itself(start: Callable[..., Supervised], era: str) -> None:  # R29
    settings = {"WATCHDOG_MAX_RESTARTS": 3, "WATCHDOG_WINDOW_S": 5}
    supervised = start("well exit-1", settings, era=era)
    supervised.call("in flight", "sleep", seconds=60)
    supervised.logged("sleep begins")
    supervised.kill_server()
    for number in range(3):
        supervised.call(number, "echo", text="x")
    assert supervised.error("in flight")["kind"] == "outcome_unknown"
    errors = [supervised.error(number) for number in range(3)]
    assert all("ends again and again" in error["message"] for error in errors)
    assert {(error["kind"], error["retryable"]) for error in errors} == {("unavailable", True)}
    assert supervised.lives == 4

    supervised.plan("well")
    attempts = iter(range(1000))

    def works_again() -> bool:
        request_id = f"again {next(attempts)}"
        supervised.call(request_id, "echo", text="x")
        return "result" in supervised.answer(request_id)

    until(works_again, "the server is tried again when the window is over")
    assert supervised.leave() == 0


def test_a_crash_loop_ends_the_supervisor_where_that_is_wished(start: Callable[..., Supervised]) -> None:  # R29
    settings = {"WATCHDOG_MAX_RESTARTS": 1, "WATCHDOG_AFTER_GIVING_UP": "exit"}
    supervised = start("well exit-1", settings, era=HANDSHAKE)
    supervised.kill_server()
    supervised.call("waits", "echo", text="x")
    assert supervised.ends() == 1
    assert supervised.error("waits")["kind"] == "unavailable"


@both_eras
def test_wrong_settings_are_not_tried_again(start: Callable[..., Supervised], era: str) -> None:  # R29
    supervised = start(settings={"TOOL_TIMEOUT_S": "soon"})
    supervised.introduce(era)
    error = supervised.error("begin")
    assert (error["kind"], error["retryable"]) == ("unavailable", False)
    assert "settings are wrong" in error["message"]
    assert "MY_SERVER_TOOL_TIMEOUT_S='soon' is not valid" in supervised.process.stderr()
    assert supervised.lives == 1
    assert supervised.leave() == 2


def test_settings_that_become_wrong_are_not_tried_again(start: Callable[..., Supervised]) -> None:  # R29
    supervised = start("well exit-2", era=MODERN)
    supervised.call("in flight", "sleep", seconds=60)
    supervised.logged("sleep begins")
    supervised.kill_server()
    supervised.call("waits", "echo", text="x")
    assert supervised.error("in flight")["kind"] == "outcome_unknown"
    assert supervised.error("waits")["retryable"] is False
    assert supervised.lives == 2
    assert supervised.leave() == 2


@both_eras
def test_an_orderly_end_is_a_reason_to_start_again(start: Callable[..., Supervised], era: str) -> None:  # R30
    supervised = start(era=era)
    supervised.call("last", "end", code=0)
    assert supervised.error("last")["kind"] == "outcome_unknown"
    assert supervised.works()
    supervised.logged("the server has ended", cause="clean exit", exit_code=0)
    assert supervised.leave() == 0


def test_an_orderly_end_is_the_end_where_that_is_wished(start: Callable[..., Supervised]) -> None:  # R30
    supervised = start(settings={"WATCHDOG_CLEAN_EXIT": "stop"}, era=HANDSHAKE)
    supervised.call("last", "end", code=0)
    assert supervised.ends() == 0
    assert supervised.error("last")["kind"] == "outcome_unknown"
    assert supervised.lives == 1


# ---- a server that hangs or leaks ------------------------------------------------------------------------------------


@both_eras
def test_a_frozen_server_is_replaced(start: Callable[..., Supervised], era: str) -> None:  # R26, R32
    """SIGSTOP: nothing inside of it can notice, so that only the question of the supervisor remains."""
    supervised = start(settings={"HANG_TIMEOUT_S": 1}, era=era)
    os.kill(supervised.server(), signal.SIGSTOP)
    supervised.call("in flight", "echo", text="x")
    assert supervised.error("in flight")["kind"] == "outcome_unknown"
    assert supervised.works()
    supervised.logged("the server has ended", cause="hang")
    assert supervised.leave() == 0


@both_eras
def test_a_silent_client_and_a_busy_server_are_no_hang(start: Callable[..., Supervised], era: str) -> None:  # R32
    supervised = start(settings={"HANG_TIMEOUT_S": 1}, era=era)
    supervised.call("long", "sleep", seconds=4)
    assert supervised.text("long") == "slept"
    assert supervised.lives == 1
    assert supervised.leave() == 0
    assert all("method" not in message for message in supervised.messages)  # the client sees nothing of the questions


@pytest.mark.parametrize(("era", "tool"), [(HANDSHAKE, "block_the_loop"), (MODERN, "hold_the_interpreter")])
def test_a_stuck_server_shows_where_and_is_replaced(
    start: Callable[..., Supervised], era: str, tool: str
) -> None:  # R26
    supervised = start(settings={"HANG_TIMEOUT_S": 1}, era=era)
    supervised.call("stuck", tool, seconds=600)
    assert supervised.error("stuck")["kind"] == "outcome_unknown"
    assert supervised.works()
    supervised.logged("the server has ended", cause="hang", exit_code=1)
    assert f"in {tool}" in supervised.process.stderr()
    assert supervised.leave() == 0


@both_eras
def test_a_leak_is_cured_between_two_calls(start: Callable[..., Supervised], era: str) -> None:  # R69
    """Two callers who go on all the time notice nothing of it."""
    supervised = start(settings={"MEMORY_HARD_LIMIT_MB": 300, "MEMORY_SOFT_LIMIT_MB": 200}, era=era)
    supervised.call("leak", "leak", megabytes=300)
    assert supervised.text("leak") == "leaked"
    how: Counter[str] = Counter()
    give_up = time.monotonic() + LEAK_S
    while supervised.lives == 1 and time.monotonic() < give_up:
        number = how.total()
        for caller in ("a", "b"):
            supervised.call(f"{caller}{number}", "sleep", seconds=0.02)
        how.update(outcome(supervised.answer(f"{caller}{number}")) for caller in ("a", "b"))
    assert set(how) == {"ok"}
    supervised.logged("the server has ended", cause="memory", calls_in_flight=0)
    assert supervised.works()
    assert supervised.leave() == 0


def outcome(answer: dict[str, Any]) -> str:
    """Say "ok", or the kind of the error, whoever made it."""
    if "error" in answer:
        return str(answer["error"]["data"]["kind"])
    return str(answer["result"]["_meta"]["reliability/error"]["kind"]) if answer["result"]["isError"] else "ok"


# ---- what a server writes --------------------------------------------------------------------------------------------


@both_eras
def test_what_is_no_message_never_reaches_the_client(start: Callable[..., Supervised], era: str) -> None:  # R18
    supervised = start("prints", era=era)
    supervised.call("rubbish", "print_rubbish")
    assert supervised.text("rubbish") == "printed"
    assert supervised.works()
    supervised.kill_server()
    assert supervised.works()
    for text in ("printed by an import", "and half a line", "plain text", '{"no": "message"}', "[1, 2]", "xxxxxxxx"):
        supervised.logged(f"printed to stdout: {text}")
    assert supervised.leave() == 0  # which looks for stray lines


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of another process's memory")
def test_a_line_without_an_end_is_not_kept(start: Callable[..., Supervised]) -> None:  # R18
    supervised = start(era=MODERN)
    supervised.call("endless", "print_a_long_line", megabytes=200)
    assert supervised.text("endless") == "printed"
    supervised.logged("printed to stdout: xxxxxxxx")
    assert supervised.works()
    status = Path(f"/proc/{supervised.pid}/status").read_text()
    assert int(status.partition("VmHWM:")[2].split()[0]) < 100_000  # kB
    assert supervised.leave() == 0


def test_a_message_without_an_end_ends_the_server(start: Callable[..., Supervised]) -> None:  # R17, R18
    supervised = start(era=MODERN)
    supervised.call("endless", "print_a_long_line", begin='{"jsonrpc":"2.0","id":', megabytes=400)
    assert supervised.error("endless")["kind"] == "outcome_unknown"
    supervised.logged("the server has ended", reason="it wrote more than 256 MiB without the end of a line")
    assert supervised.works()
    assert supervised.leave() == 0


def test_who_reads_no_refusal_is_not_read_either(start: Callable[..., Supervised]) -> None:  # R17, R29
    read_end, write_end = os.pipe()
    supervised = start("exit-1", {"WATCHDOG_MAX_RESTARTS": 0}, stdout=write_end)
    os.close(write_end)
    supervised.logged("the server is given up")
    stdin = supervised.process.stdin.fileno()
    os.set_blocking(stdin, False)
    calls = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}\n' * 1000
    taken = 0
    while select.select([], [stdin], [], STALLED_S)[1]:
        taken += os.write(stdin, calls)
        assert taken < MUCH_BYTES
    while not select.select([], [stdin], [], 0)[1]:
        assert os.read(read_end, 65_536)
    os.close(read_end)
    supervised.process.exit_code(within_s=3)


@both_eras
def test_a_flood_on_stderr_that_nobody_reads_freezes_nobody(start: Callable[..., Supervised], era: str) -> None:  # R19
    """Neither the server that floods, nor its supervisor, which has something to log, nor the next server."""
    lines, stderr = os.pipe()
    supervised = start(settings={"LOG_LEVEL": "debug"}, era=era, stderr=stderr)
    os.close(stderr)
    for _ in range(2):
        supervised.call(f"flood {supervised.lives}", "flood_stderr", megabytes=5)
        for _ in range(20):
            assert supervised.works()
        supervised.kill_server()
        assert supervised.error(f"flood {supervised.lives}")["kind"] == "outcome_unknown"
        assert supervised.works()
    assert supervised.leave() == 0
    os.close(lines)


def test_a_flood_on_stderr_arrives_where_somebody_reads(start: Callable[..., Supervised]) -> None:  # R19
    supervised = start(era=MODERN)
    supervised.call("flood", "flood_stderr", megabytes=5)
    assert supervised.text("flood") == "flooded"
    assert supervised.process.stderr().count("x" * 99_999) == 50
    assert supervised.leave() == 0


# ---- what was begun with the dead ------------------------------------------------------------------------------------


def test_a_question_of_the_dead_is_withdrawn(start: Callable[..., Supervised]) -> None:  # R26, R28
    """A late answer to it reaches nobody, least of all a later server that asks under the same id."""
    supervised = start()
    supervised.begin(HANDSHAKE, elicitation={})
    dead = []
    for question in ("first", "second"):
        supervised.call(question, "ask", question=question)
        dead.append(supervised.notification("elicitation/create", question)["id"])
        supervised.kill_server()
        assert supervised.error(question)["kind"] == "outcome_unknown"
        assert supervised.notification("notifications/cancelled", str(dead[-1]))["params"]["requestId"] == dead[-1]

    supervised.call("third", "ask", question="third")
    asked = supervised.notification("elicitation/create", "third")["id"]
    assert asked not in dead
    for late in dead:
        supervised.process.send({"jsonrpc": "2.0", "id": late, "result": {"action": "decline"}})
    answer = {"action": "accept", "content": {"yes": True}}
    supervised.process.send({"jsonrpc": "2.0", "id": asked, "result": answer})
    assert supervised.text("third") == "True"
    assert supervised.leave() == 0


def test_what_the_client_has_told_is_told_again(start: Callable[..., Supervised]) -> None:  # R21, R23, R24
    supervised = start(era=HANDSHAKE)
    process = supervised.process
    process.request("level", "logging/setLevel", level="warning")
    for uri in ("test://kept", "test://left"):
        process.request(uri, "resources/subscribe", uri=uri)
    process.request("leave", "resources/unsubscribe", uri="test://left")
    process.request("level again", "logging/setLevel", level="error")
    for request_id in ("level", "test://kept", "test://left", "leave", "level again"):
        assert supervised.answer(request_id)["result"] == {}
    for life in (2, 3):
        supervised.kill_server()
        supervised.call(f"known {life}", "known")
        known = supervised.answer(f"known {life}")["result"]["structuredContent"]
        assert known == {"level": "error", "subscriptions": ["test://kept"]}
        assert supervised.lives == life
    supervised.call("touch", "touch", uri="test://kept")
    updated = supervised.wait_for(lambda message: "method" in message, "a notification")
    assert (updated["method"], updated["params"]["uri"]) == ("notifications/resources/updated", "test://kept")
    assert supervised.leave() == 0
    assert [message["method"] for message in supervised.messages if "method" in message] == [updated["method"]]


def test_an_open_stream_is_ended_and_can_be_opened_again(start: Callable[..., Supervised]) -> None:  # R25
    supervised = start(era=MODERN)
    for stream in ("first", "second"):
        wanted = {"resourceSubscriptions": ["test://a"]}
        supervised.process.request(stream, "subscriptions/listen", notifications=wanted)
        supervised.notification("notifications/subscriptions/acknowledged", stream)
        supervised.call(f"touch {stream}", "touch", uri="test://a")
        supervised.notification("notifications/resources/updated", stream)
        supervised.kill_server()
        assert supervised.error(stream)["retryable"] is True
    assert supervised.works()
    assert supervised.leave() == 0


# ---- while there is no server ----------------------------------------------------------------------------------------


@both_eras
def test_a_cancelled_call_that_waits_is_never_executed(start: Callable[..., Supervised], era: str) -> None:  # R27
    supervised = start("well slow", era=era)
    done = supervised.directory / "done"
    supervised.kill_server()
    for number in range(3):
        supervised.call(number, "append", path=str(done), text=str(number))
    cancel = {"requestId": 1, "reason": "the person is in a hurry"}
    supervised.process.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancel})
    assert supervised.text(0) == "0"
    assert supervised.text(2) == "2"
    assert supervised.works()
    assert done.read_text().split() == ["0", "2"]
    assert supervised.leave() == 0
    assert all(message.get("id") != 1 for message in supervised.messages)


@both_eras
def test_a_cancelled_call_that_is_lost_is_not_answered(start: Callable[..., Supervised], era: str) -> None:  # R26
    """Nobody waits for it any more."""
    supervised = start(era=era)
    supervised.call("given up", "sleep", seconds=600)
    supervised.logged("sleep begins")
    supervised.process.send(
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "given up"}}
    )
    supervised.logged("call", tool="sleep", outcome="cancelled")
    supervised.kill_server()
    assert supervised.works()
    assert supervised.leave() == 0
    assert all(message.get("id") != "given up" for message in supervised.messages)


@both_eras
def test_more_calls_than_may_wait_are_refused_at_once(start: Callable[..., Supervised], era: str) -> None:  # R27
    supervised = start("well slow", {"MAX_QUEUED_CALLS": 1000, "QUEUE_TIMEOUT_S": 60}, era=era)
    supervised.kill_server()
    for number in range(QUEUED + 44):
        supervised.call(number, "echo", text=str(number))
    for number in range(QUEUED, QUEUED + 44):
        error = supervised.error(number)
        assert (error["kind"], error["retryable"]) == ("unavailable", True)
    assert not any("result" in message for message in supervised.messages[1:])  # none had to wait for the others
    for number in range(QUEUED):
        assert supervised.text(number) == str(number)
    assert supervised.leave() == 0


@both_eras
def test_a_call_waits_for_a_limited_time(start: Callable[..., Supervised], era: str) -> None:  # R27
    supervised = start("well never-answers", {"WATCHDOG_QUEUE_TIMEOUT_S": 0.5}, era=era)
    supervised.kill_server()
    asked_at = time.monotonic()
    supervised.call("waits", "echo", text="x")
    error = supervised.error("waits")
    assert 0.5 <= time.monotonic() - asked_at < 0.5 + BUSY_MACHINE_S
    assert (error["kind"], error["retryable"]) == ("unavailable", True)
    assert supervised.leave() == 0


# ---- hostile and long lines ------------------------------------------------------------------------------------------

HOSTILE_LINES = 3_000


@both_eras
def test_hostile_lines_harm_neither_of_the_two(start: Callable[..., Supervised], era: str) -> None:  # R4, R17, R18
    """Twice the same flood: what the first one made the supervisor keep, the second one must find there."""
    supervised = start(settings={"MAX_INPUT_BYTES": 100_000, "LOG_LEVEL": "error"}, era=era)
    numbers = random.Random(SEED)  # noqa: S311 - no secret
    lines = [garbage(numbers) + b"\n" for _ in range(HOSTILE_LINES)]
    used = []
    for flood in ("first", "second"):
        for number, line in enumerate(lines):
            supervised.process.send(line)
            if number % 100 == 0:
                supervised.call(f"{flood} {number}", "echo", text=flood)
                assert supervised.text(f"{flood} {number}") == flood
        used.append(psutil.Process(supervised.pid).memory_info().rss / 1e6)
    assert used[1] < used[0] + 2
    assert supervised.lives == 1
    supervised.kill_server()
    assert supervised.works()
    supervised.process.stdin.close()
    assert supervised.process.exit_code(within_s=10) == 0
    assert supervised.process.stray_lines == []


LARGE_LIMITS = {"MAX_OUTPUT_BYTES": 2 * LARGE, "MAX_INPUT_BYTES": 2 * LARGE}


@both_eras
def test_long_lines_pass_in_both_directions_before_and_after_a_crash(
    start: Callable[..., Supervised], era: str
) -> None:  # R17
    supervised = start(settings=LARGE_LIMITS, era=era)
    for life in (1, 2):
        assert supervised.works()
        for number in range(3):
            supervised.call(f"there {life} {number}", "measure", text="y" * LARGE)
            supervised.call(f"back {life} {number}", "produce", size=LARGE)
        for number in range(3):
            assert supervised.text(f"there {life} {number}") == str(LARGE)
            assert supervised.text(f"back {life} {number}") == "x" * LARGE
        supervised.kill_server()
    assert supervised.works()
    assert supervised.leave() == 0


@pytest.mark.parametrize(("era", "end"), [(HANDSHAKE, "x" * LARGE), (MODERN, "x"), (HANDSHAKE, '"'), (MODERN, '"}')])
def test_half_of_an_answer_is_no_answer(start: Callable[..., Supervised], era: str, end: str) -> None:  # R17, R18, R26
    """The server is killed while it writes; where its line stops, it may look like the end of one."""
    supervised = start(settings=LARGE_LIMITS, era=era)
    half = '{"jsonrpc":"2.0","id":"half","result":{"content":[{"type":"text","text":"'
    supervised.call("half", "say_and_die", text=half + end)
    assert supervised.error("half")["kind"] == "outcome_unknown"
    assert supervised.works()
    assert supervised.leave() == 0


@both_eras
def test_half_of_a_long_request_is_no_request(start: Callable[..., Supervised], era: str) -> None:  # R17, R26
    """The server dies while the line is on its way: the rest of it must not reach the next one as a line of its own."""
    supervised = start(settings=LARGE_LIMITS, era=era)
    done = supervised.directory / "done"
    for life in (1, 2):
        arguments = {"path": str(done), "text": "z" * LARGE}
        line = line_of(supervised, f"half {life}", "append", arguments)
        supervised.process.send(line[: LARGE // 2])
        supervised.kill_server()
        supervised.process.send(line[LARGE // 2 :])
        answer = supervised.answer(f"half {life}")
        assert "result" in answer or answer["error"]["data"]["kind"] in {"outcome_unknown", "unavailable"}
        assert supervised.works()
    lines = done.read_text().split() if done.exists() else []
    assert all(line == "z" * LARGE for line in lines)
    assert supervised.leave() == 0


def line_of(supervised: Supervised, request_id: str, tool: str, arguments: dict[str, Any]) -> bytes:
    """The line of a call as `call` sends it."""
    sent: list[bytes] = []
    process = supervised.process
    send = process.send
    process.send = lambda message: sent.append(encoded(message))
    supervised.call(request_id, tool, **arguments)
    process.send = send
    return sent[0]
