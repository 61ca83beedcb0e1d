"""The tools that every server has: `health-check` and `get-metrics` (R16, R63)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from .declarations import tool
from .health import HealthReport
from .metrics import CallStatistics, RefusedRequests

HEALTH, METRICS = "health-check", "get-metrics"
BUILT_IN = frozenset({HEALTH, METRICS})


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The answer of `get-metrics`."""

    uptime_s: float
    calls: list[CallStatistics]
    dependencies: list[Any]
    """`DependencyStatistics`; a group of dependencies gives one for each member."""
    pools: list[Any]
    caches: list[Any]
    refused_requests: RefusedRequests = field(default_factory=RefusedRequests)
    workers: list[int] = field(default_factory=list)
    """Where the service is several processes, the numbers of those that these figures are of."""
    missing_workers: list[int] = field(default_factory=list)
    """Those that did not answer in time: what they have counted is not in the figures."""


class Service(Protocol):
    """What the tools ask, at every call anew: where the service is several processes, it is told so later."""

    ask_health: Callable[[], Awaitable[HealthReport]]
    ask_metrics: Callable[[], Awaitable[Metrics]]


def built_in_tools(service: Service) -> tuple[Callable[[], Awaitable[Any]], ...]:
    """Make the declared functions."""

    @tool(name=HEALTH, title="Health check", read_only=True)
    async def health_check() -> HealthReport:
        """Tell whether this server and what it depends on are well."""
        return await service.ask_health()

    @tool(name=METRICS, title="Metrics", read_only=True)
    async def get_metrics() -> Metrics:
        """Show how many calls were made since the start, how they ended, how long they took, and what they used."""
        return await service.ask_metrics()

    return health_check, get_metrics
