"""The supervisor stops for good when its client leaves or somebody says so, and leaves nothing behind (R30, R31)."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.e2e.supervised import BUSY_MACHINE_S, ERAS, HANDSHAKE, MODERN, Supervised, is_gone, until

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.platform == "win32":
    pytest.skip("the supervisor is for POSIX", allow_module_level=True)

GONE_S = 2.0
"""How long anything may outlive its supervisor."""
IDLE_S = 0.5
"""How long it may take to stop where nothing is left to do."""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
both_eras = pytest.mark.parametrize("era", ERAS)


def wait_until_gone(*pids: int, within_s: float = GONE_S) -> None:
    until(lambda: all(map(is_gone, pids)), f"the end of {pids}", within_s=within_s + BUSY_MACHINE_S)


def begin(supervised: Supervised, tool: str, seconds: float = 600) -> None:
    """Call a tool that does not end soon, and wait until it has begun."""
    supervised.call("in flight", tool, seconds=seconds)
    supervised.logged(f"{tool} begins")


# ---- the client leaves -----------------------------------------------------------------------------------------------


@both_eras
def test_what_was_asked_before_the_end_of_input_is_answered(start: Callable[..., Supervised], era: str) -> None:  # R31
    supervised = start(era=era)
    for number in range(20):
        supervised.call(number, "sleep", seconds=0.3)
    assert supervised.leave() == 0
    assert all(supervised.text(number) == "slept" for number in range(20))


@pytest.mark.parametrize(
    ("era", "tool"), [(HANDSHAKE, "sleep"), (MODERN, "block_the_loop"), (HANDSHAKE, "hold_the_interpreter")]
)
def test_the_end_of_input_waits_for_nobody(start: Callable[..., Supervised], era: str, tool: str) -> None:  # R31
    """Whatever the server does at that moment."""
    supervised = start(era=era)
    server, grandchild = supervised.server(), start_grandchild(supervised)
    begin(supervised, tool)
    left_at = time.monotonic()
    supervised.leave()
    assert time.monotonic() - left_at < 3 + BUSY_MACHINE_S
    wait_until_gone(server, grandchild)
    supervised.logged("stopping", reason="the client closed stdin")


def between_servers(start: Callable[..., Supervised], plan: str, era: str) -> Supervised:
    """Kill the first server; the call `waits` waits for the next one, which is on its way."""
    supervised = start(f"well {plan}", era=era)
    supervised.kill_server()
    supervised.call("waits", "echo", text="x")
    until(lambda: supervised.lives > 1, "the next start")
    return supervised


@pytest.mark.parametrize("plan", ["slow", "never-answers", "exit-1"])
def test_the_end_of_input_while_there_is_no_server(start: Callable[..., Supervised], plan: str) -> None:  # R30, R31
    """Its start is not waited for, and none is started again."""
    supervised = between_servers(start, plan, MODERN)
    left_at = time.monotonic()
    supervised.leave()
    assert time.monotonic() - left_at < IDLE_S + BUSY_MACHINE_S
    assert supervised.error("waits")["kind"] == "unavailable"


@both_eras
@pytest.mark.parametrize("plan", ["well", "slow"])
def test_whoever_asks_at_once_and_leaves_is_answered(
    start: Callable[..., Supervised], era: str, plan: str
) -> None:  # R31
    """As of a server alone: `printf ... | my-server supervise`."""
    supervised = start(plan)
    supervised.introduce(era)
    if era == HANDSHAKE:
        supervised.process.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
    supervised.call("at once", "echo", text="x")
    assert supervised.leave() == 0
    assert "result" in supervised.answer("begin")
    assert supervised.text("at once") == "x"


@pytest.mark.parametrize("plan", ["exit-1", "exit-2"])
def test_whoever_asks_a_server_that_cannot_start_and_leaves(
    start: Callable[..., Supervised], plan: str
) -> None:  # R30, R31
    supervised = start(plan)
    supervised.introduce(MODERN)
    left_at = time.monotonic()
    assert supervised.leave() == (2 if plan == "exit-2" else 0)
    assert time.monotonic() - left_at < IDLE_S + BUSY_MACHINE_S
    assert supervised.error("begin")["kind"] == "unavailable"
    assert supervised.lives == 1


def test_input_that_ends_at_once(start: Callable[..., Supervised]) -> None:  # R31
    assert start().leave() == 0


@pytest.mark.parametrize("tool", [None, "sleep", "block_the_loop"])
def test_a_client_that_closes_its_end_of_stdout(start: Callable[..., Supervised], tool: str | None) -> None:  # R31
    """Stdin stays open: only the pipe of the answers breaks."""
    read_end, write_end = os.pipe()
    supervised = start(stdout=write_end)
    os.close(write_end)
    supervised.introduce(HANDSHAKE)
    supervised.logged("ready")
    if tool is not None:
        begin(supervised, tool)
    server = supervised.server()
    os.close(read_end)
    supervised.process.exit_code(within_s=3)
    wait_until_gone(server)


def test_a_call_of_a_client_that_no_longer_reads_changes_nothing(start: Callable[..., Supervised]) -> None:  # R31
    """The server's input has ended by then: it has the time that it always has, and is not ended for a deaf pipe."""
    read_end, write_end = os.pipe()
    supervised = start(stdout=write_end)
    os.close(write_end)
    supervised.introduce(HANDSHAKE)
    supervised.logged("ready")
    begin(supervised, "block_the_loop", 1.5)
    os.close(read_end)
    supervised.logged("stopping", reason="the client closed stdout")
    supervised.call("unheard", "echo", text="x")
    assert supervised.process.exit_code(within_s=3) == 0
    supervised.logged("the server has ended", exit_code=0)


# ---- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("era", "number"), list(zip([*ERAS, HANDSHAKE], SIGNALS, strict=True)))
def test_a_signal_lets_the_call_in_flight_finish(
    start: Callable[..., Supervised], era: str, number: int
) -> None:  # R30, R31
    supervised = start(era=era)
    begin(supervised, "sleep", 1)
    supervised.process.signal(number)
    supervised.logged("stopping", reason=signal.Signals(number).name)
    assert supervised.ends() == 0
    assert supervised.text("in flight") == "slept"
    assert supervised.lives == 1


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_an_idle_server_at_once(start: Callable[..., Supervised], number: int) -> None:  # R31
    supervised = start(era=MODERN)
    signalled_at = time.monotonic()
    supervised.process.signal(number)
    assert supervised.ends() == 0
    assert time.monotonic() - signalled_at < IDLE_S + BUSY_MACHINE_S


@pytest.mark.parametrize("plan", ["slow", "never-answers", "exit-1"])
def test_a_signal_while_there_is_no_server(start: Callable[..., Supervised], plan: str) -> None:  # R30, R31
    supervised = between_servers(start, plan, HANDSHAKE)
    signalled_at = time.monotonic()
    supervised.process.signal(signal.SIGTERM)
    supervised.ends()
    assert time.monotonic() - signalled_at < IDLE_S + BUSY_MACHINE_S
    assert supervised.error("waits")["kind"] == "unavailable"
    assert supervised.lives <= 3  # R30: none was started after the signal


@pytest.mark.parametrize("tool", ["sleep", "block_the_loop", "hold_the_interpreter"])
def test_a_second_interrupt_ends_it_at_once(start: Callable[..., Supervised], tool: str) -> None:  # R31
    supervised = start(settings={"SHUTDOWN_GRACE_S": 60}, era=HANDSHAKE)
    begin(supervised, tool)
    server = supervised.server()
    supervised.process.signal(signal.SIGINT)
    supervised.logged("stopping")
    time.sleep(0.6)  # a person's second Ctrl-C; one that follows sooner is an echo of the first
    supervised.process.signal(signal.SIGINT)
    assert supervised.ends() == 128 + signal.SIGINT
    wait_until_gone(server)


def test_an_interrupt_of_the_whole_terminal(start: Callable[..., Supervised]) -> None:  # R31
    """Where the server sits in the same process group it gets it as well; the stop is orderly all the same."""
    supervised = start(era=MODERN)
    begin(supervised, "sleep", 1)
    os.kill(supervised.server(), signal.SIGINT)
    supervised.process.signal(signal.SIGINT)
    assert supervised.ends() == 0
    assert supervised.text("in flight") == "slept"
    assert supervised.lives == 1


def test_a_client_that_stops_it_as_the_sdk_does(start: Callable[..., Supervised]) -> None:  # R31
    """The end of input first, and SIGTERM where that takes longer than two seconds."""
    supervised = start(era=HANDSHAKE)
    begin(supervised, "block_the_loop")
    server = supervised.server()
    supervised.process.stdin.close()
    supervised.logged("stopping", reason="the client closed stdin")
    supervised.process.signal(signal.SIGTERM)
    supervised.ends()
    wait_until_gone(server)


# ---- what is left behind ---------------------------------------------------------------------------------------------


def start_grandchild(supervised: Supervised) -> int:
    request_id = f"grandchild {supervised.lives}"
    supervised.call(request_id, "start_grandchild")
    return int(supervised.text(request_id))


@both_eras
def test_a_grandchild_goes_with_its_server(start: Callable[..., Supervised], era: str) -> None:  # R31
    """With one that is killed, with one that is replaced because it hangs, and with the last one."""
    supervised = start(settings={"HANG_TIMEOUT_S": 1}, era=era)
    first = start_grandchild(supervised)
    supervised.kill_server()
    assert supervised.works()
    wait_until_gone(first)
    second = start_grandchild(supervised)
    supervised.call("stuck", "hold_the_interpreter", seconds=600)
    assert supervised.error("stuck")["kind"] == "outcome_unknown"
    assert supervised.works()
    wait_until_gone(second)
    third = start_grandchild(supervised)
    assert supervised.leave() == 0
    wait_until_gone(third)


@pytest.mark.parametrize(
    ("era", "state"),
    [
        (HANDSHAKE, "idle"),
        (MODERN, "sleep"),
        (HANDSHAKE, "block_the_loop"),
        (MODERN, "hold_the_interpreter"),
        (HANDSHAKE, "frozen"),
    ],
)
def test_nothing_outlives_a_supervisor_that_is_killed(
    start: Callable[..., Supervised], era: str, state: str
) -> None:  # R31
    supervised = start(era=era)
    grandchild, server = start_grandchild(supervised), supervised.server()
    if state == "frozen":
        os.kill(server, signal.SIGSTOP)
        until(lambda: psutil.Process(server).status() == psutil.STATUS_STOPPED, "the standstill")
    elif state != "idle":
        begin(supervised, state)
    os.kill(supervised.pid, signal.SIGKILL)
    try:
        wait_until_gone(supervised.pid, server, grandchild)
    finally:
        for pid in (server, grandchild):
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_supervisor_that_is_killed_while_its_server_starts(start: Callable[..., Supervised]) -> None:  # R31
    supervised = start("slow")
    server = supervised.server()
    os.kill(supervised.pid, signal.SIGKILL)
    wait_until_gone(supervised.pid, server)
