"""The end of the process: rules R31 and R68. The subject is signals, so every test has a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

if sys.platform == "win32":
    pytest.skip("POSIX signals", allow_module_level=True)

PRELUDE = """
import asyncio, os, sys, threading, time
from reliability.logs import configure_logging
from reliability.shutdown import Shutdown, end_process
configure_logging("info")
Shutdown.request.__kwdefaults__["cleanup_s"] = 0.3

def say(word):
    os.write(1, word.encode() + b"\\n")

def run(main, **options):
    async def with_shutdown():
        shutdown = Shutdown(**options)
        with shutdown.watching():
            say("ready")
            await main(shutdown)
        shutdown.cleaned_up()
    asyncio.run(with_shutdown())
    end_process(0)

async def orderly(shutdown):
    await shutdown.requested.wait()
    say("asked")
    await asyncio.sleep(0.02)
    say("done")
"""


class Child:
    def __init__(self, source: str, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + source],
            bufsize=0,  # a line that is read here must not take the next one with it
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        self.said: list[str] = []
        self.wait_for("ready")

    def wait_for(self, word: str) -> None:
        assert self.process.stdout is not None
        while word not in self.said:
            line = self.process.stdout.readline()
            assert line, f"it ended without saying {word!r}"
            self.said.append(line.decode().strip())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, *, within_s: float = 5) -> tuple[int, str]:
        """Wait for the end; gives the exit code and the log."""
        out, err = self.process.communicate(timeout=within_s)
        self.said += out.decode().split()
        return self.process.returncode, err.decode()


@pytest.fixture
def start(root: Path) -> Iterator[Callable[[str], Child]]:
    source = root / "template" / "src" / "{{package_name}}"
    children: list[Child] = []

    def begin(code: str) -> Child:
        children.append(Child(code, {**os.environ, "PYTHONPATH": str(source)}))
        return children[-1]

    yield begin
    for child in children:
        child.process.kill()
        child.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_r68_a_signal_begins_an_orderly_stop_that_ends_with_zero(
    start: Callable[[str], Child], number: signal.Signals
) -> None:
    child = start("run(orderly, grace_s=5)")
    child.signal(number)
    code, log = child.end()
    assert (code, child.said) == (0, ["ready", "asked", "done"])
    assert f'"reason": "{number.name}"' in log


def test_r68_a_work_that_does_not_end_in_time_is_ended_by_force_with_one(start: Callable[[str], Child]) -> None:
    child = start("""
async def endless(shutdown):
    await asyncio.Event().wait()
run(endless, grace_s=0.1)
""")
    child.signal(signal.SIGTERM)
    code, log = child.end()
    assert code == 1
    assert "ended by force" in log


def test_r68_the_delay_before_the_grace_is_time_of_its_own(start: Callable[[str], Child]) -> None:
    child = start("""
async def patient(shutdown):
    await shutdown.requested.wait()
    await asyncio.sleep(0.8)  # more than grace and cleanup together
    say("done")
run(patient, grace_s=0.1, delay_s=1)
""")
    child.signal(signal.SIGTERM)
    code, _ = child.end()
    assert (code, child.said) == (0, ["ready", "done"])


def test_r31_even_a_blocked_event_loop_cannot_swallow_a_signal(start: Callable[[str], Child]) -> None:
    child = start("""
async def blocked(shutdown):
    time.sleep(60)
run(blocked, grace_s=0.1)
""")
    started = time.monotonic()
    child.signal(signal.SIGTERM)
    assert child.end()[0] == 1
    assert time.monotonic() - started < 5


def test_r31_a_signal_that_arrives_while_an_extension_holds_the_process_up_still_ends_it(
    start: Callable[[str], Child],
) -> None:
    child = start("""
async def busy(shutdown):
    say("busy")
    while True:
        sum(range(10_000))
run(busy, grace_s=0.1)
""")
    child.wait_for("busy")
    child.signal(signal.SIGINT)
    assert child.end()[0] == 1


def test_r31_a_second_ctrl_c_ends_the_process_at_once(start: Callable[[str], Child]) -> None:
    child = start("""
import reliability.shutdown
reliability.shutdown._DELIBERATE_S = -1  # however soon, the second one is deliberate
async def slow(shutdown):
    await shutdown.requested.wait()
    say("asked")
    await asyncio.sleep(60)
run(slow, grace_s=60)
""")
    child.signal(signal.SIGINT)
    child.wait_for("asked")
    child.signal(signal.SIGINT)
    code, log = child.end()
    assert code == 130
    assert "second SIGINT" in log


def test_r31_the_echo_of_a_ctrl_c_does_not(start: Callable[[str], Child]) -> None:
    child = start("""
import reliability.shutdown
reliability.shutdown._DELIBERATE_S = 60  # however late, the second one is an echo
run(orderly, grace_s=5)
""")
    child.signal(signal.SIGINT)
    child.wait_for("asked")
    child.signal(signal.SIGINT)
    assert child.end()[0] == 0
    assert child.said[-1] == "done"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_r68_only_the_first_reason_counts(start: Callable[[str], Child], first: signal.Signals) -> None:
    child = start("run(orderly, grace_s=5)")
    child.signal(first)
    child.wait_for("asked")
    child.signal(signal.SIGTERM)
    code, log = child.end()
    assert code == 0
    assert log.count('"stopping"') == 1
    assert f'"reason": "{first.name}"' in log


def test_r68_a_thread_that_never_ends_does_not_keep_the_process_alive(start: Callable[[str], Child]) -> None:
    child = start("""
async def with_a_stuck_thread(shutdown):
    threading.Thread(target=time.sleep, args=(60,)).start()
    await orderly(shutdown)
run(with_a_stuck_thread, grace_s=5)
""")
    child.signal(signal.SIGTERM)
    assert child.end()[0] == 0
    assert child.said[-1] == "done"


def test_r68_a_cleanup_at_exit_that_hangs_is_ended_half_a_second_later_with_zero(start: Callable[[str], Child]) -> None:
    child = start("""
import atexit
atexit.register(time.sleep, 60)
run(orderly, grace_s=5)
""")
    child.signal(signal.SIGTERM)
    assert child.end()[0] == 0


def test_r31_the_death_of_the_parent_is_noticed(start: Callable[[str], Child]) -> None:
    child = start("""
read_end, write_end = os.pipe()
if os.fork():  # the parent, which dies without a word as soon as its child is ready
    os.close(write_end)
    os.read(read_end, 1)
    os._exit(0)
configure_logging("info")  # its thread stayed with the parent
parent = os.getppid()
async def serve(shutdown):
    os.write(write_end, b"x")
    await orderly(shutdown)
run(serve, grace_s=60, parent_pid=parent)
""")
    child.wait_for("done")  # its child's word: it has noticed
    assert child.end()[0] == 0


@pytest.mark.parametrize("grace", ["0", "0.001"])
def test_r68_without_a_grace_period_the_stop_is_still_orderly(start: Callable[[str], Child], grace: str) -> None:
    child = start(f"run(orderly, grace_s={grace})")
    child.signal(signal.SIGTERM)
    assert child.end()[0] == 0


def test_r68_a_request_from_another_thread_wakes_the_event_loop(start: Callable[[str], Child]) -> None:
    child = start("""
async def serve(shutdown):
    threading.Timer(0.01, shutdown.request, args=("a thread asked",)).start()
    await orderly(shutdown)
run(serve, grace_s=5)
""")
    code, log = child.end()
    assert code == 0
    assert "a thread asked" in log


def test_r68_a_request_after_the_event_loop_has_closed_is_harmless(start: Callable[[str], Child]) -> None:
    child = start("""
async def create():
    return Shutdown(grace_s=1)
shutdown = asyncio.run(create())
say("ready")
shutdown.request("too late")
say("survived")
end_process(0)
""")
    assert child.end()[0] == 0
    assert child.said[-1] == "survived"


RESTART = """
async def restart(shutdown):
    shutdown.request("too large", exit_code=75)
    await shutdown.requested.wait()
    say("asked")
    {then}
    say(shutdown.reason.replace(" ", "_"))
    raise SystemExit(shutdown.exit_code)
run(restart, grace_s=0.1)
"""


@pytest.mark.parametrize(
    ("then", "code", "reason"),
    [
        ("shutdown.request('still too large', exit_code=75)", 75, "too_large"),
        ("shutdown.request('the client closed stdin')", 0, "the_client_closed_stdin"),
    ],
)
def test_r31_a_stop_for_good_takes_the_place_of_a_restart(
    start: Callable[[str], Child], then: str, code: int, reason: str
) -> None:
    child = start(RESTART.format(then=then))
    assert child.end()[0] == code
    assert child.said == ["ready", "asked", reason]


def test_r69_a_restart_that_is_ended_by_force_is_still_a_restart(start: Callable[[str], Child]) -> None:
    child = start(RESTART.format(then="time.sleep(60)"))
    code, log = child.end()
    assert code == 75
    assert "ended by force" in log
