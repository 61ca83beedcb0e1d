"""SQLite: one connection that writes and several that read, each in a thread of its own (R41).

WAL mode lets them work at the same time; that only one connection of this process writes spares it "database is
locked". Another process may still hold the lock: that is waited for, within the caller's deadline.

The threads are our own daemons rather than aiosqlite's: one that hangs in the file system keeps its place in the pool,
but not the process from ending; a statement and its rows take one hop to the thread instead of three; and a
cancellation interrupts the statement that it is meant for, and no other.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import anyio

from . import database
from .database import Database, Row
from .dependency import Dependency
from .errors import ConstraintViolated, DependencyFailed
from .pool import Pool, PoolLimits, limited_by_deadline

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BUSY_TIMEOUT_S = 0.1
"""SQLite's own wait for a lock. It cannot be interrupted: so it is short, and repeated until the limit."""
_INTERRUPT_EVERY_S = 0.05
_PRIMARY = 0xFF
_NO_FILE = (0, 0)
_RULES = {
    sqlite3.SQLITE_CONSTRAINT_CHECK: "check",
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: "foreign key",
    sqlite3.SQLITE_CONSTRAINT_NOTNULL: "not null",
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: "unique",
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: "unique",
}
_FAILURES = {
    sqlite3.SQLITE_BUSY: "is locked by another program",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_FULL: "has no room left on its disk",
    sqlite3.SQLITE_INTERRUPT: "was interrupted",
    sqlite3.SQLITE_IOERR: "cannot be read or written",
    sqlite3.SQLITE_NOMEM: "has no memory left",
    sqlite3.SQLITE_NOTADB: "is a file of another kind",
    sqlite3.SQLITE_PERM: "may not be opened",
    sqlite3.SQLITE_PROTOCOL: "has a broken lock",
    sqlite3.SQLITE_READONLY: "cannot be written",
}
"""Everything else is the author's mistake."""
_KEPT = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_INTERRUPT)
"""After these failures the connection goes on."""


class SqliteDatabase(Database):
    """A database in one file. Directory and file are made when they are first needed.

    A file that is deleted or replaced while it is open is noticed by the next statement: it fails, and all connections
    are opened anew.

    Args:
        dependency: Guards every operation; its name is the database's.
        path: The file.
        limits: `max_connections` is 2 or more: one writes, the others read. `acquire_timeout_s` also limits the wait
            for another process's lock.
        schema: Statements for each new connection that do no harm when repeated: `CREATE TABLE IF NOT EXISTS ...`.

    Raises:
        ValueError: `limits.max_connections` is 1, or the path is `:memory:`.
    """

    def __init__(
        self, dependency: Dependency, path: str | Path, *, limits: PoolLimits | None = None, schema: str = ""
    ) -> None:
        limits = limits or PoolLimits()
        readers = limits.max_connections - 1
        if not readers:
            raise ValueError("max_connections must be 2 or more with SQLite: one writes, the others read.")
        if str(path) == ":memory:":
            raise ValueError(
                "Give the database a file: with :memory: each connection would have a database of its own."
            )
        file = _File(dependency.name, Path(path).expanduser(), schema, limits.acquire_timeout_s)

        def pool(kind: str, size: int) -> Pool[_Connection]:
            return Pool(
                f"{dependency.name}.{kind}",
                lambda: _Connection(file, writes=kind == "writer").open(),
                replace(limits, max_connections=size),
                dependency=dependency.name,
            )

        super().__init__(dependency, pool("writer", 1), pool("readers", readers))

    async def _read(self, read: Callable[[database.Connection], Awaitable[T]]) -> T:
        """Let a reader do it; the writer if it turns out to write, such as `INSERT ... RETURNING`."""
        try:
            return await super()._read(read)
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_READONLY:
                raise
        async with self._session(self._writers) as (connection, _):
            return await read(connection)


@dataclass(slots=True)
class _File:
    """What the connections to one file share."""

    name: str
    path: Path
    schema: str
    lock_timeout_s: float
    identity: tuple[int, int] = _NO_FILE
    """Of the file that was opened last: a connection to any other one is of no use."""
    closing: threading.Lock = field(default_factory=threading.Lock)
    """One after the other: of two that close at the same moment none is the last, which removes the log of WAL mode."""

    def identity_now(self) -> tuple[int, int]:
        """Of the file that has this path now, if it can be reached."""
        try:
            found = os.stat(self.path)
        except OSError:  # not only "not found": its directory may have become a file, or its file system be lost
            return _NO_FILE
        return found.st_dev, found.st_ino

    def failed(self, how: str) -> DependencyFailed:
        return DependencyFailed(self.name, f"The database {self.name!r} {how}.")


class _Thread:
    """A daemon thread that does one job after the other.

    Args:
        name: Names it in dumps.
        interrupt: Makes the job that runs end early, if it is called at the right moment.
        at_end: The last job.
    """

    def __init__(self, name: str, *, interrupt: Callable[[], None], at_end: Callable[[], None]) -> None:
        self.unfinished = 0
        self._interrupt = interrupt
        self._at_end = at_end
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def do(self, job: Callable[[Callable[[], bool]], T]) -> T:
        """Call `job`, which can ask whether somebody still waits for it. A cancelled caller leaves at once."""
        answer: asyncio.Future[T] = self._loop.create_future()
        self.unfinished += 1
        self._jobs.put(functools.partial(self._answer, job, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            self._interrupt()
            raise

    async def stopped(self) -> None:
        """Interrupt what runs until nothing does: an interruption that comes before a statement begins is lost."""
        while self.unfinished:
            self._interrupt()
            self._changed.clear()
            with anyio.move_on_after(_INTERRUPT_EVERY_S):
                await self._changed.wait()

    def end(self) -> None:
        """End after the jobs that are waiting."""
        self.unfinished += 1
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
        try:
            self._at_end()
        finally:
            self._tell(self._finish)

    def _answer(self, job: Callable[[Callable[[], bool]], T], answer: asyncio.Future[T]) -> None:
        try:
            result = None if answer.cancelled() else job(lambda: not answer.cancelled())
        except BaseException as error:  # noqa: BLE001 - the caller's
            self._tell(self._finish, answer, answer.set_exception, error)
        else:
            self._tell(self._finish, answer, answer.set_result, result)

    def _finish(self, answer: asyncio.Future[T] | None = None, settle: Any = None, outcome: Any = None) -> None:
        self.unfinished -= 1
        self._changed.set()
        if answer is not None and not answer.done():
            settle(outcome)

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process is about to end, and nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)


class _Connection:
    """One connection; it exists in its thread alone, but for the questions that SQLite answers to every thread."""

    def __init__(self, file: _File, *, writes: bool) -> None:
        self._file = file
        self._writes = writes
        self._identity = _NO_FILE
        self._broken = False
        self._raw: sqlite3.Connection | None = None
        self.thread = _Thread(f"sqlite {file.name}", interrupt=self._interrupt, at_end=self._close)

    @property
    def usable(self) -> bool:
        return not self._broken and self._identity == self._file.identity

    @property
    def clean(self) -> bool:
        return not self.thread.unfinished and self._raw is not None and not self._raw.in_transaction

    async def open(self) -> Self:
        try:
            await self._patiently(self._open)
        except BaseException:
            self.thread.end()
            raise
        return self

    async def check(self) -> None:
        await self.fetch_one("SELECT 1")

    async def reset(self) -> None:
        await self.thread.stopped()
        await self._patiently(lambda: self._connected().rollback())

    async def close(self) -> None:
        self.thread.end()
        await self.thread.stopped()

    async def begin(self, *, read_only: bool) -> None:
        await self.execute("BEGIN" if read_only else "BEGIN IMMEDIATE")

    async def fetch_all(self, sql: str, *args: Any) -> list[Row]:
        return await self._query(lambda cursor: _rows(cursor, cursor.fetchall()), sql, args)

    async def fetch_one(self, sql: str, *args: Any) -> Row | None:
        return next(iter(await self._query(lambda cursor: _rows(cursor, cursor.fetchmany(1)), sql, args)), None)

    async def execute(self, sql: str, *args: Any) -> int:
        return await self._query(lambda cursor: max(0, cursor.rowcount), sql, args)

    async def _query(self, read: Callable[[sqlite3.Cursor], T], sql: str, args: tuple[Any, ...]) -> T:
        values = {str(number): value for number, value in enumerate(args, 1)}

        def query() -> T:
            with closing(self._connected().cursor()) as cursor:
                return read(cursor.execute(sql, values))

        return await self._patiently(query)

    async def _patiently(self, step: Callable[[], T]) -> T:
        """Do `step` in the thread, again and again while another program holds the lock."""
        until = time.monotonic() - _BUSY_TIMEOUT_S + limited_by_deadline(self._file.lock_timeout_s)

        def attempts(is_awaited: Callable[[], bool]) -> T:
            while True:
                try:
                    return step()
                except sqlite3.OperationalError as error:
                    locked = _code(error) == sqlite3.SQLITE_BUSY
                    if not locked or not is_awaited() or time.monotonic() >= until:
                        raise

        try:
            return await self.thread.do(attempts)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _translated(self, error: sqlite3.Error) -> Exception:
        code = _code(error)
        if isinstance(error, sqlite3.IntegrityError):
            return ConstraintViolated(_RULES.get(error.sqlite_errorcode, "other"))
        if code not in _FAILURES or (code == sqlite3.SQLITE_READONLY and not self._writes):
            return error
        self._broken = code not in _KEPT
        return self._file.failed(_FAILURES[code])

    def _interrupt(self) -> None:
        raw = self._raw
        if raw is not None and self.thread.unfinished:
            with suppress(sqlite3.ProgrammingError):  # closed just now
                raw.interrupt()

    # In the thread.

    def _open(self) -> None:
        self._file.path.parent.mkdir(parents=True, exist_ok=True)
        if self._raw is None:
            self._raw = sqlite3.connect(
                self._file.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        mode = self._raw.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            logger.warning("no WAL on this file system", extra={"database": self._file.name, "mode": mode})
        self._raw.execute("PRAGMA synchronous = NORMAL")  # a power cut may undo the latest changes, and damages nothing
        self._raw.execute("PRAGMA foreign_keys = ON")
        self._raw.executescript(self._file.schema)
        self._raw.execute(f"PRAGMA query_only = {not self._writes}")
        self._identity = self._file.identity = self._file.identity_now()

    def _connected(self) -> sqlite3.Connection:
        """The connection, if its file is still the one that has the path: otherwise what it writes would be lost."""
        if self._raw is None or self._file.identity_now() != self._identity or self._identity == _NO_FILE:
            self._broken = True
            self._file.identity = _NO_FILE
            raise self._file.failed("was deleted or replaced")
        return self._raw

    def _close(self) -> None:
        raw, self._raw = self._raw, None  # an interrupted close would leave the log of WAL mode behind ...
        if raw is not None:
            raw.execute("SELECT 1")  # ... and an interruption lasts until the next statement
            with self._file.closing:
                raw.close()


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY


def _rows(cursor: sqlite3.Cursor, rows: list[tuple[Any, ...]]) -> list[Row]:
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in rows]
