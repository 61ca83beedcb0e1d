"""Answers that outlive the process, and files that go wrong: rules R49 and R50."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest
from reliability.cache_store import CacheStore, StoredAnswer
from reliability.health import Unhealthy

from tests.unit.support import CANCELLERS, FakeClock, cancel_at_every_await, until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.anyio


class Setup:
    def __init__(self, directory: Path, *, max_bytes: int = 1_000_000) -> None:
        self.path = directory / "answers.db"
        self.clock = FakeClock(1_700_000_000)
        self.max_bytes = max_bytes
        self.store = self.reopened()

    def reopened(self) -> CacheStore:
        return CacheStore(self.path, max_bytes=self.max_bytes, wall_clock=self.clock)

    @property
    def pending(self) -> int:
        """Answers that are not written yet."""
        return len(self.store._pending)

    def put(self, key: bytes, value: bytes = b"value", *, namespace: str = "tool", keep_s: float = 100) -> None:
        self.store.put(namespace, key, value, keep_s=keep_s)

    async def found(self, namespace: str = "tool", limit: int = 100) -> Sequence[StoredAnswer]:
        return await self.reopened().load(namespace, limit=limit)

    async def keys(self, namespace: str = "tool", limit: int = 100) -> list[bytes]:
        """Of the same age in the order of their keys."""
        found = sorted(await self.found(namespace, limit), key=lambda answer: (-answer.age_s, answer.key))
        return [answer.key for answer in found]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


async def test_r50_a_restarted_server_finds_its_answers_and_knows_how_old_they_are(setup: Setup) -> None:
    setup.put(b"1", b"one")
    setup.clock.now += 10
    setup.put(b"2", b"two")
    await setup.store.flush()
    setup.clock.now += 5
    assert await setup.found() == [
        StoredAnswer(key=b"1", value=b"one", age_s=15),
        StoredAnswer(key=b"2", value=b"two", age_s=5),
    ]
    assert setup.pending == 0


async def test_r50_the_newest_answers_are_found_first_and_given_last(setup: Setup) -> None:
    for key in (b"3", b"1", b"2"):
        setup.put(key)
        setup.clock.now += 1
    await setup.store.flush()
    assert [answer.key for answer in await setup.found(limit=2)] == [b"1", b"2"]


async def test_r49_answers_of_another_tool_are_not_mixed_up(setup: Setup) -> None:
    setup.put(b"1", b"one", namespace="a")
    setup.put(b"1", b"two", namespace="b")
    await setup.store.flush()
    assert [answer.value for name in "ab" for answer in await setup.found(name)] == [b"one", b"two"]
    assert await setup.found("c") == []


async def test_r50_a_new_answer_takes_the_place_of_the_old_one(setup: Setup) -> None:
    for value in (b"old", b"new"):
        setup.put(b"1", value)
    setup.put(b"2", b"old")
    await setup.store.flush()
    setup.put(b"2", b"new")
    await setup.store.flush()
    assert [answer.value for answer in await setup.found()] == [b"new", b"new"]


async def test_r50_what_is_too_old_is_neither_found_nor_kept(setup: Setup) -> None:
    setup.put(b"short", keep_s=10)
    setup.put(b"long", keep_s=100)
    await setup.store.flush()
    setup.clock.now += 10
    assert await setup.keys() == [b"long"]
    setup.put(b"new")
    await setup.store.flush()
    setup.clock.now -= 10
    assert await setup.keys() == [b"long"]
    setup.clock.now += 10
    assert await setup.keys() == [b"long", b"new"]


async def test_r50_an_answer_from_the_future_is_not_used(setup: Setup) -> None:
    setup.put(b"1")
    await setup.store.flush()
    assert await setup.keys() == [b"1"]
    setup.clock.now -= 1
    assert await setup.keys() == []


async def test_r49_the_file_is_bounded_and_the_oldest_make_room(tmp_path: Path) -> None:
    setup = Setup(tmp_path, max_bytes=30_000)
    for number in range(10):
        setup.put(bytes([number]), b"x" * 10_000)
        setup.clock.now += 1
        await setup.store.flush()
    assert await setup.keys() == [b"\x07", b"\x08", b"\x09"]
    assert setup.path.stat().st_size < 80_000


async def test_r49_what_waits_to_be_written_is_bounded(setup: Setup) -> None:
    for number in range(300):
        setup.put(number.to_bytes(2, "big"))
    assert setup.pending == 256
    await setup.store.flush()
    assert len(await setup.keys(limit=1000)) == 256


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
async def test_only_the_owner_may_read_the_file(setup: Setup, tmp_path: Path) -> None:
    setup.path = tmp_path / "new" / "directory" / "answers.db"
    setup.store = setup.reopened()
    setup.put(b"1")
    await setup.store.flush()
    assert stat.S_IMODE(setup.path.stat().st_mode) == 0o600


async def test_r50_writing_goes_on_behind_the_calls_and_the_rest_is_written_at_the_end(setup: Setup) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(setup.store.run)
        setup.put(b"1")
        await until(lambda: not setup.pending)
        setup.put(b"2")
        tasks.cancel_scope.cancel()
    assert await setup.keys() == [b"1", b"2"]


async def test_r50_without_answers_nothing_is_written(setup: Setup) -> None:
    await setup.store.flush()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(setup.store.run)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert not setup.path.exists()


async def test_a_file_that_is_no_database_is_left_alone(setup: Setup) -> None:
    setup.path.write_bytes(b"somebody's thesis" * 1000)
    setup.put(b"1")
    await setup.store.flush()
    with pytest.raises(Unhealthy, match="not kept"):
        await setup.store.check().probe()
    assert setup.path.read_bytes() == b"somebody's thesis" * 1000
    assert list(setup.path.parent.iterdir()) == [setup.path]


async def test_r50_a_damaged_file_is_set_aside_and_a_new_one_begun(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    rubbish = b"SQLite format 3\0" + b"\xff" * 8000
    setup.path.write_bytes(rubbish)
    assert await setup.found() == []
    setup.put(b"1")
    await setup.store.flush()
    assert await setup.keys() == [b"1"]
    assert setup.path.with_name("answers.db.corrupt").read_bytes() == rubbish
    (record,) = caplog.records
    assert record.getMessage() == "a damaged file of answers was set aside"
    assert record.__dict__["path"] == f"{setup.path}.corrupt"


async def test_r50_a_file_that_is_damaged_in_the_middle_is_set_aside(setup: Setup) -> None:
    for number in range(100):
        setup.put(bytes([number]), b"x" * 1000)
    await setup.store.flush()
    whole = setup.path.read_bytes()
    setup.path.write_bytes(whole[:5000] + b"\xff" * (len(whole) - 5000))
    setup.put(b"new")
    await setup.store.flush()
    assert b"new" in await setup.keys()


async def test_r50_a_file_that_another_process_has_locked_costs_no_call_and_is_written_later(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("reliability.cache_store._LOCK_TIMEOUT_S", 0.01)
    caplog.set_level("INFO")
    setup.put(b"1")
    await setup.store.flush()
    with closing(sqlite3.connect(setup.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        setup.put(b"2")
        started = time.monotonic()
        await setup.store.flush()
        await setup.store.flush()
        assert await setup.found() == []
        assert time.monotonic() - started < 2  # SQLite itself would wait for 5 s
        assert setup.pending == 1
        with pytest.raises(Unhealthy, match="not kept"):
            await setup.store.check().probe()
        other.execute("ROLLBACK")
    await setup.store.flush()
    assert await setup.keys() == [b"1", b"2"]
    assert (await setup.store.check().probe(), setup.store.check().critical) == ("answers are kept", False)
    first = caplog.records[0]
    assert (first.__dict__["path"], first.__dict__["reason"]) == (str(setup.path), "database is locked")
    assert caplog.messages == ["answers are not kept", "answers are not kept", "answers are kept again"]
    assert caplog.records[-1].__dict__["path"] == str(setup.path)


async def test_r50_a_path_that_cannot_be_a_file_costs_no_call(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.path.mkdir()
    assert await setup.found() == []
    setup.put(b"1")
    await setup.store.flush()
    assert setup.store._failing
    (tmp_path / "file").write_text("x")
    below = CacheStore(tmp_path / "file" / "answers.db")
    assert await below.load("tool", limit=1) == []


async def test_r50_a_file_that_is_deleted_is_begun_anew(setup: Setup) -> None:
    setup.put(b"1")
    await setup.store.flush()
    setup.path.unlink()
    setup.put(b"2")
    await setup.store.flush()
    assert await setup.keys() == [b"2"]
    assert not setup.store._failing


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_r50_a_full_disk_costs_no_call(tmp_path: Path, root: Path) -> None:
    script = """
        import resource, signal, sys, anyio
        sys.path.insert(0, sys.argv[1])
        from reliability.cache_store import CacheStore

        async def main():
            store = CacheStore(sys.argv[2])
            store.put("tool", b"1", b"small", keep_s=100)
            await store.flush()
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            store.put("tool", b"2", b"x" * 100_000, keep_s=100)
            await store.flush()
            print(store._failing, len(store._pending))
            print([answer.key for answer in await store.load("tool", limit=9)])

        anyio.run(main)
    """
    package = root / "template" / "src" / "{{package_name}}"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), package, tmp_path / "answers.db"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split("\n")[:2] == ["True 1", "[b'1']"]


async def test_r50_rubbish_in_the_table_is_no_answer(setup: Setup) -> None:
    setup.put(b"1")
    await setup.store.flush()
    with closing(sqlite3.connect(setup.path)) as database, database:
        database.execute("INSERT INTO answers_1 VALUES ('tool', NULL, NULL, NULL, NULL)")
        database.execute("INSERT INTO answers_1 VALUES ('tool', x'02', 'text', 'never', 'never')")
    assert await setup.keys() == [b"1"]


async def test_r50_two_processes_may_share_a_file(setup: Setup) -> None:
    stores = [setup.reopened() for _ in range(4)]

    async def write(store: CacheStore, first: int) -> None:
        for number in range(first, first + 5):
            store.put("tool", bytes([number]), b"value", keep_s=100)
            await store.flush()

    async with anyio.create_task_group() as tasks:
        for position, store in enumerate(stores):
            tasks.start_soon(write, store, position * 5)
    assert len(await setup.keys()) == 20
    assert not any(store._failing for store in stores)


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r46_a_writer_cancelled_at_any_await_loses_no_answer(setup: Setup, how: str) -> None:
    async def work() -> None:
        setup.put(b"1", str(setup.clock.now).encode())
        await setup.store.flush()

    async def nothing_is_lost() -> None:
        await until(lambda: setup.store._one_thread.borrowed_tokens == 0)
        await setup.store.flush()
        assert [answer.value for answer in await setup.found()] == [str(setup.clock.now).encode()]
        assert setup.pending == 0
        setup.clock.now += 1

    assert await cancel_at_every_await(work, nothing_is_lost, how=how) >= 1


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r46_the_background_task_cancelled_at_any_await_writes_the_rest(
    setup: Setup, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reliability.cache_store._GATHER_S", 0.001)
    setup.put(b"0")

    async def work() -> None:
        setup.put(b"1", str(setup.clock.now).encode())
        with anyio.move_on_after(0.1):
            await setup.store.run()

    async def all_is_written() -> None:
        assert setup.pending == 0
        assert str(setup.clock.now).encode() in [answer.value for answer in await setup.found()]
        setup.clock.now += 1

    assert await cancel_at_every_await(work, all_is_written, how=how) >= 1


async def test_r8_the_event_loop_is_not_blocked_by_the_disk(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.put(b"1")
    await setup.store.flush()
    monkeypatch.setattr("reliability.cache_store._LOCK_TIMEOUT_S", 0.3)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await anyio.sleep(0.005)
            turns += 1

    with closing(sqlite3.connect(setup.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        setup.put(b"2")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(others)
            await setup.store.flush()
            tasks.cancel_scope.cancel()
    assert turns >= 10


async def test_r46_who_is_cancelled_does_not_wait_for_the_disk(setup: Setup) -> None:
    setup.put(b"1")
    await setup.store.flush()
    with closing(sqlite3.connect(setup.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        setup.put(b"2")
        started = time.monotonic()
        with anyio.move_on_after(0.05):
            await setup.store.flush()
        assert time.monotonic() - started < 1
        other.execute("ROLLBACK")
    assert setup.pending == 1
    await setup.store.flush()
    assert await setup.keys() == [b"1", b"2"]


async def test_r8_the_store_needs_no_thread_of_the_tools(setup: Setup) -> None:
    limiter = anyio.to_thread.current_default_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, 1
    try:
        async with limiter:
            setup.put(b"1")
            with anyio.fail_after(5):
                await setup.store.flush()
    finally:
        limiter.total_tokens = before
    assert not setup.pending


def test_a_store_can_be_made_outside_of_an_event_loop(tmp_path: Path) -> None:
    store = CacheStore(os.fspath(tmp_path / "answers.db"))
    store.put("tool", b"1", b"one", keep_s=100)

    async def write_and_read() -> None:
        await store.flush()
        assert [answer.key for answer in await store.load("tool", limit=1)] == [b"1"]

    anyio.run(write_and_read)
