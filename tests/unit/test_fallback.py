"""What answers when a tool cannot, seen by the SDK's real client in both eras: rules R48 to R52, R62 and R68."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import textwrap
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import anyio
import pytest
from anyio.lowlevel import checkpoint
from jsonschema import validate  # type: ignore[import-untyped]
from mcp import Client
from mcp.server.mcpserver import Context  # noqa: TC002 - the annotations of tools are read
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent
from pydantic import BaseModel, ConfigDict, Field
from reliability import Limits, ReliableServer, instead, remaining_s, stale_cache, tool
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.deadlines import deadline
from reliability.dependency import DependencyLimits
from reliability.errors import DependencyFailed, Overloaded, ToolFailure
from reliability.masking import ERROR_META
from reliability.metrics import Outcome
from reliability.provenance import META

from tests.unit.support import CANCELLERS, FakeClock, cancel_at_every_await, until, virtual_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from reliability.cache import StaleCache
    from reliability.fallback import Fallback

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quiet")]

Era = Literal["legacy", "auto"]
DOWN = "The API is down."


@pytest.fixture(params=["legacy", "auto"], ids=["handshake era", "modern era"])
def era(request: pytest.FixtureRequest) -> Era:
    found: Era = request.param
    return found


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the SDK from configuring the root logger for the whole test run."""
    caplog.set_level(logging.INFO)


class Weather(BaseModel):
    model_config = ConfigDict(extra="forbid")

    town: str
    degrees: int
    days: list[int] = Field(default_factory=list)


class Wine(BaseModel):
    provenance: str


class Upstream:
    """A service that tools ask: it counts, and it can be down, hang, or wait for the test."""

    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None
        self.hangs = False
        self.hung: list[str] = []
        self.begun = anyio.Event()
        self.may_end: anyio.Event | None = None

    async def degrees(self) -> int:
        self.asked += 1
        self.begun.set()
        await (checkpoint() if self.may_end is None else self.may_end.wait())
        if self.hangs:
            try:
                await anyio.sleep_forever()
            finally:
                self.hung.append("cancelled")
        if self.error is not None:
            raise self.error
        return self.asked

    def break_down(self, cause: Exception | None = None) -> None:
        self.error = DependencyFailed("api", DOWN)
        self.error.__cause__ = cause


@asynccontextmanager
async def lifespan(server: ReliableServer[None]) -> AsyncIterator[None]:
    yield None


def make(*functions: Callable[..., Any], answers_path: Path | None = None, **limits: Any) -> ReliableServer[None]:
    server = ReliableServer(
        "my-server",
        version="1.2.3",
        lifespan=lifespan,
        limits=Limits(**limits),
        answers_path=answers_path,
        subscriptions=False,
    )
    for function in functions:
        server.register(function)
    return server


def weather_tool(upstream: Upstream, fallback: Fallback) -> Callable[..., Any]:
    @tool(read_only=True, fallback=fallback)
    async def weather(town: str, days: int = 1) -> Weather:
        return Weather(town=town, degrees=await upstream.degrees(), days=list(range(days)))

    return weather


def cache_of(server: ReliableServer[None], name: str = "weather") -> StaleCache[bytes]:
    answers = server._fallbacks[name].answers
    assert answers is not None
    return answers.cache


async def restored(server: ReliableServer[None]) -> None:
    answers = server._fallbacks["weather"].answers
    assert answers is not None
    with anyio.fail_after(5):
        await answers._restored.wait()


def clock_of(server: ReliableServer[None], name: str = "weather") -> FakeClock:
    clock = FakeClock()
    cache_of(server, name).clock = clock
    return clock


def texts(result: CallToolResult) -> list[str]:
    return [block.text for block in result.content if isinstance(block, TextContent)]


def provenance(result: CallToolResult) -> Any:
    return (result.meta or {}).get(META)


def kind_of_error(result: CallToolResult) -> Any:
    assert result.is_error
    assert provenance(result) is None
    return (result.meta or {})[ERROR_META]["kind"]


def outcomes(server: ReliableServer[None], name: str = "weather") -> dict[str, int]:
    (figures,) = [s for s in server.metrics.statistics() if s.name == name]
    return {o.value: n for o in Outcome if (n := getattr(figures, o.value))}


async def settled() -> None:
    await anyio.wait_all_tasks_blocked()
    await checkpoint()


async def advertised(client: Client, name: str) -> dict[str, Any]:
    (found,) = [one for one in (await client.list_tools()).tools if one.name == name]
    assert found.output_schema is not None
    return found.output_schema


# The stale answer


async def test_r50_a_stale_answer_says_that_it_is_stale_how_old_from_where_and_why(era: Era) -> None:
    upstream = Upstream()
    server = make(weather_tool(upstream, stale_cache(ttl_s=60, max_stale_s=3600)))
    clock = clock_of(server)
    async with Client(server, mode=era) as client:
        schema = await advertised(client, "weather")
        fresh = await client.call_tool("weather", {"town": "Ulm"})
        clock.now += 734.25
        upstream.break_down()
        stale = await client.call_tool("weather", {"town": "Ulm"})
    assert fresh.structured_content == {"town": "Ulm", "degrees": 1, "days": [0]}
    assert provenance(fresh) is None
    label = {"source": "cache", "stale": True, "age_s": 734.2, "reason": DOWN}
    assert stale.structured_content == {"town": "Ulm", "degrees": 1, "days": [0], "provenance": label}
    assert provenance(stale) == label
    assert texts(stale)[:-1] == texts(fresh)
    assert texts(stale)[-1] == f"This answer is stale: it was made 734 s ago. None can be made now: {DOWN}"
    assert not stale.is_error
    for result in (fresh, stale):
        validate(result.structured_content, schema)
    assert upstream.asked == 2


async def test_r50_the_property_is_declared_and_needed_by_no_answer(era: Era) -> None:
    @tool(read_only=True)
    async def plain() -> Weather:
        return Weather(town="Ulm", degrees=1)

    async with Client(make(weather_tool(Upstream(), stale_cache()), plain), mode=era) as client:
        with_fallback, without = await advertised(client, "weather"), await advertised(client, "plain")
    assert with_fallback["properties"].keys() - without["properties"].keys() == {"provenance"}
    assert with_fallback["required"] == without["required"]
    assert with_fallback["additionalProperties"] is False


async def test_r50_a_fresh_answer_from_the_cache_is_labelled_for_programs_and_the_tool_is_not_asked(era: Era) -> None:
    upstream = Upstream()
    server = make(weather_tool(upstream, stale_cache(ttl_s=60)))
    clock = clock_of(server)
    async with Client(server, mode=era) as client:
        made = await client.call_tool("weather", {"town": "Ulm"})
        clock.now += 59
        remembered = await client.call_tool("weather", {"town": "Ulm"})
    label = {"source": "cache", "stale": False, "age_s": 59.0}
    assert provenance(remembered) == label
    assert remembered.structured_content == {**(made.structured_content or {}), "provenance": label}
    assert texts(remembered) == texts(made)
    assert (upstream.asked, outcomes(server)) == (1, {"ok": 2})


async def test_r50_a_stale_answer_is_served_at_once_while_a_new_one_is_made(era: Era) -> None:
    upstream = Upstream()
    server = make(weather_tool(upstream, stale_cache(ttl_s=60, revalidate_s=300)))
    clock = clock_of(server)
    async with Client(server, mode=era) as client:
        await client.call_tool("weather", {"town": "Ulm"})
        clock.now += 60
        stale = await client.call_tool("weather", {"town": "Ulm"})
        await settled()
        new = await client.call_tool("weather", {"town": "Ulm"})
    assert provenance(stale) == {"source": "cache", "stale": True, "age_s": 60.0}
    assert texts(stale)[-1] == "This answer is stale: it was made 60 s ago. A new one is being made."
    assert (new.structured_content or {})["degrees"] == 2
    assert (upstream.asked, outcomes(server)) == (2, {"ok": 3})


async def test_r50_an_answer_that_is_too_old_is_not_served(era: Era) -> None:
    upstream = Upstream()
    server = make(weather_tool(upstream, stale_cache(ttl_s=60, max_stale_s=3600)))
    clock = clock_of(server)
    async with Client(server, mode=era) as client:
        await client.call_tool("weather", {"town": "Ulm"})
        upstream.break_down()
        clock.now += 3600
        assert kind_of_error(await client.call_tool("weather", {"town": "Ulm"})) == "dependency_failed"
    assert outcomes(server) == {"ok": 1, "error": 1}


async def test_r48_without_an_answer_for_these_arguments_the_failure_is_told(era: Era) -> None:
    upstream = Upstream()
    async with Client(make(weather_tool(upstream, stale_cache())), mode=era) as client:
        await client.call_tool("weather", {"town": "Ulm"})
        upstream.break_down()
        assert kind_of_error(await client.call_tool("weather", {"town": "Bonn"})) == "dependency_failed"


async def test_r50_answers_of_every_shape_are_labelled_as_far_as_their_shape_allows(era: Era) -> None:
    upstream = Upstream()
    cached = stale_cache(ttl_s=0)

    @tool(read_only=True, fallback=cached)
    async def as_text() -> str:
        return f"{await upstream.degrees()} degrees"

    @tool(read_only=True, fallback=cached)
    async def as_list() -> list[int]:
        return [await upstream.degrees()]

    @tool(read_only=True, fallback=cached)
    async def as_mapping() -> dict[str, int]:
        return {"Ulm": await upstream.degrees()}

    @tool(read_only=True, fallback=cached)
    async def as_result() -> CallToolResult:
        await upstream.degrees()
        return CallToolResult(content=[TextContent(type="text", text="own")], _meta={"mine": 1})

    async with Client(make(as_text, as_list, as_mapping, as_result), mode=era) as client:
        names = ["as_text", "as_list", "as_mapping", "as_result"]
        for name in names:
            await client.call_tool(name, {})
        upstream.break_down()
        text, listed, mapping, result = [await client.call_tool(name, {}) for name in names]
    for found in (text, listed, mapping, result):
        assert provenance(found)["stale"] is True
        assert "stale" in texts(found)[-1]
    assert (texts(text)[0], text.structured_content) == ("1 degrees", None)
    assert listed.structured_content == {"result": [2], "provenance": provenance(listed)}
    assert mapping.structured_content == {"Ulm": 3}  # an item more would be wrong
    assert (texts(result)[0], (result.meta or {})["mine"]) == ("own", 1)


async def test_r48_while_the_breaker_is_open_stale_answers_are_served_and_the_dependency_is_left_alone(
    era: Era,
) -> None:
    upstream = Upstream()
    server = make()
    limits = DependencyLimits(
        circuit_breaker=CircuitBreakerConfig(minimum_number_of_calls=2, wait_duration_in_open_state_s=60)
    )
    api = server.dependency("api", limits)

    @tool(read_only=True, fallback=stale_cache(ttl_s=0))
    async def weather() -> Weather:
        return Weather(town="Ulm", degrees=await api.call(upstream.degrees))

    server.register(weather)
    async with Client(server, mode=era) as client:
        await client.call_tool("weather", {})
        upstream.break_down()
        answers = [await client.call_tool("weather", {}) for _ in range(20)]
    assert [(answer.structured_content or {})["degrees"] for answer in answers] == [1] * 20
    assert upstream.asked < 6
    assert "it failed too often" in provenance(answers[-1])["reason"]
    assert outcomes(server) == {"ok": 1, "fallback": 20}


async def test_r48_tasks_of_a_tool_that_are_refused_at_the_same_time_are_a_failed_dependency(era: Era) -> None:
    upstream = Upstream()

    @tool(read_only=True, fallback=stale_cache(ttl_s=0))
    async def weather() -> Weather:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(upstream.degrees)
        return Weather(town="Ulm", degrees=1)

    async with Client(make(weather), mode=era) as client:
        await client.call_tool("weather", {})
        upstream.break_down()
        assert provenance(await client.call_tool("weather", {}))["stale"] is True


@virtual_time
async def test_r44_a_tool_that_hangs_is_stopped_in_time_for_the_stale_answer(era: Era) -> None:
    upstream = Upstream()
    server = make(weather_tool(upstream, stale_cache(ttl_s=0)))
    async with Client(server, mode=era) as client:
        await client.call_tool("weather", {"town": "Ulm"})
        upstream.hangs = True
        started = anyio.current_time()
        answer = await client.call_tool("weather", {"town": "Ulm"})
        assert 24.5 < anyio.current_time() - started < 25
        await settled()
        assert upstream.hung == ["cancelled"]
        assert (answer.structured_content or {})["degrees"] == 1
        assert provenance(answer)["reason"] == "The call took longer than its limit of 24.75 s and was stopped."
        assert cache_of(server).statistics().in_flight == 0
    assert outcomes(server) == {"ok": 1, "fallback": 1}


@virtual_time
async def test_r44_a_tool_that_nothing_can_stand_in_for_has_the_whole_time(era: Era) -> None:
    upstream = Upstream()
    server = make(weather_tool(upstream, stale_cache()))
    async with Client(server, mode=era) as client:
        upstream.hangs = True
        started = anyio.current_time()
        assert kind_of_error(await client.call_tool("weather", {"town": "Ulm"})) == "timeout"
        assert anyio.current_time() - started == pytest.approx(25, abs=0.01)
        await settled()
        assert upstream.hung == ["cancelled"]
    assert outcomes(server) == {"timeout": 1}


async def test_r48_a_timeout_of_the_tools_own_making_is_a_timeout(era: Era) -> None:
    upstream = Upstream()

    @tool(read_only=True, fallback=stale_cache(ttl_s=0))
    async def weather() -> Weather:
        with deadline(0.01):
            return Weather(town="Ulm", degrees=await upstream.degrees())

    async with Client(make(weather), mode=era) as client:
        await client.call_tool("weather", {})
        upstream.hangs = True
        assert provenance(await client.call_tool("weather", {}))["stale"] is True


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ToolFailure("No such town."), "tool_error"),
        (ValueError("bug"), "error"),
        (TimeoutError(), "error"),
        (Overloaded("busy"), "rejected"),
        (asyncio.CancelledError(), "error"),
    ],
)
async def test_r48_no_other_error_has_a_fallback(era: Era, error: Exception, outcome: str) -> None:
    upstream, called = Upstream(), []

    async def substitute(town: str) -> Weather:
        called.append(town)
        return Weather(town=town, degrees=0)

    server = make(weather_tool(upstream, stale_cache(ttl_s=0, otherwise=substitute)))
    async with Client(server, mode=era) as client:
        await client.call_tool("weather", {"town": "Ulm"})
        upstream.error = error
        failed = await client.call_tool("weather", {"town": "Ulm"})
        assert failed.is_error
        assert provenance(failed) is None
    assert called == []
    assert outcomes(server) == {"ok": 1, outcome: 1}


async def test_r48_wrong_arguments_have_no_fallback(era: Era) -> None:
    upstream = Upstream()
    server = make(weather_tool(upstream, stale_cache(otherwise=_zero)))
    async with Client(server, mode=era) as client:
        await client.call_tool("weather", {"town": "Ulm"})
        upstream.break_down()
        failed = await client.call_tool("weather", {"town": "Ulm", "days": "many"})
        assert failed.is_error
        assert "days" in texts(failed)[0]
        protocol_error = await client.call_tool("weather", {})
        assert protocol_error.is_error
    assert upstream.asked == 1


async def _zero(town: str) -> Weather:
    return Weather(town=town, degrees=0)


async def test_r48_a_protocol_error_of_the_tool_has_no_fallback(era: Era) -> None:
    upstream = Upstream()
    server = make(weather_tool(upstream, stale_cache(ttl_s=0)))
    async with Client(server, mode=era) as client:
        await client.call_tool("weather", {"town": "Ulm"})
        upstream.error = MCPError(code=-32000, message="on purpose")
        with pytest.raises(MCPError, match="on purpose"):
            await client.call_tool("weather", {"town": "Ulm"})


async def test_r48_a_client_that_cancels_gets_no_fallback_and_stops_the_work(era: Era) -> None:
    upstream, called = Upstream(), []

    async def substitute(town: str) -> Weather:
        called.append(town)
        return Weather(town=town, degrees=0)

    server = make(weather_tool(upstream, stale_cache(ttl_s=0, otherwise=substitute)))
    async with Client(server, mode=era) as client:
        await client.call_tool("weather", {"town": "Ulm"})
        upstream.hangs = True
        upstream.begun = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "weather", {"town": "Ulm"})
            await upstream.begun.wait()
            await settled()
            tasks.cancel_scope.cancel()
        await until(lambda: outcomes(server).get("cancelled"))
        await until(lambda: upstream.hung)
        await settled()
        assert cache_of(server).statistics().in_flight == 0
    assert (called, outcomes(server)) == ([], {"ok": 1, "cancelled": 1})


async def test_r46_the_client_that_asked_first_may_leave_and_the_others_lose_nothing(era: Era) -> None:
    upstream = Upstream()
    may_end = upstream.may_end = anyio.Event()
    server = make(weather_tool(upstream, stale_cache()))
    results: list[CallToolResult] = []

    async def other(client: Client) -> None:
        results.append(await client.call_tool("weather", {"town": "Ulm"}))

    async with Client(server, mode=era) as client, anyio.create_task_group() as others:
        async with anyio.create_task_group() as first:
            first.start_soon(client.call_tool, "weather", {"town": "Ulm"})
            await upstream.begun.wait()
            for _ in range(3):
                others.start_soon(other, client)
            await until(lambda: cache_of(server).statistics().shared == 3)
            first.cancel_scope.cancel()
        await until(lambda: outcomes(server).get("cancelled"))
        may_end.set()
    assert [(result.structured_content or {})["degrees"] for result in results] == [1] * 3
    assert [provenance(result) for result in results] == [None] * 3  # it was made for them, too
    assert upstream.asked == 1


async def test_r49_a_crowd_asks_once(era: Era) -> None:
    upstream = Upstream()
    server = make(weather_tool(upstream, stale_cache(ttl_s=0)))
    clock_of(server)  # no time passes
    may_end = upstream.may_end = anyio.Event()
    found: list[Any] = []

    async def call(client: Client) -> None:
        found.append(provenance(await client.call_tool("weather", {"town": "Ulm"})))

    async with Client(server, mode=era) as client, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(call, client)
        await until(lambda: cache_of(server).statistics().shared == 19)
        may_end.set()
    assert (upstream.asked, found) == (1, [None] * 20)
    assert outcomes(server) == {"ok": 20}


async def test_r51_results_that_are_too_large_are_an_error_every_time_and_cut_text_is_remembered(era: Era) -> None:
    asked = []

    @tool(read_only=True, fallback=stale_cache())
    async def structured() -> list[str]:
        asked.append(1)
        return ["x" * 2000]

    @tool(read_only=True, fallback=stale_cache())
    async def plain() -> str:
        asked.append(1)
        return "x" * 2000

    server = make(structured, plain, max_output_bytes=1000)
    async with Client(server, mode=era) as client:
        for _ in range(2):
            assert (await client.call_tool("structured", {})).is_error
            assert "Truncated" in texts(await client.call_tool("plain", {}))[0]
    assert len(asked) == 3


async def test_r51_a_result_that_is_an_error_is_not_remembered(era: Era) -> None:
    asked = []

    @tool(read_only=True, fallback=stale_cache())
    async def refuses() -> CallToolResult:
        asked.append(1)
        await checkpoint()
        return CallToolResult(content=[TextContent(type="text", text=f"no {len(asked)}")], is_error=True)

    server = make(refuses)
    async with Client(server, mode=era) as client:
        assert [texts(await client.call_tool("refuses", {})) for _ in range(2)] == [["no 1"], ["no 2"]]
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(client.call_tool, "refuses", {})
    assert len(asked) == 7
    assert cache_of(server, "refuses").statistics().entries == 0


async def test_r68_after_drain_and_at_the_end_no_new_answer_is_being_made(era: Era) -> None:
    upstream = Upstream()
    server = make(weather_tool(upstream, stale_cache(ttl_s=60, revalidate_s=300)))
    clock = clock_of(server)
    async with Client(server, mode=era) as client:
        await client.call_tool("weather", {"town": "Ulm"})
        await client.call_tool("weather", {"town": "Bonn"})
        clock.now += 60
        upstream.hangs = True
        await client.call_tool("weather", {"town": "Ulm"})
        await settled()
        assert cache_of(server).statistics().in_flight == 1
        server.drain()
        server.load_shedder.draining = False  # as for a call that had been admitted before
        assert provenance(await client.call_tool("weather", {"town": "Bonn"}))["stale"] is True
        await settled()
        assert cache_of(server).statistics().in_flight == 1
    await settled()
    assert (upstream.asked, upstream.hung) == (3, ["cancelled"])
    assert cache_of(server).statistics().in_flight == 0


async def test_r8_a_new_answer_is_made_in_the_background_with_a_context_that_still_works(era: Era) -> None:
    told = []

    @tool(read_only=True, fallback=stale_cache(ttl_s=60, revalidate_s=300))
    async def weather(ctx: Context[None]) -> Weather:
        await ctx.report_progress(1, 2)
        told.append(remaining_s())
        return Weather(town="Ulm", degrees=len(told))

    server = make(weather, tool_timeout_s=7)
    clock = clock_of(server)
    async with Client(server, mode=era) as client:
        await client.call_tool("weather", {})
        clock.now += 60
        await client.call_tool("weather", {})
        await until(lambda: len(told) == 2)
        await settled()
        assert (await client.call_tool("weather", {})).structured_content is not None
    assert 5 < told[1] <= 7


# Another function


async def test_r48_another_function_answers_and_its_answer_says_so(era: Era, caplog: pytest.LogCaptureFixture) -> None:
    upstream, called = Upstream(), []

    async def estimate(town: str, days: int = 7) -> Weather:
        called.append((town, days))
        return Weather(town=town, degrees=-1)

    server = make(weather_tool(upstream, instead(estimate)))
    async with Client(server, mode=era) as client:
        well = await client.call_tool("weather", {"town": "Ulm"})
        upstream.break_down(OSError("no route"))
        schema = await advertised(client, "weather")
        answer = await client.call_tool("weather", {"town": "Ulm", "days": 3})
        await client.call_tool("weather", {"town": "Ulm"})
    assert provenance(well) is None
    label = {"source": "fallback", "stale": False, "reason": DOWN}
    assert answer.structured_content == {"town": "Ulm", "degrees": -1, "days": [], "provenance": label}
    validate(answer.structured_content, schema)
    assert provenance(answer) == label
    assert texts(answer)[-1] == f"This is the answer of a fallback, which may know less: {DOWN}"
    assert called == [("Ulm", 3), ("Ulm", 7)]
    assert outcomes(server) == {"ok": 1, "fallback": 2}
    served = [record.__dict__ for record in caplog.records if record.getMessage() == "fallback served"]
    assert len(served) == 2
    assert [served[0][name] for name in ("levelname", "kind", "text", "cause")] == [
        "WARNING",
        "dependency_failed",
        DOWN,
        "OSError",
    ]


@virtual_time
@pytest.mark.parametrize(
    ("declare", "kept_s"),
    [
        (lambda function: instead(function, reserve_s=10), 10),
        (instead, 5),
        (lambda function: stale_cache(otherwise=function), 5),
        (lambda function: instead(function, reserve_s=1000), 12.5),
    ],
)
async def test_r44_another_function_has_time_that_was_kept_for_it(
    era: Era, declare: Callable[[Any], Fallback], kept_s: float
) -> None:
    upstream, left = Upstream(), []

    async def estimate(town: str) -> Weather:
        left.append(remaining_s())
        return Weather(town=town, degrees=-1)

    server = make(weather_tool(upstream, declare(estimate)))
    async with Client(server, mode=era) as client:
        upstream.hangs = True
        assert not (await client.call_tool("weather", {"town": "Ulm"})).is_error
    assert left == [pytest.approx(kept_s, abs=0.01)]
    assert upstream.hung == ["cancelled"]


@virtual_time
async def test_r44_another_function_that_hangs_is_cut_at_the_calls_deadline(era: Era) -> None:
    upstream = Upstream()

    async def estimate(town: str) -> Weather:
        return Weather(town=town, degrees=await upstream.degrees())

    server = make(weather_tool(upstream, instead(estimate)))
    async with Client(server, mode=era) as client:
        upstream.hangs = True
        started = anyio.current_time()
        assert kind_of_error(await client.call_tool("weather", {"town": "Ulm"})) == "timeout"
        assert anyio.current_time() - started == pytest.approx(25, abs=0.01)
    assert upstream.hung == ["cancelled"] * 2
    assert outcomes(server) == {"timeout": 1}


async def test_r48_another_function_may_block_and_may_want_the_context(era: Era) -> None:
    threads = []

    def estimate(ctx: Context[None]) -> str:
        threads.append(threading.current_thread())
        return f"guess for {ctx.request_context.protocol_version is not None}"

    @tool(read_only=True, fallback=instead(estimate))
    async def fails(town: str) -> str:
        raise DependencyFailed("api", DOWN)

    async with Client(make(fails), mode=era) as client:
        answer = await client.call_tool("fails", {"town": "Ulm"})
    assert texts(answer)[0] == "guess for True"
    assert threads != [threading.main_thread()]


@pytest.mark.parametrize("second", [ToolFailure("no"), ValueError("hunter2"), DependencyFailed("b", "B is down.")])
async def test_r52_when_the_other_function_fails_too_the_tools_own_failure_is_told(
    era: Era, second: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Upstream()

    async def estimate(town: str) -> Weather:
        raise second

    server = make(weather_tool(upstream, instead(estimate)))
    async with Client(server, mode=era) as client:
        upstream.break_down()
        failed = await client.call_tool("weather", {"town": "Ulm"})
    assert kind_of_error(failed) == "dependency_failed"
    assert DOWN in texts(failed)[0]
    (record,) = [record for record in caplog.records if record.getMessage() == "fallback failed"]
    assert bool(record.exc_info) is isinstance(second, ValueError)
    assert record.__dict__["text"] == str(second)
    assert outcomes(server) == {"error": 1}


async def test_r48_an_answer_of_the_other_function_that_is_an_error_or_too_large_is_none(era: Era) -> None:
    async def refuses() -> CallToolResult:
        return CallToolResult(content=[], is_error=True)

    @tool(read_only=True, fallback=instead(refuses))
    async def one() -> CallToolResult:
        raise DependencyFailed("api", DOWN)

    async def too_much() -> list[str]:
        return ["x" * 2000]

    @tool(read_only=True, fallback=instead(too_much))
    async def two() -> list[str]:
        raise DependencyFailed("api", DOWN)

    async with Client(make(one, two, max_output_bytes=1000), mode=era) as client:
        for name in ("one", "two"):
            assert kind_of_error(await client.call_tool(name, {})) == "dependency_failed"


async def test_r48_the_stale_answer_comes_before_the_other_function_whose_answers_are_not_remembered(era: Era) -> None:
    upstream = Upstream()
    server = make(weather_tool(upstream, stale_cache(ttl_s=0, otherwise=_zero)))
    async with Client(server, mode=era) as client:
        await client.call_tool("weather", {"town": "Ulm"})
        upstream.break_down()
        known = await client.call_tool("weather", {"town": "Ulm"})
        for _ in range(2):
            unknown = await client.call_tool("weather", {"town": "Bonn"})
            assert (provenance(unknown)["source"], (unknown.structured_content or {})["degrees"]) == ("fallback", 0)
    assert provenance(known)["source"] == "cache"
    assert cache_of(server).statistics().entries == 1


# Declaring


def test_r51_only_a_tool_that_reads_may_have_a_cache() -> None:
    with pytest.raises(ValueError, match="read_only=True"):
        tool(fallback=stale_cache())
    tool(fallback=instead(_zero, reserve_s=0.5))


@pytest.mark.parametrize("reserve_s", [0, -1, float("nan")])
def test_r44_time_that_is_none_cannot_be_kept(reserve_s: float) -> None:
    with pytest.raises(ValueError, match="reserve_s"):
        instead(_zero, reserve_s=reserve_s)
    with pytest.raises(ValueError, match="reserve_s"):
        stale_cache(otherwise=_zero, reserve_s=reserve_s)


def test_r49_wrong_limits_of_a_cache_are_refused_where_they_stand() -> None:
    with pytest.raises(ValueError, match="ttl_s <= revalidate_s <= max_stale_s"):
        stale_cache(ttl_s=100, max_stale_s=50)
    with pytest.raises(ValueError, match="max_entries"):
        stale_cache(max_entries=0)


async def test_r48_a_function_that_does_not_fit_the_tool_is_refused_at_start_up() -> None:
    async def other_arguments(town: str, country: str, planet: str) -> Weather:
        raise NotImplementedError

    async def other_type(town: str) -> str:
        raise NotImplementedError

    with pytest.raises(ValueError, match="'weather' has parameters that the tool lacks: country, planet"):
        make(weather_tool(Upstream(), instead(other_arguments)))
    with pytest.raises(ValueError, match="'weather' must return the same type"):
        make(weather_tool(Upstream(), instead(other_type)))


async def test_r50_a_field_called_provenance_is_refused_at_start_up() -> None:
    @tool(read_only=True, fallback=stale_cache())
    async def wine() -> Wine:
        raise NotImplementedError

    with pytest.raises(ValueError, match="'provenance'"):
        make(wine)


async def test_r63_caches_are_among_the_metrics_with_their_figures(era: Era) -> None:
    server = make(weather_tool(Upstream(), stale_cache()))
    async with Client(server, mode=era) as client:
        for _ in range(3):
            await client.call_tool("weather", {"town": "Ulm"})
        figures = ((await client.call_tool("get-metrics", {})).structured_content or {})["caches"]
    assert [(cache["name"], cache["hits"], cache["misses"]) for cache in figures] == [("weather", 2, 1)]


# Within the process


async def test_r49_who_changes_an_answer_changes_it_for_nobody_else() -> None:
    server = make(weather_tool(Upstream(), stale_cache()))
    for degrees in (100, 200, 300):
        answer = await server.call_tool("weather", {"town": "Ulm"})
        assert isinstance(answer, CallToolResult)
        assert answer.structured_content is not None
        assert answer.structured_content["degrees"] == 1
        assert answer.structured_content["days"] == [0]
        answer.structured_content["degrees"] = degrees
        answer.structured_content["days"].append(degrees)
        answer.content.clear()


async def test_r49_a_call_that_cannot_be_remembered_is_made_like_any_other() -> None:
    upstream = Upstream()
    server = make(weather_tool(upstream, stale_cache()))
    for asked in (1, 2):
        await server.call_tool("weather", {"town": "Ulm", "ignored": object()})
        assert upstream.asked == asked
    upstream.break_down()
    failed = await server.call_tool("weather", {"town": "Ulm", "ignored": object()})
    assert isinstance(failed, CallToolResult)
    assert kind_of_error(failed) == "dependency_failed"


@pytest.mark.parametrize("how", CANCELLERS)
@pytest.mark.parametrize("fallback", ["cache", "function"])
async def test_r46_a_call_cancelled_at_any_await_leaves_nothing(how: str, fallback: str) -> None:
    upstream = Upstream()
    declared = stale_cache(ttl_s=0) if fallback == "cache" else instead(_zero)
    server = make(weather_tool(upstream, declared))
    await server.call_tool("weather", {"town": "Ulm"})
    upstream.break_down()

    async def call() -> None:
        await server.call_tool("weather", {"town": "Ulm"})

    async def nothing_is_left() -> None:
        await settled()
        assert server.load_shedder.in_flight == 0
        assert remaining_s() == float("inf")
        if fallback == "cache":
            assert cache_of(server).statistics().in_flight == 0

    assert await cancel_at_every_await(call, nothing_is_left, how=how) >= 1


# Across processes


async def test_r50_a_restarted_server_serves_its_last_good_answer(era: Era, tmp_path: Path) -> None:
    upstream = Upstream()
    declared = weather_tool(upstream, stale_cache(ttl_s=0))
    async with Client(make(declared, answers_path=tmp_path / "answers.db"), mode=era) as client:
        await client.call_tool("weather", {"town": "Ulm"})
    upstream.break_down()
    async with Client(make(declared, answers_path=tmp_path / "answers.db"), mode=era) as client:
        stale = await client.call_tool("weather", {"town": "Ulm"})
        health = (await client.call_tool("health-check", {})).structured_content or {}
    assert (stale.structured_content or {})["degrees"] == 1
    assert provenance(stale)["stale"] is True
    assert "answers" in [check["name"] for check in health["checks"]]


async def test_r50_answers_of_another_shape_are_not_served_after_a_restart(tmp_path: Path) -> None:
    upstream = Upstream()

    @tool(name="weather", read_only=True, fallback=stale_cache())
    async def older(town: str, days: int = 1) -> list[int]:
        return [await upstream.degrees()]

    newer = weather_tool(upstream, stale_cache())
    for function, limit, is_new in (
        (older, 5000, True),
        (newer, 5000, True),
        (newer, 4000, True),
        (newer, 4000, False),
    ):
        server = make(function, answers_path=tmp_path / "a.db", max_output_bytes=limit)
        async with Client(server) as client:
            await restored(server)
            answer = await client.call_tool("weather", {"town": "Ulm"})
            assert (provenance(answer) is None) is is_new
    assert upstream.asked == 3


def test_r50_a_killed_process_leaves_its_answers_to_the_next_one(tmp_path: Path, root: Path) -> None:
    script = """
        import os, signal, sys, time, anyio
        sys.path.insert(0, sys.argv[1])
        from contextlib import asynccontextmanager
        from mcp import Client
        from reliability import DependencyFailed, Limits, ReliableServer, stale_cache, tool

        first = sys.argv[3] == "first"

        @tool(read_only=True, fallback=stale_cache(ttl_s=0))
        async def ask() -> str:
            if first:
                return "good"
            raise DependencyFailed("api", "The API is down.")

        @asynccontextmanager
        async def lifespan(server):
            yield

        async def main():
            server = ReliableServer(
                "s", version="1", lifespan=lifespan, limits=Limits(), answers_path=sys.argv[2], subscriptions=False
            )
            server.register(ask)
            async with Client(server) as client:
                print([block.text for block in (await client.call_tool("ask", {})).content], flush=True)
                if first:
                    while server._answers.written == 0:
                        await anyio.sleep(0.01)
                    os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

        anyio.run(main)
    """
    package = root / "template" / "src" / "{{package_name}}"

    def run(which: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), package, tmp_path / "answers.db", which],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        ).stdout

    assert run("first") == "['good']\n"
    assert "['good', 'This answer is stale: it was made" in run("second")
