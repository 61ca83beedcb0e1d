"""A worker's end of the link, its parent being the test: rules R63 and R68."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
from reliability import workers_link
from reliability.configuration import EnvironmentSettings, unknown_variables
from reliability.workers_link import WORKER, Answers, Link, Member, Worker

from tests.unit.support import until

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

if sys.platform == "win32":
    pytest.skip("descriptors are inherited on POSIX", allow_module_level=True)


class Parent:
    """The other end."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.link: Link

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.heard if message["kind"] == kind]


@asynccontextmanager
async def linked(number: int = 1) -> AsyncIterator[tuple[Parent, Worker]]:
    ours, its = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        parent, worker = Parent(), Worker(number, listener, its)
        parent.link = await Link.over(ours, parent.heard.append)
        await worker.connect()
        yield parent, worker
        parent.link.close()
        await until(lambda: worker.is_orphan)


async def test_messages_arrive_whole_however_they_are_cut() -> None:
    ours, its = socket.socketpair()
    heard: list[dict[str, Any]] = []
    link = await Link.over(its, heard.append)
    messages = [{"kind": "share", "body": "é" * size} for size in (1, 100, 100_000)]
    data = b"".join(json.dumps(message).encode() + b"\n" for message in messages)
    with ours:
        for start in range(0, len(data), 7_001):
            await anyio.to_thread.run_sync(ours.sendall, data[start : start + 7_001])
        await until(lambda: heard == messages)
    link.close()


async def test_a_message_to_one_who_is_gone_is_lost_without_a_word() -> None:
    ours, its = socket.socketpair()
    closed = anyio.Event()
    link = await Link.over(its, lambda _: None, closed.set)
    ours.close()
    await closed.wait()
    link.send(kind="state")
    Link(lambda _: None, lambda: None).send(kind="state")  # nor is one that was never made


async def test_to_one_that_does_not_read_little_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_link, "_MAX_WAITING_BYTES", 300_000)
    ours, its = socket.socketpair()
    link = await Link.over(its, lambda _: None)
    sizes = []
    for _ in range(100):
        for kind in ("share", "state"):
            link.send(kind=kind, body="x" * 20_000)
            sizes.append(cast("asyncio.Transport", link._transport).get_write_buffer_size())
    assert 300_000 <= max(sizes) < 330_000
    link.send(kind="stop")
    with ours, ours.makefile("rb") as lines:
        link.close()  # as soon as all of it has been read
        heard = await anyio.to_thread.run_sync(lines.readlines)
    kinds = [json.loads(line)["kind"] for line in heard]
    assert kinds[-1] == "stop"
    assert len(kinds) < 200


async def test_a_worker_says_how_it_is_and_every_change_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_link, "time", SimpleNamespace(monotonic=lambda: 17.5))  # so that no beat is due
    async with linked() as (parent, worker):
        reason = ""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.report, lambda: reason)
            await until(lambda: parent.of("state"))
            reason = "database: it is gone"
            await until(lambda: parent.of("state")[-1]["reason"] == reason)
            assert [message["reason"] for message in parent.of("state")] == ["", reason]
            tasks.cancel_scope.cancel()


async def test_a_worker_says_again_and_again_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_link, "BEAT_S", 0.01)
    async with linked() as (parent, worker), anyio.create_task_group() as tasks:
        tasks.start_soon(worker.report, str)
        await until(lambda: len(parent.of("state")) > 3)
        tasks.cancel_scope.cancel()


async def test_r63_a_worker_answers_the_others() -> None:
    async with linked() as (parent, worker):

        async def how() -> dict[str, int]:
            return {"calls": 3}

        worker.answer("how", how)
        parent.link.send(kind="ask", question=7, what="how")
        await until(lambda: parent.of("answer"))
        assert parent.of("answer") == [{"kind": "answer", "question": 7, "body": {"calls": 3}}]


async def test_r63_a_question_that_fails_has_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    async with linked() as (parent, worker):

        async def fail() -> None:
            raise ZeroDivisionError

        worker.answer("fail", fail)
        for question, what in enumerate(("fail", "unknown")):
            parent.link.send(kind="ask", question=question, what=what)
        await until(lambda: len(caplog.records) == 2)
        assert parent.of("answer") == []


async def test_r63_a_worker_gets_the_answers_of_all_the_others() -> None:
    async with linked() as (parent, worker):
        found: list[Answers] = []

        async def ask(what: str) -> None:
            found.append(await worker.ask(what, limit_s=5))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "first")
            tasks.start_soon(ask, "second")
            await until(lambda: len(parent.of("ask")) == 2)
            for asked in reversed(parent.of("ask")):  # in whatever order they come
                members = [{"number": 2, "pid": None, "restarts": 4}]
                parent.link.send(
                    kind="answers", question=asked["question"], bodies={"2": asked["what"]}, members=members
                )
        assert [answers.bodies for answers in found] == [{2: "second"}, {2: "first"}]
        assert found[0].members == [Member(number=2, pid=None, restarts=4)]
        parent.link.send(kind="answers", question=1, bodies={}, members=[])  # one that nobody waits for


async def test_r63_a_parent_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_link, "BEAT_S", 0.01)
    async with linked() as (_, worker):
        assert await worker.ask("how", limit_s=0.01) == Answers()


async def test_r63_without_a_parent_there_is_nobody_to_ask() -> None:
    async with linked() as (parent, worker):
        parent.link.close()
        await until(lambda: worker.is_orphan)
        assert await worker.ask("how", limit_s=60) == Answers()


async def test_what_the_parent_says_is_heard() -> None:
    async with linked() as (parent, worker):
        shared: list[object] = []
        worker.on_share = shared.append
        parent.link.send(kind="share", body=[["alice", 3]])
        parent.link.send(kind="others", reason="worker 2: it is ill")
        await until(lambda: worker.others_unready_because)
        assert (shared, worker.others_unready_because) == ([[["alice", 3]]], "worker 2: it is ill")


async def test_r68_a_worker_knows_whether_it_stops_alone() -> None:
    async with linked() as (parent, worker):
        assert await worker.stops_alone()
        parent.link.send(kind="stop")
        assert not await worker.stops_alone()
        assert worker.all_stop.is_set()


async def test_r68_without_a_parent_a_worker_stops_alone_and_has_heard_of_it() -> None:
    async with linked() as (parent, worker):
        orphaned = anyio.Event()
        worker.on_orphaned = orphaned.set
        parent.link.close()
        await orphaned.wait()
        assert await worker.stops_alone()


async def test_what_a_worker_was_given_is_not_for_its_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, its = socket.socketpair()
    with ours, socket.create_server(("127.0.0.1", 0)) as listener:
        descriptors = [os.dup(listener.fileno()), its.detach()]
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        monkeypatch.setenv(WORKER, " ".join(map(str, [3, *descriptors])))
        worker = Worker.from_environment()
        assert worker is not None
        assert worker.number == 3
        assert worker.listener.getsockname() == listener.getsockname()
        assert WORKER not in os.environ
        assert not any(os.get_inheritable(descriptor) for descriptor in descriptors)
        assert Worker.from_environment() is None
        worker.listener.close()
        await worker.connect()


@pytest.mark.parametrize("prefix", ["MCP_", "MCP_SERVER_"])
def test_no_project_takes_the_variable_of_a_worker_for_a_setting(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Settings(EnvironmentSettings):
        pass

    monkeypatch.setattr(Settings, "env_prefix", prefix)

    monkeypatch.setenv(WORKER, "1 3 4")
    assert WORKER not in unknown_variables(Settings)
