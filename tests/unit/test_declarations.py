"""The decorators for tools, resources and prompts: they describe, and change nothing."""

from __future__ import annotations

import functools
from unittest.mock import MagicMock

import pytest
from reliability.declarations import (
    PromptDeclaration,
    ResourceDeclaration,
    ToolDeclaration,
    declaration_of,
    resource,
    tool,
)
from reliability.declarations import prompt as prompt_


def add(a: int, b: int) -> int:
    return a + b


def test_r1_a_declared_function_is_the_same_function() -> None:
    def function() -> int:
        return 42

    assert tool()(function) is function
    assert function() == 42


def test_r1_a_tool_is_called_like_its_function_unless_it_says_otherwise() -> None:
    def function() -> None: ...

    found = declaration_of(tool()(function))
    assert found == ToolDeclaration(
        name="function",
        title=None,
        read_only=False,
        destructive=False,
        idempotent=False,
        open_world=False,
        timeout_s=None,
        max_threads=8,
        fallback=None,
    )
    found = declaration_of(tool(name="other", title="Other", timeout_s=2, max_threads=1)(function))
    assert isinstance(found, ToolDeclaration)
    assert (found.name, found.title, found.timeout_s, found.max_threads) == ("other", "Other", 2, 1)


def test_r59_what_only_reads_may_be_repeated() -> None:
    def function() -> None: ...

    found = declaration_of(tool(read_only=True)(function))
    assert isinstance(found, ToolDeclaration)
    assert found.idempotent


@pytest.mark.parametrize("timeout_s", [0, -1, -0.5, float("nan")])
def test_r44_a_limit_that_is_no_time_is_refused(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s must be greater than 0"):
        tool(timeout_s=timeout_s)


@pytest.mark.parametrize("max_threads", [0, -1])
def test_r47_a_tool_needs_a_thread(max_threads: int) -> None:
    with pytest.raises(ValueError, match="max_threads must be at least 1"):
        tool(max_threads=max_threads)


def test_r1_resources_and_prompts_are_described_likewise() -> None:
    def function(title: str) -> str:
        return title

    assert declaration_of(resource("notes://{title}")(function)) == ResourceDeclaration(
        uri="notes://{title}", name="function", title=None, mime_type="text/plain"
    )
    assert declaration_of(prompt_(title="Ask")(function)) == PromptDeclaration(name="function", title="Ask")


@pytest.mark.parametrize("value", [None, 42, add, int, MagicMock(), functools.partial(add, 1)])
def test_r1_what_is_not_declared_has_no_declaration(value: object) -> None:
    assert declaration_of(value) is None
