"""A circuit breaker: leaves a dependency alone that fails too often, and finds out by itself when it is well again.

    CLOSED         every call goes through, its end is counted; too many failures open the breaker
    OPEN           every call is refused at once, for a while
    HALF_OPEN      a few calls, the probes, go through: all must succeed; one that fails opens the breaker again
    ISOLATED       an operator has opened it: refuses until `reset`
    FORCED_CLOSED  an operator has closed it: counts, and never opens, until `reset`

Everything is decided between two awaits, so no lock is needed; a breaker belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeVar

from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from .cancellation import is_cancelled
from .circuit_breaker_config import CircuitBreakerConfig
from .errors import CircuitOpen, DependencyBusy, NotEnoughTime, Overloaded, ToolFailure
from .sliding_window import FAILED, OK, SLOW, CountWindow, SlidingWindow, sliding_window

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NOT_ITS_FAULT = (ToolFailure, ValidationError, MCPError, NotEnoughTime, Overloaded, DependencyBusy, CircuitOpen)


class State(StrEnum):
    """What a breaker does with calls; see the module."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    ISOLATED = "isolated"
    FORCED_CLOSED = "forced_closed"


_BY_OPERATOR = {State.CLOSED, State.ISOLATED, State.FORCED_CLOSED}
_MOVES = {
    State.CLOSED: {State.OPEN, *_BY_OPERATOR},
    State.OPEN: {State.HALF_OPEN, *_BY_OPERATOR},
    State.HALF_OPEN: {State.OPEN, *_BY_OPERATOR},
    State.ISOLATED: _BY_OPERATOR,
    State.FORCED_CLOSED: _BY_OPERATOR,
}
"""Every legal move. An operator may make his from everywhere, even to the same state: it begins anew."""

_REFUSALS = {
    State.OPEN: "it failed too often",
    State.HALF_OPEN: "it failed too often and is only being tried",
    State.ISOLATED: "an operator has isolated it",
}


class Transition(NamedTuple):
    """One change of state; `reason` is a clause such as "3 of 5 calls failed"."""

    breaker: str
    before: State
    after: State
    reason: str


@dataclass(frozen=True, kw_only=True)
class CircuitBreakerStatistics:
    """A snapshot. `calls`, `failures` and `slow` are those that the present state has seen and still remembers."""

    name: str
    state: State
    reason: str
    """Why it is in this state."""
    state_age_s: float
    retry_after_s: float | None
    """Seconds until the first probe while it is open, otherwise None."""
    calls: int
    failures: int
    slow: int
    probes: int
    """Probes that run now."""
    failures_total: int
    """Since the start, as all that follow; `late` ones are among them."""
    late: int
    """Calls that ended after the state in which they began."""
    rejected: int
    """Calls that were refused."""
    transitions: dict[State, int]
    """How often each state was entered."""


class Permit:
    """The right to make one call, until it is settled.

    The window is also the generation: each state has one of its own, so that a permit of an earlier state, of another
    breaker, or one that is settled already no longer fits and changes nothing (R57).
    """

    __slots__ = ("started_at", "window")

    def __init__(self, window: SlidingWindow, started_at: float) -> None:
        self.window: SlidingWindow | None = window
        self.started_at = started_at


def is_dependency_failure(error: Exception) -> bool:
    """Whether `error` speaks against the dependency: all do but those of the caller, and refusals before it was asked.

    Of a group, one that does is enough.
    """
    if isinstance(error, ExceptionGroup):
        return any(is_dependency_failure(member) for member in error.exceptions)
    return not isinstance(error, _NOT_ITS_FAULT)


class CircuitBreaker:
    """The breaker of one dependency; see the module (R53-R58).

    `state` and its `reason` are for reading. An open breaker stays open until a call comes after its wait: that one is
    the first probe.

    Args:
        name: The dependency's name, for errors, logs and statistics.
        config: When it opens and closes.
        is_failure: Whether an error of the work counts as a failure. If not, it counts as nothing at all. It may raise:
            the error counts as a failure then.
        clock: Monotonic seconds.
        random: Returns a number from 0 to below 1.
    """

    def __init__(
        self,
        name: str,
        config: CircuitBreakerConfig = CircuitBreakerConfig(),  # noqa: B008 - frozen
        *,
        is_failure: Callable[[Exception], bool] = is_dependency_failure,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.config = config
        self._is_failure = is_failure
        self._clock = clock
        self._random = random
        self._slow_s = config.slow_call_duration_threshold_s
        self._listeners: list[Callable[[Transition], None]] = []
        self._failures = 0
        self._late = 0
        self._rejected = 0
        self._transitions = dict.fromkeys(State, 0)
        self._wait_s = config.wait_duration_in_open_state_s
        self._open_until = -math.inf
        self._enter(State.CLOSED, "it is new", clock())

    @property
    def retry_after_s(self) -> float | None:
        """Seconds until the next probe, 0 when it is due; None unless the breaker is open."""
        return self._left_s(self._clock())

    async def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work` unless the breaker refuses it, and count how it ends.

        Raises:
            CircuitOpen: Refused.
            Exception: Whatever `work` raised.
        """
        permit = self.acquire()
        try:
            result = await work()
        except BaseException as error:
            self.on_error(permit, error)
            raise
        self.on_success(permit)
        return result

    def acquire(self) -> Permit:
        """Ask to make a call, and settle it with `on_success` or `on_error`; its time runs from now, or from `begin`.

        Raises:
            CircuitOpen: Refused.
        """
        now = self._clock()
        return Permit(self._window, now) if self._admits_all else self._acquire_probe(now)

    def check(self) -> None:
        """Raise what `acquire` would raise now, for a call that has to wait for something else first."""
        self._give_back(self.acquire())

    def begin(self, permit: Permit) -> None:
        """The call begins only now: its time so far, such as a wait in a queue, is not the dependency's."""
        permit.started_at = self._clock()

    def on_success(self, permit: Permit) -> None:
        """The call did what it should."""
        self._settle(permit, OK, self._clock())

    def on_error(self, permit: Permit, error: BaseException) -> None:
        """The call raised `error`: a failure, a cancellation, or nothing that counts.

        That nobody waits for the call any more says nothing about the dependency, unless it was slow by then.
        """
        now = self._clock()
        if self._counts(error):
            self._settle(permit, FAILED, now)
        elif not isinstance(error, Exception) and now - permit.started_at >= self._slow_s:
            self._settle(permit, SLOW, now)
        else:
            self._give_back(permit)

    def isolate(self, reason: str) -> None:
        """Refuse every call until `reset`."""
        self._move(State.ISOLATED, reason, self._clock())

    def force_close(self) -> None:
        """Let every call through, whatever happens, until `reset`; they are counted all the same."""
        self._move(State.FORCED_CLOSED, "forced by an operator", self._clock())

    def reset(self) -> None:
        """Close it and forget all calls; those in progress will not count."""
        self._move(State.CLOSED, "reset by an operator", self._clock())

    def add_listener(self, listener: Callable[[Transition], None]) -> None:
        """Call `listener` after each change of state. What it raises is logged, and changes nothing."""
        self._listeners.append(listener)

    def statistics(self) -> CircuitBreakerStatistics:
        """What an operator wants to know."""
        now = self._clock()
        self._window.expire(now)
        return CircuitBreakerStatistics(
            name=self.name,
            state=self.state,
            reason=self.reason,
            state_age_s=now - self._entered_at,
            retry_after_s=self._left_s(now),
            calls=self._window.calls,
            failures=self._window.failures,
            slow=self._window.slow,
            probes=len(self._probes),
            failures_total=self._failures,
            late=self._late,
            rejected=self._rejected,
            transitions=self._transitions.copy(),
        )

    def _left_s(self, now: float) -> float | None:
        return max(0.0, self._open_until - now) if self.state is State.OPEN else None

    def _acquire_probe(self, now: float) -> Permit:
        if self.state is State.HALF_OPEN:
            lease_s = self.config.max_wait_duration_in_half_open_state_s
            if any(now - probe.started_at >= lease_s for probe in self._probes):
                self._open("a probe hangs", now)
                return self.acquire()  # anew: a listener may have moved it on
            if self._window.calls + len(self._probes) < self.config.permitted_number_of_calls_in_half_open_state:
                probe = Permit(self._window, now)
                self._probes.add(probe)
                return probe
        elif self.state is State.OPEN and now >= self._open_until:
            self._move(State.HALF_OPEN, "its wait is over", now)
            return self.acquire()
        self._rejected += 1
        raise CircuitOpen(self.name, retry_after_s=self._left_s(now), because=_REFUSALS[self.state])

    def _settle(self, permit: Permit, outcome: int, now: float) -> None:
        window, permit.window = permit.window, None
        if window is None:
            return
        self._failures += outcome & FAILED
        if window is not self._window:
            self._late += 1
            return
        if now - permit.started_at >= self._slow_s:
            outcome |= SLOW
        window.record(outcome, now)
        if window.failures or window.slow or self._probes:  # otherwise there is nothing to judge: the usual case
            self._judge(permit, window, now)

    def _give_back(self, permit: Permit) -> None:
        permit.window = None
        self._probes.discard(permit)

    def _judge(self, permit: Permit, window: SlidingWindow, now: float) -> None:
        config = self.config
        if self.state is State.HALF_OPEN:
            self._probes.discard(permit)
            if window.failures or window.slow:
                self._open(str(window), now)
            elif window.calls == config.permitted_number_of_calls_in_half_open_state:
                self._move(State.CLOSED, "every probe succeeded", now)
        elif self.state is State.CLOSED and window.calls >= config.minimum_number_of_calls:
            failing = window.failures / window.calls >= config.failure_rate_threshold
            if failing or window.slow / window.calls >= config.slow_call_rate_threshold:
                self._open(str(window), now)

    def _open(self, reason: str, now: float) -> None:
        config = self.config
        longer_s = min(self._wait_s * config.wait_duration_multiplier, config.max_wait_duration_in_open_state_s)
        self._wait_s = longer_s if self.state is State.HALF_OPEN else config.wait_duration_in_open_state_s
        self._open_until = now + self._wait_s * (1 - config.wait_duration_jitter * self._random())
        self._move(State.OPEN, reason, now)

    def _move(self, after: State, reason: str, now: float) -> None:
        before = self.state
        if after not in _MOVES[before]:
            raise RuntimeError(f"The circuit breaker {self.name!r} cannot go from {before} to {after}.")
        self._enter(after, reason, now)
        self._transitions[after] += 1
        self._announce(Transition(breaker=self.name, before=before, after=after, reason=reason))

    def _enter(self, state: State, reason: str, now: float) -> None:
        config = self.config
        self.state = state
        self._admits_all = state in (State.CLOSED, State.FORCED_CLOSED)
        self.reason = reason
        self._entered_at = now
        self._probes: set[Permit] = set()
        if state is State.HALF_OPEN:
            self._window: SlidingWindow = CountWindow(config.permitted_number_of_calls_in_half_open_state)
        else:
            self._window = sliding_window(config.sliding_window_type, config.sliding_window_size)

    def _announce(self, transition: Transition) -> None:
        level = logging.WARNING if transition.after in (State.OPEN, State.ISOLATED) else logging.INFO
        _, before, after, reason = transition
        change = {"dependency": self.name, "from": before, "to": after, "reason": reason}
        logger.log(level, "circuit breaker", extra=change)
        for listener in self._listeners:
            try:
                listener(transition)
            except Exception:
                logger.exception("listener of a circuit breaker failed", extra={"dependency": self.name})

    def _counts(self, error: BaseException) -> bool:
        if not isinstance(error, Exception):  # if cancelled, then not the call, but something that it awaited
            return isinstance(error, asyncio.CancelledError) and not is_cancelled(error)
        try:
            return self._is_failure(error)
        except Exception:
            logger.exception("classifier of a circuit breaker failed", extra={"dependency": self.name})
            return True
