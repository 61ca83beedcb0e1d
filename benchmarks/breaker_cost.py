"""What a circuit breaker costs per call, beside the libraries that one would take instead: run in a checkout.

    python benchmarks/breaker_cost.py

Closed: what a call costs over a bare `await` of the same work. Open: the whole of a refusal, raised and caught. They
take turns, and the fastest turn of each counts: on a busy machine the others measure the neighbours.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

TURNS, CALLS = 300, 500
Work = Callable[[], Awaitable[int]]
Protected = Callable[[Work], Awaitable[int]]

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "template" / "src" / "{{package_name}}"))


async def contestants() -> dict[str, Protected]:
    """Ways to protect a call, each with a breaker of its own that opens after five failures."""
    return {
        "generated, `call`": ours().call,
        "generated, `call`, window of time": ours(sliding_window_type="time").call,
        "generated, `call`, slow calls count": ours(slow_call_duration_threshold_s=1).call,
        "interlock-cb, `call_async`": interlock().call_async,
        "interlock-cb, `with`": in_block(interlock()),
        "pybreaker, `with`": in_calling(library("pybreaker").CircuitBreaker(fail_max=5)),
        "aiobreaker, `call_async`": library("aiobreaker").CircuitBreaker(fail_max=5).call_async,
        "purgatory, `async with`": in_async_block(
            await library("purgatory").AsyncCircuitBreakerFactory(default_threshold=5).get_breaker("api")
        ),
    }


def library(name: str) -> Any:
    return importlib.import_module(name)


def ours(**config: Any) -> Any:
    reliability = library("reliability")
    return reliability.CircuitBreaker("api", reliability.CircuitBreakerConfig(**config))


def interlock() -> Any:
    module = library("interlock")
    return module.CircuitBreaker(name="api", config=module.Config(window_size=20, minimum_number_of_calls=5))


def in_block(breaker: Any) -> Protected:
    async def protected(work: Work) -> int:
        with breaker:
            return await work()

    return protected


def in_calling(breaker: Any) -> Protected:
    async def protected(work: Work) -> int:
        with breaker.calling():
            return await work()

    return protected


def in_async_block(breaker: Any) -> Protected:
    async def protected(work: Work) -> int:
        async with breaker:
            return await work()

    return protected


async def in_function(work: Work) -> int:
    return await work()


async def works() -> int:
    return 1


async def fails() -> int:
    raise ConnectionError


async def bare() -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        await works()
    return (time.perf_counter() - started) / CALLS * 1e6


async def closed(protected: Protected) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        await protected(works)
    return (time.perf_counter() - started) / CALLS * 1e6


async def refused(protected: Protected) -> float:
    refusals = 0
    started = time.perf_counter()
    for _ in range(CALLS):
        try:
            await protected(works)
        except Exception:  # noqa: BLE001 - each library has an error of its own
            refusals += 1
    assert refusals == CALLS
    return (time.perf_counter() - started) / CALLS * 1e6


async def open_all(breakers: dict[str, Protected]) -> None:
    for protected in breakers.values():
        for _ in range(5):
            with contextlib.suppress(Exception):
                await protected(fails)


async def main() -> None:
    breakers, opened = await contestants(), await contestants()
    await open_all(opened)
    library("reliability.memory").freeze_startup_objects()  # as the server does
    fastest: dict[str, float] = {}
    for _ in range(TURNS):
        turn = {"bare": await bare(), "in a function": await closed(in_function)}
        for name in breakers:
            turn[name] = await closed(breakers[name])
            turn["open " + name] = await refused(opened[name])
        fastest = {name: min(value, fastest.get(name, value)) for name, value in turn.items()}
    print("| breaker | closed, over a bare await | open |\n|---|---|---|")
    for name in breakers:
        unprotected = fastest["bare" if "call" in name else "in a function"]  # a `with` is measured in a function
        print(f"| {name} | {fastest[name] - unprotected:.2f} us | {fastest['open ' + name]:.2f} us |")


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(main())
