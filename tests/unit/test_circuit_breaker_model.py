"""A breaker against a model of it that is too simple to be wrong: rules R53 to R58.

The model keeps the whole history in lists and computes every figure from it anew. Times are multiples of a quarter of
a second, so that both sides compute them exactly.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from reliability.circuit_breaker import CircuitBreaker, Permit, State
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.errors import CircuitOpen, ToolFailure

from tests.unit.support import FakeClock

End = Literal["success", "failure", "cancelled", "nothing"]
ERRORS: dict[End, BaseException] = {
    "failure": ConnectionError("reset"),
    "cancelled": KeyboardInterrupt(),
    "nothing": ToolFailure("No such note."),
}
ENDS: tuple[End, ...] = ("success", "failure", "cancelled", "nothing")

configs = st.builds(
    CircuitBreakerConfig,
    sliding_window_type=st.sampled_from(["count", "time", "consecutive"]),
    sliding_window_size=st.integers(3, 6),
    minimum_number_of_calls=st.integers(1, 3),
    failure_rate_threshold=st.sampled_from([0.1, 0.34, 0.5, 0.75, 1.0]),
    slow_call_duration_threshold_s=st.sampled_from([1.0, 2.0, float("inf")]),
    slow_call_rate_threshold=st.sampled_from([0.25, 0.5, 1.0]),
    wait_duration_in_open_state_s=st.sampled_from([2.0, 4.0]),
    wait_duration_multiplier=st.sampled_from([1.0, 1.5, 2.0]),
    max_wait_duration_in_open_state_s=st.sampled_from([4.0, 10.0]),
    wait_duration_jitter=st.sampled_from([0.0, 0.5]),
    permitted_number_of_calls_in_half_open_state=st.integers(1, 3),
    max_wait_duration_in_half_open_state_s=st.sampled_from([3.0, 8.0]),
)


@dataclass(eq=False)
class ModelCall:
    """A call that was let through."""

    era: int
    began: float
    ended: bool = False


@dataclass(eq=False)
class Model:
    """What a breaker should do."""

    config: CircuitBreakerConfig
    state: State = State.CLOSED
    era: int = 0
    calls: list[ModelCall] = field(default_factory=list)
    ends: list[tuple[float, bool, bool]] = field(default_factory=list)
    """Of this era: when, whether it failed, whether it was slow."""
    failed_rounds: int = 0
    opens_until: float = 0.0
    failures: int = 0
    late: int = 0
    rejected: int = 0
    entered: list[State] = field(default_factory=list)

    def move(self, state: State) -> None:
        self.state = state
        self.era += 1
        self.ends = []
        self.entered.append(state)

    def open(self, now: float, random: float) -> None:
        self.failed_rounds = self.failed_rounds + 1 if self.state is State.HALF_OPEN else 0
        wait = self.config.wait_duration_in_open_state_s
        for _ in range(self.failed_rounds):
            wait = min(wait * self.config.wait_duration_multiplier, self.config.max_wait_duration_in_open_state_s)
        self.opens_until = now + wait - wait * self.config.wait_duration_jitter * random
        self.move(State.OPEN)

    def probes(self) -> list[ModelCall]:
        if self.state is not State.HALF_OPEN:
            return []
        return [call for call in self.calls if call.era == self.era and not call.ended]

    def admit(self, now: float, random: float) -> ModelCall | None:
        if any(now - probe.began >= self.config.max_wait_duration_in_half_open_state_s for probe in self.probes()):
            self.open(now, random)
        if self.state is State.OPEN and now >= self.opens_until:
            self.move(State.HALF_OPEN)
        probes = len(self.probes()) + len(self.ends)
        full = self.state is State.HALF_OPEN and probes >= self.config.permitted_number_of_calls_in_half_open_state
        if full or self.state in (State.OPEN, State.ISOLATED):
            self.rejected += 1
            return None
        self.calls.append(ModelCall(self.era, now))
        return self.calls[-1]

    def end(self, call: ModelCall, how: End, now: float, random: float) -> None:
        slow = now - call.began >= self.config.slow_call_duration_threshold_s
        counts = not call.ended and (how in ("success", "failure") or (how == "cancelled" and slow))
        if counts:
            self.failures += how == "failure"
            self.late += call.era != self.era
        if counts and call.era == self.era:
            self.ends.append((now, how == "failure", slow))
            self.judge(now, random)
        call.ended = True

    def judge(self, now: float, random: float) -> None:
        config = self.config
        calls, failures, slow = self.window(now)
        if self.state is State.HALF_OPEN:
            if failures or slow:
                self.open(now, random)
            elif calls == config.permitted_number_of_calls_in_half_open_state:
                self.move(State.CLOSED)
        elif self.state is State.CLOSED and calls >= config.minimum_number_of_calls:
            too_many = failures / calls >= config.failure_rate_threshold
            if too_many or slow / calls >= config.slow_call_rate_threshold:
                self.open(now, random)

    def window(self, now: float) -> tuple[int, int, int]:
        """Return calls, failures, slow calls."""
        kind, size = self.config.sliding_window_type, self.config.sliding_window_size
        seen = self.ends
        if kind == "consecutive" and self.state is not State.HALF_OPEN:
            failures = len(list(itertools.takewhile(lambda end: end[1], reversed(seen))))
            slow = len(list(itertools.takewhile(lambda end: end[2], reversed(seen))))
            return max(failures, slow), failures, slow
        if kind == "count" and self.state is not State.HALF_OPEN:
            seen = seen[-size:]
        if kind == "time" and self.state is not State.HALF_OPEN:
            seen = [end for end in seen if end[0] // 1 > now // 1 - size]
        return len(seen), sum(end[1] for end in seen), sum(end[2] for end in seen)


class CircuitBreakerMachine(RuleBasedStateMachine):
    """Calls begin and end in any order, the clock moves on, an operator interferes."""

    @initialize(config=configs)
    def begin(self, config: CircuitBreakerConfig) -> None:
        self.clock = FakeClock()
        self.random = 0.0
        self.breaker = CircuitBreaker("api", config, clock=self.clock, random=lambda: self.random)
        self.model = Model(config)
        self.calls: list[tuple[Permit, ModelCall]] = []

    @rule(value=st.sampled_from([0.0, 0.25, 0.5]))
    def luck_changes(self, value: float) -> None:
        self.random = value

    @rule(quarters=st.integers(1, 8) | st.integers(9, 60))
    def time_passes(self, quarters: int) -> None:
        self.clock.now += quarters / 4

    @precondition(lambda self: self.model.state is State.OPEN)
    @rule()
    def the_wait_ends(self) -> None:
        self.clock.now = max(self.clock.now, self.model.opens_until)

    @rule()
    def a_call_begins(self) -> None:
        expected = self.model.admit(self.clock.now, self.random)
        if expected is None:
            with pytest.raises(CircuitOpen) as refusal:
                self.breaker.acquire()
            assert refusal.value.retry_after_s == self.retry_after_s()
        else:
            self.calls.append((self.breaker.acquire(), expected))

    @rule()
    def a_call_asks_first(self) -> None:
        expected = self.model.admit(self.clock.now, self.random)
        if expected is None:
            with pytest.raises(CircuitOpen):
                self.breaker.check()
        else:
            self.breaker.check()
            self.model.calls.remove(expected)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def the_work_of_a_call_begins_only_now(self, data: st.DataObject) -> None:
        permit, call = data.draw(st.sampled_from(self.calls))
        self.breaker.begin(permit)
        call.began = self.clock.now

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), how=st.sampled_from(ENDS), forget=st.booleans())
    def a_call_ends(self, data: st.DataObject, how: End, forget: bool) -> None:
        pair = data.draw(st.sampled_from(self.calls))
        self.end(pair, how)
        if not forget:  # it may be settled once more
            self.calls.append(pair)

    @precondition(lambda self: self.model.probes())
    @rule(data=st.data(), how=st.sampled_from(ENDS))
    def a_probe_ends(self, data: st.DataObject, how: End) -> None:
        probes = self.model.probes()
        self.end(data.draw(st.sampled_from([pair for pair in self.calls if pair[1] in probes])), how)

    @precondition(lambda self: self.model.state in (State.CLOSED, State.HALF_OPEN))
    @rule(count=st.integers(1, 4), how=st.sampled_from(["success", "failure"]))
    def several_calls_begin_and_end(self, count: int, how: End) -> None:
        for _ in range(count):
            before = len(self.calls)
            self.a_call_begins()
            if len(self.calls) > before:
                self.end(self.calls[-1], how)

    def end(self, pair: tuple[Permit, ModelCall], how: End) -> None:
        self.calls.remove(pair)
        permit, call = pair
        if how == "success":
            self.breaker.on_success(permit)
        else:
            self.breaker.on_error(permit, ERRORS[how])
        self.model.end(call, how, self.clock.now, self.random)

    @rule(state=st.sampled_from([*[None] * 20, State.ISOLATED, State.FORCED_CLOSED, State.CLOSED]))
    def the_operator_interferes(self, state: State | None) -> None:
        if state is State.ISOLATED:
            self.breaker.isolate("maintenance")
        elif state is State.FORCED_CLOSED:
            self.breaker.force_close()
        elif state is State.CLOSED:
            self.breaker.reset()
        if state is not None:
            self.model.move(state)

    @precondition(lambda self: self.model.state in (State.ISOLATED, State.FORCED_CLOSED))
    @rule()
    def the_operator_is_done(self) -> None:
        self.breaker.reset()
        self.model.move(State.CLOSED)

    @invariant()
    def the_breaker_is_what_the_model_says(self) -> None:
        model, actual = self.model, self.breaker.statistics()
        assert actual.state is model.state
        assert actual.retry_after_s == self.retry_after_s()
        assert (actual.calls, actual.failures, actual.slow) == model.window(self.clock.now)
        assert actual.probes == len(model.probes()) <= model.config.permitted_number_of_calls_in_half_open_state
        assert actual.failures_total == model.failures
        assert (actual.late, actual.rejected) == (model.late, model.rejected)
        assert actual.transitions == {state: model.entered.count(state) for state in State}

    def retry_after_s(self) -> float | None:
        return max(0.0, self.model.opens_until - self.clock.now) if self.model.state is State.OPEN else None


TestCircuitBreakerModel = CircuitBreakerMachine.TestCase
TestCircuitBreakerModel.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
