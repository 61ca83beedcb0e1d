"""The health and the figures of a service that is several processes: whoever is asked asks the others (R14, R63).

Nothing that only one worker knows is shown as the whole. What can be added up is: calls and how long they took. Of the
checks the worst is shown, and of dependencies, pools and caches each worker's own, with its number. A worker that does
not answer in time is named.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import anyio

from .built_in_tools import Metrics
from .health import CheckResult, HealthReport, Status, WorkerState
from .metrics import CallMetrics, RefusedRequests
from .parts import DependencyState
from .probes import LazyExporter
from .rate_limit import RateLimit
from .server import ReliableServer
from .single_flight import SingleFlight
from .workers_link import Answers, Member, Worker

_SPENDING_S = 0.5
_FIGURES_S = 1.0
"""Time for a worker's figures, which it has at hand; one that does not say them then is stuck."""
_HEALTH, _METRICS, _EXPOSITION = "health", "metrics", "exposition"
_WORST_FIRST = (Status.FAILED, Status.DEGRADED, Status.OK)


class WholeService:
    """What a worker says when it is asked about the service.

    Args:
        server: The worker's own.
        worker: Its link to the others.
    """

    def __init__(self, server: ReliableServer[Any], worker: Worker) -> None:
        self._server = server
        self._worker = worker
        self._exporter = LazyExporter(server, worker.number)
        self._flights: SingleFlight[Any] = SingleFlight("the whole service", max_background=0, background_timeout_s=0)
        """Every answer takes work of every worker, and anybody may ask."""

    def join(self) -> None:
        """From now on speak for the whole service, and answer the other workers."""
        server, worker = self._server, self._worker
        server.ask_health = self.health
        server.ask_metrics = self.metrics
        server.health.others_unready_because = lambda: worker.others_unready_because
        worker.answer(_HEALTH, self._own_health)
        worker.answer(_METRICS, self._own_metrics)
        worker.answer(_EXPOSITION, self._own_exposition)

    async def share_spending(self, limit: RateLimit) -> None:
        """Let all workers know, until cancelled, what clients have got from each: a limit is one for all of them.

        What a client gets from several of them before they know of each other is taken from it afterwards.
        """
        self._worker.on_share = partial(_charge, limit)
        while True:
            if spent := limit.spent():
                self._worker.share(spent)
            await anyio.sleep(_SPENDING_S)

    async def health(self) -> HealthReport:
        """The report of all workers."""
        report: HealthReport = await self._flights.run(_HEALTH, self._whole_health)
        return report

    async def _whole_health(self) -> HealthReport:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._server.health.fresh_report)  # while the others run their checks
            answers = await self._worker.ask(_HEALTH, limit_s=self._server.limits.health_check_timeout_s + _FIGURES_S)
        own = self._server.health.report()
        return merged_health(own, self._numbered(answers, asdict(own)), answers.members)

    async def metrics(self) -> Metrics:
        """The figures of all workers."""
        answers = await self._worker.ask(_METRICS, limit_s=_FIGURES_S)
        found = self._numbered(answers, await self._own_metrics())
        return Metrics(
            uptime_s=max(one["uptime_s"] for one in found.values()),
            calls=CallMetrics.merged(one["calls"] for one in found.values()).statistics(),
            dependencies=_with_numbers(found, "dependencies"),
            pools=_with_numbers(found, "pools"),
            caches=_with_numbers(found, "caches"),
            refused_requests=RefusedRequests.merged(one["refused_requests"] for one in found.values()),
            workers=list(found),
            missing_workers=[member.number for member in answers.members if member.number not in found],
        )

    async def exposition(self) -> bytes:
        """What every worker shows to Prometheus."""
        text: bytes = await self._flights.run(_EXPOSITION, self._whole_exposition)
        return text

    async def _whole_exposition(self) -> bytes:
        answers = await self._worker.ask(_EXPOSITION, limit_s=_FIGURES_S)
        found = self._numbered(answers, await self._own_exposition())
        return merged_expositions([*found.values(), _of_the_workers(len(found), answers.members)]).encode()

    def _numbered(self, answers: Answers, own: Any) -> dict[int, Any]:
        return dict(sorted({**answers.bodies, self._worker.number: own}.items()))

    async def _own_health(self) -> dict[str, Any]:
        return asdict(await self._server.health.fresh_report())

    async def _own_metrics(self) -> dict[str, Any]:
        return {**asdict(await self._server.own_metrics()), "calls": self._server.metrics.dump()}

    async def _own_exposition(self) -> str:
        return (await self._exporter.exposition()).decode()


def _charge(limit: RateLimit, spent: list[tuple[Any, int]]) -> None:
    for client, requests in spent:
        limit.charge(tuple(client) if isinstance(client, list) else client, requests)


def merged_health(own: HealthReport, found: dict[int, dict[str, Any]], members: Iterable[Member]) -> HealthReport:
    """One report from those of all workers that have answered, `own` being one of them."""
    reports = list(found.values())
    states = [_state(member, found.get(member.number)) for member in members]
    missing = any(state.number not in found for state in states)
    status = _worst(Status(report["status"]) for report in reports)
    return replace(
        own,
        status=_worst([status, Status.DEGRADED]) if missing else status,
        ready=own.ready and all(report["ready"] for report in reports),
        uptime_s=max(report["uptime_s"] for report in reports),
        rss_mb=_sum(report["rss_mb"] for report in reports),
        event_loop_lag_ms=max(report["event_loop_lag_ms"] for report in reports),
        calls_in_flight=sum(report["calls_in_flight"] for report in reports),
        calls_queued=sum(report["calls_queued"] for report in reports),
        checks=_worst_checks(found),
        dependencies=[DependencyState(**one) for one in _with_numbers(found, "dependencies")],
        pools=_with_numbers(found, "pools"),
        caches=_with_numbers(found, "caches"),
        workers=states,
    )


def _worst(found: Iterable[Status]) -> Status:
    return min(found, key=_WORST_FIRST.index, default=Status.OK)


def _sum(found: Iterable[float | None]) -> float | None:
    known = [one for one in found if one is not None]
    return round(sum(known), 1) if known else None


def _state(member: Member, report: dict[str, Any] | None) -> WorkerState:
    known = report or {"status": Status.FAILED, "uptime_s": None, "rss_mb": None}
    return WorkerState(
        number=member.number,
        status=Status(known["status"]),
        pid=member.pid,
        uptime_s=known["uptime_s"],
        rss_mb=known["rss_mb"],
        restarts=member.restarts,
    )


def _worst_checks(found: dict[int, dict[str, Any]]) -> list[CheckResult]:
    worst: dict[str, CheckResult] = {}
    for number, report in found.items():
        for one in report["checks"]:
            check = CheckResult(**{**one, "status": Status(one["status"]), "worker": number})
            so_far = worst.get(check.name, check)
            worst[check.name] = min(so_far, check, key=lambda result: _WORST_FIRST.index(result.status))
    return list(worst.values())


def _with_numbers(found: dict[int, dict[str, Any]], kind: str) -> list[Any]:
    return [{**one, "worker": number} for number, report in found.items() for one in report[kind]]


def merged_expositions(texts: Iterable[str]) -> str:
    """The texts of several processes as one: what belongs to one metric must stand together in it."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        name = ""
        for line in filter(None, text.split("\n")):  # and nowhere else: a label may hold what else ends a line
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                heads.setdefault(name, [])
                samples.setdefault(name, [])
            if not line.startswith("#"):
                samples[name].append(line)
            elif line not in heads[name]:
                heads[name].append(line)
    return "".join(f"{line}\n" for name in heads for line in (*heads[name], *samples[name]))


def _of_the_workers(answering: int, members: list[Member]) -> str:
    restarts = [f'mcp_server_worker_restarts_total{{worker="{one.number}"}} {one.restarts}' for one in members]
    return "\n".join(
        [
            "# HELP mcp_server_workers Worker processes that there should be.",
            "# TYPE mcp_server_workers gauge",
            f"mcp_server_workers {len(members)}",
            "# HELP mcp_server_workers_answering Worker processes that have said their figures.",
            "# TYPE mcp_server_workers_answering gauge",
            f"mcp_server_workers_answering {answering}",
            "# HELP mcp_server_worker_restarts_total How often a worker process was started again.",
            "# TYPE mcp_server_worker_restarts_total counter",
            *restarts,
        ]
    )
