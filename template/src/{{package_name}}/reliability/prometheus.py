"""The figures of a server as Prometheus reads them (R63).

    mcp_server_operation_duration_seconds    histogram  method, tool, error type, transport: OpenTelemetry's convention
    mcp_server_calls_total                   counter    method, tool, outcome
    mcp_server_calls_in_flight               gauge      method, tool
    mcp_server_queue_length                  gauge      calls that wait for a place
    mcp_server_refused_calls_total           counter    calls refused for load
    mcp_server_rate_limited_requests_total   counter    requests over HTTP refused because their client asks too often
    mcp_server_unauthorized_requests_total   counter    requests over HTTP refused for want of a token that lets them in
    mcp_server_ready                         gauge      1 while calls should be sent here
    mcp_server_health_check_ok               gauge      check
    mcp_server_event_loop_lag_seconds        gauge
    mcp_server_uptime_seconds                gauge
    mcp_server_info                          gauge      name and version
    mcp_server_dependency_...                           dependency: see `_DEPENDENCY` and `_TOTALS`
    mcp_server_circuit_breakers              gauge      dependency, state: how many breakers are in it
    db_client_connection_...                            pool, state: OpenTelemetry's convention, see `_CONNECTIONS`
    http_client_open_connections             gauge      client, state: OpenTelemetry's convention
    mcp_server_pool_...                                 pool: see `_POOL`
    mcp_server_cache_...                                cache: see `_CACHE`
    process_...                                         memory, CPU time and descriptors, on Linux

Where the service is several processes, every one of these has the label `worker` beside the others, and there are

    mcp_server_workers                       gauge      how many there should be
    mcp_server_workers_answering             gauge      how many have said their figures
    mcp_server_worker_restarts_total         counter    worker

Nothing is counted here: each scrape reads the snapshots that `get-metrics` and the health report read. Every label is a
name from the program or one of a fixed list; the members of a group of dependencies, whose names may come from clients,
are added up (R61).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import anyio.to_thread
from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from .circuit_breaker import State
from .dependency_group import DependencyGroup
from .health import Status
from .metrics import BUCKETS_S, DurationStatistics, Outcome
from .server import PROMPTS, RESOURCES, ReliableServer

_OPERATION = ("mcp_method_name", "gen_ai_tool_name")

_Row = tuple[type[GaugeMetricFamily] | type[CounterMetricFamily], str, str, str]
"""Kind, name, the attribute of the statistics, and what it says."""
_Figures = tuple[str, dict[str, Any]]
"""The name of a part, and its statistics."""

_DEPENDENCY: tuple[_Row, ...] = (
    (GaugeMetricFamily, "in_flight", "in_flight", "Calls to the dependency in progress."),
    (GaugeMetricFamily, "queue_length", "queued", "Calls that wait for a place of the bulkhead."),
    (GaugeMetricFamily, "retry_tokens", "retry_tokens", "Retries that the budget still pays for."),
    (GaugeMetricFamily, "chaos", "chaos", "1 while faults are injected."),
)
_TOTALS: tuple[_Row, ...] = (
    (CounterMetricFamily, "attempts", "calls", "Attempts that were made, retries included."),
    (CounterMetricFamily, "failures", "failures", "Attempts that counted against the dependency."),
    (CounterMetricFamily, "timeouts", "timeouts", "Attempts that ended at their limit."),
    (CounterMetricFamily, "busy", "busy", "Calls refused by the bulkhead."),
    (CounterMetricFamily, "rejected", "rejected", "Calls refused by the circuit breaker."),
    (CounterMetricFamily, "opened", "opened", "How often the circuit breaker opened."),
    (CounterMetricFamily, "retries", "retries", "Attempts after the first."),
    (CounterMetricFamily, "retries_refused", "retries_refused", "Retries that the budget did not pay for."),
)
_CONNECTIONS: tuple[_Row, ...] = (
    (GaugeMetricFamily, "max", "max_connections", "Connections that may be open."),
    (GaugeMetricFamily, "pending_requests", "waiting", "Calls that wait for a connection."),
    (CounterMetricFamily, "timeouts", "timeouts", "Calls that waited for a connection in vain."),
)
_POOL: tuple[_Row, ...] = (
    (CounterMetricFamily, "refused", "refused", "Calls refused because too many were waiting."),
    (CounterMetricFamily, "lent", "lent", "Connections lent."),
    (CounterMetricFamily, "waits", "waited", "Calls that did not get a connection at once."),
    (CounterMetricFamily, "wait_seconds", "wait_total_s", "Time that calls waited for connections."),
    (CounterMetricFamily, "opened", "opened", "Connections opened."),
    (CounterMetricFamily, "open_failures", "open_failures", "Connections that could not be opened."),
    (CounterMetricFamily, "closed", "closed", "Connections closed."),
)
_CACHE: tuple[_Row, ...] = (
    (GaugeMetricFamily, "entries", "entries", "Answers held."),
    (GaugeMetricFamily, "bytes", "bytes", "Size of the answers held."),
    (CounterMetricFamily, "hits", "hits", "Fresh answers served."),
    (CounterMetricFamily, "stale_hits", "stale_hits", "Stale answers served while a new one was made."),
    (CounterMetricFamily, "misses", "misses", "Answers that had to be made."),
    (CounterMetricFamily, "evictions", "evictions", "Answers dropped to make room."),
)


class Exporter:
    """Answers the scrapes of one server.

    Args:
        server: Whose figures they are.
        worker: Which of several processes this is: every sample is labelled with it. A sum over those that live would
            fall when one of them is started again, and would look like a restart of all.
    """

    def __init__(self, server: ReliableServer[Any], worker: int | None = None) -> None:
        self._server = server
        self._worker = worker
        self._process = ProcessCollector(registry=None)

    async def exposition(self) -> bytes:
        """All figures in Prometheus' text format: taken now, and written out in a thread, because that takes longer."""
        found = [*self._metrics(), *self._process.collect()]
        if self._worker is not None:
            for metric in found:
                metric.samples = [
                    sample._replace(labels={**sample.labels, "worker": str(self._worker)}) for sample in metric.samples
                ]
        return await anyio.to_thread.run_sync(generate_latest, _Collected(found))

    def _metrics(self) -> Iterator[Metric]:
        yield from self._calls()
        yield from self._health()
        yield from self._dependencies()
        yield from self._pools()
        yield from self._caches()

    def _calls(self) -> Iterator[Metric]:
        figures, shedder = self._server.metrics.statistics(), self._server.load_shedder
        yield _duration(self._server.metrics.durations())
        total = CounterMetricFamily("mcp_server_calls", "Calls by how they ended.", labels=[*_OPERATION, "outcome"])
        now = GaugeMetricFamily("mcp_server_calls_in_flight", "Calls in progress.", labels=_OPERATION)
        for one in figures:
            now.add_metric(_operation(one.name), one.in_flight)
            for outcome in Outcome:
                total.add_metric([*_operation(one.name), outcome], getattr(one, outcome))
        yield total
        yield now
        yield GaugeMetricFamily("mcp_server_queue_length", "Calls that wait for a place.", shedder.queued)
        yield CounterMetricFamily("mcp_server_refused_calls", "Calls refused for load.", shedder.refused)
        refused = self._server.refused_requests
        says = "Requests refused because their client asks too often."
        yield CounterMetricFamily("mcp_server_rate_limited_requests", says, refused.rate_limited)
        says = "Requests refused for want of a token that lets them in."
        yield CounterMetricFamily("mcp_server_unauthorized_requests", says, refused.unauthorized)

    def _health(self) -> Iterator[Metric]:
        report = self._server.health.report()
        about = {"name": report.name, "version": report.version}
        yield InfoMetricFamily("mcp_server", "The server.", about)
        yield GaugeMetricFamily("mcp_server_ready", "1 while calls should be sent here.", report.ready)
        yield GaugeMetricFamily("mcp_server_uptime_seconds", "Time since the start.", report.uptime_s)
        lag_s = report.event_loop_lag_ms / 1000
        yield GaugeMetricFamily("mcp_server_event_loop_lag_seconds", "Latest delay of the event loop.", lag_s)
        checks = GaugeMetricFamily("mcp_server_health_check_ok", "1 while the check succeeds.", labels=["check"])
        for check in report.checks:
            checks.add_metric([check.name], check.status is Status.OK)
        yield checks

    def _dependencies(self) -> Iterator[Metric]:
        figures: list[_Figures] = []
        breakers = GaugeMetricFamily(
            "mcp_server_circuit_breakers", "Circuit breakers in this state.", labels=["dependency", "state"]
        )
        for part in self._server.parts.of("dependency"):
            found = part.statistics()
            members, totals = (found, part.totals()) if isinstance(part, DependencyGroup) else ([found], found.totals)
            now = {row[2]: sum(getattr(member, row[2]) for member in members) for row in _DEPENDENCY}
            figures.append((part.name, {**now, **asdict(totals)}))
            states = Counter(member.state for member in members)
            for state in State:
                breakers.add_metric([part.name, state], states[state])
        yield from _table("mcp_server_dependency", "dependency", _DEPENDENCY + _TOTALS, figures)
        yield breakers

    def _pools(self) -> Iterator[Metric]:
        label = "db_client_connection_pool_name"
        pools = _figures(self._server.parts.statistics("pool"))
        count = GaugeMetricFamily(
            "db_client_connection_count", "Open connections.", labels=[label, "db_client_connection_state"]
        )
        open_connections = GaugeMetricFamily(
            "http_client_open_connections", "Open connections.", labels=["client", "http_connection_state"]
        )
        for name, figures in pools:
            if "in_use" in figures:
                count.add_metric([name, "used"], figures["in_use"])
                count.add_metric([name, "idle"], figures["idle"])
            elif "idle_connections" in figures:
                idle = figures["idle_connections"]
                open_connections.add_metric([name, "active"], figures["connections"] - idle)
                open_connections.add_metric([name, "idle"], idle)
        yield count
        yield open_connections
        yield from _table("db_client_connection", label, _CONNECTIONS, pools)
        yield from _table("mcp_server_pool", "pool", _POOL, pools)

    def _caches(self) -> Iterator[Metric]:
        yield from _table("mcp_server_cache", "cache", _CACHE, _figures(self._server.parts.statistics("cache")))


class _Collected(list[Metric], Collector):
    """What a library that wants to collect by itself is given."""

    def collect(self) -> list[Metric]:
        return self


def _figures(snapshots: list[Any]) -> list[_Figures]:
    return [(snapshot.name, asdict(snapshot)) for snapshot in snapshots]


def _table(prefix: str, label: str, rows: Iterable[_Row], parts: list[_Figures]) -> Iterator[Metric]:
    """One metric for each row, with one sample for each part; what a part does not count is left out."""
    for family, name, attribute, says in rows:
        metric = family(f"{prefix}_{name}", says, labels=[label])
        for part, figures in parts:
            if attribute in figures:
                metric.add_metric([part], figures[attribute])
        yield metric


def _operation(name: str) -> list[str]:
    """The labels of a series of `CallMetrics`: the method, and the tool's name if there is one."""
    return [name, ""] if name in (RESOURCES, PROMPTS) else ["tools/call", name]


def _duration(found: list[DurationStatistics]) -> Metric:
    metric = HistogramMetricFamily(
        "mcp_server_operation_duration_seconds",
        "Duration of the calls, questions to a person included.",
        labels=[*_OPERATION, "error_type", "network_transport"],
    )
    for one in found:
        buckets = [*zip(map(str, BUCKETS_S), one.cumulative, strict=True), ("+Inf", one.calls)]
        metric.add_metric([*_operation(one.name), one.error_type, "tcp"], buckets, one.sum_s)
    return metric
