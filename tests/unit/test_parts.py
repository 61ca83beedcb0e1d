"""Dependencies, pools and caches report by themselves: rules R12 to R14, R58 and R63. With the SDK's real client."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import pytest
from mcp import Client
from reliability.chaos import Chaos
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.dependency import DependencyLimits
from reliability.errors import DependencyFailed
from reliability.health import Status
from reliability.server import Limits, ReliableServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quiet")]

FRAGILE = DependencyLimits(circuit_breaker=CircuitBreakerConfig(minimum_number_of_calls=1, wait_duration_jitter=0))


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the SDK from configuring the root logger for the whole test run."""
    caplog.set_level(logging.INFO)


def server_of(**kwargs: Any) -> ReliableServer[None]:
    @asynccontextmanager
    async def lifespan(_: ReliableServer[None]) -> AsyncIterator[None]:
        yield

    return ReliableServer("s", version="1", lifespan=lifespan, limits=Limits(), subscriptions=False, **kwargs)


@dataclass(frozen=True)
class PoolFigures:
    name: str
    in_use: int


class FakePool:
    name = "database"

    def __init__(self, in_use: int = 1) -> None:
        self.in_use = in_use

    def statistics(self) -> PoolFigures:
        return PoolFigures(self.name, self.in_use)


class FakeDatabase:
    name = "database"

    def statistics(self) -> tuple[PoolFigures, PoolFigures]:
        return PoolFigures("database/readers", 3), PoolFigures("database/writer", 1)


async def failing() -> None:
    raise DependencyFailed("api", "No.")


async def break_it(server: ReliableServer[None], *, critical: bool = False) -> None:
    api = server.dependency("api", FRAGILE, critical=critical)
    with pytest.raises(DependencyFailed):
        await api.call(failing)


@pytest.mark.parametrize(("critical", "status"), [(True, Status.FAILED), (False, Status.DEGRADED)])
async def test_r12_an_open_breaker_is_a_failed_check_of_its_dependency(status: Status, *, critical: bool) -> None:
    server = server_of()
    await break_it(server, critical=critical)
    report = await server.health.fresh_report()
    assert (report.status, report.live) == (status, True)
    assert {check.name: check.status for check in report.checks} == {"calls": Status.OK, "api": status}


async def test_r14_the_report_shows_breakers_pools_and_caches() -> None:
    server = server_of()
    await break_it(server)
    server.watch(FakePool())
    server.watch(FakePool(), kind="cache")
    report = server.health.report()
    (api,) = report.dependencies
    assert (api.name, api.state, api.in_flight, api.queued) == ("api", "open", 0, 0)
    assert api.reason
    assert api.retry_after_s == pytest.approx(60, abs=1)
    assert report.pools == report.caches == [PoolFigures("database", 1)]
    assert json.loads(json.dumps(asdict(report)))["pools"] == [{"name": "database", "in_use": 1}]


async def test_r14_a_part_with_several_pools_shows_each() -> None:
    server = server_of()
    server.watch(FakeDatabase())
    assert [pool.name for pool in server.health.report().pools] == ["database/readers", "database/writer"]


async def test_r14_a_part_that_is_opened_again_takes_the_place_of_the_earlier_one() -> None:
    server = server_of()
    server.watch(FakePool(in_use=1))
    server.watch(FakePool(in_use=2))
    assert server.health.report().pools == [PoolFigures("database", 2)]


async def test_r58_each_member_of_a_group_has_a_breaker_of_its_own_in_the_report() -> None:
    server = server_of()
    group = server.dependency_group("apis", FRAGILE)
    with pytest.raises(DependencyFailed):
        await group.of("a.example").call(failing)
    group.of("b.example")
    states = {one.name: one.state for one in server.health.report().dependencies}
    assert states == {"apis/a.example": "open", "apis/b.example": "closed"}


def test_r1_two_dependencies_of_one_name_are_refused() -> None:
    server = server_of()
    server.dependency("api")
    for make in (server.dependency, server.dependency_group):
        with pytest.raises(ValueError, match="'api' exists already"):
            make("api")


async def test_r55_the_author_says_what_counts_as_a_failure() -> None:
    server = server_of()
    for made in (server.dependency, lambda *a, **k: server.dependency_group(*a, **k).of("x")):
        api = made(f"api-{id(made)}", FRAGILE, is_failure=lambda error: False)
        with pytest.raises(DependencyFailed):
            await api.call(failing)
        assert api.statistics().state == "closed"


async def test_a_rehearsal_reaches_every_dependency_and_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    server = server_of(chaos=Chaos.parse("*: error"))
    async with Client(server):
        assert any(record.levelname == "WARNING" for record in caplog.records)
    for api in (server.dependency("api"), server.dependency_group("apis").of("x")):
        assert api.statistics().chaos
        with pytest.raises(DependencyFailed):
            await api.call(failing)


@pytest.mark.parametrize("era", ["legacy", "auto"], ids=["handshake era", "modern era"])
async def test_r63_the_built_in_tools_show_every_part_to_a_real_client(era: Literal["legacy", "auto"]) -> None:
    server = server_of()
    await break_it(server)
    server.watch(FakePool())
    server.watch(FakePool(), kind="cache")
    async with Client(server, mode=era) as client:
        metrics = (await client.call_tool("get-metrics", {})).structured_content
        health = (await client.call_tool("health-check", {})).structured_content
    assert metrics is not None
    assert health is not None
    (api,) = metrics["dependencies"]
    assert (api["name"], api["state"], api["breaker"]["transitions"]["open"]) == ("api", "open", 1)
    assert metrics["pools"] == metrics["caches"] == [{"name": "database", "in_use": 1}]
    assert health["dependencies"][0]["state"] == "open"
    assert health["pools"] == [{"name": "database", "in_use": 1}]


def test_a_server_without_dependencies_does_not_import_what_they_need() -> None:
    import subprocess

    code = "import sys, reliability.server; print([m for m in sys.modules if 'circuit' in m or 'dependency' in m])"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert ran.stdout.strip() == "[]"
