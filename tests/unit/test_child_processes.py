"""Programs that hang, flood, ignore signals or leave children behind: rules R5, R8, R43 and R47."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest
from reliability import child_processes
from reliability.child_processes import ProgramResult, run_program
from reliability.deadlines import deadline
from reliability.errors import DeadlineExceeded, DependencyBusy, DependencyFailed, DependencyTimeout
from reliability.load_shedding import LoadShedder

from tests.unit.support import CANCELLERS, cancel_at_every_await, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")]

PATIENCE_S = 20
"""Only ends a test that fails."""


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", textwrap.dedent(code), *map(str, arguments)]


def descriptors() -> set[str]:
    return set(os.listdir("/dev/fd"))


async def pid_in(path: Path) -> int:
    await until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(await anyio.Path(path).read_text())


def children() -> set[int]:
    """The processes of this one that run, and those that ended and were not waited for."""
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[set[int]]:
    """After every test: no child, no zombie, no descriptor, no task and no place is lost."""
    asyncio.get_running_loop().set_exception_handler(lambda _, context: pytest.fail(str(context)))
    before, others = descriptors(), children()  # tests of other folders keep servers
    yield others
    await all_is_back(others)
    assert descriptors() <= before


async def all_is_back(others: set[int]) -> None:
    await until(lambda: not child_processes._alive)
    assert child_processes._places.in_flight == 0
    assert child_processes._places.queued == 0
    await until(lambda: children() <= others)


async def test_r8_the_result_has_exit_code_output_and_duration() -> None:
    result = await run_program(
        python("import sys; print('out é'); print('err', file=sys.stderr); sys.exit(3)"), timeout_s=PATIENCE_S
    )
    assert (result.exit_code, result.text, result.stderr) == (3, "out é\n", b"err\n")
    assert not result.truncated
    assert 0 < result.duration_s < PATIENCE_S


async def test_r8_standard_input_is_empty_and_never_that_of_the_server() -> None:
    code = "import os, sys; print(os.readlink('/proc/self/fd/0') if os.path.isdir('/proc/self') else '/dev/null')"
    result = await run_program(python(code + "; assert sys.stdin.read() == ''"), timeout_s=PATIENCE_S)
    assert (result.text, result.exit_code) == ("/dev/null\n", 0)


async def test_r5_neither_stream_is_that_of_the_server(capfd: pytest.CaptureFixture[str]) -> None:
    await run_program(python("import os; os.write(1, b'a'); os.write(2, b'b')"), timeout_s=PATIENCE_S)
    assert capfd.readouterr() == ("", "")


async def test_the_servers_secrets_are_not_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_SERVER_API_KEY", "hunter2")
    code = "import os; print('MY_SERVER_API_KEY' in os.environ, 'PATH' in os.environ, os.environ['X'], os.getcwd())"
    result = await run_program(python(code), timeout_s=PATIENCE_S, env={"X": "y"}, cwd=tmp_path)
    assert result.text == f"False True y {tmp_path}\n"


async def test_a_missing_program_is_said_to_be_missing() -> None:
    with pytest.raises(DependencyFailed) as caught:
        await run_program(["/usr/lib/no-such-program"], timeout_s=PATIENCE_S)
    assert caught.value.text == "The program 'no-such-program' could not be started: No such file or directory."
    assert caught.value.dependency == "no-such-program"
    assert not caught.value.retryable


@pytest.mark.parametrize("mode", [0o644, 0o755])
async def test_a_file_that_is_no_program_is_refused(tmp_path: Path, mode: int) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fnothing\n")
    program.chmod(mode)
    with pytest.raises(DependencyFailed, match="could not be started"):
        await run_program([program], timeout_s=PATIENCE_S)


async def test_a_missing_directory_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(DependencyFailed, match="No such file"):
        await run_program(python("pass"), timeout_s=PATIENCE_S, cwd=tmp_path / "gone")


async def test_an_argument_that_no_program_can_get_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="null byte"):
        await run_program(["echo", "\0"], timeout_s=PATIENCE_S)


async def test_r47_a_program_that_hangs_is_killed(tmp_path: Path) -> None:
    code = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()}\\n'); time.sleep(1000)"
    with pytest.raises(DependencyTimeout) as caught:
        await run_program(python(code, tmp_path / "pid"), timeout_s=0.5)
    assert caught.value.limit_s == 0.5
    assert not psutil.pid_exists(await pid_in(tmp_path / "pid"))


async def test_r44_the_deadline_of_the_call_is_reported_as_its_own() -> None:
    with pytest.raises(DeadlineExceeded) as caught, deadline(0.2):
        await run_program(python("import time; time.sleep(1000)"), timeout_s=PATIENCE_S)
    assert caught.value.limit_s == 0.2


async def test_r47_a_program_may_clean_up_when_it_is_told_to_end(tmp_path: Path) -> None:
    code = """
        import pathlib, signal, sys, time
        lock = pathlib.Path(sys.argv[1])
        signal.signal(signal.SIGTERM, lambda *_: (lock.unlink(), sys.exit()))
        lock.write_text("1\\n")
        time.sleep(1000)
    """
    async with anyio.create_task_group() as calls:
        calls.start_soon(run_quietly, python(code, tmp_path / "lock"))
        await pid_in(tmp_path / "lock")
        calls.cancel_scope.cancel()
    assert not (tmp_path / "lock").exists()


async def run_quietly(argv: list[str]) -> None:
    await run_program(argv, timeout_s=PATIENCE_S)


async def test_r47_a_program_that_ignores_sigterm_is_killed_all_the_same(tmp_path: Path) -> None:
    code = """
        import os, pathlib, signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()}\\n")
        time.sleep(1000)
    """
    async with anyio.create_task_group() as calls:
        calls.start_soon(run_quietly, python(code, tmp_path / "pid"))
        pid = await pid_in(tmp_path / "pid")
        cancelled = time.monotonic()
        calls.cancel_scope.cancel()
    assert time.monotonic() - cancelled < 5
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("stream", [1, 2])
async def test_r7_a_flood_ends_the_program_and_its_beginning_is_kept(stream: int) -> None:
    code = "import os, sys\nwhile True: os.write(int(sys.argv[1]), b'abcdefgh' * 8192)"
    result = await run_program(python(code, stream), timeout_s=PATIENCE_S, max_output_bytes=100_001)
    assert result.truncated
    assert result.exit_code is None
    assert (result.stdout, result.stderr)[stream - 1] == (b"abcdefgh" * 20_000)[:100_001]
    assert (result.stdout, result.stderr)[2 - stream] == b""


async def test_r7_a_flood_on_both_streams_does_not_lock_up() -> None:
    code = "import os\nfor _ in range(100): os.write(1, b'a' * 10_000); os.write(2, b'b' * 10_000)"
    result = await run_program(python(code), timeout_s=PATIENCE_S, max_output_bytes=1_000_000)
    assert (len(result.stdout), len(result.stderr), result.exit_code) == (1_000_000, 1_000_000, 0)  # just not too much


GRANDCHILD = """
    import os, pathlib, signal, sys, time
    if os.fork() == 0:
        if sys.argv[2] == "daemon":
            os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(1, b"grandchild\\n")
        pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()}\\n")
        time.sleep(1000)
    while not pathlib.Path(sys.argv[1]).exists():
        time.sleep(0.001)
    if sys.argv[3] == "hangs":
        time.sleep(1000)
"""


async def test_r47_what_a_program_started_ends_with_it(tmp_path: Path) -> None:
    result = await run_program(python(GRANDCHILD, tmp_path / "pid", "child", "ends"), timeout_s=PATIENCE_S)
    assert (result.text, result.exit_code) == ("grandchild\n", 0)
    pid = await pid_in(tmp_path / "pid")
    await until(lambda: not psutil.pid_exists(pid))  # it is reaped by init


async def test_r47_what_a_program_started_is_killed_with_it(tmp_path: Path) -> None:
    with pytest.raises(DependencyTimeout):
        await run_program(python(GRANDCHILD, tmp_path / "pid", "child", "hangs"), timeout_s=1)
    pid = await pid_in(tmp_path / "pid")
    await until(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize("ending", ["ends", "hangs"])
async def test_r47_a_daemon_that_keeps_the_pipes_open_holds_nobody_up(tmp_path: Path, ending: str) -> None:
    began = time.monotonic()
    argv = python(GRANDCHILD, tmp_path / "pid", "daemon", ending)
    if ending == "ends":
        result = await run_program(argv, timeout_s=PATIENCE_S)
        assert result.text == "grandchild\n"
    else:
        with pytest.raises(DependencyTimeout):
            await run_program(argv, timeout_s=1)
    assert time.monotonic() - began < PATIENCE_S / 2
    os.kill(await pid_in(tmp_path / "pid"), signal.SIGKILL)


@pytest.mark.parametrize("how", CANCELLERS)
@pytest.mark.parametrize("code", ["pass", "import time; time.sleep(0.3)"])
async def test_cancelled_at_any_await_nothing_is_lost(how: str, code: str, nothing_left_behind: set[int]) -> None:
    before = descriptors()

    async def afterwards() -> None:
        await all_is_back(nothing_left_behind)
        assert descriptors() <= before

    tried = await cancel_at_every_await(lambda: run_program(python(code), timeout_s=PATIENCE_S), afterwards, how=how)
    assert tried >= 1


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.005, 0.02, 0.05])
async def test_cancelled_at_any_moment_nothing_is_lost(
    tmp_path: Path, delay_s: float, nothing_left_behind: set[int]
) -> None:
    """Cancelled twice, in asyncio's own style, which a shield does not stop: while it starts, runs and is ended."""
    call = asyncio.ensure_future(
        run_program(python(GRANDCHILD, tmp_path / "pid", "child", "hangs"), timeout_s=PATIENCE_S)
    )
    await asyncio.sleep(delay_s)
    call.cancel()
    await asyncio.sleep(delay_s)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    await all_is_back(nothing_left_behind)
    if (tmp_path / "pid").exists():
        pid = await pid_in(tmp_path / "pid")
        await until(lambda: not psutil.pid_exists(pid))


async def test_r59_only_so_many_programs_run_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    places = LoadShedder(max_concurrent=1, max_queued=0, queue_timeout_s=1, what="The server's place for programs")
    monkeypatch.setattr(child_processes, "_places", places)
    code = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text('1\\n'); time.sleep(1000)"
    async with anyio.create_task_group() as calls:
        calls.start_soon(run_quietly, python(code, tmp_path / "running"))
        await pid_in(tmp_path / "running")
        with pytest.raises(DependencyBusy) as caught:
            await run_program(python("pass"), timeout_s=PATIENCE_S)
        calls.cancel_scope.cancel()
    assert caught.value.retryable
    assert "busy" in caught.value.text


async def test_many_at_once_all_answer() -> None:
    results: list[ProgramResult] = []

    async def run(number: int) -> None:
        results.append(await run_program(["echo", str(number)], timeout_s=PATIENCE_S))

    async with anyio.create_task_group() as calls:
        for number in range(40):
            calls.start_soon(run, number)
    assert sorted(int(result.text) for result in results) == list(range(40))


async def test_a_closing_event_loop_leaves_no_program(tmp_path: Path) -> None:
    async def leave() -> int:
        argv = python(GRANDCHILD, tmp_path / "pid", "child", "hangs")
        call = asyncio.ensure_future(run_program(argv, timeout_s=PATIENCE_S))
        pid = await pid_in(tmp_path / "pid")
        assert not call.done()
        return pid

    pid = await anyio.to_thread.run_sync(lambda: asyncio.run(leave()))
    await until(lambda: not psutil.pid_exists(pid))
