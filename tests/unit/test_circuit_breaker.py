"""A breaker's states one after the other: rules R53 to R58."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel, ValidationError
from reliability.circuit_breaker import CircuitBreaker, Permit, State, Transition
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.errors import (
    CircuitOpen,
    DeadlineExceeded,
    DependencyBusy,
    DependencyFailed,
    DependencyTimeout,
    NotEnoughTime,
    Overloaded,
    ShuttingDown,
    ToolFailure,
)

from tests.unit.support import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

WAIT_S = CircuitBreakerConfig().wait_duration_in_open_state_s
BROKEN, STOPPED = ConnectionError("reset"), KeyboardInterrupt()
LEASE_S = CircuitBreakerConfig().max_wait_duration_in_half_open_state_s


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def new(clock: FakeClock, *, random: Callable[[], float] = lambda: 0.0, **config: Any) -> CircuitBreaker:
    return CircuitBreaker("api", CircuitBreakerConfig(**config), clock=clock, random=random)


def opened(clock: FakeClock, *, random: Callable[[], float] = lambda: 0.0, **config: Any) -> CircuitBreaker:
    breaker = new(clock, random=random, **config)
    fail(breaker, 5)
    assert state_of(breaker) is State.OPEN
    return breaker


def half_open(clock: FakeClock, **config: Any) -> tuple[CircuitBreaker, Permit]:
    """Return a breaker that is half open, and its first probe."""
    breaker = opened(clock, **config)
    clock.now += WAIT_S
    return breaker, breaker.acquire()


def state_of(breaker: CircuitBreaker) -> State:
    """Return its state, which the type checker believes to stay what it was."""
    return breaker.state


def fail(breaker: CircuitBreaker, calls: int = 1) -> None:
    for _ in range(calls):
        breaker.on_error(breaker.acquire(), BROKEN)


def succeed(breaker: CircuitBreaker, calls: int = 1) -> None:
    for _ in range(calls):
        breaker.on_success(breaker.acquire())


def be_slow(breaker: CircuitBreaker, clock: FakeClock, seconds: float, calls: int = 1) -> None:
    for _ in range(calls):
        permit = breaker.acquire()
        clock.now += seconds
        breaker.on_success(permit)


def refused(breaker: CircuitBreaker) -> CircuitOpen:
    with pytest.raises(CircuitOpen) as caught:
        breaker.acquire()
    return caught.value


async def raising(breaker: CircuitBreaker, error: BaseException) -> None:
    async def work() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await breaker.call(work)
    assert caught.value is error


# Closed


def test_r54_seven_of_ten_is_exactly_the_rate_that_an_owner_writes_as_0_7(clock: FakeClock) -> None:
    breaker = new(clock, failure_rate_threshold=0.7, minimum_number_of_calls=10)  # while 0.7 * 10 is greater than 7
    succeed(breaker, 3)
    fail(breaker, 7)
    assert breaker.state is State.OPEN


def test_r54_a_new_breaker_lets_calls_through(clock: FakeClock) -> None:
    breaker = new(clock)
    succeed(breaker)
    assert (breaker.state, breaker.retry_after_s) == (State.CLOSED, None)


def test_r54_it_opens_at_the_failure_rate_and_not_before(clock: FakeClock) -> None:
    breaker = new(clock)
    succeed(breaker, 5)
    fail(breaker, 4)
    assert state_of(breaker) is State.CLOSED  # 4 of 9
    fail(breaker)
    assert state_of(breaker) is State.OPEN  # 5 of 10


def test_r54_below_the_minimum_number_of_calls_no_rate_opens_it(clock: FakeClock) -> None:
    breaker = new(clock)
    fail(breaker, 4)
    assert state_of(breaker) is State.CLOSED
    fail(breaker)
    assert state_of(breaker) is State.OPEN


def test_r54_the_call_that_reaches_the_minimum_may_be_a_success(clock: FakeClock) -> None:
    breaker = new(clock)
    fail(breaker, 4)
    succeed(breaker)
    assert state_of(breaker) is State.OPEN


def test_r54_failures_that_left_the_window_count_no_more(clock: FakeClock) -> None:
    breaker = new(clock, sliding_window_size=5)
    fail(breaker, 2)
    succeed(breaker, 5)
    fail(breaker, 2)
    assert state_of(breaker) is State.CLOSED


def test_r54_failures_older_than_a_window_of_time_count_no_more(clock: FakeClock) -> None:
    breaker = new(clock, sliding_window_type="time", sliding_window_size=10)
    fail(breaker, 4)
    clock.now += 10
    fail(breaker, 4)
    assert state_of(breaker) is State.CLOSED
    fail(breaker)
    assert state_of(breaker) is State.OPEN


def test_r54_a_success_resets_a_consecutive_count(clock: FakeClock) -> None:
    breaker = new(clock, sliding_window_type="consecutive")
    for _ in range(10):
        fail(breaker, 4)
        succeed(breaker)
    assert state_of(breaker) is State.CLOSED
    fail(breaker, 5)
    assert state_of(breaker) is State.OPEN


def test_r54_slow_calls_open_it_though_they_succeed(clock: FakeClock) -> None:
    breaker = new(clock, slow_call_duration_threshold_s=2, slow_call_rate_threshold=0.8)
    be_slow(breaker, clock, 1.9)
    be_slow(breaker, clock, 2, calls=3)
    assert state_of(breaker) is State.CLOSED
    be_slow(breaker, clock, 2)
    assert (breaker.state, breaker.statistics().reason) == (State.OPEN, "0 of 5 calls failed, 4 took too long")


def test_r54_without_a_threshold_no_call_is_slow(clock: FakeClock) -> None:
    breaker = new(clock)
    be_slow(breaker, clock, 3600, calls=20)
    assert breaker.statistics().slow == 0


def test_r54_the_wait_before_the_work_begins_is_not_its_slowness(clock: FakeClock) -> None:
    breaker = new(clock, slow_call_duration_threshold_s=2)
    permit = breaker.acquire()
    clock.now += 5
    breaker.begin(permit)
    clock.now += 1
    breaker.on_success(permit)
    assert breaker.statistics().slow == 0


# Open


def test_r58_an_open_breaker_refuses_with_the_time_to_retry(clock: FakeClock) -> None:
    breaker = opened(clock)
    clock.now += 20
    error = refused(breaker)
    assert (error.dependency, error.retry_after_s, error.retryable) == ("api", WAIT_S - 20, True)
    assert str(error) == "The dependency 'api' is not asked, because it failed too often; it is tried again in 40 s."


async def test_r58_an_open_breaker_does_not_begin_the_work(clock: FakeClock) -> None:
    breaker = opened(clock)
    with pytest.raises(CircuitOpen):
        await breaker.call(pytest.fail)
    assert breaker.statistics().rejected == 1


def test_r53_it_stays_open_for_its_wait_by_the_clock_it_was_given(clock: FakeClock) -> None:
    breaker = opened(clock)
    clock.now += WAIT_S - 0.001
    refused(breaker)
    clock.now += 0.001
    breaker.acquire()
    assert state_of(breaker) is State.HALF_OPEN


def test_r58_after_the_wait_it_says_open_and_at_once_until_somebody_calls(clock: FakeClock) -> None:
    breaker = opened(clock)
    clock.now += WAIT_S + 5
    assert (breaker.state, breaker.retry_after_s) == (State.OPEN, 0.0)


def test_r57_results_of_calls_from_before_it_opened_change_nothing(clock: FakeClock) -> None:
    breaker = new(clock)
    late = [breaker.acquire() for _ in range(6)]
    fail(breaker, 5)
    for permit in late:
        breaker.on_error(permit, BROKEN)
    assert (breaker.state, breaker.retry_after_s, breaker.statistics().late) == (State.OPEN, WAIT_S, 6)


def test_r58_the_jitter_shortens_the_wait_by_up_to_its_share(clock: FakeClock) -> None:
    breaker = opened(clock, random=lambda: 0.5, wait_duration_jitter=0.2)
    assert breaker.retry_after_s == pytest.approx(WAIT_S * 0.9)


def test_r58_the_wait_grows_with_each_failed_probe_up_to_its_maximum(clock: FakeClock) -> None:
    breaker = opened(clock, wait_duration_multiplier=2, max_wait_duration_in_open_state_s=200)
    waits = []
    for _ in range(4):
        assert breaker.retry_after_s is not None
        waits.append(breaker.retry_after_s)
        clock.now += breaker.retry_after_s
        fail(breaker)
    assert waits == [60, 120, 200, 200]


def test_r58_once_it_was_closed_the_wait_begins_anew(clock: FakeClock) -> None:
    breaker, probe = half_open(clock)
    breaker.on_error(probe, BROKEN)
    clock.now += WAIT_S * 1.5
    succeed(breaker, 3)
    fail(breaker, 5)
    assert breaker.retry_after_s == WAIT_S


def test_r58_a_wait_that_has_grown_for_years_is_still_finite(clock: FakeClock) -> None:
    breaker = opened(clock, wait_duration_multiplier=100)
    for _ in range(1000):
        clock.now += 180
        fail(breaker)
    assert breaker.retry_after_s == 180


# Half open


def test_r56_no_more_probes_than_permitted_run_at_once(clock: FakeClock) -> None:
    breaker, _ = half_open(clock)
    breaker.acquire()
    breaker.acquire()
    error = refused(breaker)
    assert (error.retry_after_s, breaker.statistics().probes) == (None, 3)
    assert "is only being tried" in str(error)


def test_r56_as_many_successes_as_permitted_probes_close_it(clock: FakeClock) -> None:
    breaker, probe = half_open(clock)
    breaker.on_success(probe)
    succeed(breaker)
    assert state_of(breaker) is State.HALF_OPEN
    succeed(breaker)
    assert (breaker.state, breaker.statistics().calls) == (State.CLOSED, 0)


def test_r56_a_probe_that_succeeded_makes_no_room_for_one_more(clock: FakeClock) -> None:
    breaker, probe = half_open(clock)
    breaker.acquire()
    breaker.on_success(probe)
    breaker.acquire()
    refused(breaker)


def test_r56_one_failed_probe_opens_it_again(clock: FakeClock) -> None:
    breaker, probe = half_open(clock)
    succeed(breaker, 2)
    breaker.on_error(probe, BROKEN)
    assert (breaker.state, breaker.statistics().reason) == (State.OPEN, "1 of 3 calls failed, 0 took too long")


def test_r56_one_slow_probe_opens_it_again(clock: FakeClock) -> None:
    breaker, probe = half_open(clock, slow_call_duration_threshold_s=2)
    clock.now += 2
    breaker.on_success(probe)
    assert state_of(breaker) is State.OPEN


def test_r56_the_window_of_the_probes_is_none_of_the_configured_ones(clock: FakeClock) -> None:
    breaker, probe = half_open(clock, sliding_window_type="time", sliding_window_size=1)
    breaker.on_success(probe)
    clock.now += 10
    succeed(breaker)
    clock.now += 10
    succeed(breaker)
    assert state_of(breaker) is State.CLOSED


def test_r57_a_late_probe_of_an_earlier_round_changes_nothing(clock: FakeClock) -> None:
    breaker, early = half_open(clock)
    fail(breaker)
    clock.now += WAIT_S * 1.5
    breaker.on_success(breaker.acquire())
    breaker.on_error(early, BROKEN)
    assert (breaker.state, breaker.statistics().calls) == (State.HALF_OPEN, 1)


def test_r57_a_call_from_before_it_opened_is_no_probe(clock: FakeClock) -> None:
    breaker = new(clock)
    early = [breaker.acquire() for _ in range(3)]
    fail(breaker, 5)
    clock.now += WAIT_S
    probe = breaker.acquire()
    for permit in early:
        breaker.on_success(permit)
    assert (breaker.state, breaker.statistics().probes) == (State.HALF_OPEN, 1)
    breaker.on_error(probe, STOPPED)
    assert breaker.statistics().probes == 0


def test_r57_a_permit_counts_once(clock: FakeClock) -> None:
    breaker = new(clock)
    permit = breaker.acquire()
    breaker.on_error(permit, BROKEN)
    breaker.on_error(permit, BROKEN)
    statistics = breaker.statistics()
    assert (statistics.calls, statistics.failures_total, statistics.late) == (1, 1, 0)


def test_r57_a_permit_of_another_breaker_changes_nothing(clock: FakeClock) -> None:
    breaker = new(clock)
    breaker.on_error(new(clock).acquire(), BROKEN)
    assert breaker.statistics().calls == 0


# Errors


def validation_error() -> ValidationError:
    class Arguments(BaseModel):
        number: int

    with pytest.raises(ValidationError) as caught:
        Arguments(number="x")  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        DependencyFailed("api", "It answered 503."),
        DependencyTimeout("api", 5),
        DeadlineExceeded(5),
        TimeoutError(),
        ConnectionResetError(),
        ValueError("anything else"),
        ExceptionGroup("two", [ToolFailure("fine"), OSError()]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_r55_what_the_dependency_did_is_a_failure(clock: FakeClock, error: Exception) -> None:
    breaker = new(clock)
    await raising(breaker, error)
    assert (breaker.statistics().calls, breaker.statistics().failures) == (1, 1)


@pytest.mark.parametrize(
    "error",
    [
        ToolFailure("No such note."),
        validation_error(),
        MCPError(-32602, "wrong"),
        NotEnoughTime(0.1, 0.5),
        Overloaded("busy"),
        ShuttingDown(),
        DependencyBusy("api", "Its pool is full."),
        CircuitOpen("other", retry_after_s=1),
        ExceptionGroup("two", [ToolFailure("fine"), ExceptionGroup("one", [ToolFailure("fine")])]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_r55_what_the_caller_did_counts_as_nothing(clock: FakeClock, error: Exception) -> None:
    breaker = new(clock)
    await raising(breaker, error)
    assert breaker.statistics().calls == 0


async def test_r55_an_error_that_counts_as_nothing_gives_its_probe_back(clock: FakeClock) -> None:
    breaker, probe = half_open(clock)
    breaker.on_error(probe, STOPPED)
    for _ in range(10):
        await raising(breaker, ToolFailure("No such note."))
    assert (breaker.state, breaker.statistics().probes) == (State.HALF_OPEN, 0)


async def test_r55_the_owner_may_decide_what_is_a_failure(clock: FakeClock) -> None:
    breaker = CircuitBreaker("api", is_failure=lambda error: isinstance(error, KeyError), clock=clock)
    await raising(breaker, OSError())
    await raising(breaker, KeyError())
    assert (breaker.statistics().calls, breaker.statistics().failures) == (1, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()], ids=lambda e: type(e).__name__)
def test_r55_the_end_of_the_process_is_no_failure(clock: FakeClock, error: BaseException) -> None:
    breaker = new(clock)
    breaker.on_error(breaker.acquire(), error)
    assert breaker.statistics().calls == 0


async def test_r55_a_cancelled_call_counts_as_nothing(clock: FakeClock) -> None:
    breaker = new(clock)
    with anyio.move_on_after(0):
        await breaker.call(anyio.sleep_forever)
    assert breaker.statistics().calls == 0


async def test_r55_a_call_that_was_slow_when_it_was_cancelled_counts_as_slow(clock: FakeClock) -> None:
    breaker = new(clock, slow_call_duration_threshold_s=2)

    async def work() -> None:
        clock.now += 2
        scope.cancel()
        await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        await breaker.call(work)
    statistics = breaker.statistics()
    assert (statistics.calls, statistics.failures, statistics.slow) == (1, 0, 1)


async def test_r55_a_cancellation_of_something_else_is_a_failure(clock: FakeClock) -> None:
    breaker = new(clock)
    dead = asyncio.get_running_loop().create_future()
    dead.cancel()
    with pytest.raises(asyncio.CancelledError):
        await breaker.call(lambda: dead)
    assert breaker.statistics().failures == 1


# Callers


async def test_a_call_returns_what_the_work_returns(clock: FakeClock) -> None:
    async def work() -> int:
        return 7

    breaker = new(clock)
    assert await breaker.call(work) == 7
    assert (breaker.statistics().calls, breaker.statistics().failures) == (1, 0)


async def test_work_that_cannot_even_begin_is_a_failure(clock: FakeClock) -> None:
    def work() -> Any:
        raise OSError

    breaker = new(clock)
    with pytest.raises(OSError):  # noqa: PT011 - it has no text
        await breaker.call(work)
    assert breaker.statistics().failures == 1


# The operator


def test_r58_an_isolated_breaker_refuses_until_it_is_reset(clock: FakeClock) -> None:
    breaker = new(clock)
    breaker.isolate("maintenance tonight")
    clock.now += 1e6
    error = refused(breaker)
    assert (error.retry_after_s, breaker.statistics().reason) == (None, "maintenance tonight")
    assert str(error) == "The dependency 'api' is not asked, because an operator has isolated it."
    breaker.reset()
    succeed(breaker)


def test_r58_a_forced_closed_breaker_counts_and_never_opens(clock: FakeClock) -> None:
    breaker = opened(clock)
    breaker.force_close()
    fail(breaker, 20)
    assert (breaker.state, breaker.statistics().failures) == (State.FORCED_CLOSED, 20)
    breaker.reset()
    assert (breaker.state, breaker.statistics().failures) == (State.CLOSED, 0)


@pytest.mark.parametrize("settle", [lambda b, permit: b.on_error(permit, BROKEN), CircuitBreaker.on_success])
@pytest.mark.parametrize("override", [lambda b: b.isolate("x"), CircuitBreaker.force_close, CircuitBreaker.reset])
def test_r57_an_operator_s_word_outdates_the_calls_in_progress(
    clock: FakeClock, override: Callable[[CircuitBreaker], None], settle: Callable[[CircuitBreaker, Permit], None]
) -> None:
    breaker, probe = half_open(clock)
    override(breaker)
    state = breaker.state
    settle(breaker, probe)
    assert (breaker.state, breaker.statistics().calls, breaker.statistics().probes) == (state, 0, 0)


def test_r58_the_reason_says_that_it_was_an_operator(clock: FakeClock) -> None:
    breaker = new(clock)
    reasons = [breaker.statistics().reason]
    for override in (CircuitBreaker.force_close, CircuitBreaker.reset):
        override(breaker)
        reasons.append(breaker.statistics().reason)
    assert reasons == ["it is new", "forced by an operator", "reset by an operator"]


LEGAL = {
    (State.CLOSED, State.OPEN),
    (State.OPEN, State.HALF_OPEN),
    (State.HALF_OPEN, State.OPEN),
} | {(before, after) for before in State for after in (State.CLOSED, State.ISOLATED, State.FORCED_CLOSED)}


@pytest.mark.parametrize("after", State)
@pytest.mark.parametrize("before", State)
def test_r57_only_a_legal_move_is_made(clock: FakeClock, before: State, after: State) -> None:
    breaker = new(clock)
    breaker._enter(before, "test", clock.now)
    if (before, after) in LEGAL:
        breaker._move(after, "test", clock.now)
        assert state_of(breaker) is after
    else:
        with pytest.raises(RuntimeError, match=f"breaker 'api' cannot go from {before} to {after}"):
            breaker._move(after, "test", clock.now)
        assert state_of(breaker) is before


# Who watches


def test_r58_listeners_are_told_of_every_change_in_order(clock: FakeClock) -> None:
    breaker = new(clock)
    told: list[Transition] = []
    breaker.add_listener(told.append)
    fail(breaker, 5)
    clock.now += WAIT_S
    succeed(breaker, 3)
    breaker.isolate("maintenance")
    assert [(change.before, change.after, change.reason) for change in told] == [
        (State.CLOSED, State.OPEN, "5 of 5 calls failed, 0 took too long"),
        (State.OPEN, State.HALF_OPEN, "its wait is over"),
        (State.HALF_OPEN, State.CLOSED, "every probe succeeded"),
        (State.CLOSED, State.ISOLATED, "maintenance"),
    ]
    assert {change.breaker for change in told} == {"api"}


def test_r58_a_listener_sees_the_state_that_it_is_told_of(clock: FakeClock) -> None:
    breaker = new(clock)
    seen = []
    breaker.add_listener(lambda change: seen.append((change.after, breaker.state, breaker.retry_after_s)))
    fail(breaker, 5)
    assert seen == [(State.OPEN, State.OPEN, WAIT_S)]


@pytest.mark.parametrize("told_of", [State.OPEN, State.HALF_OPEN])
def test_r58_a_listener_may_use_the_breaker(clock: FakeClock, told_of: State) -> None:
    breaker, _ = half_open(clock)
    breaker.add_listener(lambda change: breaker.reset() if change.after is told_of else None)
    clock.now += LEASE_S  # the probe hangs, so that the next call opens the breaker, and later probes again
    if told_of is State.HALF_OPEN:
        refused(breaker)
        clock.now += WAIT_S * 1.5
    succeed(breaker)
    assert (breaker.state, breaker.statistics().calls) == (State.CLOSED, 1)


def test_r58_every_change_is_logged_and_an_opening_is_a_warning(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    breaker = opened(clock)
    clock.now += WAIT_S
    succeed(breaker, 3)
    breaker.isolate("maintenance")
    breaker.force_close()
    assert [(record.levelname, record.to) for record in caplog.records] == [  # type: ignore[attr-defined]
        ("WARNING", "open"),
        ("INFO", "half_open"),
        ("INFO", "closed"),
        ("WARNING", "isolated"),
        ("INFO", "forced_closed"),
    ]
    first = vars(caplog.records[0])
    assert (first["msg"], first["dependency"], first["from"]) == ("circuit breaker", "api", "closed")
    assert first["reason"] == "5 of 5 calls failed, 0 took too long"


def test_r58_the_statistics_tell_the_state_why_and_since_when(clock: FakeClock) -> None:
    breaker = opened(clock)
    refused(breaker)
    clock.now += 10
    statistics = breaker.statistics()
    assert (statistics.name, statistics.state, statistics.state_age_s) == ("api", State.OPEN, 10)
    assert (statistics.reason, statistics.retry_after_s) == ("5 of 5 calls failed, 0 took too long", WAIT_S - 10)
    assert (statistics.rejected, statistics.transitions[State.OPEN]) == (1, 1)
    assert sum(statistics.transitions.values()) == 1


def test_r58_a_snapshot_does_not_change_afterwards(clock: FakeClock) -> None:
    breaker = new(clock)
    before = breaker.statistics()
    fail(breaker, 5)
    assert (before.state, before.calls, before.transitions[State.OPEN]) == (State.CLOSED, 0, 0)


def test_r58_the_statistics_forget_calls_that_are_too_old(clock: FakeClock) -> None:
    breaker = new(clock, sliding_window_type="time", sliding_window_size=10)
    fail(breaker)
    clock.now += 10
    assert breaker.statistics().calls == 0


# Configuration


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sliding_window_size", 0),
        ("sliding_window_size", 10_001),
        ("minimum_number_of_calls", 0),
        ("failure_rate_threshold", 0),
        ("failure_rate_threshold", 1.01),
        ("failure_rate_threshold", 50),
        ("failure_rate_threshold", math.nan),
        ("slow_call_duration_threshold_s", 0),
        ("slow_call_rate_threshold", 0),
        ("slow_call_rate_threshold", 1.01),
        ("wait_duration_in_open_state_s", 0),
        ("wait_duration_in_open_state_s", math.inf),
        ("wait_duration_multiplier", 0.99),
        ("wait_duration_multiplier", 101),
        ("max_wait_duration_in_open_state_s", math.inf),
        ("wait_duration_jitter", -0.01),
        ("wait_duration_jitter", 1),
        ("permitted_number_of_calls_in_half_open_state", 0),
        ("permitted_number_of_calls_in_half_open_state", 1001),
        ("max_wait_duration_in_half_open_state_s", 0),
    ],
)
def test_a_value_beyond_its_limits_is_refused_with_name_limits_and_value(name: str, wrong: float) -> None:
    values: dict[str, Any] = {name: wrong}
    with pytest.raises(ValueError, match=f"^{name} must be from .+ to .+; it is {wrong!r}"):
        CircuitBreakerConfig(**values)


@pytest.mark.parametrize(
    "extreme",
    [
        {"sliding_window_size": 1, "minimum_number_of_calls": 1},
        {"sliding_window_size": 5},
        {"sliding_window_type": "time", "sliding_window_size": 1},
        {"failure_rate_threshold": 1},
        {"wait_duration_in_open_state_s": 180},
        {"wait_duration_multiplier": 1, "wait_duration_jitter": 0},
        {"permitted_number_of_calls_in_half_open_state": 1},
    ],
)
def test_a_value_at_its_limit_is_accepted(extreme: dict[str, Any]) -> None:
    CircuitBreakerConfig(**extreme)


def test_values_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^minimum_number_of_calls is greater than sliding_window_size: it would never"
    ):
        CircuitBreakerConfig(sliding_window_size=4)
    with pytest.raises(ValueError, match=r"^wait_duration_in_open_state_s is greater than max_wait_duration_in_open_"):
        CircuitBreakerConfig(wait_duration_in_open_state_s=181)


def test_an_unknown_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sliding_window_type must be one of .*'consecutive'"):
        CircuitBreakerConfig(sliding_window_type="calls")  # type: ignore[arg-type]


def test_the_defaults_are_five_failures_sixty_seconds_and_three_probes() -> None:
    assert dataclasses.asdict(CircuitBreakerConfig()) == {
        "sliding_window_type": "count",
        "sliding_window_size": 20,
        "minimum_number_of_calls": 5,
        "failure_rate_threshold": 0.5,
        "slow_call_duration_threshold_s": math.inf,
        "slow_call_rate_threshold": 1,
        "wait_duration_in_open_state_s": 60,
        "wait_duration_multiplier": 1.5,
        "max_wait_duration_in_open_state_s": 180,
        "wait_duration_jitter": 0.1,
        "permitted_number_of_calls_in_half_open_state": 3,
        "max_wait_duration_in_half_open_state_s": 30,
    }
