# ruff: noqa: ASYNC240 - files of a test may block it
"""SQLite with real files, real threads and other processes: rules R34 to R41, R43 and R55."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from reliability import sqlite_database
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.deadlines import deadline
from reliability.dependency import Dependency, DependencyLimits
from reliability.errors import (
    ConstraintViolated,
    DeadlineExceeded,
    DependencyBusy,
    DependencyFailed,
    DependencyTimeout,
    ToolFailure,
)
from reliability.pool import PoolLimits
from reliability.sqlite_database import SqliteDatabase

from tests.unit.support import CANCELLERS, cancel_at_every_await, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

pytestmark = pytest.mark.anyio

SCHEMA = """
CREATE TABLE IF NOT EXISTS notes(
    id INTEGER PRIMARY KEY, title TEXT NOT NULL UNIQUE, stars INTEGER CHECK (stars <= 5),
    parent INTEGER REFERENCES notes
);
CREATE INDEX IF NOT EXISTS by_stars ON notes(stars);
"""
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
INSERT = "INSERT INTO notes(title) VALUES($1)"

HOLD_THE_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


def make(path: Path, *, attempt_timeout_s: float = 20, **limits: Any) -> SqliteDatabase:
    patient = CircuitBreakerConfig(minimum_number_of_calls=1000, sliding_window_size=1000)
    own = DependencyLimits(max_concurrent=None, attempt_timeout_s=attempt_timeout_s, circuit_breaker=patient)
    return SqliteDatabase(Dependency("notes", own), path, limits=PoolLimits(**limits), schema=SCHEMA)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "directory" / "notes.db"


@pytest.fixture
async def notes(path: Path) -> AsyncIterator[SqliteDatabase]:
    async with make(path) as database:
        yield database


@contextmanager
def locked_by_another_process(path: Path) -> Iterator[None]:
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield
        process.kill()


def failures(database: SqliteDatabase) -> int:
    return database._dependency.statistics().breaker.failures_total


def closed(database: SqliteDatabase) -> int:
    return sum(found.closed for found in database.statistics())


async def titles(database: SqliteDatabase) -> list[str]:
    return [row["title"] for row in await database.fetch_all("SELECT title FROM notes ORDER BY id")]


def no_threads_are_left() -> bool:
    return not any(thread.name == "sqlite notes" for thread in threading.enumerate())


async def connect(database: SqliteDatabase) -> None:
    """Open a connection of each kind: what is measured afterwards has no part in it."""
    async with database._writers.connection(), database._readers.connection():
        pass


async def all_back(database: SqliteDatabase) -> None:
    """Wait until nothing runs on any connection."""
    await until(lambda: all(found.in_use == 0 and found.size == found.idle for found in database.statistics()))


# The common face.


async def test_nothing_is_opened_before_it_is_wanted(path: Path) -> None:
    database = make(path)
    assert not path.parent.exists()
    await database.execute(INSERT, "first")
    assert path.exists()
    await database.__aexit__(None, None, None)


async def test_rows_are_dictionaries(notes: SqliteDatabase) -> None:
    await notes.execute("INSERT INTO notes(title, stars) VALUES($1, $2)", "a", 5)
    assert await notes.fetch_all("SELECT title, stars FROM notes") == [{"title": "a", "stars": 5}]
    assert await notes.fetch_one("SELECT stars FROM notes") == {"stars": 5}
    assert await notes.fetch_one("SELECT stars FROM notes WHERE id = 77") is None
    assert await notes.fetch_all("SELECT stars FROM notes WHERE id = 77") == []


@pytest.mark.parametrize("value", [None, 0, -(2**62), 2.5, "ü", "", b"\x00\xff"])
async def test_values_come_back_as_they_went(notes: SqliteDatabase, value: object) -> None:
    assert await notes.fetch_one("SELECT $1 AS value", value) == {"value": value}


async def test_placeholders_are_numbered_and_may_be_repeated(notes: SqliteDatabase) -> None:
    row = await notes.fetch_one("SELECT $2 AS b, $1 AS a, $2 AS c", 1, 2)
    assert row == {"b": 2, "a": 1, "c": 2}
    many = await notes.fetch_one("SELECT $11 AS x", *range(11))
    assert many == {"x": 10}


async def test_values_never_become_part_of_the_statement(notes: SqliteDatabase) -> None:
    await notes.execute(INSERT, "'); DROP TABLE notes; --")
    assert await titles(notes) == ["'); DROP TABLE notes; --"]


async def test_execute_says_how_many_rows_changed(notes: SqliteDatabase) -> None:
    assert await notes.execute("INSERT INTO notes(title) VALUES('a'), ('b'), ('c')") == 3
    assert await notes.execute("UPDATE notes SET stars = 1 WHERE title > $1", "a") == 2
    assert await notes.execute("DELETE FROM notes WHERE id = 77") == 0
    assert await notes.execute("CREATE TABLE other(a)") == 0


async def test_what_returns_rows_may_write(notes: SqliteDatabase) -> None:
    assert await notes.fetch_one("INSERT INTO notes(title) VALUES($1) RETURNING id", "a") == {"id": 1}
    assert await notes.fetch_all("INSERT INTO notes(title) VALUES('b'), ('c') RETURNING id") == [{"id": 2}, {"id": 3}]
    assert await titles(notes) == ["a", "b", "c"]
    assert failures(notes) == 0


async def test_a_wrong_statement_is_the_authors_mistake_and_no_failure(notes: SqliteDatabase) -> None:
    for wrong in ("SELEC 1", "SELECT * FROM nowhere", "SELECT $1", "SELECT 1; SELECT 2"):
        with pytest.raises(Exception, match=r"syntax|no such table|binding|one statement"):
            await notes.fetch_all(wrong)
    assert (failures(notes), closed(notes)) == (0, 0)


@pytest.mark.parametrize(
    ("rule", "statement"),
    [
        ("unique", "INSERT INTO notes(title) VALUES('taken')"),
        ("unique", "INSERT INTO notes(id, title) VALUES(1, 'other')"),
        ("not null", "INSERT INTO notes(title) VALUES(NULL)"),
        ("check", "INSERT INTO notes(title, stars) VALUES('many', 6)"),
        ("foreign key", "INSERT INTO notes(title, parent) VALUES('orphan', 77)"),
        ("other", "INSERT INTO notes(id, title) VALUES('no number', 'b')"),
    ],
)
async def test_r55_a_broken_rule_is_an_answer_and_no_failure(notes: SqliteDatabase, rule: str, statement: str) -> None:
    await notes.execute(INSERT, "taken")
    if rule == "other":
        await notes.execute("CREATE TRIGGER no BEFORE INSERT ON notes BEGIN SELECT RAISE(ABORT, 'secret'); END")
    with pytest.raises(ConstraintViolated) as caught:
        await notes.execute(statement)
    assert (caught.value.rule, "secret" in str(caught.value)) == (rule, False)
    assert isinstance(caught.value, ToolFailure)
    assert (failures(notes), closed(notes)) == (0, 0)


# Transactions.


async def test_a_transaction_is_all_or_nothing(notes: SqliteDatabase) -> None:
    async with notes.transaction() as transaction:
        await transaction.execute(INSERT, "a")
        await transaction.execute(INSERT, "b")
        assert await transaction.fetch_one("SELECT count(*) AS n FROM notes") == {"n": 2}
        assert (await transaction.fetch_all("SELECT title FROM notes"))[1] == {"title": "b"}
    with pytest.raises(LookupError):
        async with notes.transaction() as transaction:
            await transaction.execute(INSERT, "c")
            raise LookupError
    assert await titles(notes) == ["a", "b"]


async def test_r55_an_exception_of_the_body_is_no_failure_of_the_database(notes: SqliteDatabase) -> None:
    for error in (LookupError("mine"), DependencyFailed("api", "Another one failed."), ToolFailure("No.")):
        with pytest.raises(type(error)) as caught:
            async with notes.transaction():
                raise error
        assert caught.value is error
    assert failures(notes) == 0


async def test_a_part_of_a_transaction_is_undone_alone(notes: SqliteDatabase) -> None:
    async with notes.transaction() as transaction:
        await transaction.execute(INSERT, "a")
        for _ in range(3):
            with pytest.raises(ConstraintViolated):
                async with transaction.transaction() as part:
                    await part.execute(INSERT, "b")
                    await part.execute(INSERT, "a")
        async with transaction.transaction() as part, part.transaction() as smallest:
            await smallest.execute(INSERT, "c")
    assert await titles(notes) == ["a", "c"]


async def test_after_a_failed_statement_a_transaction_can_only_be_undone(notes: SqliteDatabase) -> None:
    """As in PostgreSQL; SQLite alone would go on, and a tool would not be the same on both."""
    with pytest.raises(RuntimeError, match="this transaction is undone"):
        async with notes.transaction() as transaction:
            await transaction.execute(INSERT, "a")
            with pytest.raises(ConstraintViolated):
                await transaction.execute(INSERT, "a")
            with pytest.raises(RuntimeError, match="this transaction is undone"):
                await transaction.execute(INSERT, "b")
    assert await titles(notes) == []


async def test_a_transaction_is_of_no_use_after_its_end(notes: SqliteDatabase) -> None:
    async with notes.transaction() as transaction:
        pass
    with pytest.raises(RuntimeError, match="has ended"):
        await transaction.fetch_all("SELECT 1")


async def test_r38_a_transaction_is_for_one_task_at_a_time(notes: SqliteDatabase) -> None:
    async with notes.transaction() as transaction:
        first = asyncio.ensure_future(transaction.execute(INSERT, "a"))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="in one task at a time"):
            await transaction.execute(INSERT, "b")
        await first
        await transaction.execute(INSERT, "c")
    assert await titles(notes) == ["a", "c"]


async def test_r38_while_a_part_of_a_transaction_is_open_the_whole_is_not_used(notes: SqliteDatabase) -> None:
    """What it did would be undone with the part."""
    async with notes.transaction() as transaction:
        with pytest.raises(LookupError):
            async with transaction.transaction() as part:
                await part.execute(INSERT, "a")
                for misuse in (transaction.execute(INSERT, "b"), transaction.transaction().__aenter__()):
                    with pytest.raises(RuntimeError, match="in one task at a time"):
                        await misuse
                raise LookupError
        await transaction.execute(INSERT, "c")
    assert await titles(notes) == ["c"]


async def test_within_a_transaction_the_databases_own_methods_are_refused(notes: SqliteDatabase) -> None:
    """They would wait for the connection that the transaction holds."""
    async with notes.transaction() as transaction:
        with pytest.raises(RuntimeError, match="use its own methods"):
            await notes.execute(INSERT, "a")
        await transaction.execute(INSERT, "b")
    await notes.execute(INSERT, "c")
    assert await titles(notes) == ["b", "c"]


async def test_a_reading_transaction_sees_one_state_and_cannot_write(notes: SqliteDatabase) -> None:
    await notes.execute(INSERT, "a")
    go_on, seen = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        async with notes.transaction(read_only=True) as transaction:
            count = "SELECT count(*) AS n FROM notes"
            assert await transaction.fetch_one(count) == {"n": 1}
            seen.set()
            await go_on.wait()
            assert await transaction.fetch_one(count) == {"n": 1}

    reader = asyncio.ensure_future(read())
    await seen.wait()
    await notes.execute(INSERT, "b")  # readers do not block the writer
    go_on.set()
    await reader
    with pytest.raises(Exception, match="readonly"):
        async with notes.transaction(read_only=True) as transaction:
            await transaction.execute(INSERT, "c")
    assert failures(notes) == 0


# R41: how it is set up.


async def test_r41_wal_foreign_keys_busy_timeout_and_readers_that_only_read(notes: SqliteDatabase) -> None:
    for lender, reads_only in ((notes._writers, 0), (notes._readers, 1)):
        async with lender.connection() as connection:
            found = {
                name: next(iter((await connection.fetch_one(f"PRAGMA {name}")).values()))
                for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous", "query_only")
            }
        assert found == {
            "journal_mode": "wal",
            "foreign_keys": 1,
            "busy_timeout": 100,
            "synchronous": 1,
            "query_only": reads_only,
        }


async def test_r41_there_is_one_writer_and_the_others_read(path: Path) -> None:
    async with make(path, max_connections=5) as database:
        found = {pool.name: pool.max_connections for pool in database.statistics()}
    assert found == {"notes.writer": 1, "notes.readers": 4}
    with pytest.raises(ValueError, match="max_connections must be 2 or more"):
        make(path, max_connections=1)


async def test_r41_many_writers_at_once_never_find_the_database_locked(notes: SqliteDatabase) -> None:
    async def write(number: int) -> None:
        async with notes.transaction() as transaction:
            found = await transaction.fetch_one("SELECT count(*) AS n FROM notes")
            assert found is not None
            await transaction.execute("INSERT INTO notes(title, id) VALUES($1, $2)", str(number), found["n"] + 1)

    async with anyio.create_task_group() as tasks:
        for number in range(60):
            tasks.start_soon(write, number)
    assert len(await titles(notes)) == 60
    assert failures(notes) == 0


async def test_r41_writers_of_two_databases_objects_wait_for_each_other(path: Path) -> None:
    async with make(path) as one, make(path) as other, anyio.create_task_group() as tasks:
        for number, database in zip(range(60), itertools.cycle([one, other]), strict=False):
            tasks.start_soon(database.execute, INSERT, str(number))
    async with make(path) as third:
        assert len(await titles(third)) == 60


async def test_r41_a_slow_query_does_not_block_the_event_loop(notes: SqliteDatabase) -> None:
    query = asyncio.ensure_future(notes.fetch_one(ENDLESS.replace("FROM n)", "FROM n WHERE i < 300000)")))
    ticks = 0
    while not query.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert ticks > 5


async def test_r40_closing_ends_the_threads_and_tidies_up(path: Path) -> None:
    async with make(path) as database:
        await database.execute(INSERT, "a")
        await titles(database)
    await until(no_threads_are_left)
    assert [file.name for file in path.parent.iterdir()] == ["notes.db"]


def test_r40_a_database_can_be_entered_again_in_another_event_loop(path: Path) -> None:
    database = make(path)

    async def one_life(number: int) -> None:
        async with database:
            await database.execute(INSERT, str(number))
            assert len(await titles(database)) == number

    for number in (1, 2, 3):
        asyncio.run(one_life(number))


async def test_r47_a_thread_that_hangs_does_not_keep_the_process_from_ending(path: Path) -> None:
    script = f"""
import asyncio, sys, time
sys.path[:0] = {sys.path!r}
from pathlib import Path
from tests.unit.test_sqlite_database import make

async def main():
    database = make(Path({str(path)!r}))
    async with database._readers.connection() as connection:
        asyncio.ensure_future(connection.thread.do(lambda _: time.sleep(60)))
        await asyncio.sleep(0.1)

asyncio.run(main())
print("done")
"""
    started = time.monotonic()
    result = await anyio.run_process([sys.executable, "-c", script], check=True)
    assert result.stdout.decode().split() == ["done"]
    assert time.monotonic() - started < 30


# Cancellation.


@pytest.mark.parametrize("how", CANCELLERS)
@pytest.mark.parametrize("sql", [ENDLESS, f"INSERT INTO notes(stars) {ENDLESS}"], ids=["reading", "writing"])
async def test_r35_a_cancelled_statement_is_interrupted_and_its_connection_lives_on(
    notes: SqliteDatabase, how: str, sql: str
) -> None:
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await notes.execute(sql) if sql.startswith("INSERT") else await notes.fetch_all(sql)

    task = asyncio.ensure_future(run())
    await until(lambda: any(found.in_use for found in notes.statistics()))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    if how == "scope":
        scope.cancel()
    else:
        task.cancel()
    await asyncio.wait([task])
    assert time.monotonic() - started < 0.5
    await all_back(notes)
    assert (closed(notes), await titles(notes)) == (0, [])


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r35_after_240_cancellations_all_connections_are_alive(path: Path, how: str) -> None:
    async with make(path, max_connections=5) as database:
        opened = await database_full_of_connections(database)
        for turn in range(60):
            queries = [Query(database) for _ in range(4)]
            await asyncio.sleep(0.0005 * (turn % 10))
            for query in queries:
                query.cancel(how)
            await asyncio.wait([query.task for query in queries])
        await all_back(database)
        assert await database_full_of_connections(database) == opened
        assert closed(database) == 0


class Query:
    """A query that never ends by itself."""

    def __init__(self, database: SqliteDatabase) -> None:
        self.scope = anyio.CancelScope()
        self.task = asyncio.ensure_future(self._ask(database))

    async def _ask(self, database: SqliteDatabase) -> None:
        with self.scope:
            await database.fetch_all(ENDLESS)

    def cancel(self, how: str) -> None:
        if how == "scope":
            self.scope.cancel()
        else:
            self.task.cancel()


async def database_full_of_connections(database: SqliteDatabase) -> set[int]:
    """Use every connection at the same time; return the identities of all."""
    async with database._writers.connection() as writer:
        readers = [database._readers.connection() for _ in range(4)]
        found = [writer, *[await reader.__aenter__() for reader in readers]]
        for connection in found:
            assert await connection.fetch_one("SELECT 1 AS one") == {"one": 1}
        for reader in readers:
            await reader.__aexit__(None, None, None)
    return {id(connection) for connection in found}


async def a_read(database: SqliteDatabase) -> None:
    await database.fetch_all("SELECT * FROM notes")


async def a_write(database: SqliteDatabase) -> None:
    await database.execute(INSERT, "both")
    await database.execute("DELETE FROM notes")


async def a_transaction(database: SqliteDatabase) -> None:
    async with database.transaction() as transaction:
        await transaction.execute(INSERT, "one")
        async with transaction.transaction() as part:
            await part.execute(INSERT, "two")
        await transaction.execute("DELETE FROM notes WHERE title = 'one'")
        await transaction.execute("DELETE FROM notes WHERE title = 'two'")


@pytest.mark.parametrize("how", CANCELLERS)
@pytest.mark.parametrize("work", [a_read, a_write, a_transaction])
@pytest.mark.parametrize("opened", [False, True], ids=["first use", "later"])
async def test_r35_cancelled_at_any_await_nothing_is_lost(
    path: Path, how: str, work: Callable[[SqliteDatabase], Awaitable[None]], *, opened: bool
) -> None:
    async with make(path) as database:
        if opened:
            await a_write(database)

        async def nothing_is_lost() -> None:
            await all_back(database)
            left = await titles(database)
            assert left == [] or (work is a_write and left == ["both"])
            await database.execute("DELETE FROM notes")

        assert await cancel_at_every_await(lambda: work(database), nothing_is_lost, how=how) >= 1
        assert closed(database) == 0


async def test_r38_a_cancelled_transaction_is_rolled_back(notes: SqliteDatabase) -> None:
    with anyio.CancelScope() as scope:
        async with notes.transaction() as transaction:
            await transaction.execute(INSERT, "a")
            scope.cancel()
            await transaction.execute(INSERT, "b")
    await all_back(notes)
    assert (await titles(notes), closed(notes)) == ([], 0)


async def test_r38_a_cancelled_part_undoes_the_whole_transaction(notes: SqliteDatabase) -> None:
    with pytest.raises(RuntimeError, match="this transaction is undone"):
        async with notes.transaction() as transaction:
            await transaction.execute(INSERT, "a")
            with anyio.CancelScope() as scope:
                asyncio.get_running_loop().call_later(0.05, scope.cancel)
                async with transaction.transaction() as part:
                    await part.fetch_all(ENDLESS)
            assert scope.cancelled_caught
    assert await titles(notes) == []


async def test_r43_the_dependencys_limit_ends_a_statement(path: Path) -> None:
    async with make(path, attempt_timeout_s=0.5) as database:
        await connect(database)
        with pytest.raises(DependencyTimeout):
            await database.fetch_all(ENDLESS)
        await all_back(database)
        assert (failures(database), closed(database)) == (1, 0)


async def test_r44_the_callers_deadline_ends_a_statement(notes: SqliteDatabase) -> None:
    with pytest.raises((DeadlineExceeded, DependencyTimeout)), deadline(3):
        await notes.fetch_all(ENDLESS)


async def test_r38_a_thread_that_hangs_keeps_its_place_until_it_ends(path: Path) -> None:
    async with make(path, max_connections=2, cleanup_timeout_s=0.05, acquire_timeout_s=1) as database:
        await a_read(database)
        begun, go_on = threading.Event(), threading.Event()

        def job(_: object) -> None:
            begun.set()
            go_on.wait(10)

        async def hang() -> None:
            async with database._readers.connection() as connection:
                await connection.thread.do(job)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hang)
            await until(begun.is_set)
            tasks.cancel_scope.cancel()
        with pytest.raises(DependencyTimeout):
            await a_read(database)
        go_on.set()
        await a_read(database)
        assert (closed(database), database.statistics()[1].size) == (1, 1)


# Faults.


async def test_r41_a_lock_of_another_process_is_waited_for(notes: SqliteDatabase, path: Path) -> None:
    await notes.execute(INSERT, "a")
    with locked_by_another_process(path):
        write = asyncio.ensure_future(notes.execute(INSERT, "b"))
        assert await titles(notes) == ["a"], "readers do not wait"
        await asyncio.sleep(0.3)
        assert not write.done()
    assert await write == 1
    assert await titles(notes) == ["a", "b"]


async def test_r41_a_lock_that_is_not_released_is_a_failure_in_time(path: Path) -> None:
    async with make(path, acquire_timeout_s=0.8) as database:
        await database.execute(INSERT, "a")
        with locked_by_another_process(path):
            started = time.monotonic()
            with pytest.raises(DependencyFailed, match="'notes' is locked by another program") as caught:
                await database.execute(INSERT, "b")
            assert 0.7 <= time.monotonic() - started < 2
            with pytest.raises(DependencyFailed, match="is locked"):
                async with database.transaction():
                    pass
        assert caught.value.retryable
        assert await database.execute(INSERT, "b") == 1
        assert (failures(database), closed(database)) == (2, 0)


async def test_r44_a_lock_is_waited_for_no_longer_than_the_deadline_allows(path: Path) -> None:
    async with make(path, attempt_timeout_s=0.5) as database:
        await connect(database)
        with locked_by_another_process(path):
            started = time.monotonic()
            with pytest.raises(DependencyFailed, match="is locked"):
                await database.execute(INSERT, "b")
            assert time.monotonic() - started < 0.75


async def test_r41_a_database_that_is_locked_can_be_opened_for_reading(notes: SqliteDatabase, path: Path) -> None:
    await notes.execute(INSERT, "a")
    with locked_by_another_process(path):
        async with make(path) as other:
            assert await titles(other) == ["a"]


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r46_whoever_is_cancelled_while_waiting_for_a_lock_leaves_at_once(
    notes: SqliteDatabase, path: Path, how: str
) -> None:
    await notes.execute(INSERT, "a")
    with locked_by_another_process(path):
        scope = anyio.CancelScope()

        async def write() -> None:
            with scope:
                await notes.execute(INSERT, "b")

        task = asyncio.ensure_future(write())
        await asyncio.sleep(0.2)
        started = time.monotonic()
        if how == "scope":
            scope.cancel()
        else:
            task.cancel()
        await asyncio.wait([task])
        await all_back(notes)
        assert time.monotonic() - started < 1
    assert (await titles(notes), closed(notes)) == (["a"], 0)


async def test_a_full_disk_is_a_failure_and_the_connection_goes_on(notes: SqliteDatabase) -> None:
    await notes.execute("PRAGMA max_page_count = 20")
    with pytest.raises(DependencyFailed, match="'notes' has no room left on its disk"):
        await notes.execute(INSERT, "x" * 200_000)
    with pytest.raises(DependencyFailed, match="no room left"):
        async with notes.transaction() as transaction:
            await transaction.execute(INSERT, "y" * 200_000)
    with pytest.raises(DependencyFailed, match="no room left"):
        async with notes.transaction() as transaction, transaction.transaction() as part:
            await part.execute(INSERT, "z" * 200_000)
    assert await notes.execute(INSERT, "small") == 1
    assert (await titles(notes), closed(notes), failures(notes)) == (["small"], 0, 3)


async def test_r55_a_failure_of_the_database_counts_whatever_the_transaction_makes_of_it(notes: SqliteDatabase) -> None:
    await notes.execute("PRAGMA max_page_count = 20")
    with pytest.raises(RuntimeError, match="A statement failed"):
        async with notes.transaction() as transaction:
            with suppress(DependencyFailed):
                await transaction.execute(INSERT, "x" * 200_000)
    with pytest.raises(ToolFailure, match="too long"):
        async with notes.transaction() as transaction:
            try:
                await transaction.execute(INSERT, "x" * 200_000)
            except DependencyFailed:
                raise ToolFailure("It is too long.") from None
    assert (await titles(notes), failures(notes)) == ([], 2)


@pytest.mark.skipif(sys.platform == "win32", reason="file sizes are limited on POSIX")
async def test_a_file_that_may_not_grow_is_a_failure_and_heals(notes: SqliteDatabase) -> None:
    import resource

    await notes.execute(INSERT, "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DependencyFailed, match=r"no room left|cannot be read or written"):
            await notes.execute(INSERT, "x" * 1_000_000)
        assert await titles(notes) == ["a"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert await notes.execute(INSERT, "b" * 1_000_000) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be deleted there")
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_deleted_file_is_noticed_once_and_made_anew(
    notes: SqliteDatabase, path: Path, *, replaced: bool
) -> None:
    await notes.execute(INSERT, "lost")
    async with notes._readers.connection(), notes._readers.connection():
        pass
    for file in path.parent.iterdir():
        file.unlink()
    if replaced:
        async with make(path) as other:
            await other.execute(INSERT, "other")
    with pytest.raises(DependencyFailed, match="'notes' was deleted or replaced"):
        await titles(notes)
    assert await titles(notes) == (["other"] if replaced else [])
    assert await notes.execute(INSERT, "kept") == 1
    assert (await titles(notes))[-1] == "kept"
    async with make(path) as other:
        assert (await titles(other))[-1] == "kept", "it was written to the file that has the name now"
    assert failures(notes) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be deleted there")
async def test_a_file_that_cannot_be_reached_any_more_is_a_failure(notes: SqliteDatabase, path: Path) -> None:
    await notes.execute(INSERT, "out of reach")
    path.parent.rename(path.parent.with_name("away"))
    path.parent.write_text("This is no directory.")
    with pytest.raises(DependencyFailed, match="'notes' was deleted or replaced"):
        await notes.execute(INSERT, "lost")
    path.parent.unlink()
    path.parent.with_name("away").rename(path.parent)
    assert await titles(notes) == ["out of reach"]


async def test_a_file_of_another_kind_is_a_failure(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("This is no database. " * 100)
    async with make(path) as database:
        with pytest.raises(DependencyFailed, match="'notes' is a file of another kind"):
            await titles(database)
        path.unlink()
        assert await titles(database) == []
    await until(no_threads_are_left)


async def test_a_damaged_file_is_a_failure(path: Path) -> None:
    async with make(path) as database:
        await database.execute("INSERT INTO notes(title) SELECT hex(randomblob(2000)) FROM (VALUES(1),(2),(3),(4),(5))")
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x55" * (len(content) - 4096)
    path.write_bytes(content)
    async with make(path) as database:
        with pytest.raises(DependencyFailed, match="'notes' is damaged"):
            await titles(database)


async def test_a_directory_that_cannot_be_made_is_a_failure_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    async with make(tmp_path / "file" / "notes.db") as database:
        with pytest.raises(DependencyFailed, match="'notes' broke"):
            await titles(database)
    assert "connecting failed unexpectedly" in caplog.messages


async def test_r35_a_full_pool_is_busy_and_no_failure(path: Path) -> None:
    async with make(path, acquire_timeout_s=0.8) as database:
        async with database._writers.connection():
            with pytest.raises(DependencyBusy, match="1 of 1 connections are in use"):
                await database.execute(INSERT, "a")
        assert failures(database) == 0


async def test_r55_waiting_for_other_borrowers_is_not_the_databases_slowness(path: Path) -> None:
    config = CircuitBreakerConfig(slow_call_duration_threshold_s=0.1)
    dependency = Dependency("notes", DependencyLimits(max_concurrent=None, circuit_breaker=config))
    async with SqliteDatabase(dependency, path, schema=SCHEMA, limits=PoolLimits(max_connections=2)) as database:
        await a_read(database)
        before = dependency.breaker.statistics().slow
        async with anyio.create_task_group() as tasks, database._readers.connection():
            tasks.start_soon(a_read, database)
            await asyncio.sleep(0.15)
        assert dependency.breaker.statistics().slow == before


async def test_r38_a_file_that_is_deleted_in_the_moment_of_its_opening_gets_no_changes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity_now = sqlite_database._File.identity_now
    deleted: list[Path] = []

    def deleted_once(file: Any) -> tuple[int, int]:
        if not deleted:
            path.unlink()
            deleted.append(path)
        return identity_now(file)

    monkeypatch.setattr(sqlite_database._File, "identity_now", deleted_once)
    async with make(path) as database:
        with pytest.raises(DependencyFailed, match="was deleted or replaced"):
            await database.execute("INSERT INTO notes (title) VALUES ('lost')")
        await database.execute("INSERT INTO notes (title) VALUES ('kept')")
        assert await titles(database) == ["kept"]
    assert path.exists()


async def test_a_file_system_without_wal_is_logged(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoWal(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace("= WAL", "= DELETE"), *args)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **kwargs, factory=NoWal))
    async with make(path) as database:
        assert await titles(database) == []
    assert "no WAL on this file system" in caplog.messages


def test_a_database_in_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="a database of its own"):
        make(Path(":memory:"))


async def test_r41_whichever_connection_closes_last_leaves_no_log_of_wal_mode_behind(path: Path) -> None:
    for _ in range(10):
        async with make(path) as database:
            await database.execute(INSERT, "a")
            await titles(database)
            await database.execute("DELETE FROM notes")
        assert [found.name for found in path.parent.iterdir()] == [path.name]
