"""Windows, bounds and figures of the cache: rules R49 to R51."""

from __future__ import annotations

import sys
import time
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from reliability.cache import CacheConfig, CacheStatistics, StaleCache, age_clock
from reliability.errors import DependencyFailed, ShuttingDown

from tests.unit.support import CANCELLERS, FakeClock, cancel_at_every_await

if TYPE_CHECKING:
    from collections.abc import Hashable

pytestmark = pytest.mark.anyio


class Setup:
    """A cache of texts, an upstream that answers `<key> <number of the answer>`, and a clock."""

    def __init__(self, **config: Any) -> None:
        self.clock = FakeClock()
        self.kept: list[tuple[Hashable, str]] = []
        self.cache: StaleCache[str] = StaleCache(
            "notes",
            CacheConfig(**config),
            size_of=len,
            on_kept=lambda key, value: self.kept.append((key, value)),
            clock=self.clock,
        )
        self.asked = 0
        self.down = False

    async def fetch(self, key: str = "a") -> str:
        async def make() -> str:
            await checkpoint()
            self.asked += 1
            if self.down:
                raise DependencyFailed("api", "It is down.")
            return f"{key} {self.asked}"

        return (await self.cache.fetch(key, make)).value

    def stale(self, key: str = "a") -> str | None:
        entry = self.cache.stale(key)
        return None if entry is None else entry.value

    @property
    def figures(self) -> CacheStatistics:
        return self.cache.statistics()


async def settled() -> None:
    await anyio.wait_all_tasks_blocked()
    await checkpoint()


@pytest.mark.parametrize(
    "wrong",
    [
        {"ttl_s": -1},
        {"ttl_s": float("nan")},
        {"max_stale_s": float("nan")},
        {"ttl_s": 61, "max_stale_s": 60},
        {"ttl_s": 10, "revalidate_s": 9},
        {"revalidate_s": 3601},
        {"revalidate_s": float("nan")},
        {"max_entries": 0},
        {"max_bytes": 0},
    ],
)
def test_r49_ages_that_do_not_rise_and_bounds_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ttl_s|max_entries"):
        CacheConfig(**wrong)


def test_r50_the_defaults_are_a_minute_an_hour_and_a_thousand_entries() -> None:
    config = CacheConfig()
    assert (config.ttl_s, config.background_s, config.max_stale_s, config.max_entries) == (60, 60, 3600, 1000)
    assert CacheConfig(ttl_s=0, revalidate_s=0, max_stale_s=0, max_entries=1, max_bytes=1)


async def test_r50_a_fresh_answer_is_served_again_and_an_old_one_is_not() -> None:
    setup = Setup(ttl_s=60)
    assert await setup.fetch() == "a 1"
    setup.clock.now += 59.9
    assert await setup.fetch() == "a 1"
    setup.clock.now += 0.1
    assert await setup.fetch() == "a 2"
    assert (setup.figures.hits, setup.figures.misses) == (1, 2)


async def test_r50_without_a_time_to_live_every_caller_asks() -> None:
    setup = Setup(ttl_s=0)
    assert [await setup.fetch(), await setup.fetch()] == ["a 1", "a 2"]
    assert setup.stale() == "a 2"


async def test_r50_a_stale_answer_is_left_until_its_greatest_age() -> None:
    setup = Setup(ttl_s=60, max_stale_s=3600)
    await setup.fetch()
    setup.down = True
    setup.clock.now += 3599.9
    with pytest.raises(DependencyFailed):
        await setup.fetch()
    assert setup.stale() == "a 1"
    setup.clock.now += 0.1
    assert setup.stale() is None
    assert (setup.figures.entries, setup.figures.bytes) == (0, 0)
    assert setup.stale("b") is None


async def test_r50_the_age_of_an_entry_is_the_time_since_it_was_made() -> None:
    setup = Setup()

    async def slow() -> str:
        setup.clock.now += 10
        return "slow"

    entry = await setup.cache.fetch("a", slow)
    assert setup.cache.age_s(entry) == 0
    setup.clock.now += 7
    assert setup.cache.age_s(entry) == 7
    with pytest.raises(FrozenInstanceError):
        entry.made_at = 0  # type: ignore[misc]


async def test_r50_a_stale_answer_is_served_at_once_while_a_new_one_is_made() -> None:
    setup = Setup(ttl_s=60, revalidate_s=120)
    await setup.fetch()
    setup.clock.now += 119.9
    assert [await setup.fetch(), await setup.fetch()] == ["a 1", "a 1"]
    await settled()
    assert setup.asked == 2
    assert await setup.fetch() == "a 2"
    assert (setup.figures.hits, setup.figures.stale_hits, setup.figures.misses) == (1, 2, 1)
    setup.clock.now += 120
    assert await setup.fetch() == "a 3"
    assert setup.figures.misses == 2


async def test_r50_a_failure_in_the_background_leaves_the_stale_answer() -> None:
    setup = Setup(ttl_s=60, revalidate_s=120)
    await setup.fetch()
    setup.clock.now += 60
    setup.down = True
    assert await setup.fetch() == "a 1"
    await settled()
    assert await setup.fetch() == "a 1"
    await settled()
    assert (setup.asked, setup.figures.in_flight) == (3, 0)


async def test_r50_so_many_answers_are_made_in_the_background_and_no_more() -> None:
    setup = Setup(ttl_s=60, revalidate_s=120)
    for key in "abcdef":
        await setup.fetch(key)
    setup.clock.now += 60
    assert [await setup.fetch(key) for key in "abcdef"] == ["a 1", "b 2", "c 3", "d 4", "e 5", "f 6"]
    await settled()
    assert setup.asked == 6 + 4


async def test_r51_a_failure_is_not_remembered() -> None:
    setup = Setup()
    setup.down = True
    for _ in range(2):
        with pytest.raises(DependencyFailed):
            await setup.fetch()
    setup.down = False
    assert await setup.fetch() == "a 3"
    assert (setup.figures.entries, setup.kept) == (1, [("a", "a 3")])


async def test_r49_what_was_not_asked_for_longest_makes_room() -> None:
    setup = Setup(max_entries=3)
    for key in "abc":
        await setup.fetch(key)
    await setup.fetch("a")
    assert setup.stale("b")
    await setup.fetch("d")
    assert [key for key in "abcd" if setup.stale(key)] == ["a", "b", "d"]
    assert (setup.figures.entries, setup.figures.evictions) == (3, 1)


async def test_r49_a_stale_answer_that_is_asked_for_does_not_make_room() -> None:
    setup = Setup(ttl_s=60, revalidate_s=120, max_entries=2)
    for key in "ab":
        await setup.fetch(key)
    setup.clock.now += 60
    setup.cache.drain()
    await setup.fetch("a")
    await setup.fetch("c")
    assert [key for key in "abc" if setup.stale(key)] == ["a", "c"]


async def test_r49_all_values_together_have_a_greatest_size() -> None:
    setup = Setup(max_bytes=9)
    for key in "abc":
        await setup.fetch(key)  # 3 bytes each
    assert (setup.figures.entries, setup.figures.bytes) == (3, 9)
    await setup.fetch("d")
    assert [key for key in "abcd" if setup.stale(key)] == ["b", "c", "d"]
    await setup.fetch("a long key")
    assert setup.stale("a long key") is None
    assert (setup.figures.entries, setup.figures.bytes, setup.figures.evictions) == (3, 9, 1)
    assert [key for key, _ in setup.kept] == ["a", "b", "c", "d"]


async def test_r49_an_answer_that_has_become_too_large_takes_its_predecessor_away() -> None:
    setup = Setup(ttl_s=0, max_bytes=3)
    await setup.fetch()
    setup.asked = 99
    assert await setup.fetch() == "a 100"
    assert setup.stale() is None
    assert setup.figures.bytes == 0


async def test_r49_a_new_answer_takes_the_place_of_the_old_one() -> None:
    setup = Setup(ttl_s=0)
    for _ in range(10):
        await setup.fetch()
    assert (setup.figures.entries, setup.figures.bytes, setup.figures.evictions) == (1, 4, 0)


async def test_r50_what_an_earlier_process_made_keeps_its_age() -> None:
    setup = Setup(ttl_s=60, max_stale_s=3600)
    setup.cache.restore("a", "from before", 50)
    setup.cache.restore("b", "too old", 3600)
    assert await setup.fetch() == "from before"
    setup.clock.now += 10
    assert await setup.fetch() == "a 1"
    setup.clock.now += 60
    setup.cache.restore("a", "from before", 0)
    assert setup.stale() == "a 1"
    assert setup.stale("b") is None
    assert setup.kept == [("a", "a 1")]


async def test_r49_what_is_restored_counts_with_its_size() -> None:
    setup = Setup(max_bytes=10)
    setup.cache.restore("a", "12345", 1)
    setup.cache.restore("b", "12345", 1)
    setup.cache.restore("c", "12345678901", 1)
    assert (setup.figures.entries, setup.figures.bytes) == (2, 10)


async def test_r49_a_crowd_that_finds_an_answer_expired_asks_once() -> None:
    setup = Setup(ttl_s=60)
    await setup.fetch()
    setup.clock.now += 60
    found: list[str] = []

    async def caller() -> None:
        found.append(await setup.fetch())

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(caller)
    assert found == ["a 2"] * 100
    assert (setup.asked, setup.figures.misses, setup.figures.shared) == (2, 101, 99)


async def test_r50_what_came_too_late_for_everybody_does_not_hide_what_is_newer() -> None:
    setup = Setup()
    late = anyio.Event()

    async def deaf() -> str:
        with anyio.CancelScope(shield=True):
            await late.wait()
        return "late"

    with anyio.move_on_after(0.001):
        await setup.cache.fetch("a", deaf)
    assert await setup.fetch() == "a 1"
    late.set()
    await settled()
    assert setup.stale() == "a 1"
    assert setup.kept == [("a", "a 1")]


async def test_r68_after_drain_a_stale_answer_is_served_and_no_new_one_made() -> None:
    setup = Setup(ttl_s=60, revalidate_s=120)
    await setup.fetch()
    setup.cache.drain()
    setup.clock.now += 60
    assert await setup.fetch() == "a 1"
    await settled()
    assert setup.asked == 1


async def test_r68_closing_ends_what_is_being_made() -> None:
    setup = Setup()

    async def caller() -> None:
        with pytest.raises(ShuttingDown):
            await setup.cache.fetch("a", anyio.sleep_forever)  # type: ignore[arg-type]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller)
        await settled()
        assert setup.figures.in_flight == 1
        await setup.cache.aclose()
    assert setup.figures.in_flight == 0


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r46_a_caller_cancelled_at_any_await_costs_the_cache_nothing(how: str) -> None:
    setup = Setup(ttl_s=60)

    async def call() -> None:
        await setup.fetch()

    async def nothing_is_lost() -> None:
        await settled()
        assert setup.figures.in_flight == 0
        assert setup.figures.bytes == len(setup.stale() or "")
        setup.clock.now += 60

    assert await cancel_at_every_await(call, nothing_is_lost, how=how) >= 1
    assert await setup.fetch() == f"a {setup.asked}"


async def test_r63_the_figures_are_a_snapshot() -> None:
    setup = Setup()
    before = setup.figures
    await setup.fetch()
    await setup.fetch()
    await settled()
    assert before == CacheStatistics(
        name="notes", entries=0, bytes=0, hits=0, stale_hits=0, misses=0, shared=0, evictions=0, in_flight=0
    )
    assert setup.figures == CacheStatistics(
        name="notes", entries=1, bytes=3, hits=1, stale_hits=0, misses=1, shared=0, evictions=0, in_flight=0
    )


@pytest.mark.parametrize(("platform", "clock"), [("linux", "CLOCK_BOOTTIME"), ("darwin", "CLOCK_MONOTONIC")])
def test_r50_ages_are_counted_by_a_clock_that_does_not_stop_while_the_machine_sleeps(
    platform: str, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(time, clock, 4711, raising=False)
    monkeypatch.setattr(time, "clock_gettime", lambda found: found, raising=False)
    assert age_clock() == 4711
    monkeypatch.setattr(sys, "platform", "win32")
    assert age_clock() == pytest.approx(time.monotonic(), abs=1)
    assert StaleCache("x", CacheConfig(), size_of=len).clock is age_clock
