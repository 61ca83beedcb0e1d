"""Everything between a call and a dependency's failures: rules R43, R44, R46, R55, R58 and R59."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from reliability.chaos import Chaos
from reliability.circuit_breaker import State
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.deadlines import deadline, remaining_s
from reliability.dependency import Dependency, DependencyLimits
from reliability.dependency_group import DependencyGroup
from reliability.dependency_statistics import DependencyTotals
from reliability.errors import (
    CircuitOpen,
    ConnectionBroken,
    DeadlineExceeded,
    DependencyBusy,
    DependencyFailed,
    DependencyTimeout,
    NotEnoughTime,
    ToolFailure,
)
from reliability.health import Unhealthy
from reliability.retry import RetryConfig

from tests.unit.support import CANCELLERS, cancel_at_every_await, let_pass, virtual_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = [pytest.mark.anyio, virtual_time]

FAILURE = DependencyFailed("api", "It failed.")
BROKEN = ConnectionError("reset")
NO_WAIT = RetryConfig(wait_initial_s=0)


def now() -> float:
    return asyncio.get_running_loop().time()


def dependency(*, breaker: dict[str, Any] | None = None, retry: RetryConfig = NO_WAIT, **options: Any) -> Dependency:
    """Return a dependency whose breaker opens after 5 failures and stays open for a minute."""
    own = {name: options.pop(name) for name in ("critical", "is_failure", "chaos") if name in options}
    config = CircuitBreakerConfig(wait_duration_jitter=0, **(breaker or {}))
    return Dependency("api", DependencyLimits(circuit_breaker=config, retry=retry, **options), clock=now, **own)


async def answer() -> str:
    await anyio.lowlevel.checkpoint()
    return "answer"


async def hang() -> str:
    await anyio.sleep_forever()
    return "never"


class Failing:
    """Fails as often as it is told to."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.asked = 0

    async def __call__(self) -> str:
        self.asked += 1
        await anyio.lowlevel.checkpoint()
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def always_failing() -> Failing:
    return Failing(*[FAILURE] * 1000)


async def open_breaker(api: Dependency) -> None:
    while api.breaker.state is not State.OPEN:
        with pytest.raises(DependencyFailed):
            await api.call(always_failing())


async def through_call(api: Dependency, work: Callable[[], Awaitable[str]], **options: Any) -> str:
    return await api.call(work, **options)


async def through_guard(api: Dependency, work: Callable[[], Awaitable[str]], **options: Any) -> str:
    async with api.guard(**options):
        return await work()


both_ways = pytest.mark.parametrize("ask", [through_call, through_guard])


def everything_is_back(api: Dependency) -> bool:
    found = api.statistics()
    return (found.in_flight, found.queued, found.breaker.probes) == (0, 0, 0)


@pytest.mark.parametrize("end", [None, ToolFailure("No such note."), FAILURE])
async def test_r55_a_failure_that_a_guarded_body_counts_is_one_however_it_ends(end: Exception | None) -> None:
    api = dependency()
    with suppress(ToolFailure, DependencyFailed):
        async with api.guard() as attempt:
            attempt.count(FAILURE)
            if end is not None:
                raise end
    statistics = api.breaker.statistics()
    assert (statistics.calls, statistics.failures, statistics.failures_total, statistics.late) == (1, 1, 1, 0)


@both_ways
async def test_an_answer_comes_through(ask: Any) -> None:
    api = dependency()
    assert await ask(api, answer) == "answer"
    assert everything_is_back(api)
    assert api.statistics().totals == DependencyTotals(calls=1)
    assert api.breaker.statistics().calls == 1


# The limit of an attempt: R43, R44.


@both_ways
async def test_r43_a_hang_ends_at_the_limit_of_the_attempt_and_counts_against_the_dependency(ask: Any) -> None:
    api, begun = dependency(attempt_timeout_s=5), now()
    with pytest.raises(DependencyTimeout, match=r"'api' did not answer within 5 s") as caught:
        await ask(api, hang)
    assert now() - begun == pytest.approx(5)
    assert caught.value.limit_s == 5
    assert caught.value.retryable
    assert everything_is_back(api)
    with pytest.raises(DependencyTimeout):
        await ask(api, hang)
    assert api.statistics().totals == DependencyTotals(calls=2, failures=2, timeouts=2)
    assert api.breaker.statistics().failures == 2


@both_ways
async def test_r43_a_call_may_have_a_limit_of_its_own(ask: Any) -> None:
    api, begun = dependency(attempt_timeout_s=5), now()
    with pytest.raises(DependencyTimeout, match="within 9 s"):
        await ask(api, hang, timeout_s=9)
    assert now() - begun == pytest.approx(9)


@both_ways
@pytest.mark.parametrize("left_s", [2, 3.33333, 5, 5.2])
async def test_r44_an_attempt_ends_a_little_before_the_call_does_so_that_the_breaker_sees_a_hang(
    ask: Any, left_s: float
) -> None:
    api, begun = dependency(attempt_timeout_s=5), now()
    with deadline(left_s):
        with pytest.raises(DependencyTimeout) as caught:
            await ask(api, hang)
        assert now() - begun == pytest.approx(0.95 * left_s)
        assert remaining_s() == pytest.approx(0.05 * left_s)
    assert caught.value.limit_s == round(0.95 * left_s, 3)


@both_ways
async def test_r44_the_work_sees_the_limit_in_threads_too(ask: Any) -> None:
    seen: list[float] = []

    async def look() -> str:
        seen.append(remaining_s())
        return ""

    await ask(dependency(attempt_timeout_s=5), look)
    assert seen == [pytest.approx(5)]


@both_ways
@pytest.mark.parametrize("left_s", [0.49, 0.5, 0.51])
async def test_r44_with_too_little_time_left_the_dependency_is_not_asked(ask: Any, left_s: float) -> None:
    api, work = dependency(attempt_timeout_s=5), Failing()
    with deadline(left_s):
        if left_s >= 0.5:
            await ask(api, work)
        else:
            with pytest.raises(NotEnoughTime, match=r"The call to 'api' was not begun: it needs 0\.5 s, and 0\.49 s"):
                await ask(api, work)
    assert work.asked == api.statistics().totals.calls == (left_s >= 0.5)
    assert everything_is_back(api)


async def test_r44_too_little_time_is_measured_by_the_limit_of_the_call() -> None:
    api = dependency(attempt_timeout_s=5)
    with deadline(0.49):
        assert await api.call(answer, timeout_s=4) == "answer"
        with pytest.raises(NotEnoughTime):
            await api.call(answer, timeout_s=6)


@both_ways
async def test_r44_a_generous_limit_of_attempts_does_not_keep_short_calls_from_being_made(ask: Any) -> None:
    api = dependency(attempt_timeout_s=600)
    with deadline(2):
        assert await ask(api, answer) == "answer"
    with deadline(0.99), pytest.raises(NotEnoughTime, match=r"it needs 1 s, and 0\.99 s"):
        await ask(api, answer)


@both_ways
@pytest.mark.parametrize("patience_s", [0.1, 3])
async def test_r44_a_cancel_scope_of_the_author_is_the_authors_business(ask: Any, patience_s: float) -> None:
    api, begun = dependency(attempt_timeout_s=5), now()
    with anyio.move_on_after(patience_s) as patience:
        await ask(api, hang)
    assert patience.cancelled_caught
    assert now() - begun == pytest.approx(patience_s)
    assert api.statistics().totals == DependencyTotals(calls=1)


@both_ways
async def test_r44_a_cleanup_that_is_shielded_from_an_expired_deadline_may_ask(ask: Any) -> None:
    api, answers = dependency(attempt_timeout_s=5), []
    with pytest.raises(DeadlineExceeded), deadline(1):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                answers.append(await ask(api, answer))
                with pytest.raises(DependencyTimeout, match="within 5 s"):
                    await ask(api, hang)
    assert answers == ["answer"]


async def test_r44_time_spent_in_the_queue_is_gone_for_the_attempt() -> None:
    api = dependency(attempt_timeout_s=5, max_concurrent=1, queue_timeout_s=60)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: api.call(lambda: anyio.sleep(3)))
        await anyio.lowlevel.checkpoint()
        with deadline(3.4), pytest.raises(NotEnoughTime, match=r"0\.4 s of the time limit are left"):
            await api.call(answer)
    assert everything_is_back(api)


async def test_r43_the_end_of_the_whole_call_is_reported_by_its_own_deadline() -> None:
    api = dependency(attempt_timeout_s=5)

    async def block() -> None:
        let_pass(10)  # both limits expire before the loop can look
        await anyio.sleep_forever()

    with pytest.raises(DeadlineExceeded) as caught, deadline(2):
        await api.call(block)
    assert type(caught.value) is DeadlineExceeded
    assert everything_is_back(api)


async def test_r43_a_cleanup_of_the_work_runs_before_the_timeout_is_reported() -> None:
    api, steps = dependency(attempt_timeout_s=5), []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
                steps.append("cleaned up")

    with pytest.raises(DependencyTimeout):
        await api.call(work)
    assert steps == ["cleaned up"]


async def test_r43_an_answer_that_comes_in_spite_of_the_expired_limit_is_an_answer() -> None:
    api = dependency(attempt_timeout_s=5)

    async def block() -> str:
        let_pass(10)
        return "late"

    assert await api.call(block) == "late"
    assert api.statistics().totals == DependencyTotals(calls=1)


async def test_r43_an_error_beside_the_timeout_is_not_lost_and_counts_once() -> None:
    api = dependency(attempt_timeout_s=5)

    async def fail_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("beside")

    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail_when_cancelled)
            tasks.start_soon(anyio.sleep_forever)

    with pytest.raises(ExceptionGroup):
        await api.call(work)
    assert everything_is_back(api)
    assert api.statistics().totals.failures == 1


# What counts as a failure: R46, R55.


@both_ways
@pytest.mark.parametrize(
    "broken",
    [
        ConnectionResetError("secret"),
        TimeoutError("secret"),
        socket.gaierror(socket.EAI_NONAME, "secret"),
        OSError(errno.ENETUNREACH, "secret"),
        OSError(errno.EHOSTUNREACH, "secret"),
        OSError("Multiple exceptions: secret, secret"),
        asyncio.CancelledError(),
    ],
    ids=repr,
)
async def test_r55_a_broken_connection_is_a_failure_by_the_name_of_the_dependency(
    ask: Any, broken: BaseException
) -> None:
    api = dependency(is_failure=lambda _: False)
    with pytest.raises(ConnectionBroken) as caught:
        await ask(api, Failing(broken))
    assert str(caught.value) == f"The connection to the dependency 'api' broke ({type(broken).__name__})."
    assert caught.value.__cause__ is broken
    assert caught.value.retryable
    assert api.statistics().totals == DependencyTotals(calls=1, failures=1)
    assert api.breaker.statistics().failures == 1


@both_ways
@pytest.mark.parametrize("error", [KeyError("x"), FileNotFoundError(errno.ENOENT, "x")], ids=repr)
async def test_r55_a_foreign_error_passes_unchanged_and_is_counted(ask: Any, error: Exception) -> None:
    api = dependency()
    with pytest.raises(type(error)) as caught:
        await ask(api, Failing(error))
    assert caught.value is error
    assert api.statistics().totals == DependencyTotals(calls=1, failures=1)


@both_ways
async def test_r55_an_answer_that_is_an_error_of_the_caller_does_not_count(ask: Any) -> None:
    api = dependency()
    with pytest.raises(ToolFailure):
        await ask(api, Failing(ToolFailure("No such note.")))
    assert api.statistics().totals == DependencyTotals(calls=1)
    assert api.breaker.statistics().calls == 0


@pytest.mark.parametrize(("error", "failures"), [(KeyError(), 1), (ValueError(), 0)])
async def test_r55_the_author_says_what_a_failure_is(error: Exception, failures: int) -> None:
    api = dependency(is_failure=lambda error: isinstance(error, KeyError))
    with pytest.raises(type(error)):
        await api.call(Failing(error))
    assert api.statistics().totals.failures == failures


async def test_r55_a_timeout_counts_however_narrow_the_authors_idea_of_a_failure_is() -> None:
    api = dependency(is_failure=lambda _: False)
    for _ in range(5):
        with pytest.raises(DependencyTimeout):
            await api.call(hang)
    assert api.breaker.state is State.OPEN


@both_ways
@pytest.mark.parametrize("how", CANCELLERS)
async def test_r46_a_cancellation_is_no_failure_and_is_not_swallowed(ask: Any, how: str) -> None:
    api, scope = dependency(), anyio.CancelScope()

    async def call() -> None:
        with scope:
            await ask(api, hang)

    task = asyncio.ensure_future(call())
    await anyio.wait_all_tasks_blocked()
    (scope if how == "scope" else task).cancel()
    await asyncio.wait([task])
    assert task.cancelled() == (how == "task")
    assert scope.cancelled_caught == (how == "scope")
    assert api.statistics().totals == DependencyTotals(calls=1)
    assert everything_is_back(api)


# The breaker: R58.


@both_ways
async def test_r58_an_open_breaker_refuses_without_asking_and_says_when_to_come_back(ask: Any) -> None:
    api, work = dependency(), Failing()
    await open_breaker(api)
    with pytest.raises(CircuitOpen) as caught:
        await ask(api, work)
    assert caught.value.retry_after_s == 60
    assert work.asked == 0
    assert everything_is_back(api)
    assert api.statistics().totals == DependencyTotals(calls=5, failures=5, opened=1, rejected=1)


async def test_r58_nobody_queues_for_a_dependency_that_is_left_alone() -> None:
    api = dependency(max_concurrent=1, attempt_timeout_s=1000, breaker={"minimum_number_of_calls": 1})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(api.call, hang)
        await anyio.wait_all_tasks_blocked()
        api.breaker.on_error(api.breaker.acquire(), BROKEN)
        begun = now()
        with pytest.raises(CircuitOpen):
            await api.call(answer)
        api.breaker.isolate("maintenance")
        with pytest.raises(CircuitOpen):
            await api.call(answer)
        assert now() == begun
        assert api.statistics().totals.rejected == 2
        assert api.statistics().queued == 0
        tasks.cancel_scope.cancel()


async def test_r58_nobody_queues_even_when_it_is_tried_again_soon() -> None:
    api = dependency(max_concurrent=1, attempt_timeout_s=1000, breaker={"minimum_number_of_calls": 1})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(api.call, hang)
        await anyio.wait_all_tasks_blocked()
        api.breaker.on_error(api.breaker.acquire(), BROKEN)
        await anyio.sleep(59.5)
        with pytest.raises(CircuitOpen):
            await api.call(answer)
        tasks.cancel_scope.cancel()


async def test_r58_a_call_that_queued_while_the_breaker_opened_does_not_ask_any_more() -> None:
    api, work = dependency(max_concurrent=1, breaker={"minimum_number_of_calls": 1}), Failing()

    async def fail_later() -> None:
        with pytest.raises(DependencyTimeout):
            await api.call(hang, timeout_s=1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail_later)
        await anyio.lowlevel.checkpoint()
        with pytest.raises(CircuitOpen):
            await api.call(work)
    assert work.asked == 0
    assert everything_is_back(api)


async def test_r58_the_first_call_after_the_wait_may_queue_for_its_probe() -> None:
    api = dependency(max_concurrent=1, attempt_timeout_s=1000, breaker={"minimum_number_of_calls": 1})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: api.call(lambda: anyio.sleep(61)))
        await anyio.lowlevel.checkpoint()
        api.breaker.on_error(api.breaker.acquire(), BROKEN)
        await anyio.sleep(60)
        assert await api.call(answer) == "answer"
    assert api.breaker.state is State.HALF_OPEN


async def test_waiting_in_the_queue_is_not_the_slowness_of_the_dependency() -> None:
    slow = {"slow_call_duration_threshold_s": 2, "minimum_number_of_calls": 2}
    api = dependency(max_concurrent=1, breaker=slow)
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(lambda: api.call(lambda: anyio.sleep(1)))
    assert (api.breaker.statistics().calls, api.breaker.statistics().slow) == (4, 0)


@both_ways
@pytest.mark.parametrize(
    ("options", "cancelled_after_s", "slow"),
    [
        ({}, 3.9, 0),
        ({}, 4, 1),
        ({"timeout_s": 4.5}, 4, 1),
        ({"timeout_s": 5.5}, 4.4, 0),
        ({"timeout_s": 5.5}, 4.5, 1),
        ({"timeout_s": 30}, 28.9, 0),
        ({"timeout_s": 30}, 29, 1),
    ],
)
async def test_r46_a_call_that_is_cancelled_when_its_limit_is_nearly_over_counts_as_slow(
    ask: Any, options: dict[str, float], cancelled_after_s: float, slow: int
) -> None:
    api = dependency(attempt_timeout_s=5)
    with anyio.move_on_after(cancelled_after_s):
        await ask(api, hang, **options)
    assert api.breaker.statistics().slow == slow
    assert api.statistics().totals == DependencyTotals(calls=1)


@pytest.mark.parametrize(("options", "slow_s"), [({}, 4), ({"timeout_s": 10}, 9)])
async def test_a_wait_for_something_else_does_not_make_it_slow(options: dict[str, float], slow_s: float) -> None:
    api = dependency(attempt_timeout_s=5)
    for work_s, slow in ((slow_s - 0.2, 0), (slow_s, 1)):
        async with api.guard(**options) as attempt:
            await anyio.sleep(0.1)
            attempt.begin()
            await anyio.sleep(work_s)
        assert api.breaker.statistics().slow == slow


async def test_what_is_slow_may_be_configured() -> None:
    api = dependency(attempt_timeout_s=5, breaker={"slow_call_duration_threshold_s": 2})
    with anyio.move_on_after(2):
        await api.call(hang)
    assert api.breaker.statistics().slow == 1


async def test_r56_a_probe_is_not_given_up_for_lost_while_it_has_time() -> None:
    api = dependency(attempt_timeout_s=100, breaker={"max_wait_duration_in_half_open_state_s": 30})
    await open_breaker(api)
    await anyio.sleep(60)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: api.call(lambda: anyio.sleep(79)))
        await anyio.sleep(78)
        assert await api.call(answer) == "answer"
    assert await api.call(answer) == "answer"
    assert api.breaker.state is State.CLOSED


# The bulkhead: R59.


@both_ways
async def test_r59_a_call_over_the_bound_waits_and_one_over_the_queue_is_refused(ask: Any) -> None:
    api = dependency(max_concurrent=2, max_queued=1)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask, api, hang)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(DependencyBusy, match="'api' is busy: 2 calls are running and 1 are waiting") as caught:
            await ask(api, answer)
        assert caught.value.dependency == "api"
        assert caught.value.retry_after_s == 5
        found = api.statistics()
        assert (found.name, found.state, found.in_flight, found.queued, found.totals.busy) == (
            "api",
            State.CLOSED,
            2,
            1,
            1,
        )
        tasks.cancel_scope.cancel()
    assert everything_is_back(api)
    assert api.breaker.statistics().calls == 0


async def test_r59_a_place_is_waited_for_no_longer_than_the_limit_of_the_queue() -> None:
    api, begun = dependency(max_concurrent=1, queue_timeout_s=2), now()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(api.call, hang)
        await anyio.lowlevel.checkpoint()
        with pytest.raises(DependencyBusy, match="no place came free within 2 s"):
            await api.call(answer)
        assert now() - begun == pytest.approx(2)
        tasks.cancel_scope.cancel()


async def test_without_a_bound_as_many_calls_as_one_likes_are_in_progress() -> None:
    api = dependency(max_concurrent=None)
    async with anyio.create_task_group() as tasks:
        for _ in range(1000):
            tasks.start_soon(api.call, hang)
        await anyio.wait_all_tasks_blocked()
        found = api.statistics()
        assert (found.totals.calls, found.in_flight, found.queued, found.totals.busy) == (1000, 1000, 0, 0)
        tasks.cancel_scope.cancel()


# Retries: R59.


async def test_r59_an_idempotent_call_is_repeated() -> None:
    api, work = dependency(), Failing(FAILURE, FAILURE)
    assert await api.call(work, idempotent=True) == "answer"
    assert work.asked == 3
    assert api.statistics().totals == DependencyTotals(calls=3, failures=2, retries=2)


async def test_r59_any_other_call_is_made_once() -> None:
    api, work = dependency(), Failing(FAILURE)
    with pytest.raises(DependencyFailed):
        await api.call(work)
    assert work.asked == 1


async def test_r59_each_attempt_has_the_limit_of_the_call() -> None:
    api, begun = dependency(attempt_timeout_s=5), now()
    with pytest.raises(DependencyTimeout, match="within 7 s"):
        await api.call(hang, idempotent=True, timeout_s=7)
    assert now() - begun == pytest.approx(21)


async def test_r59_no_retry_is_begun_that_would_have_too_little_time() -> None:
    api, work = dependency(attempt_timeout_s=5, retry=RetryConfig(wait_initial_s=1, wait_jitter=0)), always_failing()
    with deadline(1.49), pytest.raises(DependencyFailed):
        await api.call(work, idempotent=True)
    assert work.asked == 1
    with deadline(1.51), pytest.raises(DependencyFailed):
        await api.call(work, idempotent=True)
    assert work.asked == 3
    with deadline(1.51), pytest.raises(DependencyFailed):
        await api.call(work, idempotent=True, timeout_s=5.2)
    assert work.asked == 4


async def test_r59_an_open_breaker_ends_the_retries() -> None:
    api, work = dependency(breaker={"minimum_number_of_calls": 2}), always_failing()
    with pytest.raises(CircuitOpen):
        await api.call(work, idempotent=True)
    assert work.asked == 2


async def test_r59_a_full_bulkhead_is_not_asked_again() -> None:
    api = dependency(max_concurrent=1, max_queued=0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(api.call, hang)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(DependencyBusy):
            await api.call(answer, idempotent=True)
        tasks.cancel_scope.cancel()
    assert api.statistics().totals.busy == 1


async def test_r59_a_success_at_once_pays_into_the_budget_and_one_after_a_retry_does_not() -> None:
    api = dependency()
    await api.call(Failing(FAILURE), idempotent=True)
    assert api.statistics().retry_tokens == 9
    await api.call(answer)
    assert api.statistics().retry_tokens == 9.1


async def test_r59_a_dead_upstream_gets_a_hundred_requests_and_ten_retries() -> None:
    api, work = dependency(max_concurrent=None), always_failing()
    api.breaker.force_close()  # alone, the budget must be enough
    async with anyio.create_task_group() as tasks:

        async def request() -> None:
            with pytest.raises(DependencyFailed):
                await api.call(work, idempotent=True)

        for _ in range(100):
            tasks.start_soon(request)
    assert work.asked == 110
    assert api.statistics().totals.retries_refused >= 90


# Health and statistics.


async def test_its_health_follows_the_breaker() -> None:
    api = dependency()
    check = api.check()
    assert (check.name, check.critical) == ("api", False)
    assert await check.probe() == "calls go through"
    await open_breaker(api)
    with pytest.raises(Unhealthy, match="open: 5 of 5 calls failed"):
        await check.probe()
    await anyio.sleep(60)
    with pytest.raises(Unhealthy):  # only a call can tell that it is well again
        await check.probe()
    await api.call(answer)
    with pytest.raises(Unhealthy, match="half_open"):
        await check.probe()
    api.breaker.isolate("maintenance")
    with pytest.raises(Unhealthy, match="isolated: maintenance"):
        await check.probe()
    api.breaker.force_close()
    assert await check.probe() == "calls go through"


async def test_a_critical_one_that_can_be_tried_again_does_not_keep_the_calls_away_that_would_try() -> None:
    api = dependency(critical=True)
    check = api.check()
    assert check.critical
    await open_breaker(api)
    await anyio.sleep(59)
    with pytest.raises(Unhealthy):
        await check.probe()
    await anyio.sleep(1)
    assert await check.probe() == "calls go through"
    await api.call(answer)
    assert api.breaker.state is State.HALF_OPEN
    assert await check.probe() == "calls go through"
    api.breaker.isolate("maintenance")
    with pytest.raises(Unhealthy):
        await check.probe()


@pytest.mark.parametrize(
    ("name", "value"),
    [("attempt_timeout_s", 0), ("max_concurrent", 0), ("max_queued", -1), ("queue_timeout_s", float("nan"))],
)
async def test_a_wrong_limit_is_refused_by_its_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be from"):
        DependencyLimits(**{name: value})  # type: ignore[arg-type]


# Groups.


async def test_the_members_of_a_group_fail_apart() -> None:
    group = DependencyGroup("apis", DependencyLimits(retry=NO_WAIT), clock=now)
    assert group.of("a") is group.of("a")
    await open_breaker(group.of("a"))
    with pytest.raises(CircuitOpen, match="'apis/a'"):
        await group.of("a").call(answer)
    assert await group.of("b").call(answer) == "answer"
    assert [member.name for member in group.statistics()] == ["apis/a", "apis/b"]
    assert group.totals() == DependencyTotals(calls=6, failures=5, opened=1, rejected=1)


async def test_a_group_is_unhealthy_while_calls_to_a_member_are_refused() -> None:
    group = DependencyGroup("apis", clock=now, critical=True)
    check = group.check()
    assert (check.name, check.critical) == ("apis", True)
    await group.of("b").call(answer)
    assert await check.probe() == "calls go through"
    await open_breaker(group.of("a"))
    with pytest.raises(Unhealthy, match=r"^apis/a is open: 5 of 5 calls failed, 0 took too long$"):
        await check.probe()
    group.of("b").breaker.isolate("maintenance")
    with pytest.raises(
        Unhealthy, match=r"^apis/a is open: 5 of 5 calls failed, 0 took too long; apis/b is isolated: maintenance$"
    ):
        await check.probe()


async def test_by_default_a_group_is_not_critical_and_holds_64_members() -> None:
    group = DependencyGroup("apis")
    assert not group.check().critical
    for number in range(65):
        assert not group.of(str(number)).critical
    assert [member.name for member in group.statistics()] == [f"apis/{number}" for number in range(1, 65)]


async def test_a_group_forgets_the_idle_member_that_was_not_used_for_longest_but_not_its_figures() -> None:
    group = DependencyGroup("apis", max_members=3, clock=now)
    failing = group.of("failing")
    await open_breaker(failing)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(group.of("busy").call, hang)
        await anyio.wait_all_tasks_blocked()
        idle = group.of("idle")
        await idle.call(answer)
        before = group.totals()
        group.of("new")
        assert [member.name for member in group.statistics()] == ["apis/failing", "apis/busy", "apis/new"]
        assert group.totals() == before
        group.of("new")
        assert group.of("failing") is failing
        await open_breaker(group.of("new"))
        before = group.totals()
        group.of("newer")  # nobody is idle: the one that was not used for longest has to go
        assert [member.name for member in group.statistics()] == ["apis/failing", "apis/new", "apis/newer"]
        assert group.totals() == before
        tasks.cancel_scope.cancel()


async def test_the_members_of_a_group_share_its_options() -> None:
    limits = DependencyLimits(attempt_timeout_s=7, circuit_breaker=CircuitBreakerConfig(minimum_number_of_calls=1))
    group = DependencyGroup("apis", limits, critical=True, is_failure=lambda _: False, clock=now)
    member = group.of("a")
    assert member.limits is group.limits is limits
    assert member.critical
    with pytest.raises(KeyError):
        await member.call(Failing(KeyError()))
    assert group.totals().failures == 0
    with pytest.raises(ConnectionBroken):
        await member.call(Failing(ConnectionResetError()))
    assert member.breaker.retry_after_s == pytest.approx(60, rel=0.11)
    await anyio.sleep(60)
    assert await member.call(answer) == "answer"


async def test_the_members_of_a_group_share_its_faults() -> None:
    group = DependencyGroup("apis", chaos=Chaos.parse("apis: error"))
    assert group.of("a").statistics().chaos
    with pytest.raises(ConnectionBroken, match="'apis/a'"):
        await group.of("a").call(answer)


# Nothing is lost, wherever a call is cancelled.


@pytest.mark.parametrize("how", CANCELLERS)
@both_ways
@pytest.mark.parametrize("state", [State.CLOSED, State.HALF_OPEN])
async def test_r46_a_cancellation_at_any_await_leaves_every_place_and_permit(ask: Any, how: str, state: State) -> None:
    chaos = Chaos.parse("api: latency=1s")
    api = dependency(max_concurrent=1, chaos=chaos, breaker={"minimum_number_of_calls": 1, "failure_rate_threshold": 1})

    async def work() -> None:
        if state is State.HALF_OPEN:
            api.breaker.reset()
            api.breaker.on_error(api.breaker.acquire(), BROKEN)
            let_pass(60)
        holder = asyncio.ensure_future(ask(api, answer))  # so that the call has to queue
        try:
            await asyncio.sleep(0)
            await ask(api, answer)
        finally:
            holder.cancel()

    async def nothing_is_lost() -> None:
        assert everything_is_back(api)

    assert await cancel_at_every_await(work, nothing_is_lost, how=how) == 4


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r46_a_cancellation_at_any_await_of_a_retry_leaves_every_place_and_permit(how: str) -> None:
    api = dependency(max_concurrent=1, retry=RetryConfig(budget_tokens=1000), breaker={"sliding_window_size": 10_000})
    api.breaker.force_close()

    async def work() -> None:
        await api.call(Failing(FAILURE, FAILURE), idempotent=True)

    async def nothing_is_lost() -> None:
        assert everything_is_back(api)

    assert await cancel_at_every_await(work, nothing_is_lost, how=how) >= 5
