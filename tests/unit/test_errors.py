from __future__ import annotations

import pytest
from reliability.errors import DependencyFailed, cause_of

SENT = "Bearer 12345, from the body of an answer"


def failed(cause: BaseException | None) -> DependencyFailed:
    error = DependencyFailed("api", "It failed.")
    error.__cause__ = cause
    return error


def test_r6_a_cause_is_told_by_its_type_and_the_system_s_words() -> None:
    assert cause_of(failed(ConnectionRefusedError(111, "Connection refused"))) == (
        "ConnectionRefusedError (Connection refused)"
    )


def test_r6_an_error_that_has_no_cause_has_none() -> None:
    assert cause_of(failed(None)) == ""


def test_r6_the_cause_of_a_cause_is_told() -> None:
    outer = ValueError(SENT)
    outer.__cause__ = TimeoutError(110, "Connection timed out")
    assert cause_of(failed(outer)) == "ValueError, from TimeoutError (Connection timed out)"


@pytest.mark.parametrize("cause", [ValueError(SENT), OSError(SENT), OSError(5, SENT.encode())], ids=repr)
def test_r52_a_cause_quotes_nothing_that_a_dependency_has_sent(cause: Exception) -> None:
    assert cause_of(failed(cause)) == type(cause).__name__


def test_r6_what_is_told_of_a_cause_is_bounded() -> None:
    error = failed(None)
    for _ in range(10):
        error.__cause__, cause = OSError(5, "x" * 1_000), error.__cause__
        error.__cause__.__cause__ = cause
    assert cause_of(error) == ", from ".join([f"OSError ({'x' * 100})"] * 4)
