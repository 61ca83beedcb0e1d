"""PostgreSQL through asyncpg, which stops a query on the server when its caller is cancelled (R34-R42, R46).

The pool is ours, because asyncpg's waits without a bound. asyncpg is imported with the first connection.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

from .database import Database, Row
from .deadlines import remaining_s
from .dependency import Dependency
from .errors import ConnectionBroken, ConstraintViolated, DependencyBusy, DependencyFailed, DependencyTimeout
from .pool import Pool, PoolLimits

T = TypeVar("T")

_CLOSE_S = 1.0
_NOTICES_DISCONNECTION = 14
_NOTICE_MS = 1000
"""A cancellation that overtakes its query is lost. Then the connection is closed, and the server is to notice that."""
_SCHEMA_LOCK = 7_320_115
"""Any number: connections that are opened at the same time make the schema one after the other."""
_CHANGES = ("INSERT", "UPDATE", "DELETE", "MERGE")
_RULES = {"23502": "not null", "23503": "foreign key", "23505": "unique", "23514": "check"}
_CONSTRAINT = "23"
_GAVE_WAY = ("40001", "40P01", "55P03")
"""Serialization failure, deadlock, lock not available: the same call may succeed at once."""
_STOPPED = "57014"
_CONNECTION = "08"
_FAILURES = {
    "25P03": "ended a transaction in which nothing happened",
    "25P04": "ended a transaction that took too long",
    "28": "refused the user",
    "3D": "does not exist",
    "53": "has not enough room, memory or connections",
    "57": "is stopping or starting",
    "58": "has a failure of its system",
    "XX": "has an internal failure",
}
"""By the SQLSTATE, or by its class. Everything else is the author's mistake."""


class PostgresDatabase(Database):
    """A database on a server, connected to when it is first needed.

    What is set with `SET` is seen by others who get the same connection: use `SET LOCAL`, in a transaction.

    Args:
        dependency: Guards every operation; its name is the database's, and the `application_name` on the server.
        dsn: `postgresql://user:password@host:5432/database`; never shown.
        limits: See `PoolLimits`.
        schema: Statements for each new connection that do no harm when repeated: `CREATE TABLE IF NOT EXISTS ...`.
    """

    def __init__(self, dependency: Dependency, dsn: str, *, limits: PoolLimits | None = None, schema: str = "") -> None:
        self._dsn = dsn
        self._schema = schema
        pool = Pool(dependency.name, self._connect, limits or PoolLimits())
        super().__init__(dependency, pool, pool)

    async def _connect(self) -> _Connection:
        import asyncpg

        settings = {"application_name": self.name}
        try:
            connection = _Connection(
                self.name, await asyncpg.connect(self._dsn, timeout=None, server_settings=settings)
            )
        except Exception as error:
            raise _translated(self.name, error) from error
        try:
            await self._prepare(connection)
        except BaseException:
            connection.raw.terminate()
            raise
        return connection

    async def _prepare(self, connection: _Connection) -> None:
        if connection.raw.get_server_version().major >= _NOTICES_DISCONNECTION:
            await connection.execute(f"SET client_connection_check_interval = {_NOTICE_MS}")
        if self._schema:
            lock = f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})"
            await connection.execute(f"BEGIN; {lock};\n{self._schema}\n; COMMIT")


class _Connection:
    """One session on the server."""

    def __init__(self, name: str, raw: Any) -> None:
        self.raw = raw
        self._name = name
        self._unanswered = 0
        self.statement_timeout_s: float | None = 0
        """The limit that the server knows: 0 for its own, None while that is not certain."""

    @property
    def usable(self) -> bool:
        return not self.raw.is_closed()

    @property
    def clean(self) -> bool:
        return not self._unanswered and not self.raw.is_in_transaction()

    async def check(self) -> None:
        await self.raw.execute("SELECT 1")

    async def reset(self) -> None:
        await self.raw.execute("ROLLBACK")  # after the answer to the cancellation, for which asyncpg waits
        self._unanswered = 0

    async def close(self) -> None:
        try:
            if self.usable and self.clean:
                with anyio.move_on_after(_CLOSE_S):
                    await self.raw.close()
        finally:
            self.raw.terminate()

    async def begin(self, *, read_only: bool) -> None:
        await self.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if read_only else "BEGIN")

    async def fetch_all(self, sql: str, *args: Any) -> list[Row]:
        return [dict(row) for row in await self._ask(self.raw.fetch, sql, *args)]

    async def fetch_one(self, sql: str, *args: Any) -> Row | None:
        row = await self._ask(self.raw.fetchrow, sql, *args)
        return None if row is None else dict(row)

    async def execute(self, sql: str, *args: Any) -> int:
        words = (await self._ask(self.raw.execute, sql, *args)).split()
        return int(words[-1]) if words and words[0] in _CHANGES else 0

    async def _ask(self, ask: Callable[..., Awaitable[T]], sql: str, *args: Any) -> T:
        self._unanswered += 1  # and so it stays after a cancellation
        try:
            await self._limit_statement()
            answer = await ask(sql, *args)
        except Exception as error:
            self._unanswered -= 1
            raise _translated(self._name, error, self) from error
        self._unanswered -= 1
        return answer

    async def _limit_statement(self) -> None:
        """Have the server stop the statement if nobody else does: the limit is the deadline, up to twice as long.

        It is rounded to a power of two, so that it need not be set for each statement.
        """
        left_s = remaining_s()
        wanted_s = 0 if left_s == math.inf else 2.0 ** math.ceil(math.log2(max(left_s, 0.001)))
        if wanted_s != self.statement_timeout_s and not self.raw.is_in_transaction():  # it would be undone with it
            self.statement_timeout_s = None
            await self.raw.execute(f"SET statement_timeout = {math.ceil(wanted_s * 1000)}")
            self.statement_timeout_s = wanted_s


def _translated(name: str, error: Exception, connection: _Connection | None = None) -> Exception:
    state = getattr(error, "sqlstate", None) or ""
    if isinstance(error, OSError) or state[:2] == _CONNECTION or (connection is not None and not connection.usable):
        return ConnectionBroken(name, type(error).__name__)
    if state[:2] == _CONSTRAINT:
        return ConstraintViolated(_RULES.get(state, "other"))
    if state in _GAVE_WAY:
        return DependencyBusy(name, f"The database {name!r} gave way to another transaction.", retry_after_s=0)
    if state == _STOPPED:
        return DependencyTimeout(name, (connection and connection.statement_timeout_s) or 0)
    why = _FAILURES.get(state) or _FAILURES.get(state[:2])
    return DependencyFailed(name, f"The database {name!r} {why}.") if why else error
