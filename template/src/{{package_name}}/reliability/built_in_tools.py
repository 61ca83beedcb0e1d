"""The tools that every server has: `health-check` and `get-metrics` (R16, R63)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from .declarations import tool
from .health import HealthMonitor, HealthReport
from .metrics import CallMetrics, CallStatistics
from .parts import Parts

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


def built_in_tools(
    health: HealthMonitor, metrics: CallMetrics, parts: Parts
) -> tuple[Callable[[], Awaitable[Any]], ...]:
    """Make the declared functions."""

    @tool(name=HEALTH, title="Health check", read_only=True)
    async def health_check() -> HealthReport:
        """Tell whether this server and what it depends on are well."""
        return await health.fresh_report()

    @tool(name=METRICS, title="Metrics", read_only=True)
    async def get_metrics() -> Metrics:
        """Show how many calls were made since the start, how they ended, how long they took, and what they used."""
        return Metrics(
            uptime_s=health.uptime_s(),
            calls=metrics.statistics(),
            dependencies=parts.statistics("dependency"),
            pools=parts.statistics("pool"),
            caches=parts.statistics("cache"),
        )

    return health_check, get_metrics
