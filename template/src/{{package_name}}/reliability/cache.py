"""A bounded cache that remembers old answers for bad times (R49 to R51).

The age of an answer decides what it is good for:

    0 ......... ttl_s ........... revalidate_s ........... max_stale_s ......
      fresh:          stale: served      stale: served       never
      served          at once while a    only when asking    served
      at once         new one is made    has failed

Whoever asks for what is being made already waits for that, so that no crowd asks anew when an answer has grown old.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from anyio.lowlevel import checkpoint_if_cancelled

from .single_flight import SingleFlight

V = TypeVar("V")
_MAX_REVALIDATIONS = 4
"""New answers that are made in the background at the same time."""


def age_clock() -> float:
    """Monotonic seconds that pass while the machine sleeps, too: an answer of yesterday is not a minute old."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.monotonic()


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Limits of a cache; for the ages see the module.

    Raises:
        ValueError: The ages do not rise, or a bound is less than 1.
    """

    ttl_s: float = 60
    """Age in seconds up to which an answer is fresh; 0 keeps answers for bad times alone."""
    revalidate_s: float | None = None
    """Age up to which a stale answer is served while a new one is made in the background; None: `ttl_s`, so never."""
    max_stale_s: float = 3600
    """Age up to which a stale answer is served at all (R50)."""
    max_entries: int = 1000
    max_bytes: int = 10_000_000
    """All values together; a larger one is not kept."""

    def __post_init__(self) -> None:
        if not 0 <= self.ttl_s <= self.background_s <= self.max_stale_s:  # not "<": that would let NaN pass
            ages = f"{self.ttl_s!r}, {self.revalidate_s!r} and {self.max_stale_s!r}"
            raise ValueError(f"A cache needs 0 <= ttl_s <= revalidate_s <= max_stale_s, not {ages}.")
        if min(self.max_entries, self.max_bytes) < 1:
            raise ValueError("max_entries and max_bytes of a cache must be at least 1.")

    @property
    def background_s(self) -> float:
        """`revalidate_s` as a number."""
        return self.ttl_s if self.revalidate_s is None else self.revalidate_s


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    """A remembered value, when it was made by the cache's clock, and its size in bytes."""

    value: V
    made_at: float
    size: int


@dataclass(frozen=True, kw_only=True)
class CacheStatistics:
    """The figures of a cache since the start of the process."""

    name: str
    entries: int
    bytes: int
    hits: int
    stale_hits: int
    """Served stale while a new answer was being made."""
    misses: int
    """Waited for an answer to be made."""
    shared: int
    """The misses that waited for what another caller had asked for."""
    evictions: int
    in_flight: int


class StaleCache(Generic[V]):
    """See the module. Everybody gets the same value: it must not be changed.

    Args:
        name: Names it in statistics and in the log.
        config: See `CacheConfig`.
        size_of: Bytes of a value.
        timeout_s: Limit for making an answer in the background, in seconds.
        on_kept: Told of every new value that is kept, for a store; must not raise.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        name: str,
        config: CacheConfig,
        *,
        size_of: Callable[[V], int],
        timeout_s: float = 25,
        on_kept: Callable[[Hashable, V], object] = lambda _key, _value: None,
        clock: Callable[[], float] = age_clock,
    ) -> None:
        self.name = name
        self.config = config
        self._size_of = size_of
        self._on_kept = on_kept
        self.clock = clock
        self._entries: OrderedDict[Hashable, Entry[V]] = OrderedDict()
        self._flights: SingleFlight[Entry[V]] = SingleFlight(
            name, max_background=_MAX_REVALIDATIONS, background_timeout_s=timeout_s
        )
        self._bytes = self._hits = self._stale_hits = self._misses = self._evictions = 0

    async def fetch(self, key: Hashable, make: Callable[[], Awaitable[V]]) -> Entry[V]:
        """The entry of `key`: a fresh one, a stale one while a new one is made, or what `make` makes now.

        Raises:
            DeadlineExceeded: The deadline of the caller who began to make it has passed.
            ShuttingDown: The cache was closed.
            Exception: Whatever `make` raised; it is not remembered (R51).
        """
        entry = self._entries.get(key)
        if entry is not None:
            age_s = self.clock() - entry.made_at
            if age_s < self.config.ttl_s:
                self._hits += 1
                self._entries.move_to_end(key)
                return entry
            if age_s < self.config.background_s:
                self._stale_hits += 1
                self._entries.move_to_end(key)
                self._flights.run_in_background(key, lambda: self._make(key, make))
                return entry
        self._misses += 1
        return await self._flights.run(key, lambda: self._make(key, make))

    def stale(self, key: Hashable) -> Entry[V] | None:
        """The entry of `key` unless it is older than `max_stale_s`: for those who asked in vain."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self.age_s(entry) >= self.config.max_stale_s:
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def age_s(self, entry: Entry[V]) -> float:
        """Seconds since the entry was made."""
        return self.clock() - entry.made_at

    def restore(self, key: Hashable, value: V, age_s: float) -> None:
        """Take over what was made `age_s` seconds ago, by an earlier process; what is here already is newer."""
        if key not in self._entries and age_s < self.config.max_stale_s:
            self._keep(key, Entry(value, self.clock() - age_s, self._size_of(value)))

    def drain(self) -> None:
        """Make nothing in the background from now on (R68)."""
        self._flights.drain()

    async def aclose(self) -> None:
        """Cancel what is being made, and wait until it has ended."""
        await self._flights.aclose()

    def statistics(self) -> CacheStatistics:
        """A snapshot of the figures."""
        return CacheStatistics(
            name=self.name,
            entries=len(self._entries),
            bytes=self._bytes,
            hits=self._hits,
            stale_hits=self._stale_hits,
            misses=self._misses,
            shared=self._flights.shared,
            evictions=self._evictions,
            in_flight=self._flights.in_flight,
        )

    async def _make(self, key: Hashable, make: Callable[[], Awaitable[V]]) -> Entry[V]:
        value = await make()
        await checkpoint_if_cancelled()  # nobody waits any more: what came too late could hide something newer
        entry = Entry(value, self.clock(), self._size_of(value))
        if self._keep(key, entry):
            self._on_kept(key, value)
        return entry

    def _keep(self, key: Hashable, entry: Entry[V]) -> bool:
        self._forget(key)
        if entry.size > self.config.max_bytes:
            return False
        self._entries[key] = entry
        self._bytes += entry.size
        while len(self._entries) > self.config.max_entries or self._bytes > self.config.max_bytes:
            self._forget(next(iter(self._entries)))
            self._evictions += 1
        return True

    def _forget(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size
