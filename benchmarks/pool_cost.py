"""Our SQLite pool beside bare aiosqlite and aiosqlitepool: small queries, and survival of cancellations.

    python3 benchmarks/pool_cost.py

The contestants take turns, so that a busy machine slows each of them alike. Ours does more for each query: the
dependency's breaker and limit, and rows as dictionaries.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import aiosqlite
import anyio
from aiosqlitepool import SQLiteConnectionPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "template" / "src" / "{{package_name}}"))
from reliability.dependency import Dependency, DependencyLimits
from reliability.pool import PoolLimits
from reliability.sqlite_database import SqliteDatabase

Ask: TypeAlias = "Callable[[str, int | None], Awaitable[object]]"
CONNECTIONS = 4
CANCELLATIONS = 240
SCHEMA = "CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, title TEXT, body TEXT)"
QUERY = "SELECT id, title, body FROM notes WHERE id = $1"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT count(*) FROM n"


async def prepare(path: Path) -> None:
    async with aiosqlite.connect(path) as connection:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute(SCHEMA)
        notes = [(number, f"title {number}", "x" * 200) for number in range(100)]
        await connection.executemany("INSERT INTO notes VALUES(?, ?, ?)", notes)
        await connection.commit()


@asynccontextmanager
async def ours(path: Path) -> AsyncIterator[Ask]:
    limits = PoolLimits(max_connections=CONNECTIONS + 1)
    async with SqliteDatabase(Dependency("db", DependencyLimits(max_concurrent=None)), path, limits=limits) as database:

        async def ask(sql: str, number: int | None) -> object:
            return await database.fetch_one(sql, *([] if number is None else [number]))

        yield ask


@asynccontextmanager
async def bare(path: Path) -> AsyncIterator[Ask]:
    async with aiosqlite.connect(path) as connection:

        async def ask(sql: str, number: int | None) -> object:
            async with connection.execute(sql, {"1": number}) as cursor:
                return await cursor.fetchone()

        yield ask


@asynccontextmanager
async def pooled(path: Path) -> AsyncIterator[Ask]:
    async def connect() -> aiosqlite.Connection:
        return await aiosqlite.connect(path)

    pool = SQLiteConnectionPool(connect, pool_size=CONNECTIONS, acquisition_timeout=2)

    async def ask(sql: str, number: int | None) -> object:
        async with pool.connection() as connection:
            cursor = await connection.execute(sql, {"1": number})
            return await cursor.fetchone()

    yield ask
    await pool.close()


CONTESTANTS = {"ours": ours, "bare aiosqlite": bare, "aiosqlitepool": pooled}


async def rate(ask: Ask, tasks: int, queries: int = 1500) -> float:
    async def work(first: int) -> None:
        for number in range(first, first + queries // tasks):
            await ask(QUERY, number % 100)

    started = time.perf_counter()
    await asyncio.gather(*(work(task) for task in range(tasks)))
    return queries / (time.perf_counter() - started)


async def throughput(path: Path, tasks: int, turns: int = 7) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    async with AsyncExitStack() as stack:
        asks = {name: await stack.enter_async_context(make(path)) for name, make in CONTESTANTS.items()}
        for ask in asks.values():
            await rate(ask, tasks, 200)
        for _ in range(turns):
            for name, ask in asks.items():
                found[name].append(await rate(ask, tasks))
    return {name: statistics.median(rates) for name, rates in found.items()}


async def survivors(ask: Ask) -> int:
    """Calls that are answered at the same time within 5 s, after many were cancelled."""
    for turn in range(CANCELLATIONS // CONNECTIONS):
        async with anyio.create_task_group() as tasks:
            for _ in range(CONNECTIONS):
                tasks.start_soon(cancelled, ask, 0.001 + 0.0005 * (turn % 10))
    answered = 0

    async def call() -> None:
        nonlocal answered
        with contextlib.suppress(Exception):
            await ask(QUERY, 1)
            answered += 1

    with anyio.move_on_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(CONNECTIONS):
                tasks.start_soon(call)
    return answered


async def cancelled(ask: Ask, seconds: float) -> None:
    with anyio.CancelScope() as scope, contextlib.suppress(Exception):
        asyncio.get_running_loop().call_later(seconds, scope.cancel)
        await ask(ENDLESS, None)


async def survival(make: Callable[[Path], AbstractAsyncContextManager[Ask]], path: Path) -> str:
    started = time.perf_counter()
    with anyio.move_on_after(90):
        async with make(path) as ask:
            answered = await survivors(ask)
            return f"{answered} of {CONNECTIONS} calls answered, {time.perf_counter() - started:.1f} s in all"
    return "nothing answered within 90 s"


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "notes.db"
        await prepare(path)
        for tasks in (1, 8):
            rates = await throughput(path, tasks)
            shown = ", ".join(f"{name} {rate:,.0f} /s" for name, rate in rates.items())
            print(f"small queries, {tasks} at a time: {shown}", flush=True)
        for name, make in CONTESTANTS.items():
            print(f"after {CANCELLATIONS} cancellations, {name}: {await survival(make, path)}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
    os._exit(0)  # a contestant's threads may hang for ever
