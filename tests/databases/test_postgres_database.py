"""A real PostgreSQL under load that is killed, frozen, restarted, and ends sessions: rules R34 to R44, R46 and R55."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.deadlines import deadline
from reliability.dependency import Dependency, DependencyLimits
from reliability.errors import (
    ConnectionBroken,
    ConstraintViolated,
    DependencyBusy,
    DependencyError,
    DependencyFailed,
    DependencyTimeout,
    ToolFailure,
)
from reliability.pool import PoolLimits
from reliability.postgres_database import PostgresDatabase

from tests.unit.support import CANCELLERS, cancel_at_every_await, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.databases.postgres_server import PostgresServer

pytestmark = pytest.mark.anyio

SCHEMA = """
CREATE TABLE IF NOT EXISTS notes(
    id SERIAL PRIMARY KEY, title TEXT NOT NULL UNIQUE, stars INT CHECK (stars <= 5), parent INT REFERENCES notes
);
-- a comment at the end
"""
INSERT = "INSERT INTO notes(title) VALUES($1)"
ENDLESS = "SELECT pg_sleep(600)"
SESSIONS = "SELECT pid, state, query FROM pg_stat_activity WHERE application_name = 'notes' AND pid <> pg_backend_pid()"


def make(dsn: str, *, attempt_timeout_s: float = 20, **limits: Any) -> PostgresDatabase:
    patient = CircuitBreakerConfig(minimum_number_of_calls=10_000, sliding_window_size=10_000)
    own = DependencyLimits(max_concurrent=None, attempt_timeout_s=attempt_timeout_s, circuit_breaker=patient)
    return PostgresDatabase(Dependency("notes", own), dsn, limits=PoolLimits(**limits), schema=SCHEMA)


@asynccontextmanager
async def opened(dsn: str, **limits: Any) -> AsyncIterator[PostgresDatabase]:
    """An empty database with one connection: what is measured afterwards has no part in it."""
    async with make(dsn) as other:
        await other.execute("TRUNCATE notes RESTART IDENTITY")
    async with make(dsn, **limits) as database:
        async with database._writers.connection():
            pass
        yield database


@pytest.fixture
async def notes(postgres: PostgresServer) -> AsyncIterator[PostgresDatabase]:
    async with opened(postgres.dsn) as database:
        yield database


@pytest.fixture
def restored(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server that the test may stop, kill or freeze."""
    yield postgres
    postgres.thaw()
    if not postgres.is_running:
        postgres.start()


@pytest.fixture
async def administrator(postgres: PostgresServer) -> AsyncIterator[Any]:
    """A connection beside the pool."""
    import asyncpg

    connection = await asyncpg.connect(postgres.dsn)
    yield connection
    connection.terminate()


def failures(database: PostgresDatabase) -> int:
    return database._dependency.breaker.statistics().failures_total


def closed(database: PostgresDatabase) -> int:
    return database.statistics()[0].closed


async def titles(database: PostgresDatabase) -> list[str]:
    return [row["title"] for row in await database.fetch_all("SELECT title FROM notes ORDER BY id")]


async def all_back(database: PostgresDatabase) -> None:
    """Wait until nothing runs on any connection."""

    def idle() -> bool:
        found = database.statistics()[0]
        return found.in_use == 0 and found.size == found.idle

    await until(idle)


# The common face.


async def test_nothing_is_connected_before_it_is_wanted() -> None:
    async with make("postgresql://nobody@127.0.0.1:1/nowhere") as database:
        assert database.statistics()[0].size == 0


async def test_rows_are_dictionaries(notes: PostgresDatabase) -> None:
    await notes.execute("INSERT INTO notes(title, stars) VALUES($1, $2)", "a", 5)
    assert await notes.fetch_all("SELECT title, stars FROM notes") == [{"title": "a", "stars": 5}]
    assert await notes.fetch_one("SELECT stars FROM notes") == {"stars": 5}
    assert await notes.fetch_one("SELECT stars FROM notes WHERE id = 77") is None
    assert await notes.fetch_all("SELECT stars FROM notes WHERE id = 77") == []
    assert type(await notes.fetch_one("SELECT stars FROM notes")) is dict


async def test_execute_says_how_many_rows_changed(notes: PostgresDatabase) -> None:
    assert await notes.execute("INSERT INTO notes(title) VALUES('a'), ('b'), ('c')") == 3
    assert await notes.execute("UPDATE notes SET stars = 1 WHERE title > $1", "a") == 2
    assert await notes.execute("DELETE FROM notes WHERE id = 77") == 0
    assert await notes.execute("CREATE TABLE IF NOT EXISTS other(a INT)") == 0
    assert await notes.execute("SELECT generate_series(1, 3)") == 0


async def test_what_returns_rows_may_write(notes: PostgresDatabase) -> None:
    assert await notes.fetch_one("INSERT INTO notes(title) VALUES($1) RETURNING id", "a") == {"id": 1}
    assert await titles(notes) == ["a"]


async def test_a_wrong_statement_is_the_authors_mistake_and_no_failure(notes: PostgresDatabase) -> None:
    for wrong in ("SELEC 1", "SELECT * FROM nowhere", "SELECT $1::int"):
        with pytest.raises(Exception, match=r"syntax|does not exist|expects 1 argument") as caught:
            await notes.fetch_all(wrong)
        assert not isinstance(caught.value, DependencyError)
    with pytest.raises(Exception, match="invalid input for query argument"):
        await notes.fetch_all("SELECT $1::int", "one")
    assert (failures(notes), closed(notes)) == (0, 0)


@pytest.mark.parametrize(
    ("rule", "statement"),
    [
        ("unique", "INSERT INTO notes(title) VALUES('taken')"),
        ("not null", "INSERT INTO notes(title) VALUES(NULL)"),
        ("check", "INSERT INTO notes(title, stars) VALUES('many', 6)"),
        ("foreign key", "INSERT INTO notes(title, parent) VALUES('orphan', 77)"),
        ("other", "DO $$ BEGIN RAISE 'secret' USING ERRCODE = '23001'; END $$"),
    ],
)
async def test_r55_a_broken_rule_is_an_answer_and_no_failure(
    notes: PostgresDatabase, rule: str, statement: str
) -> None:
    await notes.execute(INSERT, "taken")
    with pytest.raises(ConstraintViolated) as caught:
        await notes.execute(statement)
    assert (caught.value.rule, "secret" in str(caught.value)) == (rule, False)
    assert (failures(notes), closed(notes)) == (0, 0)


async def test_a_transaction_is_all_or_nothing(notes: PostgresDatabase) -> None:
    async with notes.transaction() as transaction:
        await transaction.execute(INSERT, "a")
        for _ in range(3):
            with pytest.raises(ConstraintViolated):
                async with transaction.transaction() as part:
                    await part.execute(INSERT, "b")
                    await part.execute(INSERT, "a")
        async with transaction.transaction() as part:
            await part.execute(INSERT, "c")
        assert await transaction.fetch_one("SELECT count(*) AS n FROM notes") == {"n": 2}
    with pytest.raises(LookupError):
        async with notes.transaction() as transaction:
            await transaction.execute(INSERT, "d")
            raise LookupError
    assert await titles(notes) == ["a", "c"]
    assert (failures(notes), closed(notes)) == (0, 0)


async def test_after_a_failed_statement_a_transaction_can_only_be_undone(notes: PostgresDatabase) -> None:
    """PostgreSQL alone would answer COMMIT with ROLLBACK, and no error."""
    with pytest.raises(RuntimeError, match="this transaction is undone"):
        async with notes.transaction() as transaction:
            await transaction.execute(INSERT, "a")
            with pytest.raises(ConstraintViolated):
                await transaction.execute(INSERT, "a")
    assert await titles(notes) == []


async def test_r38_a_transaction_is_for_one_task_at_a_time(notes: PostgresDatabase) -> None:
    async with notes.transaction() as transaction:
        first = asyncio.ensure_future(transaction.execute(INSERT, "a"))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="in one task at a time"):
            await transaction.execute(INSERT, "b")
        await first
        await transaction.execute(INSERT, "c")
    assert await titles(notes) == ["a", "c"]


async def test_within_a_transaction_the_databases_own_methods_are_refused(notes: PostgresDatabase) -> None:
    async with notes.transaction() as transaction:
        with pytest.raises(RuntimeError, match="use its own methods"):
            await notes.execute(INSERT, "a")
        await transaction.execute(INSERT, "b")
    assert await titles(notes) == ["b"]


async def test_a_reading_transaction_sees_one_state_and_cannot_write(
    notes: PostgresDatabase, administrator: Any
) -> None:
    async with notes.transaction(read_only=True) as transaction:
        count = "SELECT count(*) AS n FROM notes"
        assert await transaction.fetch_one(count) == {"n": 0}
        await administrator.execute("INSERT INTO notes(title) VALUES('b')")
        assert await transaction.fetch_one(count) == {"n": 0}
    with pytest.raises(Exception, match="read-only transaction"):
        async with notes.transaction(read_only=True) as transaction:
            await transaction.execute(INSERT, "c")
    assert failures(notes) == 0


async def test_an_exception_of_the_body_is_no_failure_of_the_database(notes: PostgresDatabase) -> None:
    for error in (LookupError("mine"), DependencyFailed("api", "Another one failed."), ToolFailure("No.")):
        with pytest.raises(type(error)) as caught:
            async with notes.transaction():
                raise error
        assert caught.value is error
    assert failures(notes) == 0


async def test_of_two_transactions_that_wait_for_each_other_one_gives_way(notes: PostgresDatabase) -> None:
    await notes.execute("INSERT INTO notes(title) VALUES('a'), ('b')")
    both = asyncio.Barrier(2)

    async def update(first: str, second: str) -> None:
        async with notes.transaction() as transaction:
            await transaction.execute("UPDATE notes SET stars = 1 WHERE title = $1", first)
            await both.wait()
            await transaction.execute("UPDATE notes SET stars = 2 WHERE title = $1", second)

    found = await asyncio.gather(update("a", "b"), update("b", "a"), return_exceptions=True)
    errors = [error for error in found if error is not None]
    assert [type(error) for error in errors] == [DependencyBusy]
    assert "gave way to another transaction" in str(errors[0])
    assert failures(notes) == 0


async def test_the_schema_is_made_by_whoever_comes_first(postgres: PostgresServer, administrator: Any) -> None:
    await administrator.execute("DROP TABLE IF EXISTS notes")
    databases = [make(postgres.dsn) for _ in range(6)]
    found = await asyncio.gather(*(titles(database) for database in databases))
    assert found == [[]] * 6
    for database in databases:
        await database.__aexit__(None, None, None)


async def test_a_database_that_was_emptied_has_its_schema_again_on_a_new_connection(
    notes: PostgresDatabase, administrator: Any
) -> None:
    await administrator.execute("DROP TABLE notes")
    await administrator.execute(SESSIONS.replace("pid, state, query", "pg_terminate_backend(pid)"))
    await until(lambda: not notes._writers._idle[-1].connection.usable)
    assert await titles(notes) == []


async def test_a_wrong_schema_is_logged_and_masked(postgres: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    async with PostgresDatabase(Dependency("notes"), postgres.dsn, schema="CREATE TABEL secret()") as database:
        with pytest.raises(ConnectionBroken) as caught:
            await titles(database)
    assert "secret" not in str(caught.value)
    assert "connecting failed unexpectedly" in caplog.messages


# Connecting.


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("postgresql://postgres:secret@127.0.0.1:1/postgres", "broke"),
        ("postgresql://postgres:secret@/postgres?host=/nowhere", "broke"),
        ("postgresql://postgres:secret@/nowhere?host={directory}", "'notes' does not exist"),
        ("postgresql://nobody:secret@/postgres?host={directory}", "'notes' refused the user"),
        ("mysql://secret", "broke"),
    ],
)
async def test_r52_what_cannot_be_connected_to_is_a_failure_without_secrets(
    postgres: PostgresServer, where: str, text: str
) -> None:
    async with make(where.format(directory=postgres.directory)) as database:
        with pytest.raises(DependencyFailed, match=text) as caught:
            await titles(database)
        assert "secret" not in str(caught.value)
        assert (failures(database), database.statistics()[0].size) == (1, 0)


async def test_r38_a_server_that_takes_fewer_connections_than_the_pool_wants_is_used_with_those(
    postgres: PostgresServer, administrator: Any
) -> None:
    await administrator.execute("DROP ROLE IF EXISTS limited; CREATE ROLE limited LOGIN SUPERUSER CONNECTION LIMIT 2")
    await administrator.execute("ALTER ROLE limited NOSUPERUSER; GRANT ALL ON SCHEMA public TO limited")
    dependency = Dependency("notes", DependencyLimits(max_concurrent=None))
    async with PostgresDatabase(dependency, postgres.dsn_of("limited")) as database:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(database.fetch_all, "SELECT pg_sleep(0.05)")
        found = database.statistics()[0]
    assert (found.opened, dependency.breaker.statistics().failures_total) == (2, 0)
    assert found.open_failures > 0


async def test_r40_closing_ends_the_sessions(postgres: PostgresServer, administrator: Any) -> None:
    async with opened(postgres.dsn) as database, anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(database.fetch_all, "SELECT pg_sleep(0.05)")
    for _ in range(100):
        if not await administrator.fetch(SESSIONS):
            break
        await asyncio.sleep(0.01)
    assert await administrator.fetch(SESSIONS) == []


# Cancellation and limits.


class Query:
    """A query that never ends by itself."""

    def __init__(self, database: PostgresDatabase) -> None:
        self.scope = anyio.CancelScope()
        self.task = asyncio.ensure_future(self._ask(database))

    async def _ask(self, database: PostgresDatabase) -> None:
        with self.scope:
            await database.fetch_all(ENDLESS)

    def cancel(self, how: str) -> None:
        if how == "scope":
            self.scope.cancel()
        else:
            self.task.cancel()


async def sleeping(administrator: Any) -> int:
    return sum(
        session["state"] == "active" and "pg_sleep" in session["query"]
        for session in await administrator.fetch(SESSIONS)
    )


async def sleeping_becomes(administrator: Any, wanted: int) -> None:
    with anyio.fail_after(5):
        while await sleeping(administrator) != wanted:  # noqa: ASYNC110 - what the server does can only be polled
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r46_a_cancelled_query_stops_on_the_server_and_its_connection_lives_on(
    notes: PostgresDatabase, administrator: Any, how: str
) -> None:
    pid = await notes.fetch_one("SELECT pg_backend_pid() AS pid")
    query = Query(notes)
    await sleeping_becomes(administrator, 1)
    started = time.monotonic()
    query.cancel(how)
    await asyncio.wait([query.task])
    assert time.monotonic() - started < 0.5
    await sleeping_becomes(administrator, 0)
    await all_back(notes)
    assert await notes.fetch_one("SELECT pg_backend_pid() AS pid") == pid
    assert closed(notes) == 0


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r35_after_240_cancellations_all_connections_are_alive(
    postgres: PostgresServer, administrator: Any, how: str
) -> None:
    async with opened(postgres.dsn, max_connections=4) as database:
        pids = await every_pid(database)
        for _ in range(60):
            queries = [Query(database) for _ in range(4)]
            await sleeping_becomes(administrator, 4)
            for query in queries:
                query.cancel(how)
            await asyncio.wait([query.task for query in queries])
        await all_back(database)
        assert await every_pid(database) == pids
        assert (len(pids), closed(database), await sleeping(administrator)) == (4, 0, 0)


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r46_a_cancellation_that_overtakes_its_query_costs_no_more_than_the_connection(
    postgres: PostgresServer, administrator: Any, how: str
) -> None:
    """The server forgets a cancellation of what has not arrived yet; nobody could tell it again but the pool."""
    async with opened(postgres.dsn, max_connections=4, cleanup_timeout_s=0.5) as database:
        for turn in range(60):
            queries = [Query(database) for _ in range(4)]
            for _ in range(turn):
                await asyncio.sleep(0)
            for query in queries:
                query.cancel(how)
            await asyncio.wait([query.task for query in queries])
        await sleeping_becomes(administrator, 0)
        await all_back(database)
        assert len(await every_pid(database)) == 4
        assert len(await administrator.fetch(SESSIONS)) == 4


async def every_pid(database: PostgresDatabase) -> set[int]:
    """Use every connection at the same time."""
    pids: set[int] = set()
    everybody = asyncio.Barrier(4)

    async def ask() -> None:
        async with database._writers.connection() as connection:
            await everybody.wait()
            pids.add((await connection.fetch_one("SELECT pg_backend_pid() AS pid"))["pid"])

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(ask)
    return pids


async def a_read(database: PostgresDatabase) -> None:
    await database.fetch_all("SELECT * FROM notes")


async def a_write(database: PostgresDatabase) -> None:
    await database.execute(INSERT, "both")
    await database.execute("DELETE FROM notes")


async def a_transaction(database: PostgresDatabase) -> None:
    async with database.transaction() as transaction:
        await transaction.execute(INSERT, "one")
        async with transaction.transaction() as part:
            await part.execute(INSERT, "two")
        await transaction.execute("DELETE FROM notes WHERE title = 'one'")
        await transaction.execute("DELETE FROM notes WHERE title = 'two'")


@pytest.mark.parametrize("how", CANCELLERS)
@pytest.mark.parametrize("work", [a_read, a_write, a_transaction])
@pytest.mark.parametrize("new", [False, True], ids=["later", "first use"])
async def test_r35_cancelled_at_any_await_nothing_is_lost(
    postgres: PostgresServer, how: str, work: Callable[[PostgresDatabase], Awaitable[None]], *, new: bool
) -> None:
    async with opened(postgres.dsn) as database:

        async def on_a_new_connection() -> None:
            for member in database._writers._idle:
                member.expires_at = -math.inf
            await work(database)

        async def nothing_is_lost() -> None:
            await all_back(database)
            left = await titles(database)
            assert left == [] or (work is a_write and left == ["both"])
            await database.execute("DELETE FROM notes")

        run = on_a_new_connection if new else lambda: work(database)
        assert await cancel_at_every_await(run, nothing_is_lost, how=how) >= 1
        assert new or closed(database) == 0


async def test_r38_a_cancelled_transaction_is_rolled_back(notes: PostgresDatabase) -> None:
    with anyio.CancelScope() as scope:
        async with notes.transaction() as transaction:
            await transaction.execute(INSERT, "a")
            scope.cancel()
            await transaction.execute(INSERT, "b")
    await all_back(notes)
    assert (await titles(notes), closed(notes)) == ([], 0)


@pytest.mark.parametrize(("limit_s", "found"), [(20, "32s"), (3.9, "4s"), (0.9, "1s"), (0.3, "500ms"), (60, "64s")])
async def test_r44_the_servers_own_limit_follows_from_the_deadline(
    postgres: PostgresServer, limit_s: float, found: str
) -> None:
    async with opened(postgres.dsn, attempt_timeout_s=limit_s) as database:
        assert await database.fetch_one("SHOW statement_timeout") == {"statement_timeout": found}
        async with database.transaction() as transaction:
            assert await transaction.fetch_one("SHOW statement_timeout") == {"statement_timeout": found}


async def test_r44_the_servers_limit_is_set_only_when_it_changes(notes: PostgresDatabase) -> None:
    await titles(notes)
    for statement, times in (("SELECT 1", 3), ("SHOW statement_timeout", 1)):
        for _ in range(times):
            await notes.fetch_all(statement)
    async with notes._writers.connection() as connection:
        sent: list[str] = []
        connection.raw.add_query_logger(lambda record: sent.append(record.query))
        await connection.fetch_all("SELECT 1")
        await connection.fetch_all("SELECT 2")
        with deadline(3):
            await connection.fetch_all("SELECT 3")
        await asyncio.sleep(0.01)  # the logger is told a little later
    assert sent == [
        "SET statement_timeout = 0",
        "SELECT 1",
        "SELECT 2",
        "SET statement_timeout = 4000",
        "SELECT 3",
    ]


async def test_r43_the_servers_own_limit_is_a_timeout_of_the_dependency(notes: PostgresDatabase) -> None:
    with pytest.raises(DependencyTimeout):
        async with notes.transaction() as transaction:
            await transaction.execute("SET LOCAL statement_timeout = 50")
            await transaction.fetch_all(ENDLESS)
    assert (failures(notes), closed(notes)) == (1, 0)


async def test_r43_the_dependencys_limit_ends_a_query(postgres: PostgresServer, administrator: Any) -> None:
    async with opened(postgres.dsn, attempt_timeout_s=0.5) as database:
        with pytest.raises(DependencyTimeout):
            await database.fetch_all(ENDLESS)
        await sleeping_becomes(administrator, 0)
        await all_back(database)
        assert (failures(database), closed(database)) == (1, 0)


async def test_r35_a_full_pool_is_busy_and_no_failure(postgres: PostgresServer) -> None:
    async with opened(postgres.dsn, max_connections=1, acquire_timeout_s=0.8) as database:
        async with database._writers.connection():
            with pytest.raises(DependencyBusy, match="1 of 1 connections are in use"):
                await titles(database)
        assert failures(database) == 0


# Faults under load.


@dataclass
class Load:
    """Callers that ask again and again, at the same time, whatever happens."""

    database: PostgresDatabase
    callers: int = 12
    answers: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    others: list[BaseException] = field(default_factory=list)
    longest_s: float = 0.0
    stopped: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        async with anyio.create_task_group() as tasks:
            for _ in range(self.callers):
                tasks.start_soon(self._call_again_and_again)
            await until(lambda: self.answers > 50)
            yield self
            self.stopped = True

    async def heals(self) -> None:
        """Every caller is answered again."""
        before = self.answers
        with anyio.fail_after(30):
            while self.answers < before + 10 * self.callers:  # noqa: ASYNC110 - counted by the callers
                await asyncio.sleep(0.01)

    async def _call_again_and_again(self) -> None:
        while not self.stopped:
            started = time.monotonic()
            try:
                assert await self.database.fetch_one("SELECT count(*) AS n, pg_sleep(0.002) FROM notes")
                self.answers += 1
            except DependencyError as error:
                self.errors[type(error).__name__] += 1
                await asyncio.sleep(0.01)
            except Exception as error:  # noqa: BLE001 - nothing else may come
                self.others.append(error)
            self.longest_s = max(self.longest_s, time.monotonic() - started)


async def nothing_is_lost(load: Load) -> None:
    await all_back(load.database)
    found = load.database.statistics()[0]
    assert (load.others, found.waiting, found.in_use) == ([], 0, 0)
    assert found.size <= found.max_connections
    sessions = await load.database.fetch_all(SESSIONS)
    assert len(sessions) == found.size - 1, "every session but this one is idle in the pool"


async def test_r38_sessions_that_the_server_ends_are_replaced(postgres: PostgresServer, administrator: Any) -> None:
    async with opened(postgres.dsn) as database, Load(database).running() as load:
        for _ in range(5):
            await administrator.execute(SESSIONS.replace("pid, state, query", "pg_terminate_backend(pid)"))
            await load.heals()
            assert sum(load.errors.values()) <= 5 * 5, "one for each session that was in use, at the most"
        assert set(load.errors) <= {"ConnectionBroken"}
    assert load.longest_s < 5
    assert load.others == []


async def test_r55_a_session_that_ends_within_a_part_of_a_transaction_is_a_broken_connection(
    notes: PostgresDatabase, administrator: Any
) -> None:
    with pytest.raises(ConnectionBroken):
        async with notes.transaction() as transaction, transaction.transaction() as part:
            await administrator.execute(SESSIONS.replace("pid, state, query", "pg_terminate_backend(pid)"))
            await part.execute(INSERT, "a")
    assert (failures(notes), await titles(notes)) == (1, [])


async def test_r38_idle_sessions_that_the_server_ended_cost_no_error(
    notes: PostgresDatabase, administrator: Any
) -> None:
    await notes.fetch_all("SELECT 1")
    await administrator.execute(SESSIONS.replace("pid, state, query", "pg_terminate_backend(pid)"))
    await until(lambda: not notes._writers._idle or not notes._writers._idle[-1].connection.usable)
    assert await titles(notes) == []
    assert failures(notes) == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "restarted"])
async def test_r38_a_server_that_stops_under_load_is_used_again_when_it_is_back(
    restored: PostgresServer, how: signal.Signals
) -> None:
    async with opened(restored.dsn) as database:
        async with Load(database).running() as load:
            await anyio.to_thread.run_sync(restored.stop, how)
            errors = sum(load.errors.values())
            await until(lambda: sum(load.errors.values()) > errors + 20)
            await anyio.to_thread.run_sync(restored.start)
            await load.heals()
        await nothing_is_lost(load)
    assert set(load.errors) <= {"ConnectionBroken", "DependencyFailed", "DependencyTimeout"}
    assert load.longest_s < 5


async def test_r43_a_frozen_server_costs_no_call_more_than_its_limit(restored: PostgresServer) -> None:
    async with opened(restored.dsn, attempt_timeout_s=0.5, cleanup_timeout_s=0.5) as database:
        async with Load(database).running() as load:
            restored.freeze()
            await until(lambda: sum(load.errors.values()) > 40)
            restored.thaw()
            await load.heals()
        await nothing_is_lost(load)
    assert 0.4 < load.longest_s < 1
    assert load.errors["DependencyTimeout"] >= 5
    assert set(load.errors) <= {"DependencyTimeout", "DependencyBusy"}


async def test_r43_a_deadline_ends_in_time_although_the_server_is_frozen(restored: PostgresServer) -> None:
    async with opened(restored.dsn, attempt_timeout_s=4) as database:
        await titles(database)
        restored.freeze()
        for _ in range(3):  # with a connection, while it is being cleaned, and while none can be opened
            started = time.monotonic()
            with pytest.raises(DependencyTimeout), deadline(0.5):
                async with database.transaction(read_only=True) as transaction:
                    await transaction.fetch_all("SELECT 1")
            assert 0.4 < time.monotonic() - started < 0.75
        restored.thaw()
        assert await titles(database) == []


async def test_r40_closing_ends_although_the_server_is_frozen(restored: PostgresServer) -> None:
    database = make(restored.dsn)
    await titles(database)
    query = Query(database)
    await asyncio.sleep(0.1)
    restored.freeze()
    query.cancel("task")
    started = time.monotonic()
    await database.__aexit__(None, None, None)
    assert time.monotonic() - started < 6
    assert database.statistics()[0].size == 0
