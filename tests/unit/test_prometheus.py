"""What Prometheus reads: rules R60 to R63. Read back with the real parser, and by promtool where it exists."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from reliability.cache import CacheStatistics
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.declarations import tool
from reliability.dependency import DependencyLimits
from reliability.errors import DependencyFailed, ToolFailure
from reliability.http_client import HttpClientStatistics
from reliability.metrics import BUCKETS_S, Outcome
from reliability.pool import PoolStatistics
from reliability.probes import add_metrics
from reliability.prometheus import Exporter
from reliability.retry import RetryConfig
from reliability.server import Limits, ReliableServer
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prometheus_client.core import Metric

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quiet")]

FRAGILE = DependencyLimits(
    circuit_breaker=CircuitBreakerConfig(minimum_number_of_calls=1), retry=RetryConfig(attempts=1)
)
POOL = PoolStatistics(
    name="database",
    max_connections=5,
    size=4,
    in_use=3,
    idle=1,
    waiting=2,
    longest_hold_s=0.5,
    lent=100,
    waited=10,
    wait_total_s=1.5,
    timeouts=6,
    refused=7,
    opened=8,
    open_failures=9,
    closed=4,
)
CACHE = CacheStatistics(
    name="fetch", entries=1, bytes=200, hits=3, stale_hits=4, misses=5, shared=6, evictions=7, in_flight=8
)


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the SDK from configuring the root logger for the whole test run."""
    caplog.set_level(logging.INFO)


class Watched:
    def __init__(self, snapshot: Any) -> None:
        self.name = snapshot.name
        self.snapshot = snapshot

    def statistics(self) -> Any:
        return self.snapshot


@tool()
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    if a < 0:
        raise ToolFailure("No.")
    return a + b


def server_of() -> ReliableServer[None]:
    @asynccontextmanager
    async def lifespan(_: ReliableServer[None]) -> AsyncIterator[None]:
        yield

    server = ReliableServer("stations", version="1.2.3", lifespan=lifespan, limits=Limits(), subscriptions=False)
    server.register(add)
    return server


async def failing() -> None:
    raise DependencyFailed("api", "No.")


async def fine() -> None:
    return None


class Scrape:
    """One answer of `/metrics`, parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families: dict[str, Metric] = {m.name: m for m in text_string_to_metric_families(self.text)}
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, sample: str, **labels: str) -> float:
        return self.samples[sample, tuple(sorted(labels.items()))]


async def scraped(server: ReliableServer[None]) -> Scrape:
    return Scrape((await Exporter(server).exposition()).decode())


def everything() -> ReliableServer[None]:
    server = server_of()
    server.watch(Watched(POOL))
    server.watch(Watched(CACHE), kind="cache")
    server.dependency("api", FRAGILE)
    server.dependency_group("apis", FRAGILE).of("a.example")
    return server


async def test_r63_every_metric_is_what_it_says_it_is() -> None:
    server = everything()
    await server.call_tool("add", {"a": 1, "b": 2})
    scrape = await scraped(server)
    for family in scrape.families.values():
        assert family.type != "unknown"
        assert family.documentation
        assert all(sample.value >= 0 for sample in family.samples)
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
    text_lines = [line for line in scrape.text.splitlines() if not line.startswith("#")]
    assert len(text_lines) == len(scrape.samples), "a series is there twice"


async def test_r63_durations_are_a_histogram_as_the_conventions_have_it() -> None:
    server = server_of()
    for outcome, duration_s in [(Outcome.OK, 0.03), (Outcome.FALLBACK, 0.05), (Outcome.TIMEOUT, 25)]:
        server.metrics.started("add")
        server.metrics.finished("add", outcome, duration_s)
    scrape = await scraped(server)
    family = scrape.families["mcp_server_operation_duration_seconds"]
    assert family.type == "histogram"
    name = "mcp_server_operation_duration_seconds"
    labels = {"mcp_method_name": "tools/call", "gen_ai_tool_name": "add", "network_transport": "tcp"}
    counts = [scrape(f"{name}_bucket", **labels, error_type="", le=str(bound)) for bound in BUCKETS_S]
    assert counts == [0, 0, *[2] * 12]
    assert scrape(f"{name}_bucket", **labels, error_type="", le="+Inf") == 2
    assert scrape(f"{name}_count", **labels, error_type="") == 2
    assert scrape(f"{name}_sum", **labels, error_type="") == pytest.approx(0.08)
    assert scrape(f"{name}_count", **labels, error_type="timeout") == 1
    bounds = "0.01 0.02 0.05 0.1 0.2 0.5 1.0 2.0 5.0 10.0 30.0 60.0 120.0 300.0 +Inf"
    assert " ".join(s.labels["le"] for s in family.samples[:15]) == bounds


async def test_r62_calls_are_counted_by_outcome_and_those_in_flight_are_a_gauge() -> None:
    server = server_of()
    await server.call_tool("add", {"a": 1, "b": 2})
    await server.call_tool("add", {"a": -1, "b": 2})
    server.metrics.started("add")
    scrape = await scraped(server)
    add_labels = {"mcp_method_name": "tools/call", "gen_ai_tool_name": "add"}
    counted = {outcome: scrape("mcp_server_calls_total", **add_labels, outcome=outcome) for outcome in Outcome}
    assert {outcome: n for outcome, n in counted.items() if n} == {"ok": 1, "tool_error": 1}
    assert scrape("mcp_server_calls_in_flight", **add_labels) == 1


async def test_r61_resources_and_prompts_are_methods_and_unknown_tools_are_one() -> None:
    server = server_of()
    for name in ("../../etc/passwd", "x" * 1000, 'quote"\n\\'):
        await server.call_tool(name, {})
    with pytest.raises(Exception, match="Unknown"):
        await server.read_resource("nothing://here")
    scrape = await scraped(server)
    operations = {
        (s.labels["mcp_method_name"], s.labels["gen_ai_tool_name"]) for s in scrape.families["mcp_server_calls"].samples
    }
    tools = {("tools/call", name) for name in ("add", "health-check", "get-metrics", "unknown")}
    assert operations == {*tools, ("resources/read", ""), ("prompts/get", "")}
    unknown = {"mcp_method_name": "tools/call", "gen_ai_tool_name": "unknown"}
    assert scrape("mcp_server_calls_total", **unknown, outcome="tool_error") == 3


async def test_r63_a_dependency_shows_its_load_its_breaker_and_what_was_refused() -> None:
    server = server_of()
    api = server.dependency("api", FRAGILE)
    await api.call(fine)
    with pytest.raises(DependencyFailed):
        await api.call(failing)
    with pytest.raises(Exception, match="not asked"):
        await api.call(fine)
    scrape = await scraped(server)
    assert {s.labels["state"]: s.value for s in scrape.families["mcp_server_circuit_breakers"].samples} == {
        "closed": 0,
        "open": 1,
        "half_open": 0,
        "isolated": 0,
        "forced_closed": 0,
    }
    totals = ("attempts", "failures", "timeouts", "busy", "rejected", "opened", "retries", "retries_refused")
    assert {n: v for n in totals if (v := scrape(f"mcp_server_dependency_{n}_total", dependency="api"))} == {
        "attempts": 2,
        "failures": 1,
        "rejected": 1,
        "opened": 1,
    }
    gauges = {n: scrape(f"mcp_server_dependency_{n}", dependency="api") for n in ("in_flight", "queue_length", "chaos")}
    assert gauges == {"in_flight": 0, "queue_length": 0, "chaos": 0}


async def test_r61_the_members_of_a_group_are_added_up_and_a_forgotten_one_still_counts() -> None:
    server = server_of()
    group = server.dependency_group("apis", FRAGILE)
    before = 0.0
    for host in range(100):
        if host % 2:
            await group.of(f"{host}.example").call(fine)
        else:
            with pytest.raises(DependencyFailed):
                await group.of(f"{host}.example").call(failing)
        scrape = await scraped(server)
        attempts = scrape("mcp_server_dependency_attempts_total", dependency="apis")
        assert attempts == before + 1
        before = attempts
    assert scrape("mcp_server_dependency_failures_total", dependency="apis") == 50
    states = {s.labels["state"]: s.value for s in scrape.families["mcp_server_circuit_breakers"].samples}
    assert states["open"] + states["closed"] == 64
    assert "example" not in scrape.text


async def test_r42_a_pool_has_the_names_of_the_conventions() -> None:
    server = everything()
    scrape = await scraped(server)
    label = {"db_client_connection_pool_name": "database"}
    assert scrape("db_client_connection_count", **label, db_client_connection_state="used") == 3
    assert scrape("db_client_connection_count", **label, db_client_connection_state="idle") == 1
    assert scrape("db_client_connection_max", **label) == 5
    assert scrape("db_client_connection_pending_requests", **label) == 2
    assert scrape("db_client_connection_timeouts_total", **label) == 6
    totals = {"refused": 7, "lent": 100, "waits": 10, "wait_seconds": 1.5, "opened": 8, "open_failures": 9, "closed": 4}
    assert {name: scrape(f"mcp_server_pool_{name}_total", pool="database") for name in totals} == totals


async def test_r63_an_http_client_has_the_names_of_the_conventions_and_not_those_of_a_database() -> None:
    server = server_of()
    server.watch(Watched(HttpClientStatistics(name="api", connections=5, idle_connections=2)))
    scrape = await scraped(server)
    states = {
        state: scrape("http_client_open_connections", client="api", http_connection_state=state)
        for state in ("active", "idle")
    }
    assert states == {"active": 3, "idle": 2}
    shown = [f.name for f in scrape.families.values() for s in f.samples if "api" in s.labels.values()]
    assert set(shown) == {"http_client_open_connections"}


async def test_r63_a_part_that_counts_something_else_or_fails_harms_no_scrape() -> None:
    @dataclass(frozen=True)
    class Other:
        name: str = "other"
        queue: int = 3

    class Broken:
        name = "broken"

        def statistics(self) -> Other:
            raise RuntimeError

    server = everything()
    server.watch(Watched(Other()))
    server.watch(Broken())
    scrape = await scraped(server)
    assert scrape("db_client_connection_max", db_client_connection_pool_name="database") == 5
    assert "other" not in scrape.text
    assert [pool.name for pool in server.health.report().pools] == ["database", "other"]


async def test_r63_a_cache_shows_what_it_saved() -> None:
    scrape = await scraped(everything())
    gauges = {name: scrape(f"mcp_server_cache_{name}", cache="fetch") for name in ("entries", "bytes")}
    assert gauges == {"entries": 1, "bytes": 200}
    totals = {"hits": 3, "stale_hits": 4, "misses": 5, "evictions": 7}
    assert {name: scrape(f"mcp_server_cache_{name}_total", cache="fetch") for name in totals} == totals


async def test_r14_the_server_s_own_state_is_there() -> None:
    server = server_of()
    assert (await scraped(server))("mcp_server_ready") == 0
    await server.health.fresh_report()
    server.load_shedder.refused = 3
    server.load_shedder.queued = 2
    scrape = await scraped(server)
    assert scrape("mcp_server_ready") == 1
    assert scrape("mcp_server_info", name="stations", version="1.2.3") == 1
    assert scrape("mcp_server_health_check_ok", check="calls") == 1
    assert (scrape("mcp_server_refused_calls_total"), scrape("mcp_server_queue_length")) == (3, 2)
    assert scrape("mcp_server_uptime_seconds") >= 0
    assert scrape("mcp_server_event_loop_lag_seconds") >= 0


async def test_r62_requests_that_were_refused_before_they_were_calls_are_counted_apart() -> None:
    server = server_of()
    server.refused_requests.rate_limited, server.refused_requests.unauthorized = 4, 5
    scrape = await scraped(server)
    assert scrape("mcp_server_rate_limited_requests_total") == 4
    assert scrape("mcp_server_unauthorized_requests_total") == 5
    told: Any = await server.call_tool("get-metrics", {})
    assert told.structured_content["refused_requests"] == {"rate_limited": 4, "unauthorized": 5}


@pytest.mark.skipif(sys.platform != "linux", reason="prometheus_client reads /proc")
async def test_r14_memory_and_descriptors_of_the_process_are_there() -> None:
    scrape = await scraped(server_of())
    assert scrape("process_resident_memory_bytes") > 10_000_000
    assert scrape("process_open_fds") > 0


def test_r63_the_route_answers_without_a_host_check_in_the_format_that_every_prometheus_reads() -> None:
    server = everything()
    add_metrics(server)
    client = TestClient(server.streamable_http_app(), base_url="http://10.1.2.3:9000")
    for _ in range(2):
        answer = client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "mcp_server_ready" in {m.name for m in text_string_to_metric_families(answer.text)}
    assert client.post("/metrics").status_code == 405


def test_r63_without_the_option_there_is_no_such_route() -> None:
    client = TestClient(server_of().streamable_http_app(), base_url="http://10.1.2.3:9000")
    assert client.get("/metrics").status_code == 404


def test_r63_nothing_is_imported_before_the_first_scrape() -> None:
    code = "import sys, reliability.probes, reliability.http_server; print('prometheus_client' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert ran.stdout.strip() == "False"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_r63_promtool_has_nothing_to_say() -> None:
    server = everything()
    await server.call_tool("add", {"a": 1, "b": 2})
    text = await Exporter(server).exposition()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)  # noqa: ASYNC221
    complaints = [line for line in checked.stderr.decode().splitlines() if "db_client_connection_count" not in line]
    assert complaints == []  # that name is OpenTelemetry's
    assert checked.returncode in (0, 3)  # 3: complaints only
