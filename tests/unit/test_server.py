"""The whole server in one process, with the SDK's real client in both eras: rules R1 to R9 and R43 to R68."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import sys
import threading
import types
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import anyio
import pytest
import reliability
from mcp import Client
from mcp.server.mcpserver import Context  # noqa: TC002 - the annotations of tools are read
from mcp.server.mcpserver.exceptions import ResourceError, ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolResult, TextContent, TextResourceContents
from pydantic import BaseModel, Field
from reliability.declarations import prompt, resource, tool
from reliability.errors import ToolFailure
from reliability.health import Check, Unhealthy
from reliability.masking import ERROR_META
from reliability.metrics import Outcome
from reliability.server import Limits, ReliableServer

from tests.unit.support import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quiet")]

Era = Literal["legacy", "auto"]
SECRET = "hunter2"


@pytest.fixture(params=["legacy", "auto"], ids=["handshake era", "modern era"])
def era(request: pytest.FixtureRequest) -> Era:
    found: Era = request.param
    return found


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the SDK from configuring the root logger for the whole test run."""
    caplog.set_level(logging.INFO)


class App:
    """What the tools of these tests share with the test."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.begun = anyio.Event()
        self.ended = anyio.Event()


def make(
    *functions: Callable[..., Any], app: App | None = None, checks: tuple[Check, ...] = (), **limits: Any
) -> ReliableServer[App]:
    @asynccontextmanager
    async def lifespan(server: ReliableServer[App]) -> AsyncIterator[App]:
        shared = app or App()
        shared.events.append("opened")
        yield shared
        shared.events.append("closed")

    server = ReliableServer(
        "my-server", version="1.2.3", lifespan=lifespan, limits=Limits(**limits), checks=checks, subscriptions=False
    )
    for function in functions:
        server.register(function)
    return server


def text(result: CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


def error_meta(result: CallToolResult) -> dict[str, Any]:
    assert result.is_error
    assert result.meta is not None
    found: dict[str, Any] = result.meta[ERROR_META]
    return found


def outcomes(server: ReliableServer[App], name: str) -> dict[str, int]:
    (figures,) = [s for s in server.metrics.statistics() if s.name == name]
    return {o.value: n for o in Outcome if (n := getattr(figures, o.value))}


def assert_nothing_is_held(server: ReliableServer[App]) -> None:
    assert (server.load_shedder.in_flight, server.load_shedder.queued) == (0, 0)
    assert all(s.in_flight == 0 for s in server.metrics.statistics())


class Sum(BaseModel):
    total: int


class Big(BaseModel):
    data: str = Field(default="x" * 5_000_000)


@tool(title="Add", read_only=True)
async def add(a: int, b: int = 0) -> Sum:
    """Add two numbers."""
    return Sum(total=a + b)


@tool()
async def say(words: str) -> str:
    """Say something."""
    return words


@tool()
async def wait(ctx: Context[App]) -> str:
    """Wait for ever."""
    app: App = ctx.request_context.lifespan_context
    app.begun.set()
    try:
        await anyio.sleep_forever()
    finally:
        app.ended.set()
    return ""


async def test_r2_only_capabilities_that_exist_are_advertised(era: Era) -> None:
    async with Client(make(add), mode=era) as client:
        capabilities = client.server_capabilities
    assert capabilities.tools is not None
    assert not capabilities.tools.list_changed
    assert capabilities.logging is None
    assert capabilities.resources is None or not capabilities.resources.subscribe


async def test_r8_the_server_states_its_own_name_and_version(era: Era) -> None:
    async with Client(make(), mode=era) as client:
        assert client.server_info is not None
        assert (client.server_info.name, client.server_info.version) == ("my-server", "1.2.3")


async def test_r3_tools_are_listed_with_their_schema_description_and_hints(era: Era) -> None:
    async with Client(make(add), mode=era) as client:
        tools = {t.name: t for t in (await client.list_tools()).tools}
    assert set(tools) == {"add", "health-check", "get-metrics"}
    assert all(t.input_schema["type"] == "object" for t in tools.values())
    assert (tools["add"].title, tools["add"].description) == ("Add", "Add two numbers.")
    hints = tools["add"].annotations
    assert hints is not None
    assert (hints.read_only_hint, hints.idempotent_hint, hints.destructive_hint) == (True, True, False)


async def test_r3_results_are_structured_and_plain_text_is_not_sent_twice(era: Era) -> None:
    async with Client(make(add, say), mode=era) as client:
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"total": 3}
        said = await client.call_tool("say", {"words": "hello"})
    assert (text(said), said.structured_content) == ("hello", None)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"a": SECRET}, "Invalid arguments: a: Input should be a valid integer, unable to parse string as an integer."),
        ({}, "Invalid arguments: a: Field required."),
        ({"a": None}, "Invalid arguments: a: Input should be a valid integer."),
    ],
)
async def test_r4_wrong_arguments_are_explained_and_counted_as_the_tool_s_error(
    era: Era, arguments: dict[str, Any], complaint: str
) -> None:
    server = make(add)
    async with Client(server, mode=era) as client:
        result = await client.call_tool("add", arguments)
    assert text(result) == complaint
    assert error_meta(result)["kind"] == "tool_error"
    assert outcomes(server, "add") == {"tool_error": 1}


async def test_r4_an_unknown_tool_is_an_error_with_the_nearest_name_and_is_counted_as_unknown(era: Era) -> None:
    server = make(add)
    async with Client(server, mode=era) as client:
        result = await client.call_tool("addd", {})
    assert text(result) == "Unknown tool: 'addd'. Did you mean 'add'?"
    assert outcomes(server, "unknown") == {"tool_error": 1}


async def unexpected() -> str:
    raise ValueError(SECRET)


def unexpected_in_a_thread() -> str:
    raise ValueError(SECRET)


async def in_a_task_group() -> str:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(unexpected)
    return ""


async def leaves() -> str:
    sys.exit(SECRET)


def leaves_in_a_thread() -> str:
    sys.exit(SECRET)


async def interrupted() -> str:
    raise KeyboardInterrupt(SECRET)


async def awaits_what_was_cancelled() -> str:
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task
    return ""


async def wrong_result() -> Sum:
    return {"total": SECRET}  # type: ignore[return-value]


async def wrong_data_of_others() -> str:
    return Sum.model_validate({"total": SECRET}).model_dump_json()


async def own_timeout() -> str:
    with anyio.fail_after(0.001):
        await anyio.sleep_forever()
    return ""


async def recursive() -> str:
    return await recursive()


async def stops() -> str:
    raise StopAsyncIteration(SECRET)


FAILING: list[Callable[..., Any]] = [
    unexpected,
    unexpected_in_a_thread,
    in_a_task_group,
    leaves,
    leaves_in_a_thread,
    interrupted,
    awaits_what_was_cancelled,
    wrong_result,
    wrong_data_of_others,
    own_timeout,
    recursive,
    stops,
]


@pytest.mark.parametrize("function", FAILING)
async def test_r52_whatever_goes_wrong_in_a_tool_the_client_gets_a_masked_result_and_the_server_lives_on(
    era: Era, function: Callable[..., Any]
) -> None:
    server = make(tool(name="bad")(function), say)
    with anyio.fail_after(10):
        async with Client(server, mode=era) as client:
            result = await client.call_tool("bad", {})
            assert text(await client.call_tool("say", {"words": "alive"})) == "alive"
    meta = error_meta(result)
    assert text(result) == (
        "The tool 'bad' failed unexpectedly. The details are in the server's log. "
        f"Retrying the same call will not help. (Reference: {meta['reference']})"
    )
    assert SECRET not in result.model_dump_json()
    assert outcomes(server, "bad") == {"error": 1}
    assert_nothing_is_held(server)


@pytest.mark.parametrize("error", [ToolFailure("No note is called 'x'."), ToolError("No note is called 'x'.")])
async def test_r4_what_an_author_says_on_purpose_reaches_the_client_alone(era: Era, error: Exception) -> None:
    @tool()
    async def bad() -> str:
        raise error

    server = make(bad)
    async with Client(server, mode=era) as client:
        result = await client.call_tool("bad", {})
    assert text(result) == "No note is called 'x'."
    assert outcomes(server, "bad") == {"tool_error": 1}


async def test_r4_a_protocol_error_that_a_tool_raises_on_purpose_is_a_protocol_error(era: Era) -> None:
    @tool()
    async def bad() -> str:
        raise MCPError(code=-32042, message="log in first")

    server = make(bad)
    async with Client(server, mode=era) as client:
        with pytest.raises(MCPError, match="log in first") as caught:
            await client.call_tool("bad", {})
    assert caught.value.error.code == -32042
    assert outcomes(server, "bad") == {"tool_error": 1}


async def test_r43_a_tool_over_the_limit_is_cancelled_and_says_so(era: Era) -> None:
    app = App()
    server = make(wait, app=app, tool_timeout_s=0.2)
    async with Client(server, mode=era) as client:
        result = await client.call_tool("wait", {})
        assert app.ended.is_set()
    assert text(result).startswith("The call took longer than its limit of 0.2 s and was stopped. Retrying may help.")
    assert error_meta(result)["kind"] == "timeout"
    assert outcomes(server, "wait") == {"timeout": 1}
    assert_nothing_is_held(server)


async def test_r44_a_tool_s_own_limit_is_shorter_than_the_server_s(era: Era) -> None:
    @tool(timeout_s=0.01)
    async def impatient() -> str:
        await anyio.sleep_forever()
        return ""

    @tool(timeout_s=9999)
    async def too_patient() -> str:
        await anyio.sleep_forever()
        return ""

    async with Client(make(impatient, too_patient, tool_timeout_s=0.05), mode=era) as client:
        assert "limit of 0.01 s" in text(await client.call_tool("impatient", {}))
        assert "limit of 0.05 s" in text(await client.call_tool("too_patient", {}))


async def test_r47_a_blocking_tool_over_the_limit_is_answered_in_time_and_keeps_its_thread(era: Era) -> None:
    go_on = threading.Event()

    @tool(max_threads=1, timeout_s=0.05)
    def blocking() -> str:
        go_on.wait(5)
        return "late"

    server = make(blocking, say, queue_timeout_s=60)
    async with Client(server, mode=era) as client:
        assert error_meta(await client.call_tool("blocking", {}))["kind"] == "timeout"
        assert error_meta(await client.call_tool("blocking", {}))["kind"] == "timeout"  # no thread was free
        assert text(await client.call_tool("say", {"words": "alive"})) == "alive"
        go_on.set()
        with anyio.fail_after(5):
            while (await client.call_tool("blocking", {})).is_error:
                pass
    assert_nothing_is_held(server)


async def test_r46_a_client_that_cancels_stops_the_work_and_makes_no_error(era: Era) -> None:
    app = App()
    server = make(wait, app=app)
    async with Client(server, mode=era) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "wait", {})
            await app.begun.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(5):
            await app.ended.wait()
        await anyio.wait_all_tasks_blocked()
        assert outcomes(server, "wait") == {"cancelled": 1}
        assert_nothing_is_held(server)
        figures = next(s for s in server.metrics.statistics() if s.name == "wait")
        assert (figures.errors, figures.error_rate) == (0, 0)


async def test_r46_a_client_whose_own_time_runs_out_stops_the_work(era: Era) -> None:
    app = App()
    server = make(wait, app=app)
    async with Client(server, mode=era) as client:
        with pytest.raises(MCPError):
            await client.call_tool("wait", {}, read_timeout_seconds=0.2)
        with anyio.fail_after(5):
            await app.ended.wait()
        await anyio.wait_all_tasks_blocked()
        assert_nothing_is_held(server)
    assert outcomes(server, "wait") == {"cancelled": 1}


async def test_r8_tools_run_at_the_same_time(era: Era) -> None:
    met, both = 0, anyio.Event()

    @tool()
    async def meet() -> str:
        nonlocal met
        met += 1
        if met == 2:
            both.set()
        await both.wait()
        return "met"

    async with Client(make(meet), mode=era) as client, anyio.create_task_group() as tasks:
        with anyio.fail_after(5):
            tasks.start_soon(client.call_tool, "meet", {})
            await client.call_tool("meet", {})


async def test_r59_over_the_limits_calls_are_refused_as_busy_and_health_is_answered_all_the_same(era: Era) -> None:
    app = App()
    server = make(wait, say, app=app, max_concurrent_calls=1, max_queued_calls=0)
    async with Client(server, mode=era) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "wait", {})
        await app.begun.wait()
        busy = await client.call_tool("say", {"words": "x"})
        health = await client.call_tool("health-check", {})
        metrics = await client.call_tool("get-metrics", {})
        tasks.cancel_scope.cancel()
    assert error_meta(busy)["kind"] == "busy"
    assert error_meta(busy)["retryable"] is True
    assert "busy" in text(busy)
    assert not health.is_error
    assert not metrics.is_error
    assert outcomes(server, "say") == {"rejected": 1}


async def test_r68_while_draining_new_calls_are_refused_and_the_server_is_not_ready(era: Era) -> None:
    app = App()
    server = make(wait, say, app=app)
    async with Client(server, mode=era) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "wait", {})
        await app.begun.wait()
        server.drain()
        assert text(await client.call_tool("say", {"words": "x"})).startswith("The server is shutting down")
        health = (await client.call_tool("health-check", {})).structured_content
        assert health is not None
        assert (health["ready"], health["live"]) == (False, True)
        assert not app.ended.is_set()  # the call in flight goes on
        tasks.cancel_scope.cancel()


async def test_r7_a_text_that_is_too_long_is_cut_with_a_notice(era: Era) -> None:
    async with Client(make(say, max_output_bytes=1000), mode=era) as client:
        result = await client.call_tool("say", {"words": "x" * 50_000})
    assert len(text(result)) < 1200
    assert "[Truncated: the first 1,000 of 50,000 bytes are shown." in text(result)


@pytest.mark.parametrize("kind", ["tool", "resource", "template", "prompt", "failure"])
async def test_r7_no_way_out_of_the_server_is_without_a_limit(era: Era, kind: str) -> None:
    @tool()
    async def big_tool() -> Big:
        return Big()

    @tool()
    async def big_failure() -> str:
        raise ToolFailure("x" * 5_000_000)

    @resource("big://resource")
    async def big_resource() -> str:
        return "x" * 5_000_000

    @resource("big://template/{name}")
    async def big_template(name: str) -> bytes:
        return b"x" * 5_000_000

    @prompt()
    async def big_prompt() -> str:
        return "x" * 5_000_000

    server = make(big_tool, big_failure, big_resource, big_template, big_prompt, max_output_bytes=1000)
    async with Client(server, mode=era) as client:
        answers: dict[str, Callable[[], Any]] = {
            "tool": lambda: client.call_tool("big_tool", {}),
            "failure": lambda: client.call_tool("big_failure", {}),
            "resource": lambda: client.read_resource("big://resource"),
            "template": lambda: client.read_resource("big://template/x"),
            "prompt": lambda: client.get_prompt("big_prompt", {}),
        }
        try:
            answer = (await answers[kind]()).model_dump_json()
        except MCPError as error:
            answer = str(error)
    assert len(answer) < 10_000
    if kind != "failure":
        assert "too large" in answer


async def test_r52_a_resource_is_masked_counted_and_found_like_a_tool(era: Era) -> None:
    @resource("a://good")
    def good() -> str:
        return "hello"

    @resource("a://bad")
    async def bad() -> str:
        raise ValueError(SECRET)

    @resource("a://bad/{name}")
    def bad_template(name: str) -> str:
        raise ValueError(SECRET + name)

    @resource("a://foreseen/{name}")
    async def foreseen(name: str) -> str:
        raise ResourceError(f"No {name} today.")

    @resource("a://failure")
    async def failure() -> str:
        raise ToolFailure("Not today.")

    server = make(good, bad, bad_template, foreseen, failure)
    async with Client(server, mode=era) as client:
        (contents,) = (await client.read_resource("a://good")).contents
        assert isinstance(contents, TextResourceContents)
        assert contents.text == "hello"
        for uri in ("a://bad", "a://bad/x"):
            with pytest.raises(MCPError, match="The resource failed unexpectedly") as caught:
                await client.read_resource(uri)
            assert SECRET not in str(caught.value.error)
        with pytest.raises(MCPError, match="No tea today"):
            await client.read_resource("a://foreseen/tea")
        with pytest.raises(MCPError, match="Not today"):
            await client.read_resource("a://failure")
        with pytest.raises(MCPError) as caught:
            await client.read_resource("a://nothing")
        assert caught.value.error.code == INVALID_PARAMS
    assert outcomes(server, "resources/read") == {"ok": 1, "error": 2, "tool_error": 3}
    assert_nothing_is_held(server)


async def test_r52_a_prompt_is_masked_counted_and_checked_like_a_tool(era: Era) -> None:
    @prompt()
    async def good(count: int) -> str:
        return f"Improve {count} notes."

    @prompt()
    def bad() -> str:
        raise ValueError(SECRET)

    server = make(good, bad)
    async with Client(server, mode=era) as client:
        assert "Improve 2 notes." in (await client.get_prompt("good", {"count": "2"})).model_dump_json()
        with pytest.raises(MCPError, match="The prompt failed unexpectedly") as caught:
            await client.get_prompt("bad", {})
        assert SECRET not in str(caught.value.error)
        for name, arguments, words in (
            ("good", {"count": SECRET}, "count: Input should be a valid integer"),
            ("good", {}, "count"),
            ("goood", {}, "Did you mean 'good'?"),
        ):
            with pytest.raises(MCPError) as caught:
                await client.get_prompt(name, arguments)
            assert caught.value.error.code == INVALID_PARAMS
            assert words in caught.value.error.message
            assert SECRET not in caught.value.error.message
    assert outcomes(server, "prompts/get") == {"ok": 1, "error": 1, "tool_error": 3}


async def test_r59_a_tool_that_reads_a_resource_does_not_wait_for_itself(era: Era) -> None:
    @resource("a://x")
    async def inner() -> str:
        return "inner"

    @tool()
    async def outer(ctx: Context[App]) -> str:
        (part,) = await ctx.read_resource("a://x")
        return str(part.content)

    server = make(inner, outer, max_concurrent_calls=1, max_queued_calls=0)
    async with Client(server, mode=era) as client:
        assert text(await client.call_tool("outer", {})) == "inner"
    assert_nothing_is_held(server)


async def test_r16_the_health_tool_reports_every_check(era: Era) -> None:
    async def unwell() -> str:
        raise Unhealthy("the database does not answer")

    async with Client(make(checks=(Check(name="database", probe=unwell),)), mode=era) as client:
        report = (await client.call_tool("health-check", {})).structured_content
    assert report is not None
    assert (report["status"], report["ready"], report["live"], report["version"]) == ("failed", False, True, "1.2.3")
    assert report["checks"][0]["detail"] == "the database does not answer"


async def test_r16_a_hanging_dependency_does_not_keep_the_health_tool_from_reporting(era: Era) -> None:
    async def hanging() -> str:
        await anyio.sleep_forever()
        return ""

    server = make(checks=(Check(name="database", probe=hanging),), health_check_timeout_s=0.01)
    async with Client(server, mode=era) as client:
        report = (await client.call_tool("health-check", {})).structured_content
    assert report is not None
    assert report["status"] == "failed"


async def test_r63_the_metrics_tool_gives_numbers_for_every_registered_name(era: Era) -> None:
    async with Client(make(add), mode=era) as client:
        await client.call_tool("add", {"a": 1})
        await client.call_tool("add", {"a": "x"})
        metrics = (await client.call_tool("get-metrics", {})).structured_content
    assert metrics is not None
    figures = {entry["name"]: entry for entry in metrics["calls"]}
    assert (figures["add"]["calls"], figures["add"]["errors"], figures["add"]["error_rate"]) == (2, 1, 0.5)
    assert figures["add"]["p99_ms"] > 0
    assert set(figures) == {"add", "health-check", "get-metrics", "resources/read", "prompts/get"}


def test_r1_a_tool_name_that_is_taken_is_refused_at_start_up() -> None:
    @tool(name="health-check")
    async def own_health_check() -> str:
        return ""

    with pytest.raises(ValueError, match="Two tools are called 'add'"):
        make(add, add)
    with pytest.raises(ValueError, match="Two tools are called 'health-check'"):
        make(own_health_check)


def test_r1_names_of_resources_prompts_and_checks_are_unique_too() -> None:
    @resource("a://x")
    def one() -> str:
        return ""

    @prompt(name="one")
    def two() -> str:
        return ""

    with pytest.raises(ValueError, match="Two resources are called 'a://x'"):
        make(one, one)
    with pytest.raises(ValueError, match="Two prompts are called 'one'"):
        make(two, two)


def test_r1_everything_that_a_package_s_modules_declare_is_included_once(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_tools"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text(
        "from reliability.declarations import tool\n@tool()\nasync def first() -> str:\n    'One.'\n    return ''\n"
        "def helper(): ...\n"
    )
    (package / "two.py").write_text(
        "from reliability.declarations import tool\nfrom .one import first\n\n"
        "@tool()\ndef second() -> str:\n    return ''\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import some_tools  # type: ignore[import-not-found]

    assert isinstance(some_tools, types.ModuleType)
    server = make()
    server.include(some_tools)
    assert {s.name for s in server.metrics.statistics()} >= {"first", "second"}


async def test_r8_what_the_lifespan_opened_is_closed_and_the_background_stops(era: Era) -> None:
    app = App()
    before = len(asyncio.all_tasks())
    async with Client(make(add, app=app), mode=era) as client:
        await client.call_tool("add", {"a": 1})
        assert app.events == ["opened"]
    assert app.events == ["opened", "closed"]
    await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_r6_every_call_is_one_log_line_with_its_request_tool_outcome_and_duration(
    era: Era, caplog: pytest.LogCaptureFixture
) -> None:
    from reliability.logs import JsonFormatter

    caplog.handler.setFormatter(JsonFormatter())
    async with Client(make(add), mode=era) as client:
        await client.call_tool("add", {"a": 1})
    (line,) = [found for entry in caplog.text.splitlines() if (found := json.loads(entry))["event"] == "call"]
    assert (line["tool"], line["outcome"], line["level"]) == ("add", "ok", "info")
    assert line["request_id"]
    assert line["duration_ms"] >= 0


async def test_r64_a_tool_that_is_registered_as_with_the_sdk_has_the_limits_too(era: Era) -> None:
    server = make(tool_timeout_s=0.05)

    @server.tool()
    async def endless() -> str:
        await anyio.sleep_forever()
        return ""

    @server.prompt()
    async def ask() -> str:
        return "why?"

    async with Client(server, mode=era) as client:
        result = await client.call_tool("endless", {})
        assert result.is_error
        assert (result.meta or {})[ERROR_META]["kind"] == "timeout"
        assert (await client.get_prompt("ask")).messages
    assert [s.timeout for s in server.metrics.statistics() if s.name == "endless"] == [1]
    with pytest.raises(ValueError, match="Two tools are called 'endless'"):
        server.tool(name="endless")(endless)
    with pytest.raises(ValueError, match="Two prompts are called 'ask'"):
        server.prompt(name="ask")(ask)


TOOLS_PACKAGE = {
    "__init__.py": "from reliability import tool\n@tool()\nasync def in_the_package() -> str:\n    return ''\n",
    "postponed.py": (
        "from __future__ import annotations\n"
        "from mcp.server.mcpserver import Context\nfrom reliability import tool\n"
        "class App: ...\n"
        "@tool()\nasync def postponed(ctx: Context[App]) -> str:\n    return ''\n"
    ),
    "deeper/__init__.py": "",
    "deeper/down.py": "from reliability import tool\n@tool()\nasync def down() -> str:\n    return ''\n",
}


async def test_r1_tools_are_found_in_the_package_itself_and_at_every_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, source in TOOLS_PACKAGE.items():
        (tmp_path / "deep_tools" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "deep_tools" / name).write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    server = make()
    server.include(importlib.import_module("deep_tools"))
    assert {"in_the_package", "postponed", "down"} <= {tool.name for tool in await server.list_tools()}


def test_every_exported_name_is_what_its_module_defines() -> None:
    """A submodule of the same name would take its place as soon as it is imported."""
    for home, names in reliability._HOMES.items():
        module = importlib.import_module(f"reliability.{home}")
        for name in names:
            assert getattr(reliability, name) is getattr(module, name)
    assert sorted(reliability.__all__) == sorted(name for names in reliability._HOMES.values() for name in names)


async def test_r52_a_reference_that_a_client_sees_is_in_the_log_at_level_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    server = make(tool_timeout_s=0.01)

    @server.tool()
    async def endless() -> None:
        await anyio.sleep_forever()

    await server.call_tool("endless", {})
    assert [record.message for record in caplog.records if record.name == "reliability.pipeline"] == ["call"]
