"""A person is asked in the middle of a call: rules R44, R45 and R59. The SDK's real client, in virtual time."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio
import pytest
from mcp import Client
from mcp.server.mcpserver import (
    AcceptedElicitation,
    Context,
    Elicit,
    Resolve,
)
from mcp_types import (
    CallToolResult,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequiredResult,
    ListRootsResult,
    SamplingMessage,
    TextContent,
)
from pydantic import BaseModel
from reliability.deadlines import remaining_s
from reliability.declarations import tool
from reliability.errors import DeadlineExceeded, DependencyFailed
from reliability.fallback import stale_cache
from reliability.masking import ERROR_META
from reliability.server import Limits, ReliableServer

from tests.unit.support import virtual_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = [pytest.mark.anyio, virtual_time, pytest.mark.usefixtures("quiet")]

ERAS = pytest.mark.parametrize("era", ["legacy", "auto"], ids=["handshake era", "modern era"])
SLOW_PERSON_S = 100.0


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the SDK from configuring the root logger for the whole test run."""
    caplog.set_level(logging.INFO)


class Choice(BaseModel):
    day: str


def server_of(*functions: Callable[..., Any], **limits: Any) -> ReliableServer[None]:
    @asynccontextmanager
    async def lifespan(_: ReliableServer[None]) -> AsyncIterator[None]:
        yield

    limits = {"tool_timeout_s": 1, "answer_timeout_s": 1000, "health_interval_s": 3600} | limits
    server = ReliableServer("asker", version="1", lifespan=lifespan, limits=Limits(**limits), subscriptions=False)
    for function in functions:
        server.register(function)
    return server


def client_of(
    server: ReliableServer[None], era: Literal["legacy", "auto"] = "legacy", *, answer_after_s: float = SLOW_PERSON_S
) -> Client:
    async def person(context: object, params: object) -> ElicitResult:
        await anyio.sleep(answer_after_s)
        return ElicitResult(action="accept", content={"day": "Monday"})

    async def model(context: object, params: object) -> CreateMessageResult:
        await anyio.sleep(answer_after_s)
        return CreateMessageResult(role="assistant", content=TextContent(type="text", text="Monday"), model="m")

    async def roots(context: object) -> ListRootsResult:
        await anyio.sleep(answer_after_s)
        return ListRootsResult(roots=[])

    return Client(server, mode=era, elicitation_callback=person, sampling_callback=model, list_roots_callback=roots)


def text(result: CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


def outcomes(server: ReliableServer[None], name: str) -> dict[str, int]:
    (figures,) = [s for s in server.metrics.statistics() if s.name == name]
    return {outcome: n for outcome in ("ok", "timeout", "cancelled", "error") if (n := getattr(figures, outcome))}


@tool()
async def book(ctx: Context[None, Any]) -> str:
    """Ask for a day, and work for a while before and after."""
    await anyio.sleep(0.3)
    answer = await ctx.elicit("Which day?", Choice)
    await anyio.sleep(0.3)
    assert isinstance(answer, AcceptedElicitation)
    return f"{answer.data.day}, {remaining_s():.1f} s left"


async def test_r44_a_person_may_take_longer_than_the_call_s_deadline() -> None:
    server = server_of(book)
    async with client_of(server) as client:
        result = await client.call_tool("book", {})
    assert text(result) == "Monday, 0.4 s left"
    assert outcomes(server, "book") == {"ok": 1}


async def test_r44_after_the_answer_the_deadline_goes_on() -> None:
    @tool()
    async def stuck(ctx: Context[None, Any]) -> str:
        await ctx.elicit("Which day?", Choice)
        await anyio.sleep_forever()
        return "never"

    server = server_of(stuck)
    begun = anyio.current_time()
    async with client_of(server) as client:
        result = await client.call_tool("stuck", {})
        assert anyio.current_time() - begun == pytest.approx(SLOW_PERSON_S + 1)
    assert text(result).startswith("The call took longer than its limit of 1 s")
    assert outcomes(server, "stuck") == {"timeout": 1}


async def test_r44_a_person_who_never_answers_does_not_hold_the_call_for_ever() -> None:
    server = server_of(book, answer_timeout_s=60)
    async with client_of(server, answer_after_s=10_000) as client:
        result = await client.call_tool("book", {})
    assert text(result).startswith("The answer to a question took longer than its limit of 60 s")
    assert result.meta is not None
    assert result.meta[ERROR_META]["kind"] == "timeout"
    assert outcomes(server, "book") == {"timeout": 1}


async def test_r44_a_tool_may_go_on_without_the_answer() -> None:
    @tool()
    async def default(ctx: Context[None, Any]) -> str:
        try:
            await ctx.elicit("Which day?", Choice)
        except DeadlineExceeded:
            return f"Sunday, {remaining_s():.1f} s left"
        return "answered"

    async with client_of(server_of(default, answer_timeout_s=60), answer_after_s=10_000) as client:
        assert text(await client.call_tool("default", {})) == "Sunday, 1.0 s left"


async def test_r44_a_question_in_a_prompt_and_in_a_resource_pauses_as_well() -> None:
    server = server_of()

    @server.resource("plan://{place}")
    async def plan(place: str, ctx: Context[None, Any]) -> str:
        answer = await ctx.elicit("Which day?", Choice)
        return f"{place} {answer.action}"

    @server.prompt()
    async def ask(ctx: Context[None, Any]) -> str:
        return (await ctx.elicit("Which day?", Choice)).action

    async with client_of(server) as client:
        assert "home accept" in str(await client.read_resource("plan://home"))
        assert "accept" in str(await client.get_prompt("ask"))


async def test_r44_a_tool_that_calls_another_one_pauses_once() -> None:
    server = server_of(book)

    @tool()
    async def outer(ctx: Context[None, Any]) -> str:
        result = await server.call_tool("book", {}, ctx)
        assert isinstance(result, CallToolResult)
        return f"{text(result)}, outside {remaining_s():.1f} s"

    server.register(outer)
    async with client_of(server) as client:
        assert text(await client.call_tool("outer", {})) == "Monday, 0.4 s left, outside 0.4 s"


@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_r44_sampling_that_a_person_approves_pauses_and_roots_that_a_program_lists_do_not() -> None:
    @tool()
    async def think(ctx: Context[None, Any]) -> str:
        message = SamplingMessage(role="user", content=TextContent(type="text", text="Which day?"))
        return str((await ctx.session.create_message([message], max_tokens=5)).content)

    @tool()
    async def look(ctx: Context[None, Any]) -> str:
        return str(await ctx.session.list_roots())

    async with client_of(server_of(think, look)) as client:
        assert "Monday" in text(await client.call_tool("think", {}))
        assert "took longer than its limit of 1 s" in text(await client.call_tool("look", {}))


async def which_day() -> Elicit[Choice]:
    return Elicit("Which day?", Choice)


@tool()
async def resolved(choice: Annotated[Choice, Resolve(which_day)]) -> str:
    """Get the answer as a parameter."""
    await anyio.sleep(0.6)
    return choice.day


@ERAS
async def test_r44_a_parameter_that_a_person_fills_in_pauses_in_both_eras(era: Literal["legacy", "auto"]) -> None:
    server = server_of(resolved)
    async with client_of(server, era) as client:
        assert text(await client.call_tool("resolved", {})) == "Monday"
    calls = 1 if era == "legacy" else 2  # the question ended the first one
    assert outcomes(server, "resolved") == {"ok": calls}


async def test_r44_in_the_modern_era_each_round_of_a_tool_that_returns_its_question_has_a_deadline_of_its_own() -> None:
    left: list[float] = []

    @tool()
    async def asks(ctx: Context[None, Any]) -> str | InputRequiredResult:
        await anyio.sleep(0.6)
        left.append(round(remaining_s(), 6))
        if ctx.input_responses is None:
            schema = {"type": "object", "properties": {"day": {"type": "string"}}}
            question = ElicitRequest(params=ElicitRequestFormParams(message="Which day?", requested_schema=schema))
            return InputRequiredResult(input_requests={"day": question})
        return str(ctx.input_responses["day"])

    server = server_of(asks)
    async with client_of(server, "auto") as client:
        assert "Monday" in text(await client.call_tool("asks", {}))
    assert left == [0.4, 0.4]
    assert outcomes(server, "asks") == {"ok": 2}
    assert server.load_shedder.in_flight == 0


async def test_r59_a_server_that_waits_for_people_serves_others() -> None:
    @tool()
    async def quick() -> str:
        return "done"

    server = server_of(book, quick, max_concurrent_calls=1, max_queued_calls=1)
    async with client_of(server) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "book", {})
        await anyio.sleep(1)
        assert text(await client.call_tool("quick", {})) == "done"
    assert outcomes(server, "book") == {"ok": 1}
    assert server.load_shedder.in_flight == 0


@ERAS
async def test_r45_a_call_that_never_ends_is_answered_before_its_client_loses_patience(era: Any) -> None:
    @tool(title="Never ends", read_only=True)
    async def endless() -> str:
        """Wait for nothing."""
        await anyio.sleep_forever()
        return "never"

    server = server_of(endless, tool_timeout_s=Limits().tool_timeout_s)
    async with Client(server, mode=era) as client:
        started = anyio.current_time()
        answer = await client.call_tool("endless", read_timeout_seconds=30)
        assert 24 < anyio.current_time() - started < 26
    assert isinstance(answer, CallToolResult)
    assert (answer.meta or {})[ERROR_META]["kind"] == "timeout"


async def test_r49_a_tool_whose_answer_others_get_as_well_cannot_ask_a_person(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @tool(read_only=True, fallback=stale_cache())
    async def shared(ctx: Context[None, Any]) -> str:
        await ctx.elicit("Which day?", Choice)
        return "never"

    server = server_of(shared)
    async with client_of(server) as client:
        result = await client.call_tool("shared", {})
    assert result.is_error
    assert "A tool with a cache cannot ask a person" in caplog.text
    assert outcomes(server, "shared") == {"error": 1}


async def test_r49_what_stands_in_for_such_a_tool_may_ask() -> None:
    async def other(ctx: Context[None, Any]) -> str:
        return await book(ctx)

    @tool(read_only=True, fallback=stale_cache(otherwise=other))
    async def shared() -> str:
        raise DependencyFailed("api", "Down.")

    server = server_of(shared)
    async with client_of(server) as client:
        result = await client.call_tool("shared", {})
    assert "Monday" in str(result.content)
