"""The bulkhead of a dependency in any order of events: rules R46, R58 and R59."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, TypeVar

import anyio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from reliability.dependency import Dependency, DependencyLimits
from reliability.errors import CircuitOpen, DependencyBusy, DependencyTimeout

from tests.unit.support import CANCELLERS, VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PLACES, QUEUE, PATIENCE_S = 2, 3, 5
ATTEMPT_S = 7.30001
"""Never ends in the same moment as a wait in the queue: the model need not say which comes first."""


class Caller:
    """One call that works until it is told to end, and can be cancelled in both ways."""

    def __init__(self, api: Dependency, how: str) -> None:
        self.api = api
        self.state = "waiting"
        self.since = asyncio.get_running_loop().time()
        self.end = asyncio.Event()
        self.scope = anyio.CancelScope()
        self.task = asyncio.ensure_future(self._call(how))

    async def _call(self, how: str) -> None:
        with self.scope:
            if how == "call":
                await self.api.call(self._work)
            else:
                async with self.api.guard():
                    await self._work()

    async def _work(self) -> None:
        self.state = "running"
        self.since = asyncio.get_running_loop().time()
        try:
            await self.end.wait()
        finally:
            self.state = "ended"

    def cancel(self, how: str) -> None:
        if how == "scope":
            self.scope.cancel()
        else:
            self.task.cancel()

    @property
    def error(self) -> BaseException | None:
        assert self.task.done()
        return self.task.exception()


class BulkheadMachine(RuleBasedStateMachine):
    """Calls arrive, end, are cancelled, and time passes; two plain lists say who must run and who must wait."""

    @initialize()
    def a_new_dependency(self) -> None:
        limits = DependencyLimits(
            max_concurrent=PLACES, max_queued=QUEUE, queue_timeout_s=PATIENCE_S, attempt_timeout_s=ATTEMPT_S
        )
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.api = Dependency("api", limits, clock=lambda: self.runner.get_loop().time())
        self.api.breaker.force_close()
        self.isolated = False
        self.running: list[Caller] = []
        self.waiting: list[Caller] = []
        self.refused = self.rejected = self.timeouts = self.begun = 0

    def teardown(self) -> None:
        self.do(lambda: [caller.task.cancel() for caller in (*self.running, *self.waiting)])
        found = self.api.statistics()
        assert (found.in_flight, found.queued) == (0, 0)
        self.runner.close()

    def do(self, action: Callable[[], T], *, then_pass_s: float = 0) -> T:
        async def and_settle() -> T:
            result = action()
            if then_pass_s:
                await asyncio.sleep(then_pass_s)
            for _ in range(12):
                await asyncio.sleep(0)
            return result

        return self.runner.run(and_settle())

    def now(self) -> float:
        return self.runner.get_loop().time()

    def promote(self, now: float) -> None:
        while self.waiting and len(self.running) < PLACES:
            caller = self.waiting.pop(0)
            if self.isolated:
                assert isinstance(caller.error, CircuitOpen)
                self.rejected += 1
            else:
                assert math.isclose(caller.since, now)
                self.running.append(caller)
                self.begun += 1

    @rule(how=st.sampled_from(["call", "guard"]))
    def a_call_arrives(self, how: str) -> None:
        caller = self.do(lambda: Caller(self.api, how))
        if self.isolated:
            assert isinstance(caller.error, CircuitOpen)
            self.rejected += 1
        elif len(self.running) < PLACES:
            self.running.append(caller)
            self.begun += 1
        elif len(self.waiting) < QUEUE:
            self.waiting.append(caller)
        else:
            assert isinstance(caller.error, DependencyBusy)
            self.refused += 1

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def a_call_ends(self, data: st.DataObject) -> None:
        caller = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.do(caller.end.set)
        assert caller.error is None
        self.promote(self.now())

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
        assert victim.task.cancelled() == (how == "task")
        self.promote(self.now())

    @rule(seconds=st.integers(1, 9))
    def time_passes(self, seconds: int) -> None:
        until = self.now() + seconds
        self.do(lambda: None, then_pass_s=seconds)
        while True:
            first, at = self._who_is_first_to_give_up()
            if first is None or at > until:
                break
            if first in self.waiting:
                self.waiting.remove(first)
                assert isinstance(first.error, DependencyBusy)
                self.refused += 1
            else:
                self.running.remove(first)
                assert isinstance(first.error, DependencyTimeout)
                self.timeouts += 1
                self.promote(at)

    def _who_is_first_to_give_up(self) -> tuple[Caller | None, float]:
        limits = [(caller, caller.since + ATTEMPT_S) for caller in self.running]
        limits += [(caller, caller.since + PATIENCE_S) for caller in self.waiting]
        return min(limits, key=lambda entry: entry[1], default=(None, math.inf))

    @rule()
    def an_operator_isolates_it_or_lets_it_go(self) -> None:
        self.isolated = not self.isolated
        if self.isolated:
            self.api.breaker.isolate("maintenance")
        else:
            self.api.breaker.force_close()

    @invariant()
    def exactly_those_run_and_wait_that_should(self) -> None:
        found = self.api.statistics()
        assert found.in_flight == len(self.running) <= PLACES
        assert found.queued == len(self.waiting) <= QUEUE
        assert all(caller.state == "running" for caller in self.running)
        assert all(caller.state == "waiting" for caller in self.waiting)

    @invariant()
    def everything_is_counted(self) -> None:
        totals = self.api.statistics().totals
        assert (totals.calls, totals.timeouts, totals.failures) == (self.begun, self.timeouts, self.timeouts)
        assert (totals.busy, totals.rejected) == (self.refused, self.rejected)


BulkheadMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestR59AnyOrderOfEvents = BulkheadMachine.TestCase
