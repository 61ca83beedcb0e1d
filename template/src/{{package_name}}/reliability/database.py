"""The face that SQLite and PostgreSQL share, so that a tool is the same on both.

    rows = await database.fetch_all("SELECT id, title FROM notes WHERE owner = $1", owner)
    async with database.transaction() as transaction:
        await transaction.execute("UPDATE accounts SET cents = cents - $1 WHERE id = $2", cents, payer)
        await transaction.execute("UPDATE accounts SET cents = cents + $1 WHERE id = $2", cents, payee)

Placeholders are `$1`, `$2`, ...; portable values are None, bool, int, float, str and bytes (keep times as text in ISO
8601). Every operation goes through the dependency's guard: its breaker, its limit and the caller's deadline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import anyio

from . import pool
from .dependency import Attempt, Dependency
from .errors import DependencyError
from .pool import Pool, PoolStatistics

T = TypeVar("T")
Row: TypeAlias = dict[str, Any]

_OPEN = "A transaction is open: use its own methods. A second connection could wait for its locks."
_BUSY = "A statement or a part of this transaction is running: use it in one task at a time, or use the part."
_FAILED = "A statement failed, so this transaction is undone; put what may fail into a nested one."


class Connection(pool.Connection, Protocol):
    """What a driver's connection must do, beside what the pool asks of it; with the errors of `Database`."""

    async def fetch_all(self, sql: str, *args: Any) -> list[Row]:
        """Every row."""

    async def fetch_one(self, sql: str, *args: Any) -> Row | None:
        """The first row."""

    async def execute(self, sql: str, *args: Any) -> int:
        """The number of rows that changed."""

    async def begin(self, *, read_only: bool) -> None:
        """Begin a transaction; leaving it without `COMMIT` is undone by `reset`."""


class Database:
    """Base of both databases: an async context manager that closes the pools, and may be entered again.

    It connects when it is first used. Its methods, and those of its transactions, raise

    - `ConstraintViolated`: a statement breaks a rule of the schema;
    - `DependencyError`: the database did not do its part, or is left alone; see `errors`;
    - the driver's own error for a statement that is wrong: the author's mistake, masked for the client.

    Args:
        dependency: Guards every operation; has no bulkhead, because the pools are one.
        writers: Lends connections that may write.
        readers: Lends connections for reading; may be the same pool.
    """

    def __init__(self, dependency: Dependency, writers: Pool[Any], readers: Pool[Any]) -> None:
        self.name = dependency.name
        self.pools = tuple(dict.fromkeys((writers, readers)))
        self._dependency = dependency
        self._writers = writers
        self._readers = readers
        self._current: ContextVar[Transaction | None] = ContextVar("transaction", default=None)

    async def __aenter__(self) -> Self:
        for each in self.pools:
            each.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        async with anyio.create_task_group() as tasks:
            for each in self.pools:
                tasks.start_soon(each.close)

    def statistics(self) -> list[PoolStatistics]:
        """A snapshot of each pool."""
        return [each.statistics() for each in self.pools]

    async def fetch_all(self, sql: str, *args: Any) -> list[Row]:
        """Every row."""
        return await self._read(lambda connection: connection.fetch_all(sql, *args))

    async def fetch_one(self, sql: str, *args: Any) -> Row | None:
        """The first row; None without any."""
        return await self._read(lambda connection: connection.fetch_one(sql, *args))

    async def execute(self, sql: str, *args: Any) -> int:
        """The number of rows that were inserted, updated or deleted."""
        async with self._session(self._writers) as (connection, _):
            return await connection.execute(sql, *args)

    @asynccontextmanager
    async def transaction(self, *, read_only: bool = False) -> AsyncIterator[Transaction]:
        """All or nothing of the body, within the dependency's limit; with `read_only` it sees one unchanging state."""
        async with self._session(self._readers if read_only else self._writers) as (connection, attempt):
            await connection.begin(read_only=read_only)
            with Transaction(connection, attempt).lasting() as transaction:
                self._current.set(transaction)
                yield transaction
            await connection.execute("COMMIT")

    async def _read(self, read: Callable[[Connection], Awaitable[T]]) -> T:
        async with self._session(self._readers) as (connection, _):
            return await read(connection)

    @asynccontextmanager
    async def _session(self, lender: Pool[Any]) -> AsyncIterator[tuple[Connection, Attempt]]:
        """A guarded connection. Only the database's own failures pass the guard: the others are not its fault."""
        current = self._current.get()
        if current is not None and not current.ended:
            raise RuntimeError(_OPEN)
        foreign: Exception | None = None
        async with self._dependency.guard() as attempt:
            waits_for_others = lender.is_full
            async with lender.connection() as connection:
                if waits_for_others:
                    attempt.begin()  # they were slow, not the database
                try:
                    yield connection, attempt
                except Exception as error:
                    if isinstance(error, DependencyError) and error.dependency == self.name:
                        raise
                    foreign = error
        if foreign is not None:
            try:
                raise foreign
            finally:
                del foreign  # its traceback holds this frame


class Transaction:
    """One transaction, for the time of its body, and for one task at a time. After a failed statement it is undone.

    What may fail goes into a transaction within it, which is undone alone.
    """

    def __init__(self, connection: Connection, attempt: Attempt) -> None:
        self._connection = connection
        self._attempt = attempt
        self._busy = False
        self._failed = False
        self.lost = False
        """Whether undoing a part is not enough: it was cancelled, or the database failed."""
        self.ended = False

    @contextmanager
    def lasting(self) -> Iterator[Self]:
        """The time of its body: then it has ended, and is good if nothing failed."""
        try:
            yield self
        finally:
            self.ended = True
        self._refuse_if(self._failed, _FAILED)

    async def fetch_all(self, sql: str, *args: Any) -> list[Row]:
        """Every row."""
        return await self._run(self._connection.fetch_all, sql, *args)

    async def fetch_one(self, sql: str, *args: Any) -> Row | None:
        """The first row; None without any."""
        return await self._run(self._connection.fetch_one, sql, *args)

    async def execute(self, sql: str, *args: Any) -> int:
        """The number of rows that were inserted, updated or deleted."""
        return await self._run(self._connection.execute, sql, *args)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A part that is undone alone when its body raises; a cancellation undoes the whole."""
        await self.execute("SAVEPOINT part")
        part, self._busy = Transaction(self._connection, self._attempt), True
        try:
            with part.lasting():
                yield part
        except BaseException as error:
            self._busy = False
            self.lost = self._failed = part.lost or not isinstance(error, Exception)
            if not self.lost:
                await self.execute("ROLLBACK TO SAVEPOINT part")
                await self.execute("RELEASE SAVEPOINT part")
            raise
        self._busy = False
        await self.execute("RELEASE SAVEPOINT part")

    async def _run(self, run: Callable[..., Awaitable[T]], *args: Any) -> T:
        self._refuse_if(self.ended, "The transaction has ended.")
        self._refuse_if(self._busy, _BUSY)
        self._refuse_if(self._failed, _FAILED)
        self._busy = True
        try:
            return await run(*args)
        except BaseException as error:
            self._failed = True
            self.lost = isinstance(error, DependencyError) or not isinstance(error, Exception)
            if isinstance(error, DependencyError):
                self._attempt.count(error)  # the body may catch it
            raise
        finally:
            self._busy = False

    def _refuse_if(self, it_is_so: bool, why: str) -> None:
        if it_is_so:
            raise RuntimeError(why)
