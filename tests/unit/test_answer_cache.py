"""Whose answers are shared with whom, and which are remembered: rules R49 and R51."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import pytest
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolRequestParams, CallToolResult, InputRequiredResult, TextContent
from pydantic import Field
from reliability.answer_cache import AnswerCache
from reliability.cache import CacheConfig
from reliability.cache_store import CacheStore
from reliability.errors import DependencyFailed
from reliability.provenance import META

from tests.unit.support import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

DOWN = DependencyFailed("api", "It is down.")


async def search(
    query: str,
    limit: int = 10,
    page: Annotated[int, Field(ge=1)] = 1,
    options: dict[str, Any] = Field(default={"b": 1, "a": [1, 2]}),  # noqa: B008 - how pydantic wants it
) -> str:
    """Only its schema matters."""
    raise NotImplementedError


def make(store: CacheStore | None = None, *, max_output_bytes: int = 1000, **config: Any) -> AnswerCache:
    tool = Tool.from_function(search, structured_output=False)
    made = AnswerCache(tool, CacheConfig(**config), timeout_s=25, max_output_bytes=max_output_bytes, store=store)
    made.cache.clock = FakeClock()
    return made


def key(arguments: dict[str, Any], **params: Any) -> bytes | None:
    input_params = CallToolRequestParams(name="search", arguments=arguments, **params)
    return make().key(arguments, Context(input_params=input_params))


def known_key() -> bytes:
    found = key({"query": "x"})
    assert found is not None
    return found


def success(words: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=words)])


def said(result: CallToolResult | InputRequiredResult | None) -> list[str]:
    assert isinstance(result, CallToolResult)
    return [block.text for block in result.content if isinstance(block, TextContent)]


class Work:
    """Stands for the tool: what it returns next, and how often it ran."""

    def __init__(self, *results: CallToolResult | InputRequiredResult) -> None:
        self.results = list(results)
        self.runs = 0

    async def __call__(self) -> CallToolResult | InputRequiredResult:
        self.runs += 1
        await anyio.lowlevel.checkpoint()
        return self.results.pop(0)


@pytest.fixture
def signed_in() -> Iterator[Any]:
    """A function that signs somebody in."""
    tokens = []

    def sign_in(**claims: Any) -> None:
        token = AccessToken(**{"token": "secret", "client_id": "c", "scopes": ["read"], **claims})
        tokens.append(auth_context_var.set(AuthenticatedUser(token)))

    yield sign_in
    for token in reversed(tokens):
        auth_context_var.reset(token)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"query": "x", "limit": 5}, {"limit": 5, "query": "x"}),
        ({"query": "x"}, {"query": "x", "limit": 10}),
        ({"query": "x"}, {"query": "x", "page": 1, "limit": 10}),
        ({"query": "x"}, {"query": "x", "options": {"a": [1, 2], "b": 1}}),
        ({"query": "x", "options": {"c": {"e": 1, "d": 2}}}, {"query": "x", "options": {"c": {"d": 2, "e": 1}}}),
    ],
)
def test_r49_arguments_that_mean_the_same_have_the_same_key(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert key(one) == key(two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"query": "x"}, {"query": "y"}),
        ({"query": "x"}, {"query": "X"}),
        ({"query": "1"}, {"query": 1}),
        ({"query": "x", "limit": 1}, {"query": "x", "limit": True}),
        ({"query": "x", "limit": None}, {"query": "x"}),
        ({"query": "x", "options": {"a": [1, 2]}}, {"query": "x", "options": {"a": [2, 1]}}),
        ({"query": "x"}, {"query": "x", "unknown": 1}),
        ({"query": "é"}, {"query": "e\u0301"}),
        ({"query": "\ud800"}, {"query": "\ud801"}),
        ({"query": "x", "limit": float("nan")}, {"query": "x"}),
    ],
)
def test_r49_arguments_that_may_mean_something_else_have_different_keys(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    assert None not in (key_one := make().key(one, Context()), key_two := make().key(two, Context()))
    assert key_one != key_two


def test_r49_large_arguments_have_small_keys() -> None:
    assert len(key({"query": "x" * 1_000_000}) or b"") == 32


@pytest.mark.parametrize("strange", [object(), {1, 2}, {("a", "b"): 1}])
def test_r49_arguments_that_are_not_json_have_no_key(strange: object) -> None:
    assert make().key({"query": strange}, Context()) is None


def test_r49_arguments_without_an_end_have_no_key() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert make().key({"query": circle}, Context()) is None
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert make().key({"query": deep}, Context()) is None


def test_r49_a_call_that_goes_on_with_a_conversation_has_no_key() -> None:
    assert key({"query": "x"}, input_responses={}) == key({"query": "x"})
    assert key({"query": "x"}, request_state="where it was") is None
    answer = {"action": "accept", "content": {"name": "x"}}
    assert key({"query": "x"}, input_responses={"name": answer}) is None


@pytest.mark.parametrize(
    "other",
    [
        {"client_id": "d"},
        {"subject": "ann"},
        {"claims": {"iss": "https://other"}},
        {"scopes": ["read", "write"]},
        {"scopes": []},
    ],
)
def test_r49_every_authenticated_client_has_its_own_answers(signed_in: Any, other: dict[str, Any]) -> None:
    keys = {key({"query": "x"})}
    signed_in()
    keys.add(key({"query": "x"}))
    signed_in(**other)
    keys.add(key({"query": "x"}))
    assert len(keys - {None}) == 3


def test_r49_a_new_token_of_the_same_client_finds_its_answers(signed_in: Any) -> None:
    signed_in(scopes=["a", "b"])
    before = key({"query": "x"})
    signed_in(token="renewed", scopes=["b", "a"], expires_at=99)
    assert key({"query": "x"}) == before


async def test_r51_a_success_is_remembered_and_labelled_when_it_is_served_again() -> None:
    cache, work = make(), Work(success("one"))
    first = await cache.fetch(known_key(), work)
    cache.cache.clock = FakeClock(1007)
    second = await cache.fetch(known_key(), work)
    assert (said(first), said(second), work.runs) == (["one"], ["one"], 1)
    assert first.meta is None
    assert (second.meta or {})[META] == {"source": "cache", "stale": False, "age_s": 7.0}


@pytest.mark.parametrize(
    "answer",
    [
        CallToolResult(content=[], is_error=True),
        InputRequiredResult(input_requests={}, request_state="x"),
        CallToolResult(content=[], structured_content={"not": object()}),
    ],
    ids=["an error", "a question", "not JSON"],
)
async def test_r51_what_is_no_success_is_returned_and_not_remembered(
    answer: CallToolResult | InputRequiredResult,
) -> None:
    cache, work = make(), Work(answer, success("now"))
    assert await cache.fetch(known_key(), work) is answer
    assert await cache.stale(known_key(), DOWN) is None
    assert said(await cache.fetch(known_key(), work)) == ["now"]


async def test_r51_a_question_to_one_client_is_not_the_answer_of_another() -> None:
    cache = make()
    question = InputRequiredResult(input_requests={}, request_state="for the first")
    first, second = Work(question), Work(success("for the second"))
    got: dict[str, Any] = {}

    async def call(name: str, work: Work) -> None:
        got[name] = await cache.fetch(known_key(), work)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, "first", first)
        tasks.start_soon(call, "second", second)
    assert (got["first"], said(got["second"])) == (question, ["for the second"])


async def test_r51_no_success_in_the_background_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    cache = make(ttl_s=0, revalidate_s=60)
    await cache.fetch(known_key(), Work(success("one")))
    cache.cache.clock = FakeClock(1001)
    caplog.set_level(logging.INFO)
    assert said(await cache.fetch(known_key(), Work(CallToolResult(content=[], is_error=True))))[0] == "one"
    await anyio.wait_all_tasks_blocked()
    (record,) = caplog.records
    assert (record.__dict__["reason"], record.exc_info) == ("The answer is not a success.", None)


async def test_r51_everything_of_an_answer_is_remembered() -> None:
    answer = CallToolResult(
        content=[TextContent(type="text", text="é\U0001f600", _meta={"a": 1})],
        structured_content={"none": None, "nested": {"list": [1, 2.5, None, "x"]}},
        _meta={"mine": {"deep": True}},
    )
    cache = make()
    await cache.fetch(known_key(), Work(answer))
    assert cache.cache.statistics().bytes < 210  # what is not there takes no room
    cache.cache.clock = FakeClock(1007)
    again = await cache.fetch(known_key(), Work())
    assert isinstance(again, CallToolResult)
    assert again.content == answer.content
    assert again.structured_content == answer.structured_content
    assert again.meta == {**(answer.meta or {}), META: {"source": "cache", "stale": False, "age_s": 7.0}}


async def test_r50_whatever_stands_in_for_a_failure_is_called_stale(tmp_path: Path) -> None:
    cache = make(ttl_s=3600)
    await cache.fetch(known_key(), Work(success("one")))
    found = await cache.stale(known_key(), DOWN)
    assert found is not None
    assert (found.meta or {})[META] == {"source": "cache", "stale": True, "age_s": 0.0, "reason": "It is down."}


async def test_r50_answers_are_stored_and_restored(tmp_path: Path) -> None:
    store = CacheStore(tmp_path / "answers.db")
    await make(store).fetch(known_key(), Work(success("one")))
    await store.flush()
    later = make(store)
    await later.restore()
    assert said(await later.stale(known_key(), DOWN))[0] == "one"


async def test_r50_a_failure_right_after_the_start_waits_for_what_is_being_restored(tmp_path: Path) -> None:
    store = CacheStore(tmp_path / "answers.db")
    await make(store).fetch(known_key(), Work(success("one")))
    await store.flush()
    later = make(store)
    assert later.may_have(known_key())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(later.restore)
        assert said(await later.stale(known_key(), DOWN))[0] == "one"
    assert not later.may_have(b"other")
    assert later.may_have(known_key())


async def test_r50_it_waits_for_that_only_a_moment(tmp_path: Path) -> None:
    cache = make(CacheStore(tmp_path / "answers.db"))
    with anyio.fail_after(5):
        assert await cache.stale(known_key(), DOWN) is None


async def test_r50_without_a_store_nothing_is_waited_for() -> None:
    cache = make()
    assert not cache.may_have(known_key())
    await cache.restore()
    with anyio.fail_after(0.1):
        assert await cache.stale(known_key(), DOWN) is None


async def test_r50_a_stored_answer_that_is_rubbish_is_not_used(tmp_path: Path) -> None:
    store = CacheStore(tmp_path / "answers.db")
    cache = make(store)
    for key_, value in ((b"1", b"rubbish"), (b"2", b'{"content": 5}'), (b"3", b'{"content": []}')):
        store.put(cache._namespace, key_, value, keep_s=100)
    await store.flush()
    await cache.restore()
    assert cache.cache.statistics().entries == 1


async def test_r50_no_more_is_restored_than_is_kept(tmp_path: Path) -> None:
    store = CacheStore(tmp_path / "answers.db")
    cache = make(store, max_entries=2)
    for number in range(5):
        store.put(cache._namespace, bytes([number]), b'{"content": []}', keep_s=100)
    await store.flush()
    await cache.restore()
    assert (cache.cache.statistics().entries, cache.cache.statistics().evictions) == (2, 0)


def test_r50_every_change_of_a_tools_schemas_makes_another_kind_of_answers() -> None:
    async def fewer(query: str) -> str:
        raise NotImplementedError

    async def listed(query: str) -> list[str]:
        raise NotImplementedError

    versions = [(search, False), (search, True), (fewer, False), (listed, True)]
    tools = [Tool.from_function(function, "search", structured_output=how) for function, how in versions]
    caches = [AnswerCache(tool, CacheConfig(), timeout_s=25, max_output_bytes=1, store=None) for tool in tools]
    assert len({cache._namespace for cache in caches}) == 4
    assert {cache._namespace.split()[0] for cache in caches} == {"search"}


async def test_r49_two_limits_of_the_output_are_two_kinds_of_answers(tmp_path: Path) -> None:
    store = CacheStore(tmp_path / "answers.db")
    await make(store, max_output_bytes=1000).fetch(known_key(), Work(success("one")))
    await store.flush()
    smaller = make(store, max_output_bytes=500)
    await smaller.restore()
    assert not smaller.may_have(known_key())
