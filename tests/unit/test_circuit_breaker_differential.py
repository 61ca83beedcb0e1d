"""A breaker beside `interlock-cb`, the one that stood our tests best: the same calls, the same verdicts (R53-R58).

Both are used by their public faces alone. Known differences, and how they are kept out of the comparison:

- A probe that fails or is slow opens ours at once; theirs waits for all probes and then compares the rates. The
  thresholds are such that one bad probe suffices, and after it theirs is given its other probes.
- A call that is cancelled when it is slow already counts as slow; theirs ignores it. Only quick calls are cancelled.
- A hung probe opens ours again after its lease; theirs waits for it for ever. The lease is a day.
- Ours shortens waits at random. The jitter is 0.
- Ours has windows of consecutive failures, and errors that count as nothing; theirs has neither. Not used.
- While it is forced closed ours begins a new window; theirs keeps the old one. Windows are compared when closed.
- A classifier that raises wedges theirs when it is half open, and theirs keeps the last exception. Not done.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import interlock
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from reliability.circuit_breaker import CircuitBreaker, State
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.errors import CircuitOpen

from tests.unit.support import FakeClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

STATES = {
    interlock.State.CLOSED: State.CLOSED,
    interlock.State.OPEN: State.OPEN,
    interlock.State.HALF_OPEN: State.HALF_OPEN,
    interlock.State.FORCED_OPEN: State.ISOLATED,
    interlock.State.METRICS_ONLY: State.FORCED_CLOSED,
}


class InterlockClock(FakeClock):
    """The same clock, as the other side wants it."""

    def monotonic(self) -> float:
        return self.now


@types.coroutine
def suspended() -> Generator[None, None, None]:
    """Wait until somebody says how the call ends."""
    yield


class Call:
    """One call in progress, driven by hand: no event loop decides about the order.

    Raises:
        CircuitOpen, CircuitOpenError: The breaker refuses it.
    """

    def __init__(self, call: Callable[[Callable[[], Coroutine[Any, Any, None]]], Awaitable[None]]) -> None:
        self._steps = call(self._work).__await__()
        next(self._steps)

    async def _work(self) -> None:
        await suspended()

    def succeed(self) -> None:
        assert next(self._steps, "ended") == "ended"

    def fail(self) -> None:
        error = ConnectionError("reset")
        try:
            self._steps.throw(error)
        except ConnectionError as raised:
            assert raised is error  # noqa: PT017 - it is the caller's own

    def cancel(self) -> None:
        self._steps.close()


class TwoBreakers(RuleBasedStateMachine):
    """Calls begin and end on both, in any order."""

    @initialize(
        timed=st.booleans(),
        size=st.integers(3, 8),
        minimum=st.integers(1, 3),
        failure_rate=st.sampled_from([0.1, 0.25, 0.5, 0.7, 1.0]),
        slow_rate=st.sampled_from([0.3, 0.5, 1.0]),
        probes=st.integers(1, 3),
        multiplier=st.sampled_from([1.0, 1.5, 2.0]),
    )
    def begin(
        self,
        timed: bool,
        size: int,
        minimum: int,
        failure_rate: float,
        slow_rate: float,
        probes: int,
        multiplier: float,
    ) -> None:
        assume(max(failure_rate, slow_rate) <= 1 / probes)
        self.clock = InterlockClock()
        self.slow_s = 2.0
        self.ours = CircuitBreaker(
            "api",
            CircuitBreakerConfig(
                sliding_window_type="time" if timed else "count",
                sliding_window_size=size,
                minimum_number_of_calls=minimum,
                failure_rate_threshold=failure_rate,
                slow_call_duration_threshold_s=self.slow_s,
                slow_call_rate_threshold=slow_rate,
                wait_duration_in_open_state_s=8,
                wait_duration_multiplier=multiplier,
                max_wait_duration_in_open_state_s=20,
                wait_duration_jitter=0,
                permitted_number_of_calls_in_half_open_state=probes,
                max_wait_duration_in_half_open_state_s=86_400,
            ),
            clock=self.clock,
            random=lambda: 0.0,
        )
        self.theirs = interlock.CircuitBreaker(
            name="api",
            clock=self.clock,
            config=interlock.Config(
                window_type=interlock.WindowType.TIME_BASED if timed else interlock.WindowType.COUNT_BASED,
                window_size=size,
                minimum_number_of_calls=minimum,
                failure_rate_threshold=failure_rate,
                slow_call_duration_threshold=self.slow_s,
                slow_call_rate_threshold=slow_rate,
                wait_duration_in_open=8,
                wait_duration_backoff_multiplier=multiplier,
                wait_duration_in_open_max=20,
                permitted_calls_in_half_open=probes,
                max_concurrent_probes=probes,
            ),
        )
        self.calls: list[tuple[Call, Call, float]] = []
        self.probes: list[tuple[Call, Call, float]] = []

    def teardown(self) -> None:
        for ours, theirs, _ in getattr(self, "calls", ()):
            ours.cancel()
            theirs.cancel()

    @rule(quarters=st.integers(1, 8) | st.integers(8, 100))
    def time_passes(self, quarters: int) -> None:
        self.clock.now += quarters / 4

    @rule()
    def a_call_begins(self) -> None:
        if self.ours.state is not State.HALF_OPEN:
            self.probes = []
        ours, theirs = self.begun(self.ours.call), self.begun(self.theirs.call_async)
        if isinstance(ours, Call) and isinstance(theirs, Call):
            self.calls.append((ours, theirs, self.clock.now))
            if self.ours.state is State.HALF_OPEN:
                self.probes.append(self.calls[-1])
        else:
            assert ours == theirs  # both refuse, with the same time to retry

    def begun(self, call: Callable[..., Any]) -> Call | tuple[float | None]:
        try:
            return Call(call)
        except CircuitOpen as refusal:
            return (refusal.retry_after_s,)
        except interlock.CircuitOpenError as refusal:
            return (refusal.retry_after,)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), how=st.sampled_from([Call.succeed, Call.fail, Call.cancel]))
    def a_call_ends(self, data: st.DataObject, how: Callable[[Call], None]) -> None:
        pair = data.draw(st.sampled_from(self.calls))
        ours, theirs, began = pair
        assume(how is not Call.cancel or self.clock.now - began < self.slow_s)
        self.calls.remove(pair)
        how(ours)
        how(theirs)
        self.give_theirs_its_other_probes()

    @rule(how=st.sampled_from([Call.succeed, Call.fail]), count=st.integers(1, 3))
    def several_calls_begin_and_end(self, how: Callable[[Call], None], count: int) -> None:
        for _ in range(count):
            before = len(self.calls)
            self.a_call_begins()
            for ours, theirs, _began in self.calls[before:]:
                how(ours)
                how(theirs)
            del self.calls[before:]
            self.give_theirs_its_other_probes()

    def give_theirs_its_other_probes(self) -> None:
        if self.ours.state is State.OPEN and self.theirs.state is interlock.State.HALF_OPEN:
            for pair in self.calls:
                if pair in self.probes:
                    pair[0].succeed()  # which is late by now
                    pair[1].succeed()
            self.calls = [pair for pair in self.calls if pair not in self.probes]
        while self.ours.state is State.OPEN and self.theirs.state is interlock.State.HALF_OPEN:
            Call(self.theirs.call_async).succeed()

    @rule(name=st.sampled_from([*[None] * 20, "isolate", "force_close", "reset"]))
    def the_operator_interferes(self, name: str | None) -> None:
        if name == "isolate":
            self.ours.isolate("maintenance")
            self.theirs.force_open()
        elif name == "force_close":
            self.ours.force_close()
            self.theirs.metrics_only()
        elif name == "reset":
            self.ours.reset()
            self.theirs.reset()

    @precondition(lambda self: self.ours.state in (State.ISOLATED, State.FORCED_CLOSED))
    @rule()
    def the_operator_is_done(self) -> None:
        self.ours.reset()
        self.theirs.reset()

    @invariant()
    def both_are_in_the_same_state(self) -> None:
        assert self.ours.state is STATES[self.theirs.state]

    @invariant()
    def both_remember_the_same_calls(self) -> None:
        if self.ours.state is State.CLOSED:
            ours, theirs = self.ours.statistics(), self.theirs.snapshot()
            assert (ours.calls, ours.failures, ours.slow) == (
                theirs.total_calls,
                theirs.failed_calls,
                theirs.slow_calls,
            )


TestTwoBreakers = TwoBreakers.TestCase
TestTwoBreakers.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
