"""Counters and fixed-memory histograms of all calls (R60-R63).

Memory depends on the number of registered names, never on the number of calls: a histogram is a fixed list of
buckets whose bounds grow by at most 8 % each, so that a percentile is exact to within 4 %. The bounds that monitoring
systems expect are among them, and so are exact there, too.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Any

UNKNOWN = "unknown"
"""The label of every name that was not registered (R61)."""

BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds in seconds, as OpenTelemetry's conventions for MCP advise."""

_SMALLEST_S, _LARGEST_S, _GROWTH = 1e-5, 3600, 1.08
_STEPS = math.ceil(math.log(_LARGEST_S / _SMALLEST_S) / math.log(_GROWTH))
_BOUNDS_S = sorted({*(_SMALLEST_S * _GROWTH**step for step in range(_STEPS + 1)), *BUCKETS_S})
_LAST = len(_BOUNDS_S) - 1
_INDEXES = [_BOUNDS_S.index(bound_s) for bound_s in BUCKETS_S]


class Outcome(StrEnum):
    """How a call ended; each is counted apart (R62)."""

    OK = "ok"
    FALLBACK = "fallback"
    """Answered, but not by the tool itself: it failed, and a stale answer or a fallback function stood in (R48)."""
    TOOL_ERROR = "tool_error"
    """The tool reported a failure, or its arguments were wrong."""
    ERROR = "error"
    """An unexpected exception; masked for the client."""
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    """By the client, or by the end of the process: not an error (R46)."""
    REJECTED = "rejected"
    """Refused by load shedding, before any work."""

    __hash__ = str.__hash__  # the one of Enum is Python code, and every call looks outcomes up


_ANSWERED = frozenset({Outcome.OK, Outcome.FALLBACK})
_ERRORS = (Outcome.TOOL_ERROR, Outcome.ERROR, Outcome.TIMEOUT, Outcome.REJECTED)


@dataclass(kw_only=True)
class RefusedRequests:
    """Counts requests over HTTP that were refused before anybody knew what they ask for (R62)."""

    rate_limited: int = 0
    """Their client asks too often: status 429."""
    unauthorized: int = 0
    """They show no token, or not one that lets them in: status 401 or 403, 400 or 431."""

    @classmethod
    def merged(cls, counted: Iterable[dict[str, int]]) -> RefusedRequests:
        """What several processes have counted, each as a mapping."""
        whole = cls()
        for one in counted:
            whole.rate_limited += one["rate_limited"]
            whole.unauthorized += one["unauthorized"]
        return whole


class Histogram:
    """Durations in seconds, from 10 us to an hour; what lies outside counts in the first or the last bucket."""

    __slots__ = ("_buckets", "sum_s")

    def __init__(self) -> None:
        self._buckets = [0] * len(_BOUNDS_S)
        self.sum_s = 0.0

    @classmethod
    def merged(cls, histograms: Iterable[Histogram]) -> Histogram:
        """One that has counted what all of them have."""
        whole = cls()
        for histogram in histograms:
            whole.sum_s += histogram.sum_s
            whole._buckets = [a + b for a, b in zip(whole._buckets, histogram._buckets, strict=True)]
        return whole

    def dump(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {"sum_s": self.sum_s, "buckets": {index: count for index, count in enumerate(self._buckets) if count}}

    @classmethod
    def restored(cls, dumped: dict[str, Any]) -> Histogram:
        """The histogram that `dump` gave, in this process or another one."""
        whole = cls()
        whole.sum_s = dumped["sum_s"]
        for index, count in dumped["buckets"].items():
            whole._buckets[int(index)] = count
        return whole

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self._buckets)

    def record(self, duration_s: float) -> None:
        """Count one duration."""
        self._buckets[bisect_left(_BOUNDS_S, duration_s, 0, _LAST)] += 1
        self.sum_s += duration_s

    def percentile(self, q: float) -> float:
        """The duration in seconds that the share `q` (0 to 1) of all calls did not exceed; 0 without calls."""
        rank = q * self.count
        for index, seen in enumerate(accumulate(self._buckets)):
            if seen and seen >= rank:
                return math.sqrt(_BOUNDS_S[max(0, index - 1)] * _BOUNDS_S[index])  # the geometric middle of the bucket
        return 0.0

    def cumulative(self) -> list[int]:
        """How many durations did not exceed each of `BUCKETS_S`."""
        seen = list(accumulate(self._buckets))
        return [seen[index] for index in _INDEXES]


@dataclass(frozen=True, kw_only=True)
class CallStatistics:
    """The figures of one name since the start of the process. Durations are in milliseconds."""

    name: str
    calls: int
    in_flight: int
    ok: int
    fallback: int
    tool_error: int
    error: int
    timeout: int
    cancelled: int
    rejected: int
    errors: int
    """`tool_error`, `error`, `timeout` and `rejected` together."""
    error_rate: float
    """Share of all finished calls, 0 to 1."""
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class DurationStatistics:
    """The durations of all calls of one name that were answered, or that failed in one way."""

    name: str
    error_type: str
    """An outcome; empty for calls that were answered."""
    calls: int
    sum_s: float
    cumulative: list[int]
    """How many calls did not exceed each of `BUCKETS_S`."""


class _Series:
    __slots__ = ("durations", "in_flight")

    def __init__(self) -> None:
        self.durations: dict[Outcome, Histogram] = {}
        self.in_flight = 0

    def record(self, outcome: Outcome, duration_s: float) -> None:
        if outcome not in self.durations:  # most names never see most outcomes
            self.durations[outcome] = Histogram()
        self.durations[outcome].record(duration_s)

    def statistics(self, name: str) -> CallStatistics:
        outcomes = {outcome: self.durations[outcome].count if outcome in self.durations else 0 for outcome in Outcome}
        calls = sum(outcomes.values())
        errors = sum(outcomes[outcome] for outcome in _ERRORS)
        durations = Histogram.merged(self.durations.values())
        return CallStatistics(
            name=name,
            calls=calls,
            in_flight=self.in_flight,
            **{outcome.value: count for outcome, count in outcomes.items()},
            errors=errors,
            error_rate=round(errors / calls, 4) if calls else 0.0,
            mean_ms=_ms(durations.sum_s / calls) if calls else 0.0,
            p50_ms=_ms(durations.percentile(0.50)),
            p95_ms=_ms(durations.percentile(0.95)),
            p99_ms=_ms(durations.percentile(0.99)),
        )

    def duration_statistics(self, name: str) -> Iterable[DurationStatistics]:
        by_type: dict[str, list[Histogram]] = {}
        for outcome, histogram in self.durations.items():
            by_type.setdefault("" if outcome in _ANSWERED else outcome.value, []).append(histogram)
        for error_type, histograms in by_type.items():
            durations = Histogram.merged(histograms)
            yield DurationStatistics(
                name=name,
                error_type=error_type,
                calls=durations.count,
                sum_s=durations.sum_s,
                cumulative=durations.cumulative(),
            )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


class CallMetrics:
    """One series per registered name, and one for everything else."""

    def __init__(self) -> None:
        self._series = {UNKNOWN: _Series()}

    def dump(self) -> dict[str, Any]:
        """All of it, as JSON can hold it, for another process."""
        return {
            name: {
                "in_flight": series.in_flight,
                "durations": {outcome.value: found.dump() for outcome, found in series.durations.items()},
            }
            for name, series in self._series.items()
        }

    @classmethod
    def merged(cls, dumps: Iterable[dict[str, Any]]) -> CallMetrics:
        """What several processes have counted, each `dump` being of one of them."""
        whole = cls()
        for dumped in dumps:
            for name, one in dumped.items():
                series = whole._series.setdefault(name, _Series())
                series.in_flight += one["in_flight"]
                for value, durations in one["durations"].items():
                    outcome = Outcome(value)
                    so_far = series.durations.get(outcome, Histogram())
                    series.durations[outcome] = Histogram.merged([so_far, Histogram.restored(durations)])
        return whole

    def register(self, name: str) -> None:
        """Give `name` a series of its own; registering it twice changes nothing."""
        self._series.setdefault(name, _Series())

    def label(self, name: str) -> str:
        """`name` if it is registered, otherwise `unknown`."""
        return name if name in self._series else UNKNOWN

    def started(self, name: str) -> None:
        """A call begins."""
        self._series[self.label(name)].in_flight += 1

    def finished(self, name: str, outcome: Outcome, duration_s: float) -> None:
        """The call ended with `outcome` after `duration_s` seconds."""
        series = self._series[self.label(name)]
        series.in_flight -= 1
        series.record(outcome, duration_s)

    def statistics(self) -> list[CallStatistics]:
        """A snapshot of every series; `unknown` only when it was used."""
        return [
            series.statistics(name)
            for name, series in self._series.items()
            if name != UNKNOWN or series.durations or series.in_flight
        ]

    def durations(self) -> list[DurationStatistics]:
        """A snapshot of the durations of every series: of the calls that were answered, and of each kind of failure."""
        return [found for name, series in self._series.items() for found in series.duration_statistics(name)]
