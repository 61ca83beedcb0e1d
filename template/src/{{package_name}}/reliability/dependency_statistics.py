"""The figures of a dependency: what was counted since the start, and how it is now."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .circuit_breaker import CircuitBreakerStatistics, State


@dataclass(frozen=True, kw_only=True)
class DependencyTotals:
    """What was counted since the start; it only ever grows."""

    calls: int = 0
    """Attempts that were made: retries included, refusals not."""
    failures: int = 0
    """Attempts that counted against the dependency."""
    timeouts: int = 0
    """Attempts that ended at their limit; failures, too."""
    busy: int = 0
    """Calls refused by the bulkhead."""
    rejected: int = 0
    """Calls refused by the breaker."""
    opened: int = 0
    """How often the breaker opened."""
    retries: int = 0
    retries_refused: int = 0
    """Retries that the budget did not pay for."""

    def __add__(self, other: DependencyTotals) -> DependencyTotals:
        return DependencyTotals(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class DependencyStatistics:
    """The state of one dependency, and its figures."""

    name: str
    state: State
    in_flight: int
    queued: int
    """Calls that wait for a place of the bulkhead."""
    retry_tokens: float
    """What is left in the budget for retries."""
    chaos: bool
    """Whether faults are injected."""
    totals: DependencyTotals
    breaker: CircuitBreakerStatistics
