"""The heartbeat that keeps the process alive: its rhythm here, real hangs in `test_process_guards.py`."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from reliability import hang_detection
from reliability.hang_detection import HangDetector, descriptor_for_stacks, is_debugged
from reliability.process_contract import HANG_FD

from tests.unit.support import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio


class Timer:
    """Stands in for `faulthandler`."""

    def __init__(self) -> None:
        self.armed: list[tuple[float, bool, int]] = []
        self.disarmed = 0
        self.error: RuntimeError | None = None

    def arm(self, timeout_s: float, *, exit: bool, file: int) -> None:  # noqa: A002 - the name of the original
        self.armed.append((timeout_s, exit, file))
        if self.error is not None:
            raise self.error

    def disarm(self) -> None:
        self.disarmed += 1


def detector(timer: Timer, limit_s: float = 0.05, *, is_debugged: bool = False) -> HangDetector:
    return HangDetector(limit_s, descriptor=7, arm=timer.arm, disarm=timer.disarm, is_debugged=lambda: is_debugged)


async def test_the_timer_is_armed_at_once_and_for_more_than_the_limit() -> None:
    timer = Timer()
    with detector(timer, 30).watching():
        assert timer.armed == [(33, True, 7)]  # the last beat may be a tenth of the limit ago when the loop gets stuck


async def test_the_loop_arms_it_again_and_again() -> None:
    timer = Timer()
    with detector(timer).watching():
        await until(lambda: len(timer.armed) > 3)
    assert timer.disarmed == 1


async def test_after_the_body_nothing_beats_and_nothing_is_armed() -> None:
    timer = Timer()
    watched = detector(timer)
    with pytest.raises(ZeroDivisionError), watched.watching():
        raise ZeroDivisionError
    assert (len(timer.armed), timer.disarmed) == (1, 1)
    assert watched._next.cancelled()


async def test_there_is_no_timer_while_a_debugger_may_hold_the_loop() -> None:
    timer = Timer()
    with detector(timer, is_debugged=True).watching():
        await until(lambda: timer.disarmed > 3)
    assert timer.armed == []


async def test_a_timer_that_cannot_be_armed_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    timer = Timer()
    timer.error = RuntimeError("unable to start watchdog thread")
    with detector(timer).watching():
        await until(lambda: len(timer.armed) > 3)
    assert "a hang would not be noticed" in caplog.text


def test_a_trace_function_is_taken_for_a_debugger() -> None:
    seen = []

    def look() -> None:
        seen.append(is_debugged())
        sys.settrace(lambda *_: None)
        seen.append(is_debugged())

    thread = threading.Thread(target=look)  # a trace function belongs to its thread
    thread.start()
    thread.join()
    assert seen == [False, True]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring")
def test_a_monitoring_debugger_is_seen() -> None:
    monitoring = sys.monitoring  # type: ignore[attr-defined]
    monitoring.use_tool_id(monitoring.DEBUGGER_ID, "test")
    try:
        assert is_debugged()
    finally:
        monitoring.free_tool_id(monitoring.DEBUGGER_ID)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.skipif(sys.platform == "win32", reason="the supervisor is for POSIX")
def test_the_supervisor_s_descriptor_neither_blocks_nor_reaches_a_child(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.set_inheritable(pipe[1], True)
    monkeypatch.setenv(HANG_FD, str(pipe[1]))
    assert descriptor_for_stacks() == pipe[1]
    assert (os.get_blocking(pipe[1]), os.get_inheritable(pipe[1])) == (False, False)
    assert HANG_FD not in os.environ


@pytest.mark.parametrize("value", ["nonsense", "-1", "987654", "3.5"])
def test_a_descriptor_that_is_none_is_logged_and_stderr_takes_its_place(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hang_detection, "_stderr_that_never_blocks", lambda: 2)
    monkeypatch.setenv(HANG_FD, value)
    assert descriptor_for_stacks() == 2
    assert "cannot be used" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_full_pipe_does_not_block_and_its_other_users_notice_nothing(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang_detection, "_STDERR", pipe[1])
    found = hang_detection._stderr_that_never_blocks()
    try:
        assert os.get_blocking(pipe[1])
        with pytest.raises(BlockingIOError):
            while True:
                os.write(found, b"x" * 65_536)
    finally:
        os.close(found)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX descriptors")
def test_a_file_needs_no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(__file__).open("rb") as file:
        monkeypatch.setattr(hang_detection, "_STDERR", file.fileno())
        assert hang_detection._stderr_that_never_blocks() == file.fileno()
    assert hang_detection._stderr_that_never_blocks() == hang_detection._STDERR  # a closed one is not an error here
