"""Counters and fixed-memory histograms of all calls (R60-R63).

Memory depends on the number of registered names, never on the number of calls: a histogram is a fixed list of
buckets whose bounds grow by 8 % each, so that a percentile is exact to within 4 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

UNKNOWN = "unknown"
"""The label of every name that was not registered (R61)."""

_SMALLEST_S = 1e-5
_GROWTH = 1.08
_LOG_GROWTH = math.log(_GROWTH)
_BUCKETS = math.ceil(math.log(3600 / _SMALLEST_S) / _LOG_GROWTH) + 1


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


_ERRORS = (Outcome.TOOL_ERROR, Outcome.ERROR, Outcome.TIMEOUT, Outcome.REJECTED)


class Histogram:
    """Durations in seconds, from 10 us to an hour; what lies outside counts in the first or the last bucket."""

    __slots__ = ("_buckets", "count", "sum_s")

    def __init__(self) -> None:
        self._buckets = [0] * _BUCKETS
        self.count = 0
        self.sum_s = 0.0

    def record(self, duration_s: float) -> None:
        """Count one duration."""
        index = math.ceil(math.log(duration_s / _SMALLEST_S) / _LOG_GROWTH) if duration_s > _SMALLEST_S else 0
        self._buckets[min(index, _BUCKETS - 1)] += 1
        self.count += 1
        self.sum_s += duration_s

    def percentile(self, q: float) -> float:
        """The duration in seconds that the share `q` (0 to 1) of all calls did not exceed; 0 without calls."""
        rank = q * self.count
        seen = 0
        for index, calls in enumerate(self._buckets):
            seen += calls
            if calls and seen >= rank:
                return float(_SMALLEST_S * _GROWTH ** (index - 0.5))  # the geometric middle of the bucket
        return 0.0


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


class _Series:
    __slots__ = ("durations", "in_flight", "outcomes")

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.in_flight = 0
        self.durations = Histogram()

    def statistics(self, name: str) -> CallStatistics:
        calls = self.durations.count
        errors = sum(self.outcomes[outcome] for outcome in _ERRORS)
        return CallStatistics(
            name=name,
            calls=calls,
            in_flight=self.in_flight,
            **{outcome.value: count for outcome, count in self.outcomes.items()},
            errors=errors,
            error_rate=round(errors / calls, 4) if calls else 0.0,
            mean_ms=_ms(self.durations.sum_s / calls) if calls else 0.0,
            p50_ms=_ms(self.durations.percentile(0.50)),
            p95_ms=_ms(self.durations.percentile(0.95)),
            p99_ms=_ms(self.durations.percentile(0.99)),
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


class CallMetrics:
    """One series per registered name, and one for everything else."""

    def __init__(self) -> None:
        self._series = {UNKNOWN: _Series()}

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
        series.outcomes[outcome] += 1
        series.durations.record(duration_s)

    def statistics(self) -> list[CallStatistics]:
        """A snapshot of every series; `unknown` only when it was used."""
        return [
            series.statistics(name)
            for name, series in self._series.items()
            if name != UNKNOWN or series.durations.count or series.in_flight
        ]
