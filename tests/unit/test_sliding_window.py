"""What a breaker remembers of the latest calls: rules R54 (window) and R60 (fixed memory)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reliability.sliding_window import (
    FAILED,
    OK,
    SLOW,
    ConsecutiveWindow,
    CountWindow,
    SlidingWindow,
    TimeWindow,
    sliding_window,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

outcomes = st.sampled_from([OK, FAILED, SLOW, FAILED | SLOW])


def filled(window: SlidingWindow, calls: Iterable[tuple[float, int]]) -> SlidingWindow:
    for now, outcome in calls:
        window.record(outcome, now)
    return window


def sums(window: SlidingWindow) -> tuple[int, int, int]:
    return window.calls, window.failures, window.slow


def sums_of(calls: list[int]) -> tuple[int, int, int]:
    """What the sums must be, by counting."""
    return len(calls), sum(bool(call & FAILED) for call in calls), sum(bool(call & SLOW) for call in calls)


@pytest.mark.parametrize("window", [CountWindow(3), TimeWindow(3), ConsecutiveWindow()])
def test_r54_a_new_window_is_empty(window: SlidingWindow) -> None:
    assert sums(window) == (0, 0, 0)


def test_r54_a_call_that_failed_slowly_counts_as_both() -> None:
    assert sums(filled(CountWindow(3), [(0, FAILED | SLOW)])) == (1, 1, 1)
    assert sums(filled(TimeWindow(3), [(0, FAILED | SLOW)])) == (1, 1, 1)
    assert sums(filled(ConsecutiveWindow(), [(0, FAILED | SLOW)])) == (1, 1, 1)


def test_r54_a_count_window_forgets_the_oldest_call_and_no_other() -> None:
    window = filled(CountWindow(2), [(0, FAILED), (0, SLOW)])
    assert sums(window) == (2, 1, 1)
    window.record(OK, 0)
    assert sums(window) == (2, 0, 1)
    window.record(OK, 0)
    assert sums(window) == (2, 0, 0)


@given(size=st.integers(1, 6), calls=st.lists(outcomes, max_size=40))
def test_r54_a_count_window_holds_the_sums_of_the_last_calls(size: int, calls: list[int]) -> None:
    assert sums(filled(CountWindow(size), [(0, call) for call in calls])) == sums_of(calls[-size:])


def test_r54_a_time_window_counts_a_call_until_its_second_is_too_old() -> None:
    window = filled(TimeWindow(3), [(10.9, FAILED)])
    window.expire(12.9)  # the seconds 10, 11 and 12
    assert sums(window) == (1, 1, 0)
    window.expire(13.0)
    assert sums(window) == (0, 0, 0)


def test_r54_a_time_window_forgets_without_being_asked_when_a_call_ends() -> None:
    assert sums(filled(TimeWindow(3), [(0, FAILED), (3, SLOW)])) == (1, 0, 1)


def test_r54_a_pause_longer_than_the_window_empties_it() -> None:
    window = filled(TimeWindow(3), [(0, FAILED), (1, FAILED), (2, FAILED)])
    window.expire(1e9)
    assert sums(window) == (0, 0, 0)


@given(
    size=st.integers(1, 6),
    calls=st.lists(st.tuples(st.floats(0, 3), outcomes), max_size=40),
    pause=st.floats(0, 8),
)
def test_r54_a_time_window_holds_the_sums_of_the_last_seconds(
    size: int, calls: list[tuple[float, int]], pause: float
) -> None:
    window = TimeWindow(size)
    now = 0.0
    history = []
    for step, outcome in calls:
        now += step
        history.append((now, outcome))
        window.record(outcome, now)
    now += pause
    window.expire(now)
    assert sums(window) == sums_of([outcome for at, outcome in history if int(at) > int(now) - size])


def test_r54_a_success_ends_the_failures_in_a_row() -> None:
    window = filled(ConsecutiveWindow(), [(0, FAILED), (0, FAILED)])
    assert sums(window) == (2, 2, 0)
    window.record(OK, 0)
    assert sums(window) == (0, 0, 0)


def test_r54_failures_in_a_row_and_slow_calls_in_a_row_are_counted_apart() -> None:
    window = filled(ConsecutiveWindow(), [(0, SLOW), (0, SLOW | FAILED), (0, SLOW)])
    assert sums(window) == (3, 0, 3)
    window.record(FAILED, 0)
    assert sums(window) == (1, 1, 0)


def test_a_window_says_what_it_has_seen() -> None:
    assert str(filled(CountWindow(3), [(0, FAILED), (0, SLOW)])) == "1 of 2 calls failed, 1 took too long"


def test_the_kind_and_the_size_are_the_configured_ones() -> None:
    counted = filled(sliding_window("count", 2), [(0, OK)] * 5)
    timed = filled(sliding_window("time", 2), [(0, OK), (1, OK), (2, OK)])
    in_a_row = filled(sliding_window("consecutive", 2), [(0, FAILED)] * 5)
    assert (sums(counted), sums(timed), sums(in_a_row)) == ((2, 0, 0), (2, 0, 0), (5, 5, 0))


@pytest.mark.parametrize("kind", ["count", "time", "consecutive"])
def test_r60_a_window_does_not_grow_with_the_calls(kind: str) -> None:
    window = sliding_window(kind, 20)  # type: ignore[arg-type]
    before = _bytes(window)
    filled(window, [(number / 7, number % 4) for number in range(10_000)])
    assert _bytes(window) <= before + 3 * 20 * sys.getsizeof(1)  # numbers above 256 are objects of their own


def _bytes(value: object) -> int:
    parts = list(value) if isinstance(value, list) else []
    if isinstance(value, SlidingWindow):
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        parts = [getattr(value, name) for name in slots]
    return sys.getsizeof(value) + sum(_bytes(part) for part in parts)
