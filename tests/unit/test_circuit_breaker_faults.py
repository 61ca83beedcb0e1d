"""The faults that breakers are known to have, each shown to be absent: rules R46, R53 to R58.

Most Python libraries let every caller through when they probe, hand a listener's error to the caller, never open at two
failures out of three, or are stuck for ever after a cancelled, a hung or a wrongly classified probe.
"""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from reliability.circuit_breaker import CircuitBreaker, State
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.errors import CircuitOpen, DependencyFailed

from tests.unit.support import CANCELLERS, FakeClock, cancel_at_every_await

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliability.circuit_breaker import Transition

pytestmark = pytest.mark.anyio

CONFIG = CircuitBreakerConfig(wait_duration_jitter=0, slow_call_duration_threshold_s=2)
WAIT_S = CONFIG.wait_duration_in_open_state_s
PROBES = CONFIG.permitted_number_of_calls_in_half_open_state


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> CircuitBreaker:
    return CircuitBreaker("api", CONFIG, clock=clock)


async def fails() -> None:
    await anyio.lowlevel.checkpoint()
    raise DependencyFailed("api", "It answered 503.")


async def works() -> str:
    await anyio.lowlevel.checkpoint()
    return "well"


async def outcome(breaker: CircuitBreaker, work: Callable[[], Any]) -> str:
    try:
        return str(await breaker.call(work))
    except CircuitOpen:
        return "refused"
    except DependencyFailed:
        return "failed"


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return the errors, each with its dependency."""
    return [(record.msg, vars(record)["dependency"]) for record in caplog.records if record.levelname == "ERROR"]


async def open_it(breaker: CircuitBreaker) -> None:
    for _ in range(CONFIG.minimum_number_of_calls):
        assert await outcome(breaker, fails) == "failed"
    assert await outcome(breaker, works) == "refused"


async def recover(breaker: CircuitBreaker) -> None:
    """Show that it is not stuck: the next probes close it."""
    for _ in range(PROBES):
        assert await outcome(breaker, works) == "well"
    assert breaker.state is State.CLOSED


async def test_r56_of_a_hundred_callers_at_once_only_the_probes_get_through(
    breaker: CircuitBreaker, clock: FakeClock
) -> None:
    await open_it(breaker)
    clock.now += WAIT_S
    recovered = anyio.Event()
    answers: list[str] = []
    at_once = most = 0

    async def work() -> str:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await recovered.wait()
        at_once -= 1
        return "well"

    async def caller() -> None:
        answers.append(await outcome(breaker, work))

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(caller)
        await anyio.wait_all_tasks_blocked()
        assert answers == ["refused"] * (100 - PROBES)
        recovered.set()
    assert (most, answers.count("well"), breaker.state) == (PROBES, PROBES, State.CLOSED)


async def test_r58_a_listener_that_raises_disturbs_neither_callers_nor_other_listeners(
    breaker: CircuitBreaker, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Transition) -> None:
        raise RuntimeError("the listener is broken")

    told: list[State] = []
    breaker.add_listener(broken)
    breaker.add_listener(lambda change: told.append(change.after))
    await open_it(breaker)
    clock.now += WAIT_S
    await recover(breaker)
    assert told == [State.OPEN, State.HALF_OPEN, State.CLOSED]
    assert logged(caplog) == [("listener of a circuit breaker failed", "api")] * 3


@pytest.mark.parametrize("kind", ["count", "time"])
async def test_r54_two_failures_out_of_three_open_it(clock: FakeClock, kind: Any) -> None:
    breaker = CircuitBreaker("api", CircuitBreakerConfig(sliding_window_type=kind), clock=clock)
    answers = []
    for _ in range(20):
        answers += [await outcome(breaker, work) for work in (works, fails, fails)]
        clock.now += 0.1
    assert answers[:6] == ["well", "failed", "failed", "well", "failed", "refused"]
    assert set(answers[6:]) == {"refused"}


async def test_r55_a_classifier_that_raises_counts_a_failure_and_hides_no_error(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Exception) -> bool:
        raise RuntimeError("the classifier is broken")

    breaker = CircuitBreaker("api", CONFIG, is_failure=broken, clock=clock)
    await open_it(breaker)  # the callers see the dependency's own error
    clock.now += WAIT_S
    assert await outcome(breaker, fails) == "failed"  # a probe, too
    clock.now += WAIT_S * 1.5
    await recover(breaker)
    assert logged(caplog) == [("classifier of a circuit breaker failed", "api")] * (CONFIG.minimum_number_of_calls + 1)


@pytest.mark.parametrize("how", CANCELLERS)
@pytest.mark.parametrize("state", [State.CLOSED, State.HALF_OPEN])
async def test_r46_a_call_cancelled_at_any_await_counts_nothing_and_gives_its_permit_back(
    breaker: CircuitBreaker, clock: FakeClock, how: str, state: State
) -> None:
    if state is State.HALF_OPEN:
        await open_it(breaker)
        clock.now += WAIT_S
        breaker.on_error(breaker.acquire(), KeyboardInterrupt())

    async def body() -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()

    async def work() -> None:
        await breaker.call(body)

    finished = 0

    async def nothing_lost() -> None:
        nonlocal finished
        statistics = breaker.statistics()
        finished += statistics.calls > finished
        assert (statistics.state, statistics.probes, statistics.failures, statistics.late) == (state, 0, 0, 0)

    tried = await cancel_at_every_await(work, nothing_lost, how=how)
    assert tried >= 5
    assert breaker.statistics().calls == finished <= 2  # those alone that ended by themselves


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r46_probes_that_are_all_cancelled_leave_it_as_ready_as_before(
    breaker: CircuitBreaker, clock: FakeClock, how: str
) -> None:
    await open_it(breaker)
    clock.now += WAIT_S

    async def work() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(PROBES):
                tasks.start_soon(breaker.call, anyio.sleep_forever)
            await anyio.wait_all_tasks_blocked()
            assert breaker.statistics().probes == PROBES
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    async def all_back() -> None:
        assert (breaker.state, breaker.statistics().probes) == (State.HALF_OPEN, 0)

    assert await cancel_at_every_await(work, all_back, how=how) >= 2
    await recover(breaker)


async def test_r55_calls_that_clients_give_up_when_they_are_slow_open_it(
    breaker: CircuitBreaker, clock: FakeClock
) -> None:
    async def work() -> None:
        clock.now += 2
        scope.cancel()
        await anyio.sleep_forever()

    for _ in range(CONFIG.minimum_number_of_calls):
        with anyio.CancelScope() as scope:
            await breaker.call(work)
    assert breaker.state is State.OPEN
    assert breaker.statistics().reason == "0 of 5 calls failed, 5 took too long"


async def test_r56_a_hung_probe_holds_its_place_for_its_lease_only(breaker: CircuitBreaker, clock: FakeClock) -> None:
    await open_it(breaker)
    clock.now += WAIT_S
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(breaker.call, anyio.sleep_forever)
        await anyio.wait_all_tasks_blocked()
        clock.now += CONFIG.max_wait_duration_in_half_open_state_s
        assert await outcome(breaker, works) == "refused"
        assert (breaker.statistics().reason, breaker.retry_after_s) == ("a probe hangs", WAIT_S * 1.5)
        clock.now += WAIT_S * 1.5
        await recover(breaker)
        tasks.cancel_scope.cancel()
    assert breaker.statistics().calls == 0  # the hung probe's end came too late


async def test_r56_a_probe_within_its_lease_is_waited_for(breaker: CircuitBreaker, clock: FakeClock) -> None:
    await open_it(breaker)
    clock.now += WAIT_S
    probes = [breaker.acquire() for _ in range(PROBES)]
    clock.now += CONFIG.max_wait_duration_in_half_open_state_s - 0.001
    assert await outcome(breaker, works) == "refused"
    assert (breaker.state, breaker.statistics().probes) == (State.HALF_OPEN, len(probes))


async def test_r57_a_slow_success_from_before_the_outage_does_not_close_it(
    breaker: CircuitBreaker, clock: FakeClock
) -> None:
    answer = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for _ in range(PROBES):
            tasks.start_soon(breaker.call, answer.wait)
        await anyio.wait_all_tasks_blocked()
        await open_it(breaker)
        clock.now += WAIT_S
        assert await outcome(breaker, works) == "well"
        answer.set()
    statistics = breaker.statistics()
    assert (statistics.state, statistics.calls, statistics.late) == (State.HALF_OPEN, 1, PROBES)


async def test_r58_many_processes_do_not_probe_at_the_same_moment(clock: FakeClock) -> None:
    waits = set()
    for _ in range(50):
        breaker = CircuitBreaker("api", clock=clock)
        await open_it(breaker)
        waits.add(breaker.retry_after_s)
    assert len(waits) == 50
    assert all(54 <= wait <= 60 for wait in waits if wait is not None)


async def test_r58_an_operator_overrides_whatever_happens(breaker: CircuitBreaker, clock: FakeClock) -> None:
    breaker.isolate("maintenance")
    assert await outcome(breaker, works) == "refused"
    breaker.force_close()
    assert {await outcome(breaker, fails) for _ in range(100)} == {"failed"}
    breaker.reset()
    await open_it(breaker)


async def test_an_error_is_not_kept_alive_with_the_frames_of_its_traceback(breaker: CircuitBreaker) -> None:
    class Large:
        """Something that a frame holds."""

    seen = []

    async def work() -> None:
        large = Large()
        seen.append(weakref.ref(large))
        await fails()

    for _ in range(CONFIG.minimum_number_of_calls):
        assert await outcome(breaker, work) == "failed"
    gc.collect()
    assert [reference() for reference in seen] == [None] * len(seen)
