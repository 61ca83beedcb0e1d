"""What a client may see of a failure: rules R4 and R52."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.mcpserver.exceptions import (
    ResourceError,
    ResourceNotFoundError,
    ToolError,
    UnexpectedResourceError,
    UnexpectedToolError,
)
from mcp_types import TextContent
from pydantic import BaseModel, ValidationError
from reliability.errors import (
    CircuitOpen,
    DeadlineExceeded,
    DependencyFailed,
    Overloaded,
    ReliabilityError,
    ShuttingDown,
    ToolFailure,
)
from reliability.masking import (
    ERROR_META,
    failed_result,
    prompt_errors,
    public_error,
    public_text,
    resource_errors,
    tool_errors,
    unknown_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

SECRET = "hunter2-and-a-path-/home/bob"
UNEXPECTED = [ValueError, KeyError, RuntimeError, OSError, AssertionError, ZeroDivisionError, RecursionError]


class Arguments(BaseModel):
    count: int
    name: str = "x"


def validation_error(**arguments: object) -> ValidationError:
    try:
        Arguments.model_validate(arguments)
    except ValidationError as error:
        return error
    raise AssertionError


def raised_in(scope: Callable[[], AbstractContextManager[None]], error: BaseException) -> Exception:
    with pytest.raises(Exception) as caught, scope():  # noqa: PT011 - every kind is looked at by the caller
        raise error
    return caught.value


def wrapped(wrapper: Exception, cause: BaseException) -> Exception:
    wrapper.__cause__ = cause
    return wrapper


@given(text=st.text(min_size=8), kind=st.sampled_from(UNEXPECTED))
def test_r52_the_text_of_an_unexpected_error_never_reaches_the_client(text: str, kind: type[Exception]) -> None:
    text = f"<{text}>"
    result = failed_result(public_error(kind(text), "The tool 'add'"), "r-1")
    assert text not in result.model_dump_json()
    (block,) = result.content
    assert isinstance(block, TextContent)
    assert text not in block.text


def test_r52_an_unexpected_error_names_its_subject_and_its_reference() -> None:
    text = public_text(public_error(ValueError(SECRET), "The tool 'add'"), "r-1")
    assert text == (
        "The tool 'add' failed unexpectedly. The details are in the server's log. "
        "Retrying the same call will not help. (Reference: r-1)"
    )


@pytest.mark.parametrize(
    "error",
    [ToolFailure("No such note."), Overloaded("Busy."), ShuttingDown(), DeadlineExceeded(2), ReliabilityError("No.")],
)
def test_r52_errors_of_this_package_keep_their_text(error: ReliabilityError) -> None:
    assert public_error(error, "The tool 'add'") is error
    assert error.text in public_text(error, "r-1")


def test_r4_what_an_author_says_on_purpose_is_passed_on_alone() -> None:
    assert public_text(ToolFailure("No note is called 'x'."), "r-1") == "No note is called 'x'."


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (Overloaded("Busy.", retry_after_s=5), "Retry after 5 s."),
        (Overloaded("Busy."), "Retrying may help."),
        (DeadlineExceeded(2), "Retrying may help."),
        (ReliabilityError("No."), "Retrying the same call will not help."),
    ],
)
def test_r52_a_failure_says_whether_and_when_a_retry_makes_sense(error: ReliabilityError, advice: str) -> None:
    assert f" {advice} (Reference: r-1)" in public_text(error, "r-1")


def test_r52_a_failed_result_says_the_same_to_programs() -> None:
    result = failed_result(Overloaded("Busy.", retry_after_s=5), "r-1")
    assert result.is_error
    assert result.meta == {
        ERROR_META: {"kind": "busy", "retryable": True, "reference": "r-1", "retry_after_s": 5},
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ToolFailure("x"), "tool_error"),
        (DeadlineExceeded(1), "timeout"),
        (Overloaded("x"), "busy"),
        (ShuttingDown(), "busy"),
        (public_error(ValueError(), "x"), "error"),
    ],
)
def test_r52_each_kind_of_failure_has_a_stable_name(error: ReliabilityError, kind: str) -> None:
    meta = failed_result(error, "r-1").meta
    assert meta is not None
    assert meta[ERROR_META]["kind"] == kind


def test_r7_the_text_of_a_failure_is_bounded() -> None:
    assert len(failed_result(ToolFailure("x" * 5_000_000), "r-1").model_dump_json()) < 10_000
    assert len(failed_result(ReliabilityError("x" * 5_000_000), "r-1").model_dump_json()) < 10_000


@pytest.mark.parametrize("kind", UNEXPECTED)
def test_r4_what_a_tool_raised_comes_out_of_the_sdk_wrapper(kind: type[Exception]) -> None:
    original = kind(SECRET)
    assert raised_in(tool_errors, wrapped(UnexpectedToolError("Error executing tool x"), original)) is original
    assert raised_in(resource_errors, wrapped(UnexpectedResourceError("Error"), original)) is original
    rendering = wrapped(ValueError("Error rendering prompt x"), original)
    assert raised_in(prompt_errors, wrapped(ValueError("Error rendering prompt x"), rendering)) is original


@pytest.mark.parametrize("error", [ToolError("foreseen"), ResourceError("foreseen")])
def test_r4_what_the_author_raised_in_the_words_of_the_sdk_keeps_its_text(error: Exception) -> None:
    found = raised_in(tool_errors, wrapped(ToolError("Error executing tool x: foreseen"), error))
    assert isinstance(found, ToolFailure)
    assert found.text == "foreseen"


def test_r4_a_resource_error_that_the_author_raised_keeps_its_text() -> None:
    found = raised_in(resource_errors, ResourceError("foreseen"))
    assert isinstance(found, ToolFailure)
    assert found.text == "foreseen"


def test_r4_a_resource_that_does_not_exist_stays_what_it_is() -> None:
    assert isinstance(raised_in(resource_errors, ResourceNotFoundError("gone")), ResourceNotFoundError)


def test_r4_a_failure_inside_of_a_task_group_is_taken_out_of_it() -> None:
    group = ExceptionGroup("unhandled errors in a TaskGroup", [ExceptionGroup("inner", [ToolFailure("foreseen")])])
    found = raised_in(tool_errors, wrapped(UnexpectedToolError("Error executing tool x"), group))
    assert isinstance(found, ToolFailure)


def test_r4_several_failures_of_a_task_group_stay_together_and_are_masked() -> None:
    group = ExceptionGroup(SECRET, [ToolFailure(SECRET), ValueError(SECRET)])
    found = raised_in(tool_errors, wrapped(UnexpectedToolError("Error executing tool x"), group))
    assert SECRET not in public_text(public_error(found, "The tool 'x'"), "r-1")


def test_r48_tasks_whose_dependencies_all_fail_are_a_failed_dependency() -> None:
    failures = [CircuitOpen("a", retry_after_s=1), DependencyFailed("b", "B is down.")]
    group = ExceptionGroup("unhandled errors in a TaskGroup", failures)
    assert raised_in(tool_errors, wrapped(UnexpectedToolError("Error executing tool x"), group)) is failures[0]


@pytest.mark.parametrize("scope", [tool_errors, resource_errors, prompt_errors])
def test_r4_sys_exit_is_an_unexpected_error_rather_than_the_end_of_the_server(
    scope: Callable[[], AbstractContextManager[None]],
) -> None:
    assert isinstance(raised_in(scope, SystemExit(3)), RuntimeError)


@pytest.mark.parametrize("scope", [tool_errors, prompt_errors])
def test_r4_wrong_arguments_name_the_argument_and_the_rule_but_not_the_value(
    scope: Callable[[], AbstractContextManager[None]],
) -> None:
    cause = validation_error(count=SECRET, name=7)
    if scope is tool_errors:
        error = wrapped(ToolError(f"Error executing tool x: {cause}"), cause)
    else:
        error = wrapped(ValueError("Error"), wrapped(ValueError("Error rendering prompt x"), cause))
    found = raised_in(scope, error)
    assert isinstance(found, ToolFailure)
    assert found.text == (
        "Invalid arguments: count: Input should be a valid integer, unable to parse string as an integer; "
        "name: Input should be a valid string."
    )


@given(
    arguments=st.dictionaries(st.sampled_from(["count", "name"]), st.text(min_size=8) | st.lists(st.text(min_size=8)))
)
def test_r4_no_wrong_value_is_repeated_and_no_documentation_address_is_given(arguments: dict[str, object]) -> None:
    try:
        Arguments.model_validate(arguments)
    except ValidationError as error:
        found = raised_in(tool_errors, wrapped(ToolError("Error"), error))
        assert isinstance(found, ToolFailure)
        assert "https://" not in found.text
        for value in arguments.values():
            assert f"{value}" not in found.text


def test_r4_a_missing_prompt_argument_is_named() -> None:
    missing = ValueError("Missing required arguments: {'title'}")
    found = raised_in(prompt_errors, wrapped(ValueError(str(missing)), missing))
    assert isinstance(found, ToolFailure)
    assert "title" in found.text


def test_r4_a_thousand_wrong_arguments_are_summed_up() -> None:
    class Many(BaseModel):
        values: list[int]

    with pytest.raises(ValidationError) as caught:
        Many.model_validate({"values": ["x"] * 1000})
    found = raised_in(tool_errors, wrapped(ToolError("Error"), caught.value))
    assert str(found).endswith("and 990 more.")
    assert len(str(found)) < 2000


def test_r4_a_name_that_is_unknown_is_answered_with_the_nearest_one() -> None:
    assert unknown_name("tool", "save_nite", {"save_note", "x"}).text == (
        "Unknown tool: 'save_nite'. Did you mean 'save_note'?"
    )
    assert unknown_name("tool", "zzz", {"save_note"}).text == "Unknown tool: 'zzz'."


@given(name=st.text(max_size=3000))
def test_r4_no_unknown_name_makes_a_long_or_broken_answer(name: str) -> None:
    text = unknown_name("tool", name, {"save_note"}).text
    assert len(text) < 1200
    assert "\n" not in text
