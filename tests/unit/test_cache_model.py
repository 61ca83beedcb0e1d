"""The cache against a model of it that is written another way: rules R46 and R49 to R51."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from reliability.cache import CacheConfig, StaleCache

from tests.unit.support import FakeClock

if TYPE_CHECKING:
    from collections.abc import Coroutine

TTL_S, REVALIDATE_S, MAX_STALE_S = 10, 20, 50
MAX_ENTRIES, MAX_BYTES, MAX_REVALIDATIONS = 3, 10, 2
keys = st.sampled_from("abcde")
sizes = st.integers(1, 12)

Value = tuple[int, int]
"""A number of its own, and its size."""


class Upstream(Exception):
    """What a failing upstream raises."""


@dataclass
class Remembered:
    value: Value
    made_at: float
    used: int


@dataclass
class Flying:
    """An answer that is being made: who waits for it, by number."""

    background: bool
    waiting: set[int] = field(default_factory=set)


class Model:
    """Entries in no order, each with the number of the last step that used it."""

    def __init__(self) -> None:
        self.entries: dict[str, Remembered] = {}
        self.flights: dict[str, Flying] = {}
        self.step = 0
        self.draining = False
        self.hits = self.stale_hits = self.misses = self.shared = self.evictions = 0

    def use(self, key: str) -> Value:
        self.step += 1
        self.entries[key].used = self.step
        return self.entries[key].value

    def fetch(self, key: str, caller: int, now: float) -> Value | None:
        """The value that is served at once; None when the caller has to wait."""
        age_s = now - self.entries[key].made_at if key in self.entries else MAX_STALE_S
        if age_s < TTL_S:
            self.hits += 1
            return self.use(key)
        if age_s < REVALIDATE_S:
            self.stale_hits += 1
            busy = len([f for f in self.flights.values() if f.background]) == MAX_REVALIDATIONS
            if not (self.draining or busy or key in self.flights):
                self.flights[key] = Flying(background=True)
            return self.use(key)
        self.misses += 1
        self.shared += key in self.flights
        self.flights.setdefault(key, Flying(background=False)).waiting.add(caller)
        return None

    def leave(self, caller: int) -> None:
        for key, flight in list(self.flights.items()):
            if caller in flight.waiting:
                flight.waiting.remove(caller)
                if not flight.waiting and not flight.background:
                    del self.flights[key]

    def keep(self, key: str, value: Value, made_at: float) -> None:
        self.step += 1
        self.entries.pop(key, None)
        if value[1] > MAX_BYTES:
            return
        self.entries[key] = Remembered(value, made_at, self.step)
        while len(self.entries) > MAX_ENTRIES or self.bytes > MAX_BYTES:
            del self.entries[min(self.entries, key=lambda k: self.entries[k].used)]
            self.evictions += 1

    @property
    def bytes(self) -> int:
        return sum(entry.value[1] for entry in self.entries.values())


class CacheMachine(RuleBasedStateMachine):
    """Every rule does the same to both, and compares what callers see; the invariants compare what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        config = CacheConfig(
            ttl_s=TTL_S,
            revalidate_s=REVALIDATE_S,
            max_stale_s=MAX_STALE_S,
            max_entries=MAX_ENTRIES,
            max_bytes=MAX_BYTES,
        )
        self.cache: StaleCache[Value] = StaleCache("model", config, size_of=lambda v: v[1], clock=self.clock)
        self.cache._flights._max_background = MAX_REVALIDATIONS
        self.model = Model()
        self.upstream: dict[str, asyncio.Future[Value]] = {}
        """What is being asked now; the cache must never ask twice for one key."""
        self.callers: dict[int, asyncio.Task[Value]] = {}
        self.numbers = 0

    def teardown(self) -> None:
        self.run(self.cache.aclose())
        for caller in self.callers.values():
            caller.cancel()
        self.settle()
        self.loop.close()

    def run(self, work: Coroutine[object, object, None]) -> None:
        self.loop.run_until_complete(work)

    def settle(self) -> None:
        async def turns() -> None:
            for _ in range(20):
                await asyncio.sleep(0)

        self.run(turns())

    async def make(self, key: str) -> Value:
        assert key not in self.upstream, "asked twice at the same time"
        self.upstream[key] = asyncio.get_running_loop().create_future()
        try:
            return await self.upstream[key]
        finally:
            del self.upstream[key]

    async def caller(self, key: str) -> Value:
        return (await self.cache.fetch(key, lambda: self.make(key))).value

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    @rule(key=keys)
    def fetch(self, key: str) -> None:
        number = self.next_number()
        task = self.loop.create_task(self.caller(key))
        self.settle()
        expected = self.model.fetch(key, number, self.clock.now)
        if expected is None:
            assert not task.done()
            self.callers[number] = task
        else:
            assert task.result() == expected

    @precondition(lambda self: self.model.flights)
    @rule(data=st.data(), size=sizes)
    def upstream_answers(self, data: st.DataObject, size: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.model.flights)))
        value = (self.next_number(), size)
        self.upstream[key].set_result(value)
        self.settle()
        flight = self.model.flights.pop(key)
        self.model.keep(key, value, self.clock.now)
        assert [self.callers.pop(number).result() for number in flight.waiting] == [value] * len(flight.waiting)

    @precondition(lambda self: self.model.flights)
    @rule(data=st.data())
    def upstream_fails(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model.flights)))
        self.upstream[key].set_exception(Upstream(key))
        self.settle()
        for number in self.model.flights.pop(key).waiting:
            assert isinstance(self.callers.pop(number).exception(), Upstream)

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def a_caller_leaves(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.callers)))
        task = self.callers.pop(number)
        task.cancel()
        self.settle()
        assert task.cancelled()
        self.model.leave(number)

    @rule(seconds=st.sampled_from([1, 5, 9, 10, 11, 30]))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(key=keys)
    def a_stale_answer_is_needed(self, key: str) -> None:
        found = self.cache.stale(key)
        if key in self.model.entries and self.clock.now - self.model.entries[key].made_at >= MAX_STALE_S:
            del self.model.entries[key]
        if key in self.model.entries:
            assert found is not None
            assert found.value == self.model.use(key)
        else:
            assert found is None

    @rule(key=keys, age_s=st.integers(0, MAX_STALE_S + 1), size=sizes)
    def an_answer_is_restored(self, key: str, age_s: int, size: int) -> None:
        value = (self.next_number(), size)
        self.cache.restore(key, value, age_s)
        if key not in self.model.entries and age_s < MAX_STALE_S:
            self.model.keep(key, value, self.clock.now - age_s)

    @rule()
    def drain(self) -> None:
        self.cache.drain()
        self.model.draining = True

    @invariant()
    def the_same_is_asked(self) -> None:
        assert self.upstream.keys() == self.model.flights.keys()

    @invariant()
    def the_figures_are_the_same(self) -> None:
        figures, model = self.cache.statistics(), self.model
        assert (figures.entries, figures.bytes) == (len(model.entries), model.bytes)
        assert (figures.hits, figures.stale_hits) == (model.hits, model.stale_hits)
        assert (figures.misses, figures.shared) == (model.misses, model.shared)
        assert (figures.evictions, figures.in_flight) == (model.evictions, len(model.flights))

    @invariant()
    def the_bounds_hold(self) -> None:
        figures = self.cache.statistics()
        assert figures.entries <= MAX_ENTRIES
        assert figures.bytes <= MAX_BYTES


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
