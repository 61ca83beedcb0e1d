"""Keeps answers in a file, so that a server that was restarted still has its last good ones (R50).

A store must never cost an answer: it is written behind the calls, in a thread, and whatever goes wrong with the file is
logged and told to the health check, and the server goes on without it. A damaged database is set aside as
`<name>.corrupt`, and a new one is begun: what it held would have lost its value within hours anyway. A file that is no
database is left alone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import anyio
import anyio.to_thread

from .deadlines import cleanup
from .health import Check, Unhealthy

if TYPE_CHECKING:
    import sqlite3

logger = logging.getLogger(__name__)

T = TypeVar("T")
_Name = tuple[str, bytes]
_Answer = tuple[bytes, float, float]
_GATHER_S = 0.5
_HEADER = b"SQLite format 3\0"
_LOCK_TIMEOUT_S = 2
_CLOSE_S = 3
_MAX_PENDING = 256
_CREATE = """CREATE TABLE IF NOT EXISTS answers_1 (
    namespace TEXT, key BLOB, value BLOB, made_at REAL, keep_until REAL, PRIMARY KEY (namespace, key))"""
_PUT = "INSERT OR REPLACE INTO answers_1 VALUES (?, ?, ?, ?, ?)"
_GET = """SELECT key, value, made_at FROM answers_1 WHERE namespace = ? AND made_at <= ? AND keep_until > ?
    ORDER BY made_at DESC LIMIT ?"""  # made in the future: the clock was set back, and nobody knows how old it is
_EXPIRE = "DELETE FROM answers_1 WHERE keep_until <= ?"
_TRIM = """DELETE FROM answers_1 WHERE rowid IN (SELECT rowid FROM (
    SELECT rowid, sum(length(value)) OVER (ORDER BY made_at DESC, rowid) AS total FROM answers_1) WHERE total > ?)"""


class StoredAnswer(NamedTuple):
    """One answer of the file, and its age by the wall clock."""

    key: bytes
    value: bytes
    age_s: float


class CacheStore:
    """See the module. No method raises.

    Args:
        path: The file; its directory is created, and only this user may read it.
        max_bytes: All answers together; the oldest make room.
        wall_clock: Seconds since 1970.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, max_bytes: int = 50_000_000, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._path = Path(path).expanduser()
        self._max_bytes = max_bytes
        self._wall_clock = wall_clock
        self._pending: dict[_Name, _Answer] = {}
        self._wake = anyio.Event()
        self._one_thread = anyio.CapacityLimiter(1)
        self._failing = False

    def put(self, namespace: str, key: bytes, value: bytes, *, keep_s: float) -> None:
        """Write an answer soon, and forget it after `keep_s` seconds. When 256 wait already, it is dropped."""
        if len(self._pending) < _MAX_PENDING:
            now = self._wall_clock()
            self._pending[namespace, key] = value, now, now + keep_s
        self._wake.set()

    async def load(self, namespace: str, *, limit: int) -> list[StoredAnswer]:
        """The newest answers, at most `limit`, oldest first; none where the file cannot be read."""
        now = self._wall_clock()
        found = await self._in_thread(lambda database: database.execute(_GET, (namespace, now, now, limit)).fetchall())
        return [StoredAnswer(key, value, now - made_at) for key, value, made_at in reversed(found or [])]

    async def run(self) -> None:
        """Write what is put until cancelled, and then the rest."""
        try:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                await anyio.sleep(_GATHER_S)
                await self.flush()
        finally:
            with cleanup(_CLOSE_S, what="writing the last answers to their file"):
                await self.flush()

    async def flush(self) -> None:
        """Write what is pending. What cannot be written stays pending until there is more to write."""
        batch = list(self._pending.items())
        if not batch or not await self._in_thread(lambda database: self._write(database, batch)):
            return
        for name, written in batch:
            if self._pending.get(name) is written:
                del self._pending[name]

    def check(self) -> Check:
        """Degraded while the file cannot be read or written."""

        async def probe() -> str:
            if self._failing:
                raise Unhealthy("answers are not kept: the file cannot be read or written")
            return "answers are kept"

        return Check(name="answers", probe=probe, critical=False)

    def _write(self, database: sqlite3.Connection, batch: Iterable[tuple[_Name, _Answer]]) -> bool:
        database.executemany(_PUT, [(*name, *answer) for name, answer in batch])
        database.execute(_EXPIRE, (self._wall_clock(),))
        database.execute(_TRIM, (self._max_bytes,))
        return True

    async def _in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        try:
            result = await anyio.to_thread.run_sync(
                self._with_database, work, abandon_on_cancel=True, limiter=self._one_thread
            )
        except Exception as error:  # noqa: BLE001 - a disk can fail in any way; see the module
            self._report(error)
            return None
        self._report(None)
        return result

    def _report(self, error: Exception | None) -> None:
        """Log the first of several failures, and that they are over."""
        if error is not None and not self._failing:
            logger.warning("answers are not kept", extra={"path": str(self._path), "reason": str(error)})
        elif error is None and self._failing:
            logger.info("answers are kept again", extra={"path": str(self._path)})
        self._failing = error is not None

    def _with_database(self, work: Callable[[sqlite3.Connection], T]) -> T:
        import sqlite3  # 10 ms that the start need not wait for

        try:
            return self._in_transaction(work)
        except sqlite3.DatabaseError as error:
            damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
            if not damaged or not self._holds_a_database():
                raise
        self._path.replace(f"{self._path}.corrupt")
        logger.warning("a damaged file of answers was set aside", extra={"path": f"{self._path}.corrupt"})
        return self._in_transaction(work)

    def _holds_a_database(self) -> bool:
        """Or another file altogether, which a wrong setting must not move away."""
        with self._path.open("rb") as file:
            return file.read(len(_HEADER)) == _HEADER

    def _in_transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Opened anew each time: so a file that was deleted, replaced or unlocked heals by itself."""
        import sqlite3

        self._path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        with closing(sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT_S)) as database, database:
            database.execute(_CREATE)
            return work(database)
