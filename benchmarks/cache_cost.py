"""What a hit of the cache costs, beside the libraries that one would take instead: run in a checkout.

    python benchmarks/cache_cost.py

Each holds 1,000 answers in memory for an hour, and 100 of them are asked for in turn, every one of which it has: over a
bare `await`. Then 100 callers ask at once for what nobody has: how often each asks its upstream. They take turns, and
the fastest turn of each counts: on a busy machine the others measure the neighbours.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

TURNS, CALLS, KEYS = 300, 500, [f"key {number}" for number in range(100)]
Ask = Callable[[str], Awaitable[str]]

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "template" / "src" / "{{package_name}}"))


class Upstream:
    """What is asked for the answers."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self, key: str) -> str:
        self.asked += 1
        await asyncio.sleep(0.001)
        return "answer to " + key


def library(name: str) -> Any:
    return importlib.import_module(name)


def contestants() -> dict[str, tuple[Ask, Upstream]]:
    """Ways to remember what an upstream answers."""
    makers: dict[str, Callable[[Upstream], Ask]] = {
        "generated": ours,
        "cashews, `@cache`": cashews,
        "cashews, `@cache`, `lock=True`": lambda upstream: cashews(upstream, lock=True),
        "cachetools, `TTLCache`": cachetools,
        "async-lru, `@alru_cache`": lambda upstream: library("async_lru").alru_cache(maxsize=1000, ttl=3600)(
            named(upstream)
        ),
        "aiocache, `@cached`": lambda upstream: library("aiocache").cached(ttl=3600)(named(upstream)),
    }
    upstreams = {name: Upstream() for name in makers}
    return {name: (make(upstreams[name]), upstreams[name]) for name, make in makers.items()}


def ours(upstream: Upstream) -> Ask:
    module = library("reliability.cache")
    cache = module.StaleCache("answers", module.CacheConfig(ttl_s=3600), size_of=len)

    async def ask(key: str) -> str:
        answer: str = (await cache.fetch(key, lambda: upstream(key))).value
        return answer

    return ask


def cashews(upstream: Upstream, *, lock: bool = False) -> Ask:
    cache = library("cashews").Cache()
    cache.setup("mem://", size=1000)
    found: Ask = cache(ttl="1h", lock=lock)(named(upstream))
    return found


def cachetools(upstream: Upstream) -> Ask:
    cache = library("cachetools").TTLCache(maxsize=1000, ttl=3600)

    async def ask(key: str) -> str:
        try:
            found: str = cache[key]
        except KeyError:
            found = cache[key] = await upstream(key)
        return found

    return ask


def named(upstream: Upstream) -> Ask:
    """As a function, whose name and signature some libraries need for their keys."""

    async def ask(key: str) -> str:
        return await upstream(key)

    return ask


async def bare(key: str) -> str:
    return key


async def cost_us(ask: Ask) -> float:
    started = time.perf_counter()
    for _ in range(CALLS // len(KEYS)):
        for key in KEYS:
            await ask(key)
    return (time.perf_counter() - started) / CALLS * 1e6


async def main() -> None:
    caches = contestants()
    for ask, _ in caches.values():
        for key in KEYS:
            await ask(key)
    library("reliability.memory").freeze_startup_objects()  # as the server does
    fastest: dict[str, float] = {}
    for _ in range(TURNS):
        turn = {"bare": await cost_us(bare)} | {name: await cost_us(ask) for name, (ask, _) in caches.items()}
        fastest = {name: min(value, fastest.get(name, value)) for name, value in turn.items()}
    print("| cache | hit, over a bare await | asks of 100 callers at once |\n|---|---|---|")
    for name, (ask, upstream) in caches.items():
        before = upstream.asked
        await asyncio.gather(*(ask("new") for _ in range(100)))
        print(f"| {name} | {fastest[name] - fastest['bare']:.2f} us | {upstream.asked - before} |")


if __name__ == "__main__":
    asyncio.run(main())
