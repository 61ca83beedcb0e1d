"""The HTTP API of a generated server dies under the load of 50 concurrent calls, and comes back."""

from __future__ import annotations

import random
import time
from collections import Counter
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CALLERS = 50
HEALTHY_CALLS = 4
"""Of each caller, before the API dies."""
DEAD_S = 6.0
LONGEST_WAIT_S = 30.0
DEADLINE_S = 4.0
OPEN_S, PROBES, ATTEMPTS, BUDGET = 1.0, 3, 3, 10
CONCURRENT = 10
SETTINGS = {
    "TOOL_TIMEOUT_S": DEADLINE_S,
    "MAX_CONCURRENT_CALLS": CALLERS,
    "CACHE_TTL_S": 0,  # every call asks the API while it answers
    "API_TIMEOUT_S": 0.5,
    "API_MAX_CONCURRENT": CONCURRENT,
    "API_MAX_QUEUED": CALLERS,
    "BREAKER_OPEN_S": OPEN_S,
    "BREAKER_PROBES": PROBES,
    "RETRY_ATTEMPTS": ATTEMPTS,
    "RETRY_BUDGET": BUDGET,
}
BUSY_MACHINE_S = 2.0


class Answer(NamedTuple):
    """How one call ended: "fresh", "stale", or the kind of its error."""

    asked_at: float
    duration_s: float
    how: str
    is_labelled: bool


@pytest.fixture
async def upstream(helpers: Any) -> AsyncIterator[Any]:
    with import_module("production_helpers.upstream").Upstream() as upstream:
        yield upstream


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("transport", "era", "fault"),
    [("stdio", "auto", "silent"), ("http", "legacy", "dead"), ("http", "auto", "failing")],
)
async def test_fifty_callers_outlive_an_outage(
    helpers: Any, upstream: Any, report: Callable[[str], None], transport: str, era: str, fault: str
) -> None:
    """Half of the callers ask for what nobody has asked for before: for these there is no stale answer."""
    answers: list[Answer] = []
    with helpers.ServerProcess(transport, {**SETTINGS, "API_URL": upstream.url}, hostile=False) as server:
        async with server.connected(era) as client, anyio.create_task_group() as callers:
            for number in range(CALLERS):
                callers.start_soon(keep_asking, client, number, answers)
            await until(lambda: len(answers) >= CALLERS * HEALTHY_CALLS)

            before = await totals_of_the_api(client)
            upstream.fail(fault)
            died_at = time.monotonic()
            await anyio.sleep(DEAD_S)
            after = await totals_of_the_api(client)
            upstream.recover()
            recovered_at = time.monotonic()
            first_fresh_s = await until_fresh(answers, recovered_at)
            callers.cancel_scope.cancel()

    totals = {name: after[name] - before[name] for name in after}
    dead = [one for one in answers if died_at + 0.1 <= one.asked_at and one.asked_at + one.duration_s <= recovered_at]
    how = Counter(one.how for one in dead)
    attempts, openings = totals["failures"], totals["opened"]  # nothing fails while the API is well
    # What was on its way when the API died, as many until the breaker opened, retries, and probes.
    allowed = 2 * CONCURRENT + BUDGET + PROBES * openings
    report(
        f"{transport}, {era}, {fault}: {len(answers)} calls, {len(dead)} of them during {DEAD_S:g} s without the API;"
        f" longest {max(one.duration_s for one in answers):.2f} s of {DEADLINE_S:g} s;"
        f" breaker opened {openings} times and refused {totals['rejected']} attempts;"
        f" stale and labelled {how['stale']}, errors {len(dead) - how['stale']};"
        f" attempts at the API {attempts} of {allowed} ({totals['retries']} retries,"
        f" {totals['retries_refused']} refused); fresh again {first_fresh_s:.2f} s after its return"
    )
    assert max(one.duration_s for one in answers) < DEADLINE_S + BUSY_MACHINE_S
    assert openings >= 1
    assert how["stale"] > 0
    assert all(one.is_labelled for one in answers if one.how == "stale")
    assert not how["fresh"]
    assert set(how) <= {"stale", "dependency_failed", "dependency_timeout", "dependency_busy", "circuit_open", "busy"}
    assert how["circuit_open"] > 0
    assert attempts <= allowed
    assert totals["retries"] <= BUDGET


async def totals_of_the_api(client: Any) -> dict[str, int]:
    """What `get-metrics` says since the start."""
    figures = (await client.call_tool("get-metrics")).structured_content
    (api,) = [one for one in figures["dependencies"] if one["name"] == "api"]
    return dict(api["totals"])


async def keep_asking(client: Any, number: int, answers: list[Answer]) -> None:
    """Ask again and again: the same each time, or always something new."""
    dice = random.Random(number)  # noqa: S311 - no secret, only a pause
    count = 0
    while True:
        count += 1
        path = f"known/{number}" if number % 2 else f"new/{number}/{count}"
        asked_at = time.monotonic()
        result = await client.call_tool("ask_api", {"path": path})
        answers.append(answer(result, asked_at))
        await anyio.sleep(dice.uniform(0.05, 0.15))


def answer(result: Any, asked_at: float) -> Answer:
    """Classify a result."""
    duration_s = time.monotonic() - asked_at
    meta = dict(result.meta or {})
    if result.is_error:
        return Answer(asked_at, duration_s, meta["reliability/error"]["kind"], is_labelled=False)
    found = meta.get("reliability/provenance")
    if found is None:
        return Answer(asked_at, duration_s, "fresh", is_labelled=False)
    is_labelled = found == result.structured_content["provenance"] and "stale" in result.content[-1].text
    return Answer(asked_at, duration_s, "stale", is_labelled=is_labelled and found["stale"] and found["age_s"] >= 0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the other tasks do."""
    with anyio.fail_after(LONGEST_WAIT_S):
        while not condition():  # noqa: ASYNC110 - it has no event
            await anyio.sleep(0.02)


async def until_fresh(answers: list[Answer], since: float) -> float:
    """Wait until ten calls in a row have fresh answers; the seconds until the first one of all."""
    await until(lambda: {one.how for one in answers[-10:]} == {"fresh"} and answers[-10].asked_at > since)
    return next(one.asked_at + one.duration_s for one in answers if one.how == "fresh" and one.asked_at > since) - since
