"""The faults that breaker libraries were seen to fall over, against a whole dependency: rules R43 to R46, R53 to R59.

Of ten libraries eight let everybody through when half open, six never opened at 66 % failures, five handed the errors
of their listeners to the caller, and the best one stayed half open for ever when a classifier raised.
"""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from reliability.circuit_breaker import State, Transition
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.deadlines import deadline
from reliability.dependency import Dependency, DependencyLimits
from reliability.errors import (
    CircuitOpen,
    ConnectionBroken,
    DependencyError,
    DependencyFailed,
    ToolFailure,
)
from reliability.retry import RetryConfig

from tests.unit.support import CANCELLERS, virtual_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = [pytest.mark.anyio, virtual_time]


def now() -> float:
    return asyncio.get_running_loop().time()


def dependency(*, is_failure: Callable[[Exception], bool] | None = None, **breaker: Any) -> Dependency:
    config = CircuitBreakerConfig(wait_duration_jitter=0, **breaker)
    limits = DependencyLimits(max_concurrent=None, circuit_breaker=config, retry=RetryConfig(wait_jitter=0))
    options: dict[str, Any] = {} if is_failure is None else {"is_failure": is_failure}
    return Dependency("api", limits, clock=now, **options)


def state_of(api: Dependency) -> State:
    """Return its breaker's state, which the type checker believes to stay what it was."""
    return api.breaker.state


class Upstream:
    """A service that can be well, fail, hang or be slow, and counts what it is asked."""

    def __init__(self) -> None:
        self.behaviour: Callable[[], Awaitable[str]] = self.is_well
        self.asked = self.now = self.most = 0

    async def __call__(self) -> str:
        self.asked += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await anyio.lowlevel.checkpoint()
            return await self.behaviour()
        finally:
            self.now -= 1

    async def is_well(self) -> str:
        return "answer"

    async def is_slow(self) -> str:
        await anyio.sleep(1)
        return "answer"

    async def fails(self) -> str:
        raise DependencyFailed("api", "It failed.")

    async def hangs(self) -> str:
        await anyio.sleep_forever()
        return "never"


async def by_call(api: Dependency, work: Callable[[], Awaitable[str]]) -> str:
    return await api.call(work)


async def by_guard(api: Dependency, work: Callable[[], Awaitable[str]]) -> str:
    async with api.guard():
        return await work()


both_ways = pytest.mark.parametrize("ask", [by_call, by_guard])


async def outcome(call: Awaitable[str]) -> str:
    try:
        return await call
    except DependencyError as error:
        return error.kind


async def crowd(number: int, call: Callable[[], Awaitable[str]]) -> list[str]:
    """Return the outcomes of `number` calls at once."""
    return list(await asyncio.gather(*(outcome(call()) for _ in range(number))))


async def opened(api: Dependency, upstream: Upstream) -> None:
    upstream.behaviour = upstream.fails
    await crowd(5, lambda: api.call(upstream))
    assert state_of(api) is State.OPEN
    upstream.asked = upstream.most = 0


async def half_open(api: Dependency, upstream: Upstream) -> None:
    """Leave it open with its wait over: the next call is the first probe."""
    await opened(api, upstream)
    await anyio.sleep(api.breaker.retry_after_s or 0)


@both_ways
async def test_r56_of_a_hundred_callers_at_once_three_get_through_half_open(ask: Any) -> None:
    api, upstream = dependency(), Upstream()
    await half_open(api, upstream)
    upstream.behaviour = upstream.is_slow
    outcomes = await crowd(100, lambda: ask(api, upstream))
    assert (upstream.asked, upstream.most) == (3, 3)
    assert sorted(set(outcomes)) == ["answer", "circuit_open"]
    assert outcomes.count("answer") == 3
    assert state_of(api) is State.CLOSED
    assert await crowd(100, lambda: ask(api, upstream)) == ["answer"] * 100


@both_ways
async def test_r54_two_failures_of_three_open_it(ask: Any) -> None:
    api, upstream = dependency(), Upstream()
    for n in range(30):
        upstream.behaviour = upstream.is_well if n % 3 == 2 else upstream.fails
        await outcome(ask(api, upstream))
    assert state_of(api) is State.OPEN
    assert upstream.asked == 5


@both_ways
async def test_r58_the_error_of_a_listener_never_reaches_a_caller_nor_the_other_listeners(ask: Any) -> None:
    api, upstream = dependency(), Upstream()
    heard: list[Transition] = []

    def broken(_: Transition) -> None:
        raise RuntimeError("listener")

    api.breaker.add_listener(broken)
    api.breaker.add_listener(heard.append)
    await opened(api, upstream)
    await anyio.sleep(60)
    upstream.behaviour = upstream.is_well
    for _ in range(3):
        assert await ask(api, upstream) == "answer"
    assert [change.after for change in heard] == [State.OPEN, State.HALF_OPEN, State.CLOSED]


@both_ways
async def test_r55_a_classifier_that_raises_does_not_leave_it_half_open_for_ever(ask: Any) -> None:
    def broken(_: Exception) -> bool:
        raise RuntimeError("classifier")

    api, upstream = dependency(is_failure=broken), Upstream()
    await half_open(api, upstream)
    for _ in range(3):
        assert await outcome(ask(api, upstream)) == "dependency_failed"
        assert state_of(api) is State.OPEN
        await anyio.sleep(api.breaker.retry_after_s or 0)
    upstream.behaviour = upstream.is_well
    for _ in range(3):
        assert await ask(api, upstream) == "answer"
    assert state_of(api) is State.CLOSED


@both_ways
@pytest.mark.parametrize("how", CANCELLERS)
async def test_r46_cancelled_probes_give_their_permits_back(ask: Any, how: str) -> None:
    api, upstream = dependency(), Upstream()
    await half_open(api, upstream)
    upstream.behaviour = upstream.hangs
    for _ in range(10):
        scope = anyio.CancelScope()

        async def call(scope: anyio.CancelScope = scope) -> None:
            with scope:
                await ask(api, upstream)

        task = asyncio.ensure_future(call())
        await anyio.wait_all_tasks_blocked()
        (scope if how == "scope" else task).cancel()
        await asyncio.wait([task])
    assert state_of(api) is State.HALF_OPEN
    upstream.behaviour = upstream.is_well
    for _ in range(3):
        assert await ask(api, upstream) == "answer"
    assert state_of(api) is State.CLOSED


@both_ways
async def test_r56_a_probe_that_hangs_blocks_the_others_no_longer_than_its_limit(ask: Any) -> None:
    api, upstream = dependency(), Upstream()
    await half_open(api, upstream)
    upstream.behaviour = upstream.hangs
    begun = now()
    assert set(await crowd(3, lambda: ask(api, upstream))) == {"dependency_timeout"}
    assert now() - begun == pytest.approx(5)
    assert state_of(api) is State.OPEN
    await anyio.sleep(api.breaker.retry_after_s or 0)
    upstream.behaviour = upstream.is_well
    assert await ask(api, upstream) == "answer"


@both_ways
async def test_r56_a_probe_that_swallows_its_cancellation_loses_its_permit(ask: Any) -> None:
    api, upstream = dependency(max_wait_duration_in_half_open_state_s=10), Upstream()
    await half_open(api, upstream)

    async def swallows() -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1000)
        return "late"

    upstream.behaviour = swallows
    stuck = [asyncio.ensure_future(outcome(ask(api, upstream))) for _ in range(3)]
    await anyio.sleep(10)
    upstream.behaviour = upstream.is_well
    assert await outcome(ask(api, upstream)) == "circuit_open"  # the probes count as failed
    await anyio.sleep(api.breaker.retry_after_s or 0)
    for _ in range(3):
        assert await ask(api, upstream) == "answer"
    assert state_of(api) is State.CLOSED
    await asyncio.wait(stuck)  # their late ends change nothing
    assert state_of(api) is State.CLOSED


@both_ways
async def test_r57_a_late_result_of_an_earlier_state_changes_nothing(ask: Any) -> None:
    api, upstream = dependency(), Upstream()

    async def fails_late() -> str:
        await anyio.sleep(4)
        return await upstream.fails()

    upstream.behaviour = fails_late
    late = [asyncio.ensure_future(outcome(ask(api, upstream))) for _ in range(10)]
    await anyio.sleep(1)
    api.breaker.reset()
    await asyncio.wait(late)
    assert state_of(api) is State.CLOSED
    assert api.breaker.statistics().late == 10


@both_ways
async def test_r43_hangs_open_it(ask: Any) -> None:
    api, upstream = dependency(), Upstream()
    upstream.behaviour = upstream.hangs
    assert set(await crowd(5, lambda: ask(api, upstream))) == {"dependency_timeout"}
    assert state_of(api) is State.OPEN


@both_ways
async def test_r44_hangs_open_it_when_the_callers_have_little_time_left(ask: Any) -> None:
    api, upstream = dependency(), Upstream()
    upstream.behaviour = upstream.hangs

    async def hurried() -> str:
        with deadline(1):
            answer: str = await ask(api, upstream)
            return answer

    assert set(await crowd(5, hurried)) == {"dependency_timeout"}
    assert state_of(api) is State.OPEN


@both_ways
async def test_r46_impatient_clients_open_it_when_they_were_kept_waiting(ask: Any) -> None:
    api, upstream = dependency(), Upstream()
    upstream.behaviour = upstream.hangs
    for _ in range(5):
        with anyio.move_on_after(4):
            await ask(api, upstream)
    assert state_of(api) is State.OPEN


@both_ways
async def test_r46_impatient_clients_do_not_open_it_when_it_was_quick_enough(ask: Any) -> None:
    api, upstream = dependency(), Upstream()
    upstream.behaviour = upstream.hangs
    for _ in range(100):
        with anyio.move_on_after(1):
            await ask(api, upstream)
    assert state_of(api) is State.CLOSED


@both_ways
async def test_r55_errors_of_callers_do_not_open_it(ask: Any) -> None:
    api, upstream = dependency(), Upstream()

    async def refuses() -> str:
        raise ToolFailure("No such note.")

    upstream.behaviour = refuses
    for _ in range(100):
        with pytest.raises(ToolFailure):
            await ask(api, upstream)
    assert state_of(api) is State.CLOSED


@both_ways
async def test_r55_a_dead_background_task_of_the_client_library_opens_it(ask: Any) -> None:
    api, upstream = dependency(), Upstream()
    background = asyncio.ensure_future(anyio.sleep_forever())
    await anyio.wait_all_tasks_blocked()
    background.cancel()

    async def waits_for_the_dead() -> str:
        await asyncio.shield(background)
        return "never"

    upstream.behaviour = waits_for_the_dead
    for _ in range(5):
        with pytest.raises(ConnectionBroken):
            await ask(api, upstream)
    assert state_of(api) is State.OPEN


@both_ways
@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
async def test_the_end_of_the_process_is_not_held_up_and_gives_the_permit_back(
    ask: Any, end: type[BaseException]
) -> None:
    api, upstream = dependency(), Upstream()
    await half_open(api, upstream)

    async def ends() -> str:
        raise end

    upstream.behaviour = ends
    for _ in range(5):
        with pytest.raises(end):
            await ask(api, upstream)
    assert state_of(api) is State.HALF_OPEN
    assert api.breaker.statistics().probes == 0


@both_ways
async def test_r53_the_wall_clock_does_not_matter(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api, upstream = dependency(), Upstream()
    await opened(api, upstream)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert await outcome(ask(api, upstream)) == "circuit_open"
    monkeypatch.setattr(time, "time", lambda: 0.0)
    await anyio.sleep(60)
    upstream.behaviour = upstream.is_well
    assert await ask(api, upstream) == "answer"


@both_ways
async def test_r58_a_refusal_says_exactly_when_to_come_back(ask: Any) -> None:
    api, upstream = dependency(), Upstream()
    await opened(api, upstream)
    await anyio.sleep(20)
    with pytest.raises(CircuitOpen, match="tried again in 40 s") as caught:
        await ask(api, upstream)
    await anyio.sleep(caught.value.retry_after_s or 0)
    upstream.behaviour = upstream.is_well
    assert await ask(api, upstream) == "answer"


@both_ways
async def test_no_error_pins_what_the_failed_call_held(ask: Any) -> None:
    class Payload:
        pass

    api, payloads = dependency(), weakref.WeakSet[Payload]()

    async def fails(payload: Payload) -> str:
        payloads.add(payload)
        raise DependencyFailed("api", "It failed.")

    for _ in range(4):
        assert await outcome(ask(api, lambda: fails(Payload()))) == "dependency_failed"
    gc.collect()
    assert len(payloads) == 0


@pytest.mark.parametrize(("by_budget_alone", "asked"), [(False, 5), (True, 110)])
async def test_r59_a_hundred_requests_to_a_dead_upstream_ask_it_hardly_more_than_once_each(
    *, by_budget_alone: bool, asked: int
) -> None:
    api, upstream = dependency(), Upstream()
    upstream.behaviour = upstream.fails
    if by_budget_alone:
        api.breaker.force_close()
    for _ in range(100):
        with pytest.raises(DependencyError):
            await api.call(upstream, idempotent=True)
    assert upstream.asked == asked


async def test_r59_a_retry_that_waits_does_not_outlive_the_call() -> None:
    api, upstream = dependency(), Upstream()

    async def asks_for_patience() -> str:
        raise DependencyFailed("api", "Later.", retry_after_s=9)

    upstream.behaviour = asks_for_patience
    begun = now()
    with deadline(5), pytest.raises(DependencyFailed, match="Later"):
        await api.call(upstream, idempotent=True)
    assert now() == begun
    with deadline(20):
        with pytest.raises(DependencyFailed):
            await api.call(upstream, idempotent=True)
        assert now() - begun == pytest.approx(18)


async def test_fifty_callers_of_a_dying_upstream_are_all_answered_in_time_and_it_recovers_by_itself() -> None:
    api, upstream = dependency(), Upstream()
    answered: list[float] = []

    async def client() -> str:
        begun = now()
        try:
            with deadline(25):
                return await outcome(api.call(upstream, idempotent=True))
        finally:
            answered.append(now() - begun)

    assert await crowd(50, client) == ["answer"] * 50
    upstream.behaviour = upstream.hangs
    assert set(await crowd(50, client)) <= {"dependency_timeout", "circuit_open"}
    assert upstream.asked == 50 + 50  # nobody retried: the breaker opened with the first hangs
    assert set(await crowd(50, client)) == {"circuit_open"}
    assert max(answered) < 25
    assert upstream.asked == 100
    await anyio.sleep(60)
    upstream.behaviour = upstream.is_well
    outcomes = await crowd(50, client)
    assert outcomes.count("answer") >= 3
    assert await crowd(50, client) == ["answer"] * 50
