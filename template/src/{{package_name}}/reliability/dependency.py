"""One dependency (an HTTP API, a database) and everything that stands between a call and its failures.

    api = Dependency("api", DependencyLimits(attempt_timeout_s=5))
    answer = await api.call(lambda: client.get(url), idempotent=True)

From outside to inside: retry with a budget (idempotent calls only) -> bulkhead -> circuit breaker -> limit of the
attempt -> injected faults -> the work. The limit is inside, so that the breaker sees a hang; retry is outside, so that
it does not multiply the calls to a dead dependency; and the queue is outside of the breaker, because waiting in it is
not the dependency's slowness. Whoever would have to queue is asked by the breaker first: nobody waits for a dependency
that is left alone.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import math
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import NoReturn, TypeVar

import anyio

from .bounds import bounded, check_bounds
from .cancellation import is_cancelled
from .chaos import Chaos
from .circuit_breaker import CircuitBreaker, State, is_dependency_failure
from .circuit_breaker_config import CircuitBreakerConfig
from .deadlines import Deadline, expires_at
from .dependency_statistics import DependencyStatistics, DependencyTotals
from .errors import ConnectionBroken, DependencyBusy, DependencyError, DependencyTimeout, NotEnoughTime
from .health import Check, check_of
from .load_shedding import LoadShedder
from .retry import Retry, RetryConfig

T = TypeVar("T")

_SHARE_OF_WHAT_IS_LEFT = 0.95
"""An attempt ends a little before the call does: then it is the dependency's timeout, and a fallback may still fit."""
_SMALLEST_SHARE = 0.1
"""An attempt that gets less than this share of its limit would only burden the dependency ..."""
_ALWAYS_WORTH_IT_S = 1.0
"""... unless it is as long as this: a generous limit of attempts must not keep short calls from being made at all."""
_SHARE_OF_WHAT_IS_SLOW = 0.8
"""An attempt that takes this share of its limit is slow, unless the breaker's configuration says what is."""
_BROKEN = (ConnectionError, TimeoutError, socket.gaierror, asyncio.CancelledError)
"""Errors of a connection that broke: the last one when it was not this task that was cancelled, but the library's."""
_UNREACHABLE = {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, None}
"""Numbers of an `OSError` of a connection that never was; None when no address of several answered."""


@dataclass(frozen=True, kw_only=True)
class DependencyLimits:
    """Every limit of one dependency. Beside each number stand its default, its lowest and its highest value.

    Raises:
        ValueError: A value is beyond its limits.
    """

    attempt_timeout_s: float = bounded(5, 0.001, 3600)
    """Limit of one attempt."""
    max_concurrent: int | None = bounded(10, 1, 10_000)
    """Calls in progress at the same time; None for no bound, when e.g. a pool is one."""
    max_queued: int = bounded(20, 0, 10_000)
    """Calls that may wait for a place."""
    queue_timeout_s: float = bounded(5, 0.001, 3600)
    """Longest wait for a place."""
    circuit_breaker: CircuitBreakerConfig = field(default_factory=CircuitBreakerConfig)
    """What is slow is derived from `attempt_timeout_s` where it is left open."""
    retry: RetryConfig = field(default_factory=RetryConfig)

    def __post_init__(self) -> None:
        check_bounds(self)


class Dependency:
    """See the module.

    Args:
        name: A short stable name, for errors, logs and metrics.
        limits: See `DependencyLimits`.
        critical: Whether the server is of no use without it; for its health check.
        is_failure: Which exceptions of the work count against it; by default `is_dependency_failure`.
        chaos: Faults to inject.
        clock: Monotonic seconds, for the breaker.
    """

    def __init__(
        self,
        name: str,
        limits: DependencyLimits | None = None,
        *,
        critical: bool = False,
        is_failure: Callable[[Exception], bool] | None = None,
        chaos: Chaos | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.limits = limits = limits or DependencyLimits()
        self.critical = critical
        self.breaker = CircuitBreaker(name, _breaker_config(limits), is_failure=self._counts, clock=clock)
        self.retry = Retry(limits.retry)
        self._places = LoadShedder(
            max_concurrent=limits.max_concurrent or sys.maxsize,
            max_queued=limits.max_queued,
            queue_timeout_s=limits.queue_timeout_s,
            what=f"The dependency {name!r}",
            busy=functools.partial(DependencyBusy, name),
        )
        self._chaos = None if chaos is None else chaos.of(name)
        self._is_failure = is_failure or is_dependency_failure
        self._calls = self._timeouts = 0

    async def call(
        self, work: Callable[[], Awaitable[T]], *, idempotent: bool = False, timeout_s: float | None = None
    ) -> T:
        """Do `work` within the limits.

        Args:
            work: Asks the dependency; called again for each retry.
            idempotent: Whether doing it twice is the same as doing it once (R59).
            timeout_s: Limit of one attempt, in seconds, instead of the dependency's own.

        Raises:
            CircuitOpen: The dependency failed too often of late.
            DependencyBusy: Too many calls are in progress.
            DependencyTimeout: It did not answer in time.
            DependencyFailed: The connection broke.
            NotEnoughTime: Too little is left of the deadline to ask it.
            Exception: Whatever `work` raised.
        """
        limit_s = self.limits.attempt_timeout_s if timeout_s is None else timeout_s

        async def attempt() -> T:
            async with self.guard(timeout_s=limit_s):
                return await work()

        return await self.retry.call(attempt, idempotent=idempotent, min_attempt_s=_least_s(limit_s))

    @asynccontextmanager
    async def guard(self, *, timeout_s: float | None = None) -> AsyncIterator[Attempt]:
        """The same as `call` around a body that cannot be done twice, such as a transaction; never a retry."""
        if not self._places.acquire_nowait():
            self.breaker.check()
            await self._places.acquire()
        try:
            attempt = self._attempt(self.limits.attempt_timeout_s if timeout_s is None else timeout_s)
            with attempt:
                if self._chaos is not None:
                    await self._chaos()
                yield attempt
        finally:
            self._places.release()

    def _attempt(self, limit_s: float) -> Attempt:
        left_s = expires_at() - asyncio.get_running_loop().time()
        if left_s * _SHARE_OF_WHAT_IS_LEFT < limit_s and not _is_shielded():
            if left_s < _least_s(limit_s):
                raise NotEnoughTime(max(0, left_s), _least_s(limit_s), what=f"The call to {self.name!r}")
            limit_s = left_s * _SHARE_OF_WHAT_IS_LEFT
        return Attempt(self, limit_s)

    def _counts(self, error: Exception) -> bool:
        return isinstance(error, (DependencyTimeout, ConnectionBroken)) or self._is_failure(error)

    @property
    def refusal(self) -> str | None:
        """What keeps it from being healthy; None when nothing does.

        A critical dependency that the next call may try again is healthy: a server that is not ready gets no calls, and
        so would never try.
        """
        state = self.breaker.state
        tried_again = state is State.HALF_OPEN or (state is State.OPEN and self.breaker.retry_after_s == 0)
        if state in (State.CLOSED, State.FORCED_CLOSED) or (self.critical and tried_again):
            return None
        return f"{state}: {self.breaker.reason}"

    def check(self) -> Check:
        """Its health check: unhealthy while calls are refused."""
        return check_of(self.name, lambda: self.refusal, well="calls go through", critical=self.critical)

    def statistics(self) -> DependencyStatistics:
        """A snapshot."""
        places, breaker = self._places, self.breaker.statistics()
        return DependencyStatistics(
            name=self.name,
            state=breaker.state,
            in_flight=places.in_flight,
            queued=places.queued,
            retry_tokens=self.retry.budget.tokens,
            chaos=self._chaos is not None,
            totals=DependencyTotals(
                calls=self._calls,
                failures=breaker.failures_total,
                timeouts=self._timeouts,
                busy=places.refused,
                rejected=breaker.rejected,
                opened=breaker.transitions[State.OPEN],
                retries=self.retry.retries,
                retries_refused=self.retry.refused,
            ),
            breaker=breaker,
        )


class Attempt(Deadline):
    """One attempt: the breaker's permit, the limit, and the dependency's name in the errors."""

    __slots__ = ("_dependency", "_permit")

    def __init__(self, dependency: Dependency, limit_s: float) -> None:
        super().__init__(limit_s, dependency.name)
        self._dependency = dependency

    def __enter__(self) -> None:
        self._permit = self._dependency.breaker.acquire()
        self._dependency._calls += 1
        self._may_be_slower()
        super().__enter__()

    def begin(self) -> None:
        """The work begins only now: a wait so far, such as for a connection, does not make the dependency slow."""
        self._dependency.breaker.begin(self._permit)
        self._may_be_slower()

    def count(self, error: DependencyError) -> None:
        """The dependency has failed, whatever the body makes of `error`; how the body ends does not count any more."""
        self._dependency.breaker.on_error(self._permit, error)

    def _may_be_slower(self) -> None:
        self._permit.started_at += max(0, self._limit_s - self._dependency.limits.attempt_timeout_s)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        breaker = self._dependency.breaker
        try:
            super().__exit__(exc_type, exc, traceback)
            if exc is not None and _is_broken(exc):
                raise ConnectionBroken(self._dependency.name, type(exc).__name__) from exc
        except BaseException as error:
            breaker.on_error(self._permit, error)
            raise
        if exc is None:
            breaker.on_success(self._permit)
        else:
            breaker.on_error(self._permit, exc)

    def _expired(self) -> NoReturn:
        self._dependency._timeouts += 1
        raise DependencyTimeout(self._dependency.name, round(self._limit_s, 3)) from None


def _is_broken(error: BaseException) -> bool:
    if isinstance(error, _BROKEN):
        return not is_cancelled(error)
    return isinstance(error, OSError) and error.errno in _UNREACHABLE


def _least_s(limit_s: float) -> float:
    """What must be left for an attempt with this limit, in seconds."""
    return min(limit_s * _SMALLEST_SHARE, _ALWAYS_WORTH_IT_S)


def _is_shielded() -> bool:
    """Whether a shield protects the caller, such as a cleanup, from the deadlines around it."""
    return anyio.current_effective_deadline() > expires_at()


def _breaker_config(limits: DependencyLimits) -> CircuitBreakerConfig:
    """The breaker's configuration, in accord with the limit of an attempt.

    Clients that give up before the limit does would hide a hang, if the breaker did not know what is slow; and no probe
    may be given up for lost that still has time.
    """
    config, limit_s = limits.circuit_breaker, limits.attempt_timeout_s
    slow_s, lease_s = config.slow_call_duration_threshold_s, config.max_wait_duration_in_half_open_state_s
    return replace(
        config,
        slow_call_duration_threshold_s=slow_s if slow_s < math.inf else limit_s * _SHARE_OF_WHAT_IS_SLOW,
        max_wait_duration_in_half_open_state_s=max(lease_s, limit_s * 2),
    )
