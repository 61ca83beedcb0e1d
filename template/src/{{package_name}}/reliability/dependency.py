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
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import NoReturn, TypeVar

from .cancellation import is_cancelled
from .chaos import Chaos, InjectedFailure
from .circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerStatistics,
    State,
    is_dependency_failure,
)
from .deadlines import Deadline, remaining_s
from .errors import DependencyBusy, DependencyError, DependencyFailed, DependencyTimeout, NotEnoughTime
from .health import Check, Unhealthy
from .load_shedding import LoadShedder
from .retry import Retry, RetryConfig, RetryStatistics

T = TypeVar("T")

_SHARE_OF_WHAT_IS_LEFT = 0.95
"""An attempt ends a little before the call does: then it is the dependency's timeout, and a fallback may still fit."""
_SMALLEST_SHARE = 0.1
"""An attempt that gets less than this share of its limit would only burden the dependency."""
_BROKEN = (ConnectionError, TimeoutError, asyncio.CancelledError)
"""A connection broke, when it is not this task that is cancelled: a library's own task can be, too."""


@dataclass(frozen=True, kw_only=True)
class DependencyLimits:
    """Every limit of one dependency.

    Args:
        attempt_timeout_s: Limit of one attempt, in seconds; greater than zero.
        max_concurrent: Calls in progress at the same time; None for no bound, when e.g. a pool is one.
        max_queued: Calls that may wait for a place.
        queue_timeout_s: Longest wait for a place, in seconds.
        circuit_breaker: See `CircuitBreakerConfig`.
        retry: See `RetryConfig`.

    Raises:
        ValueError: A value is out of its range.
    """

    attempt_timeout_s: float = 5
    max_concurrent: int | None = 10
    max_queued: int = 20
    queue_timeout_s: float = 5
    circuit_breaker: CircuitBreakerConfig = field(default_factory=CircuitBreakerConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)

    def __post_init__(self) -> None:
        if not 0 < self.attempt_timeout_s < float("inf"):
            raise ValueError(f"attempt_timeout_s must be greater than zero, not {self.attempt_timeout_s}")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ValueError(f"max_concurrent must be at least 1, or None, not {self.max_concurrent}")
        if self.max_queued < 0:
            raise ValueError(f"max_queued must be zero or more, not {self.max_queued}")
        if not 0 < self.queue_timeout_s < float("inf"):
            raise ValueError(f"queue_timeout_s must be greater than zero, not {self.queue_timeout_s}")


@dataclass(frozen=True, kw_only=True)
class DependencyStatistics:
    """The state and the figures of one dependency since the start."""

    name: str
    state: State
    in_flight: int
    queued: int
    busy: int
    """Calls refused by the bulkhead."""
    chaos: bool
    """Whether faults are injected."""
    retry: RetryStatistics
    breaker: CircuitBreakerStatistics


class Dependency:
    """See the module.

    Args:
        name: A short stable name, for errors, logs and metrics.
        limits: See `DependencyLimits`.
        critical: Whether the server is of no use without it; for its health check.
        is_failure: Which exceptions of the work count against it.
        chaos: Faults to inject.
        clock: Monotonic seconds, for the breaker.
    """

    def __init__(
        self,
        name: str,
        limits: DependencyLimits = DependencyLimits(),  # noqa: B008 - frozen
        *,
        critical: bool = False,
        is_failure: Callable[[Exception], bool] = is_dependency_failure,
        chaos: Chaos | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.limits = limits
        self.critical = critical
        self.breaker = CircuitBreaker(name, limits.circuit_breaker, is_failure=_classifier(is_failure), clock=clock)
        self.retry = Retry(limits.retry, min_attempt_s=limits.attempt_timeout_s * _SMALLEST_SHARE)
        self._places = _bulkhead(name, limits)
        self._chaos = None if chaos is None else chaos.of(name)

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
        try:
            result = await self._attempt(work, timeout_s)
        except DependencyError as error:
            if not idempotent or not self.retry.may_cure(error):
                raise
            first = error
        else:
            self.retry.budget.earn()
            return result
        return await self.retry.after(first, lambda: self._attempt(work, timeout_s))

    @asynccontextmanager
    async def guard(self, *, timeout_s: float | None = None) -> AsyncIterator[None]:
        """The same as `call` around a body that cannot be done twice, such as a transaction; never a retry."""
        await self._take_place()
        try:
            with self._attempt_limit(timeout_s):
                if self._chaos is not None:
                    await self._chaos()
                yield
        finally:
            self._give_place_back()

    async def _attempt(self, work: Callable[[], Awaitable[T]], timeout_s: float | None) -> T:
        await self._take_place()
        try:
            with self._attempt_limit(timeout_s):
                if self._chaos is not None:
                    await self._chaos()
                return await work()
        finally:
            self._give_place_back()

    async def _take_place(self) -> None:
        if self._places is not None and not self._places.acquire_nowait():
            self.breaker.check()
            await self._places.acquire()

    def _give_place_back(self) -> None:
        if self._places is not None:
            self._places.release()

    def _attempt_limit(self, timeout_s: float | None) -> _Attempt:
        own_s = self.limits.attempt_timeout_s if timeout_s is None else timeout_s
        left_s = remaining_s()
        if left_s < own_s * _SMALLEST_SHARE:
            raise NotEnoughTime(left_s, own_s * _SMALLEST_SHARE, what=f"The call to {self.name!r}")
        return _Attempt(self.name, self.breaker, min(own_s, left_s * _SHARE_OF_WHAT_IS_LEFT))

    @property
    def refusal(self) -> str | None:
        """Why calls are refused; None while they are not.

        A critical dependency that is about to be tried again counts as well: a server that is not ready gets no calls,
        and so would never try.
        """
        state = self.breaker.state
        tried_again = state is State.HALF_OPEN or (state is State.OPEN and self.breaker.retry_after_s == 0)
        if state in (State.CLOSED, State.FORCED_CLOSED) or (self.critical and tried_again):
            return None
        return f"{state}: {self.breaker.statistics().reason}"

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost with it: no call is in progress, and the breaker has nothing against it."""
        return self.breaker.state is State.CLOSED and (self._places is None or self._places.in_flight == 0)

    def check(self) -> Check:
        """Its health check: unhealthy while calls are refused."""

        async def probe() -> str:
            refusal = self.refusal
            if refusal is not None:
                raise Unhealthy(refusal)
            return "calls go through"

        return Check(name=self.name, probe=probe, critical=self.critical)

    def statistics(self) -> DependencyStatistics:
        """A snapshot."""
        places = self._places
        return DependencyStatistics(
            name=self.name,
            state=self.breaker.state,
            in_flight=0 if places is None else places.in_flight,
            queued=0 if places is None else places.queued,
            busy=0 if places is None else places.refused,
            chaos=self._chaos is not None,
            retry=self.retry.statistics(),
            breaker=self.breaker.statistics(),
        )


class _Attempt(Deadline):
    """One attempt: the breaker's permit, the limit, and the names of its errors."""

    __slots__ = ("_breaker", "_name", "_permit")

    def __init__(self, name: str, breaker: CircuitBreaker, limit_s: float) -> None:
        super().__init__(limit_s, name)
        self._name = name
        self._breaker = breaker

    def __enter__(self) -> None:
        self._permit = self._breaker.acquire()
        super().__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            super().__exit__(exc_type, exc, traceback)
        except BaseException as error:
            self._breaker.on_error(self._permit, error)
            raise
        if exc is None:
            self._breaker.on_success(self._permit)
        else:
            self._breaker.on_error(self._permit, exc)
            self._translate(exc)

    def _expired(self) -> NoReturn:
        raise DependencyTimeout(self._name, round(self._limit_s, 3)) from None

    def _translate(self, error: BaseException) -> None:
        if isinstance(error, _BROKEN) and not is_cancelled(error):
            kind = type(error).__name__
            raise DependencyFailed(self._name, f"The connection to {self._name!r} broke ({kind}).") from error


def _bulkhead(name: str, limits: DependencyLimits) -> LoadShedder | None:
    if limits.max_concurrent is None:
        return None
    return LoadShedder(
        max_concurrent=limits.max_concurrent,
        max_queued=limits.max_queued,
        queue_timeout_s=limits.queue_timeout_s,
        what=f"The dependency {name!r}",
        busy=functools.partial(DependencyBusy, name),
    )


def _classifier(is_failure: Callable[[Exception], bool]) -> Callable[[Exception], bool]:
    """A timeout and an injected failure count, however narrow the author's idea of a failure is."""
    return lambda error: isinstance(error, (DependencyTimeout, InjectedFailure)) or is_failure(error)
