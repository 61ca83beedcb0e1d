"""When a server is started again: the wait, the window, the end of patience (R29, R30)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reliability.restart_policy import RestartPolicy


def policy(**settings: float) -> RestartPolicy:
    return RestartPolicy(random=lambda: 0.5, **{"max_restarts": 1000, **settings})  # type: ignore[arg-type]


def waits(policy: RestartPolicy, number: int, *, lived_s: float = 0.0) -> list[float | None]:
    return [policy.next_wait_s(lived_s=lived_s) for _ in range(number)]


def test_the_wait_doubles_up_to_its_limit() -> None:
    assert waits(policy(), 9) == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_no_wait_is_ever_longer_than_the_limit_however_often_it_doubled() -> None:
    assert waits(policy(max_restarts=5000), 5000)[-1] == 30.0


@pytest.mark.parametrize(("random", "wait_s"), [(0.0, 0.2), (0.5, 0.25), (1.0, 0.3)])
def test_a_wait_is_a_fifth_shorter_or_longer_by_chance(random: float, wait_s: float) -> None:
    assert RestartPolicy(random=lambda: random).next_wait_s(lived_s=0) == pytest.approx(wait_s)


def test_chance_is_different_each_time() -> None:
    found = {RestartPolicy().next_wait_s(lived_s=0) for _ in range(20)}
    assert len(found) > 1
    assert all(0.2 <= wait_s <= 0.3 for wait_s in found if wait_s is not None)


def test_a_stable_life_makes_the_next_wait_short_again() -> None:
    restarts = policy(stable_s=10)
    assert waits(restarts, 3) == [0.25, 0.5, 1.0]
    assert restarts.next_wait_s(lived_s=9.9) == 2.0
    assert restarts.next_wait_s(lived_s=10) == 0.25
    assert restarts.next_wait_s(lived_s=0) == 0.5


def test_five_restarts_in_a_minute_are_allowed_and_no_sixth() -> None:
    restarts = RestartPolicy()
    assert all(restarts.next_wait_s(lived_s=9.9) is not None for _ in range(5))
    assert restarts.next_wait_s(lived_s=9.9) is None


def test_what_is_out_of_the_window_does_not_count() -> None:
    restarts = RestartPolicy()
    assert all(restarts.next_wait_s(lived_s=lived_s) is not None for lived_s in (5.0, 0.0, 0.0, 0.0, 0.0))
    assert restarts.next_wait_s(lived_s=60.0) is not None  # all five were a minute ago


def test_waits_do_not_count_so_that_a_window_of_any_length_has_an_end() -> None:
    restarts = RestartPolicy(window_s=1.0)
    assert [restarts.next_wait_s(lived_s=0.1) is None for _ in range(6)] == [False] * 5 + [True]


def test_a_stable_life_does_not_empty_the_window() -> None:
    restarts = policy(max_restarts=2)
    assert waits(restarts, 2, lived_s=20) == [0.25, 0.25]
    assert restarts.next_wait_s(lived_s=30) is None


def test_no_restart_at_all_if_none_is_allowed() -> None:
    assert policy(max_restarts=0).next_wait_s(lived_s=1000) is None


def test_a_server_that_asks_for_it_after_a_stable_life_waits_for_nothing() -> None:
    restarts = policy()
    assert restarts.next_wait_s(lived_s=10, asked=True) == 0.0
    assert restarts.next_wait_s(lived_s=0) == 0.25  # which counts as no doubling


def test_a_server_that_asks_for_it_at_once_waits_as_any_other() -> None:
    assert policy().next_wait_s(lived_s=9.9, asked=True) == 0.25


def test_restarts_that_were_asked_for_count() -> None:
    restarts = policy(max_restarts=1)
    assert restarts.next_wait_s(lived_s=10, asked=True) == 0.0
    assert restarts.next_wait_s(lived_s=10, asked=True) is None


def test_a_server_that_is_tried_again_after_it_was_given_up_gets_all_its_restarts() -> None:
    restarts = policy(max_restarts=2)
    assert waits(restarts, 7) == [0.25, 0.5, None, 1.0, 2.0, None, 4.0]


@pytest.mark.parametrize("name", ["max_restarts", "window_s", "stable_s", "initial_s", "max_s"])
def test_no_number_may_be_negative(name: str) -> None:
    with pytest.raises(ValueError, match="negative"):
        RestartPolicy(**{name: -1})  # type: ignore[arg-type]
    RestartPolicy(**{name: 0})  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 100), max_size=60), st.integers(0, 8), st.floats(0.1, 100))
def test_no_window_holds_more_restarts_than_allowed(lives: list[float], max_restarts: int, window_s: float) -> None:
    restarts = RestartPolicy(max_restarts=max_restarts, window_s=window_s)
    time = 0.0
    allowed: list[float] = []
    for lived_s in lives:
        time += lived_s
        if (wait_s := restarts.next_wait_s(lived_s=lived_s)) is None:
            allowed.clear()
            continue
        assert 0.2 <= wait_s <= 30
        allowed.append(time)
        assert sum(time - window_s * 0.999 < restart for restart in allowed) <= max_restarts
