"""The health and the figures of several processes as those of one service: rules R14 and R63."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families
from reliability.health import Check, Status, Unhealthy
from reliability.metrics import CallMetrics, Outcome, RefusedRequests
from reliability.rate_limit import RateLimit, RateLimitConfig
from reliability.server import Limits, ReliableServer
from reliability.workers_figures import WholeService, merged_expositions
from reliability.workers_link import Answers, Member, Worker

from tests.unit.support import FakeClock, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

pytestmark = pytest.mark.anyio


class Exchange:
    """Stands in for the parent: workers that reach each other without processes."""

    def __init__(self) -> None:
        self.workers: dict[int, FakeWorker] = {}
        self.silent: set[int] = set()
        self.asked: list[str] = []


class FakeWorker(Worker):
    """A worker whose link is a call."""

    def __init__(self, number: int, exchange: Exchange) -> None:
        self.number = number
        self.others_unready_because = ""
        self.handlers: dict[str, Callable[[], Awaitable[Any]]] = {}
        self._exchange = exchange
        exchange.workers[number] = self

    def answer(self, what: str, with_what: Callable[[], Awaitable[Any]]) -> None:
        self.handlers[what] = with_what

    async def ask(self, what: str, *, limit_s: float) -> Answers:
        self._exchange.asked.append(what)
        others = self._exchange.workers.keys() - {self.number} - self._exchange.silent
        return Answers(
            bodies={number: await self._exchange.workers[number].handlers[what]() for number in others},
            members=[Member(number=number, pid=100 + number, restarts=number) for number in self._exchange.workers],
        )

    def share(self, body: Any) -> None:
        for worker in self._exchange.workers.values():
            if worker is not self:
                worker.on_share(body)


def service(exchange: Exchange, number: int, *checks: Check) -> WholeService:
    @asynccontextmanager
    async def lifespan(_: ReliableServer[None]) -> AsyncIterator[None]:
        yield

    server = ReliableServer("test", version="1", lifespan=lifespan, limits=Limits(), checks=checks)
    server.dependency("api")
    whole = WholeService(server, FakeWorker(number, exchange))
    whole.join()
    return whole


def check(name: str, problem: str = "", *, critical: bool = True) -> Check:
    async def probe() -> str:
        if problem:
            raise Unhealthy(problem)
        return "well"

    return Check(name=name, probe=probe, critical=critical)


# ---- R14: health ---------------------------------------------------------------------------------------------------


async def test_r14_the_worst_of_each_check_is_shown_with_its_worker() -> None:
    exchange = Exchange()
    first = service(exchange, 1, check("database"), check("disk"))
    service(exchange, 2, check("database", "it is gone"), check("disk"))
    report = await first.health()
    checks = {one.name: (one.status, one.detail, one.worker) for one in report.checks}
    assert checks["database"] == (Status.FAILED, "it is gone", 2)
    assert checks["disk"] == (Status.OK, "well", 1)
    assert (report.status, report.ready) == (Status.FAILED, False)


async def test_r14_what_can_be_added_up_is_and_every_worker_is_named() -> None:
    exchange = Exchange()
    first = service(exchange, 1)
    second = service(exchange, 2)
    for whole in (first, second):
        await whole._server.load_shedder.acquire()
    report = await first.health()
    assert (report.status, report.ready, report.calls_in_flight) == (Status.OK, True, 2)
    assert report.rss_mb == pytest.approx(sum(one.rss_mb or 0 for one in report.workers))
    assert [(one.number, one.pid, one.restarts) for one in report.workers] == [(1, 101, 1), (2, 102, 2)]
    assert [(one.name, one.worker) for one in report.dependencies] == [("api", 1), ("api", 2)]


async def test_r14_a_worker_that_does_not_answer_degrades_the_service() -> None:
    exchange = Exchange()
    first = service(exchange, 1)
    service(exchange, 2)
    exchange.silent = {2}
    report = await first.health()
    assert (report.status, report.ready) == (Status.DEGRADED, True)
    assert [(one.number, one.status) for one in report.workers] == [(1, Status.OK), (2, Status.FAILED)]


async def test_r14_the_tool_and_the_probe_speak_for_all() -> None:
    exchange = Exchange()
    first = service(exchange, 1)
    service(exchange, 2)
    result: Any = await first._server.call_tool("health-check", {})
    assert [one["number"] for one in result.structured_content["workers"]] == [1, 2]
    first._worker.others_unready_because = "worker 2: database: it is gone"
    assert first._server.health.unready_because() == "worker 2: database: it is gone"


async def test_however_many_ask_at_the_same_time_every_worker_is_asked_once() -> None:
    exchange = Exchange()
    first = service(exchange, 1)
    service(exchange, 2)
    found: list[object] = []

    async def ask(what: Callable[[], Awaitable[object]]) -> None:
        found.append(await what())

    for _ in range(2):  # and nothing is kept
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(ask, first.health)
                tasks.start_soon(ask, first.exposition)
    assert len(found) == 40
    assert sorted(exchange.asked) == ["exposition", "exposition", "health", "health"]


# ---- R63: figures --------------------------------------------------------------------------------------------------


async def test_r63_calls_are_added_up_with_their_percentiles() -> None:
    exchange = Exchange()
    first = service(exchange, 1)
    second = service(exchange, 2)
    reference = CallMetrics()
    for whole, durations in ((first, [0.001] * 90), (second, [1.0] * 10)):
        for metrics in (whole._server.metrics, reference):
            for duration_s in durations:
                metrics.started("health-check")
                metrics.finished("health-check", Outcome.OK, duration_s)
    found = await second.metrics()
    (expected,) = (one for one in reference.statistics() if one.calls)
    (merged,) = (one for one in found.calls if one.calls)
    assert merged == replace(expected, name=merged.name)
    assert (merged.p50_ms < 2, merged.p95_ms > 900) == (True, True)
    assert (found.workers, found.missing_workers) == ([1, 2], [])
    assert [(one["name"], one["worker"]) for one in found.dependencies] == [("api", 1), ("api", 2)]


async def test_r62_requests_that_were_refused_are_added_up() -> None:
    exchange = Exchange()
    services = [service(exchange, number) for number in (1, 2)]
    for number, whole in enumerate(services, start=1):
        whole._server.refused_requests.rate_limited = number
        whole._server.refused_requests.unauthorized = 10 * number
    found = await services[1].metrics()
    assert found.refused_requests == RefusedRequests(rate_limited=3, unauthorized=30)
    text = (await services[0].exposition()).decode()
    for number in (1, 2):
        assert f'mcp_server_rate_limited_requests_total{{worker="{number}"}} {number}.0' in text


async def test_r63_whose_figures_are_missing_is_said() -> None:
    exchange = Exchange()
    for number in (1, 2, 3):
        service(exchange, number)
    exchange.silent = {2}
    found = await service(exchange, 4).metrics()
    assert (found.workers, found.missing_workers) == ([1, 3, 4], [2])


async def test_r63_prometheus_gets_one_series_for_each_worker() -> None:
    exchange = Exchange()
    service(exchange, 1)
    text = (await service(exchange, 2).exposition()).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {sample.labels["worker"] for sample in families["mcp_server_ready"].samples} == {"1", "2"}
    assert [sample.value for sample in families["mcp_server_workers"].samples] == [2]
    assert [sample.value for sample in families["mcp_server_workers_answering"].samples] == [2]
    restarts = {sample.labels["worker"]: sample.value for sample in families["mcp_server_worker_restarts"].samples}
    assert restarts == {"1": 1, "2": 2}
    every = [(sample.name, tuple(sample.labels.items())) for family in families.values() for sample in family.samples]
    assert len(every) == len(set(every))
    heads = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(heads) == len(set(heads))  # what belongs together stands together


def test_expositions_are_merged_metric_by_metric() -> None:
    texts = [
        '# HELP a A.\n# TYPE a gauge\na{w="1"} 1\n# HELP b B.\n# TYPE b gauge\n',
        "# HELP a A.\n# TYPE a gauge\na 2",
    ]
    assert merged_expositions(texts) == '# HELP a A.\n# TYPE a gauge\na{w="1"} 1\na 2\n# HELP b B.\n# TYPE b gauge\n'
    assert merged_expositions([]) == ""


@pytest.mark.parametrize("odd", ["\x0b", "\x0c", "\r", "\x1c", "\x85", "\u2028", "\u2029"])
def test_r4_a_label_may_hold_what_ends_a_line_elsewhere(odd: str) -> None:
    text = f'# HELP a A.\n# TYPE a gauge\na{{w="1{odd}2"}} 1\n'
    assert merged_expositions([text]) == text


def test_r63_what_was_counted_survives_the_way_to_another_process() -> None:
    metrics = CallMetrics()
    metrics.register("idle")
    for number, outcome in enumerate(Outcome):
        metrics.started("busy")
        metrics.started("unknown name")
        metrics.finished("busy", outcome, number / 10)
    metrics.register("busy")
    metrics.started("busy")
    metrics.finished("busy", Outcome.OK, 3)
    whole = CallMetrics.merged([metrics.dump()])
    assert whole.statistics() == metrics.statistics()
    assert whole.durations() == metrics.durations()
    assert CallMetrics.merged([]).statistics() == []


# ---- R59: one limit for all ----------------------------------------------------------------------------------------


async def test_what_a_client_gets_from_one_worker_the_others_take_from_it() -> None:
    exchange, clock = Exchange(), FakeClock()
    services = [service(exchange, number) for number in (1, 2)]
    limits = [RateLimit(RateLimitConfig(per_minute=60, burst=10), clock=clock) for _ in services]
    async with anyio.create_task_group() as tasks:
        for whole, limit in zip(services, limits, strict=True):
            tasks.start_soon(whole.share_spending, limit)
        await until(lambda: all(limit._spent is not None for limit in limits))
        client = ("issuer", "alice", None)
        assert [limits[0].spend(client) for _ in range(10)] == [0] * 10
        await until(lambda: client in limits[1]._full_at)
        assert limits[1].spend(client) > 0
        assert limits[1].spend("somebody else") == 0
        clock.now += 60
        assert limits[1].spend(client) == 0
        tasks.cancel_scope.cancel()
