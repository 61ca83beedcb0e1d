"""What everything around one successful call of a dependency costs: run with Python alone, no server is needed.

Beside it, the stack that a user would put together: stamina for retries, interlock-cb as the breaker, a semaphore as
the bulkhead and `asyncio.timeout` as the limit of the attempt. All run inside one deadline of a request, taking turns;
the fastest turn of each counts, because that is the one that other work on the machine disturbed least.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "template" / "src" / "{{package_name}}"))
sys.modules["sniffio"] = None  # type: ignore[assignment] # a generated server has none

import anyio  # noqa: E402
import interlock  # noqa: E402
import stamina  # noqa: E402
from reliability.deadlines import deadline  # noqa: E402
from reliability.dependency import Dependency  # noqa: E402
from reliability.memory import freeze_startup_objects  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CALLS, TURNS = 1_000, 150


async def work() -> int:
    return 1


async def limit_alone() -> int:
    with anyio.move_on_after(5):
        return await work()
    return 0


def contestants() -> dict[str, Callable[[], Awaitable[object]]]:
    """Return what is measured, by its title; the bare call first."""
    ours = Dependency("api")
    breaker, places = interlock.CircuitBreaker(name="api"), asyncio.Semaphore(10)

    async def once() -> int:
        async with breaker, places, asyncio.timeout(5):
            return await work()

    async def guarded() -> int:
        async with ours.guard():
            return await work()

    stack = stamina.retry(on=ConnectionError, attempts=3)(once)
    return {
        "the bare call": work,
        "Dependency.call": lambda: ours.call(work),
        "Dependency.call, idempotent": lambda: ours.call(work, idempotent=True),
        "Dependency.guard": guarded,
        "of these, the breaker": lambda: ours.breaker.call(work),
        "anyio.move_on_after alone": limit_alone,
        "stamina + interlock-cb + Semaphore + asyncio.timeout": stack,
    }


async def cost_us(call: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        await call()
    return (time.perf_counter() - started) / CALLS * 1e6


async def main() -> None:
    measured = contestants()
    freeze_startup_objects()
    costs: dict[str, list[float]] = {title: [] for title in measured}
    with deadline(3600):
        for _ in range(TURNS):
            for title, call in measured.items():
                costs[title].append(await cost_us(call))
    bare = min(costs.pop("the bare call"))
    for title, found in costs.items():
        print(f"{title:55} {min(found) - bare:6.2f} us")


if __name__ == "__main__":
    asyncio.run(main())
