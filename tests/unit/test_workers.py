"""The parent of several workers, with real processes that do what a test says: rules R30, R63, R68 and R70."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import psutil
import pytest
from reliability import workers
from reliability.restart_policy import RestartPolicy
from reliability.shutdown import Shutdown
from reliability.workers_link import WORKER

from tests.unit.support import FakeClock, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.anyio

if sys.platform == "win32":
    pytest.skip("descriptors are inherited on POSIX", allow_module_level=True)

CHILD = str(Path(__file__).with_name("child_worker.py"))
START_S = 10.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait between two starts: how long is the policy's affair."""
    monkeypatch.setattr(workers, "RestartPolicy", partial(RestartPolicy, initial_s=0.01, max_s=0.01, max_restarts=3))
    monkeypatch.setattr(workers, "_TICK_S", 0.02)


class Run:
    """A service and what its workers have heard."""

    def __init__(self, service: workers.Service, shutdown: Shutdown, directory: Path) -> None:
        self.service = service
        self.shutdown = shutdown
        self._directory = directory

    def heard(self, number: int, kind: str = "") -> list[Any]:
        """What a worker has heard of one kind; without it every line."""
        path = self._directory / str(number)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if not kind:
            return lines
        messages = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [message for message in messages if message["kind"] == kind]

    def starts(self, number: int) -> list[int]:
        """The ids of all processes that have had this place."""
        return [int(line.split()[1]) for line in self.heard(number) if line.startswith("started")]

    async def ends(self) -> int:
        """Wait until the service has stopped; its exit code."""
        with anyio.fail_after(START_S):
            await self.done.wait()
        return self.shutdown.exit_code or int(self.service.was_disorderly)

    async def ready(self) -> None:
        """Wait until all of them serve; then those ask that are to ask."""
        with anyio.fail_after(START_S):
            await self.service.ready.wait()
        (self._directory / "go").touch()

    done: anyio.Event


@asynccontextmanager
async def running(
    directory: Path,
    plans: dict[int, dict[str, Any]],
    *,
    count: int = 2,
    clock: Callable[[], float] = time.monotonic,
    **config: Any,
) -> AsyncIterator[Run]:
    shutdown = Shutdown(grace_s=0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service = workers.Service(
            workers.WorkersConfig(count=count, **{"grace_s": 0, "key_variable": "KEY", **config}),
            listener,
            [sys.executable, CHILD, json.dumps(plans), str(directory)],
            shutdown,
            clock=clock,
        )
        run = Run(service, shutdown, directory)
        run.done = anyio.Event()

        async def serve() -> None:
            await service.run()
            run.done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            yield run
            shutdown.request("the test is over")
            with anyio.fail_after(START_S):
                await run.done.wait()


# ---- start ---------------------------------------------------------------------------------------------------------


async def test_it_is_ready_when_every_worker_serves(tmp_path: Path) -> None:
    async with running(tmp_path, {3: {"never_serves": True}}, count=3) as run:
        await until(lambda: run.starts(3))
        assert run.service.unready_because() == ""  # two of them serve
        assert not run.service.ready.is_set()
        os.kill(run.starts(3)[0], signal.SIGKILL)  # the next one never serves either
        await until(lambda: len(run.starts(3)) == 2)
        assert not run.service.ready.is_set()
    assert run.shutdown.exit_code == 0


async def test_until_a_worker_serves_it_is_not_ready_for_calls(tmp_path: Path) -> None:
    async with running(tmp_path, {1: {"never_serves": True}}) as run:
        await until(lambda: run.starts(1))
        assert run.service.unready_because() == "no worker serves yet"
        assert run.starts(2) == []  # the first one goes ahead


@pytest.mark.parametrize(("exit_code", "expected"), [(2, 2), (1, 1), (3, 3), (0, 1), (75, 75)])
async def test_a_first_worker_that_cannot_start_ends_it_all(tmp_path: Path, exit_code: int, expected: int) -> None:
    """Whoever has started the service says whether that is worth another try."""
    async with running(tmp_path, {1: {"exits_at_once": exit_code}}) as run:
        assert await run.ends() == expected
        assert (len(run.starts(1)), run.starts(2)) == (1, [])


async def test_all_workers_share_one_key_for_the_state_of_callers(tmp_path: Path) -> None:
    async with running(tmp_path, {}) as run:
        await run.ready()
        keys = {line.split()[3] for number in (1, 2) for line in run.heard(number) if line.startswith("started")}
        assert len(keys) == 1
        assert len(keys.pop()) == 64


async def test_a_key_of_the_settings_is_left_alone(tmp_path: Path) -> None:
    async with running(tmp_path, {}, key_variable=None) as run:
        await run.ready()
        assert run.heard(1)[0].endswith("key None")


# ---- R30: restarts -------------------------------------------------------------------------------------------------


async def test_r30_a_worker_that_dies_is_started_again_and_the_others_go_on(tmp_path: Path) -> None:
    async with running(tmp_path, {}) as run:
        await run.ready()
        os.kill(run.starts(1)[0], signal.SIGKILL)
        await until(lambda: len(run.starts(1)) == 2)
        assert len(run.starts(2)) == 1
        assert run.service.unready_because() == ""
    assert run.service.was_disorderly is False


async def test_r30_a_worker_that_ends_again_and_again_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, {2: {"exits": 7}}) as run:
        assert await run.ends() == 1
    assert len(run.starts(2)) == 4  # three restarts are allowed here
    assert not psutil.pid_exists(run.starts(1)[0])
    assert "a worker is given up: it ends again and again" in caplog.messages


async def test_r30_wrong_settings_are_not_tried_again(tmp_path: Path) -> None:
    async with running(tmp_path, {2: {"exits_at_once": 2}}) as run:
        assert await run.ends() == 2
    assert len(run.starts(2)) == 1


async def test_r30_settings_that_become_wrong_stop_no_worker_that_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "_MEND_S", 0.01)
    async with running(tmp_path, {1: {"exits_while": "wrong"}}) as run:
        await run.ready()
        (tmp_path / "wrong").touch()
        os.kill(run.starts(1)[0], signal.SIGTERM)
        await until(lambda: len(run.starts(1)) > 5)  # more often than another reason would allow
        assert run.service.unready_because() == ""
        (tmp_path / "wrong").unlink()
        await until(lambda: all(slot.is_serving for slot in run.service._slots))
        assert len(run.starts(2)) == 1
    assert run.shutdown.exit_code == 0
    errors = {record.message for record in caplog.records if record.levelno == logging.ERROR}
    assert errors == {"a worker cannot start again: a setting, or what it names, is wrong by now"}


async def test_r30_settings_with_which_none_can_serve_any_more_end_the_service(tmp_path: Path) -> None:
    async with running(tmp_path, {number: {"exits_while": "wrong"} for number in (1, 2)}) as run:
        await run.ready()
        (tmp_path / "wrong").touch()
        for number in (1, 2):
            os.kill(run.starts(number)[0], signal.SIGTERM)
        assert await run.ends() == 2


async def test_r68_a_stop_does_not_wait_for_settings_that_are_wrong(tmp_path: Path) -> None:
    async with running(tmp_path, {1: {"exits_while": "wrong"}}) as run:
        await run.ready()
        (tmp_path / "wrong").touch()
        os.kill(run.starts(1)[0], signal.SIGTERM)
        await until(lambda: run.service._slots[0].restarts == 2)
        run.shutdown.request("SIGTERM")
        assert await run.ends() == 0


@pytest.mark.parametrize("exit_code", [0, 75])
async def test_a_worker_that_asks_for_it_is_started_again_without_a_warning(
    tmp_path: Path, exit_code: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(tmp_path, {2: {"exits": exit_code}}) as run:
        await until(lambda: len(run.starts(2)) >= 2)
    events = [record for record in caplog.records if record.message.startswith("a worker has ended")]
    assert {record.levelno for record in events} == {logging.INFO}


async def test_a_worker_that_says_nothing_any_more_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    async with running(tmp_path, {2: {"is_silent": True}}, clock=clock, hang_timeout_s=10) as run:
        await run.ready()
        talkative, _ = run.service._slots
        clock.now += 1.1 * 10 + workers._SILENCE_S - 1
        await until(lambda: talkative.heard_at == clock.now)
        assert caplog.messages == []
        clock.now += 2
        await until(lambda: len(run.starts(2)) >= 2)
        assert len(run.starts(1)) == 1
    assert "a worker is killed: it says nothing any more" in caplog.messages


async def test_a_worker_that_never_serves_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, {2: {"never_serves": True}}) as run:
        await until(lambda: run.starts(2))
        monkeypatch.setattr(workers, "_START_S", 0)
        await until(lambda: "a worker has ended and is started again" in caplog.messages)
    assert "a worker is killed: it says nothing any more" in caplog.messages


async def test_a_process_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn, refused = asyncio.create_subprocess_exec, 0

    async def refuse(*command: str, **options: Any) -> asyncio.subprocess.Process:
        nonlocal refused
        if options["env"][WORKER].startswith("2 ") and refused < 2:
            refused += 1
            raise BlockingIOError("no more processes")
        return await spawn(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    async with running(tmp_path, {}) as run:
        await run.ready()
    assert refused == 2


async def test_a_link_that_cannot_be_made_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, attempts = socket.socketpair, []

    def refuse(*arguments: Any) -> tuple[socket.socket, socket.socket]:
        attempts.append(1)
        if len(attempts) == 2:
            raise OSError(24, "Too many open files")
        return make(*arguments)

    monkeypatch.setattr(socket, "socketpair", refuse)
    async with running(tmp_path, {}) as run:
        await run.ready()
        assert run.service.unready_because() == ""


async def test_nonsense_from_a_worker_harms_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, {2: {"babble": True}}) as run:
        await run.ready()
        assert run.service.unready_because() == ""


# ---- R68: the end --------------------------------------------------------------------------------------------------


async def test_r68_all_workers_stop_in_order(tmp_path: Path) -> None:
    async with running(tmp_path, {}, count=3) as run:
        await run.ready()
        run.shutdown.request("SIGTERM")
        assert run.service.unready_because() == "the server is stopping"
        assert await run.ends() == 0
    assert [psutil.pid_exists(run.starts(number)[0]) for number in (1, 2, 3)] == [False] * 3


@pytest.mark.parametrize("plan", [{"exit_at_end": 1}, {"ignores_term": True}])
async def test_r68_a_worker_that_does_not_shows_in_the_exit_code(
    tmp_path: Path, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CLEANUP_S", 0)
    monkeypatch.setattr(workers, "_STOP_S", 1)
    async with running(tmp_path, {2: plan}) as run:
        await run.ready()
        run.shutdown.request("SIGTERM")
        assert await run.ends() == 1
    assert not psutil.pid_exists(run.starts(2)[0])


async def test_r68_a_stop_during_the_start_is_orderly(tmp_path: Path) -> None:
    async with running(tmp_path, {1: {"never_serves": True, "is_killed_by_term": True}}) as run:
        await until(lambda: run.starts(1))
        run.shutdown.request("SIGTERM")
        assert await run.ends() == 0
        assert run.starts(2) == []


async def test_r68_workers_know_that_all_of_them_stop_before_the_signal(tmp_path: Path) -> None:
    async with running(tmp_path, {1: {"ignores_term": True}}) as run:
        await run.ready()
        run.shutdown.request("SIGTERM")
        await until(lambda: run.heard(1, "stop"))
        assert run.heard(1)[-1] != "orphaned"
        os.kill(run.starts(1)[0], signal.SIGKILL)


# ---- R63: what they say to each other ------------------------------------------------------------------------------


async def test_r63_a_question_goes_to_all_the_others_and_their_answers_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "BEAT_S", 60)  # so that nobody counts as silent, however slow the machine is
    async with running(tmp_path, {3: {"asks": ["how"]}}, count=3) as run:
        await run.ready()
        await until(lambda: run.heard(3, "answers"))
        (answers,) = run.heard(3, "answers")
        assert answers["question"] == 3
        assert answers["bodies"] == {"1": "how of 1", "2": "how of 2"}
        members = [(one["number"], one["pid"], one["restarts"]) for one in answers["members"]]
        assert members == [(number, run.starts(number)[0], 0) for number in (1, 2, 3)]
        assert run.heard(3, "ask") == []


@pytest.mark.parametrize("plan", [{"gives_no_answer": True}, {"dies_when_asked": True, "gives_no_answer": True}])
async def test_r63_a_worker_that_does_not_answer_is_missing(
    tmp_path: Path, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "BEAT_S", 60)
    async with running(tmp_path, {2: plan, 3: {"asks": ["how"], "limit_s": 2}}, count=3) as run:
        await run.ready()
        await until(lambda: run.heard(3, "answers"))
        assert run.heard(3, "answers")[0]["bodies"] == {"1": "how of 1"}
        assert len(run.heard(3, "answers")[0]["members"]) == 3


async def test_r63_nobody_waits_for_a_worker_that_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "BEAT_S", -1)  # so that every one of them counts as silent
    async with running(tmp_path, {2: {"asks": ["how"], "limit_s": 60}}) as run:
        await run.ready()
        started = time.monotonic()
        await until(lambda: run.heard(2, "answers"))
        assert time.monotonic() - started < START_S
        assert run.heard(2, "answers")[0]["bodies"] == {}
        assert run.heard(1, "ask") == []


async def test_r63_whoever_has_the_place_of_one_that_asked_gets_no_answer(tmp_path: Path) -> None:
    asks = {"asks": ["how"], "limit_s": 1, "asks_once": True}
    plans: dict[int, dict[str, Any]] = {1: {"gives_no_answer": True}, 2: asks}
    async with running(tmp_path, plans) as run:
        await run.ready()
        await until(lambda: run.heard(1, "ask"))
        os.kill(run.starts(2)[0], signal.SIGKILL)
        await until(lambda: len(run.starts(2)) > 1 and not run.service._tasks)
        await until(lambda: run.service.ready.is_set() and not run.service.unready_because())
        assert run.heard(2, "answers") == []


async def test_what_a_worker_shares_reaches_all_the_others(tmp_path: Path) -> None:
    async with running(tmp_path, {3: {"shares": [["alice", 4]]}}, count=3) as run:
        await run.ready()
        await until(lambda: run.heard(1, "share") and run.heard(2, "share"))
        assert run.heard(1, "share")[0]["body"] == run.heard(2, "share")[0]["body"] == [["alice", 4]]
        assert run.heard(3, "share") == []


async def test_the_service_is_ready_only_while_every_worker_is(tmp_path: Path) -> None:
    async with running(tmp_path, {2: {"reason": "database: it is gone"}}) as run:
        await run.ready()
        assert run.service.unready_because() == "worker 2: database: it is gone"
        await until(lambda: run.heard(1, "others"))
        assert run.heard(1, "others")[-1]["reason"] == "worker 2: database: it is gone"
        assert run.heard(2, "others") == []
        os.kill(run.starts(2)[0], signal.SIGKILL)
        await until(lambda: [message["reason"] for message in run.heard(1, "others")][1:2] == [""])


# ---- the parent's own end ------------------------------------------------------------------------------------------


def test_workers_notice_the_death_of_their_parent(tmp_path: Path) -> None:
    program = f"""
import sys; sys.path.insert(0, {str(Path(workers.__file__).parent.parent)!r})
sys.orig_argv[1:] = {[CHILD, "{}", str(tmp_path)]!r}
from reliability.workers import WorkersConfig, run_workers
run_workers(WorkersConfig(count=2, port=0))
"""
    parent = subprocess.Popen([sys.executable, "-c", program])
    give_up = time.monotonic() + START_S
    while not (tmp_path / "2").exists() or "started" not in (tmp_path / "2").read_text(encoding="utf-8"):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    for number in ("1", "2"):
        while "orphaned" not in (tmp_path / number).read_text(encoding="utf-8"):
            assert time.monotonic() < give_up
            time.sleep(0.01)


@pytest.mark.parametrize(("host", "exit_code"), [("127.0.0.1", 1), ("no-such-name.invalid", 2), ("a..b", 2)])
def test_a_port_that_is_taken_may_come_free_and_a_wrong_address_stays_wrong(
    host: str, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "end_process", sys.exit)
    monkeypatch.setattr(workers, "_PATIENCE_S", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as caught:
        workers.run_workers(workers.WorkersConfig(count=2, host=host, port=taken.getsockname()[1]))
    assert caught.value.code == exit_code


def test_the_port_of_a_parent_that_was_killed_is_waited_for(tmp_path: Path) -> None:
    """Its workers hold it until they have noticed."""
    from reliability.listener import listen

    taken = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", port)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=[taken.fileno()]
    )
    taken.close()
    with pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", port, patience_s=0.1)
    assert holder.stdin is not None
    holder.stdin.close()
    listen("127.0.0.1", port, patience_s=5).close()
    holder.wait()
