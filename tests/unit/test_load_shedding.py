"""Admission of calls: rules R59 (bounded, first come first served, a clear "busy") and R68 (drain)."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, TypeVar

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from reliability.errors import DependencyBusy, Overloaded, ShuttingDown
from reliability.load_shedding import LoadShedder

from tests.unit.support import CANCELLERS, cancel_at_every_await

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

T = TypeVar("T")


def shedder(*, places: int = 1, queue: int = 1, timeout_s: float = 60) -> LoadShedder:
    return LoadShedder(max_concurrent=places, max_queued=queue, queue_timeout_s=timeout_s)


async def test_r59_calls_up_to_the_limit_are_admitted_at_once() -> None:
    gate = shedder(places=2)
    await gate.acquire()
    await gate.acquire()
    assert (gate.in_flight, gate.queued) == (2, 0)


async def test_r59_a_call_over_the_limit_waits_for_a_place() -> None:
    gate = shedder()
    await gate.acquire()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.acquire)
        await anyio.wait_all_tasks_blocked()
        assert (gate.in_flight, gate.queued) == (1, 1)
        gate.release()
    assert (gate.in_flight, gate.queued) == (1, 0)


async def test_r59_a_call_over_the_queue_is_refused_at_once_with_a_time_to_retry() -> None:
    gate = shedder(queue=0, timeout_s=7)
    await gate.acquire()
    with pytest.raises(Overloaded, match=r"^The server is busy: 1 calls are running and 0 are waiting\.$") as caught:
        await gate.acquire()
    assert caught.value.retryable
    assert caught.value.retry_after_s == 7
    assert (gate.in_flight, gate.queued) == (1, 0)


async def test_r59_a_call_that_waited_too_long_is_refused_and_leaves_the_queue() -> None:
    gate = shedder(timeout_s=0.001)
    await gate.acquire()
    with pytest.raises(Overloaded, match=r"no place came free within 0\.001 s"):
        await gate.acquire()
    assert (gate.in_flight, gate.queued) == (1, 0)
    gate.release()
    await gate.acquire()  # the place did not go to the one that gave up


async def test_r59_the_longest_waiting_call_is_served_first() -> None:
    gate = shedder(queue=3)
    order: list[int] = []

    async def call(number: int) -> None:
        await gate.acquire()
        order.append(number)
        gate.release()

    await gate.acquire()
    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(call, number)
            await anyio.wait_all_tasks_blocked()
        gate.release()
    assert order == [0, 1, 2]


async def test_r59_a_place_that_came_free_is_not_taken_by_somebody_who_came_later() -> None:
    gate = shedder()
    order: list[str] = []

    async def call(name: str) -> None:
        await gate.acquire()
        order.append(name)

    await gate.acquire()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, "waited")
        await anyio.wait_all_tasks_blocked()
        gate.release()
        with pytest.raises(Overloaded):  # in the same moment: before the waiting call could run
            await call("pushed in")
        await anyio.wait_all_tasks_blocked()
    assert order == ["waited"]


async def test_r59_whose_places_they_are_decides_about_the_error_and_refusals_are_counted() -> None:
    busy = functools.partial(DependencyBusy, "api")
    gate = LoadShedder(max_concurrent=1, max_queued=0, queue_timeout_s=7, what="The API", busy=busy)
    await gate.acquire()
    for _ in range(2):
        with pytest.raises(DependencyBusy, match="The API is busy") as caught:
            await gate.acquire()
    assert (caught.value.dependency, caught.value.retry_after_s) == ("api", 7)
    assert gate.refused == 2


async def test_r59_who_does_not_want_to_wait_is_told_whether_a_place_is_free() -> None:
    gate = shedder()
    assert gate.acquire_nowait()
    assert not gate.acquire_nowait()
    assert (gate.in_flight, gate.queued, gate.refused) == (1, 0, 0)


async def test_r59_who_lent_a_place_waits_for_it_in_turn_beyond_the_bound_of_the_queue() -> None:
    gate = shedder(queue=0)
    await gate.acquire()
    async with anyio.create_task_group() as tasks:
        for waiting in (1, 2):
            tasks.start_soon(gate.reacquire)
            await anyio.wait_all_tasks_blocked()
            assert gate.queued == waiting
        for waiting in (1, 0):
            gate.release()
            await anyio.wait_all_tasks_blocked()
            assert (gate.in_flight, gate.queued) == (1, waiting)


async def test_r68_after_drain_not_even_a_free_place_is_given_away() -> None:
    gate = shedder()
    gate.drain()
    with pytest.raises(ShuttingDown):
        gate.acquire_nowait()


async def test_r59_one_release_too_many_is_an_error_rather_than_a_higher_limit() -> None:
    gate = shedder()
    await gate.acquire()
    gate.release()
    with pytest.raises(ValueError, match="too many"):
        gate.release()
    assert gate.in_flight == 0


async def test_r68_after_drain_new_calls_are_refused_as_shutting_down() -> None:
    gate = shedder()
    gate.drain()
    with pytest.raises(ShuttingDown) as caught:
        await gate.acquire()
    assert isinstance(caught.value, Overloaded)


async def test_r68_drain_disturbs_neither_those_that_run_nor_those_that_wait() -> None:
    gate = shedder()
    await gate.acquire()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.acquire)
        await anyio.wait_all_tasks_blocked()
        gate.drain()
        gate.release()
    assert gate.in_flight == 1


@pytest.mark.parametrize("how", CANCELLERS)
@pytest.mark.parametrize("queued_too_long", [False, True], ids=["place comes free", "queue times out"])
async def test_r59_a_waiter_that_is_cancelled_at_any_await_loses_nothing(how: str, *, queued_too_long: bool) -> None:
    gate = shedder(timeout_s=0.001 if queued_too_long else 60)

    async def work() -> None:
        await gate.acquire()  # takes the only place
        if not queued_too_long:
            asyncio.get_running_loop().call_soon(gate.release)
        try:
            try:
                await gate.acquire()
            except Overloaded:
                return
            gate.release()
        finally:
            if queued_too_long:
                gate.release()

    async def nothing_is_lost() -> None:
        assert (gate.in_flight, gate.queued) == (0, 0)
        await gate.acquire()
        gate.release()

    assert await cancel_at_every_await(work, nothing_is_lost, how=how) >= 1


class Caller:
    """One call that acquires a place, holds it until it is told to end, and can be cancelled in both ways."""

    def __init__(self, gate: LoadShedder) -> None:
        self.state = "waiting"
        self.end = asyncio.Event()
        self.scope = anyio.CancelScope()
        self.task = asyncio.ensure_future(self._call(gate))

    async def _call(self, gate: LoadShedder) -> None:
        with self.scope:
            await gate.acquire()
            self.state = "running"
            try:
                await self.end.wait()
            finally:
                gate.release()
                self.state = "ended"

    def cancel(self, how: str) -> None:
        if how == "scope":
            self.scope.cancel()
        else:
            self.task.cancel()


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r59_a_place_handed_to_a_waiter_in_the_moment_of_its_cancellation_is_not_lost(how: str) -> None:
    gate = shedder(queue=2)
    await gate.acquire()
    callers = [Caller(gate), Caller(gate)]
    await anyio.wait_all_tasks_blocked()
    gate.release()  # handed to the first ...
    callers[0].cancel(how)  # ... which is cancelled before it can run
    await anyio.wait_all_tasks_blocked()
    assert (gate.in_flight, gate.queued) == (1, 0 if callers[1].state == "running" else 1)
    for caller in callers:
        caller.end.set()
    await asyncio.wait([caller.task for caller in callers])
    assert (gate.in_flight, gate.queued) == (0, 0)


class LoadShedderMachine(RuleBasedStateMachine):
    """Calls arrive, end and are cancelled in any order; two plain lists say what must be the case."""

    places, queue = 2, 3

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.gate = shedder(places=self.places, queue=self.queue)
        self.running: list[Caller] = []
        self.waiting: list[Caller] = []
        self.draining = False

    def teardown(self) -> None:
        self.do(lambda: [caller.task.cancel() for caller in (*self.running, *self.waiting)])
        assert (self.gate.in_flight, self.gate.queued) == (0, 0)
        self.runner.close()

    def do(self, action: Callable[[], T]) -> T:
        async def and_settle() -> T:
            result = action()
            for _ in range(8):
                await asyncio.sleep(0)
            return result

        return self.runner.run(and_settle())

    def promote(self) -> None:
        while self.waiting and len(self.running) < self.places:
            self.running.append(self.waiting.pop(0))

    @rule()
    def a_call_arrives(self) -> None:
        caller = self.do(lambda: Caller(self.gate))
        if self.draining:
            assert isinstance(caller.task.exception(), ShuttingDown)
        elif len(self.running) < self.places:
            self.running.append(caller)
        elif len(self.waiting) < self.queue:
            self.waiting.append(caller)
        else:
            assert isinstance(caller.task.exception(), Overloaded)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def a_call_ends(self, data: st.DataObject) -> None:
        caller = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.do(caller.end.set)
        self.promote()

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data(), how=st.sampled_from(CANCELLERS), while_another_ends=st.booleans())
    def a_call_is_cancelled(self, data: st.DataObject, how: str, *, while_another_ends: bool) -> None:
        everybody = self.running + self.waiting
        victim = everybody[data.draw(st.integers(0, len(everybody) - 1))]
        ends = next((c for c in self.running if c is not victim), None) if while_another_ends else None

        def act() -> None:
            if ends is not None:
                ends.end.set()
            victim.cancel(how)

        self.do(act)
        for group in (self.running, self.waiting):
            group[:] = [caller for caller in group if caller not in (victim, ends)]
        self.promote()

    @rule()
    def the_server_drains(self) -> None:
        self.gate.drain()
        self.draining = True

    @invariant()
    def exactly_those_run_and_wait_that_should(self) -> None:
        assert self.gate.in_flight == len(self.running) <= self.places
        assert self.gate.queued == len(self.waiting) <= self.queue
        assert all(caller.state == "running" for caller in self.running)
        assert all(caller.state == "waiting" for caller in self.waiting)


LoadShedderMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestR59AnyOrderOfArrivalsEndsAndCancellations = LoadShedderMachine.TestCase


async def test_r59_a_call_that_gave_its_place_back_gets_one_in_its_turn_and_is_never_refused() -> None:
    gate = LoadShedder(max_concurrent=1, max_queued=0, queue_timeout_s=0.001)
    await gate.acquire()
    gate.drain()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.reacquire)
        await anyio.wait_all_tasks_blocked()
        assert (gate.in_flight, gate.queued) == (1, 1)
        gate.release()
    assert (gate.in_flight, gate.queued) == (1, 0)
