"""Asks a dependency again, seldom enough that it helps instead of hurting (R59).

Only idempotent calls come here, and only after a first failure that a repetition may cure. Retries are paid for from
a budget that all calls to the dependency share: a dead dependency gets the calls once, and a few more, rather than
three times over. stamina waits and logs; it is imported at the first retry, because a call that succeeds needs none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from .deadlines import remaining_s
from .errors import CircuitOpen, DependencyBusy, DependencyError

T = TypeVar("T")

_UNITS = 1000
"""A token is counted in thousandths, because sums of 0.1 are not exact."""


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    """How often, and after how long.

    Args:
        attempts: In total, the first one included; 1 never retries.
        wait_initial_s: Wait before the first retry, in seconds; doubled for each further one.
        wait_max_s: Longest of these waits, in seconds.
        wait_jitter_s: Up to this many seconds at random are added, so that clients do not come back together.
        retry_after_max_s: A dependency that wants to be left alone for longer is not waited for, in seconds.
        budget_tokens: Retries that may be made in a row without any success between them; 0 for none at all.
        tokens_per_success: What a call that succeeds at once pays in, in thousandths at the finest.

    Raises:
        ValueError: A value is out of its range.
    """

    attempts: int = 3
    wait_initial_s: float = 0.1
    wait_max_s: float = 2.0
    wait_jitter_s: float = 0.2
    retry_after_max_s: float = 10.0
    budget_tokens: float = 10
    tokens_per_success: float = 0.1

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")
        for name in ("wait_initial_s", "wait_max_s", "wait_jitter_s", "retry_after_max_s", "budget_tokens"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be zero or more, not {value}")
        if not 0 <= self.tokens_per_success <= 1:
            raise ValueError(f"tokens_per_success must be between 0 and 1, not {self.tokens_per_success}")


class RetryBudget:
    """A bounded account of tokens: a success pays in a little, each retry costs one.

    Args:
        config: `budget_tokens` is what it begins with and never exceeds.
    """

    __slots__ = ("_full", "_income", "_units")

    def __init__(self, config: RetryConfig) -> None:
        self._full = self._units = round(config.budget_tokens * _UNITS)
        self._income = round(config.tokens_per_success * _UNITS)

    @property
    def tokens(self) -> float:
        """What is left."""
        return self._units / _UNITS

    def earn(self) -> None:
        """A call succeeded at its first attempt."""
        if self._units < self._full:
            self._units = min(self._full, self._units + self._income)

    def spend(self) -> bool:
        """Pay for one retry; False when there is less than a token."""
        if self._units < _UNITS:
            return False
        self._units -= _UNITS
        return True


@dataclass(frozen=True, kw_only=True)
class RetryStatistics:
    """The figures of one dependency's retries since the start."""

    retries: int
    refused_by_budget: int
    """Retries that would have been made if the budget had held a token."""
    budget_tokens: float


class Retry:
    """The retries of one dependency.

    Args:
        config: See `RetryConfig`.
        min_attempt_s: An attempt is not worth beginning with less time than this left, in seconds.
    """

    def __init__(self, config: RetryConfig, *, min_attempt_s: float = 0.0) -> None:
        self.config = config
        self.budget = RetryBudget(config)
        self._min_attempt_s = min_attempt_s
        self._retries = 0
        self._refused = 0

    def may_cure(self, error: BaseException) -> bool:
        """Whether asking again may help: never when it was not asked at all, nor against a cancellation."""
        return (
            self.config.attempts > 1
            and isinstance(error, DependencyError)
            and error.retryable
            and not isinstance(error, (CircuitOpen, DependencyBusy))
        )

    async def after(self, first: DependencyError, attempt: Callable[[], Awaitable[T]]) -> T:
        """Make further attempts after `first`, the error of the first one, while that is allowed and affordable.

        Raises:
            DependencyError: The last attempt's.
            Exception: Whatever else `attempt` raised.
        """
        import stamina  # here, because most processes never need it

        made = 0

        def retry(error: Exception) -> bool | float:
            nonlocal made
            made += 1
            return self._decide(error, made)

        async for again in stamina.retry_context(
            on=retry,
            attempts=self.config.attempts,
            timeout=None,  # the deadline around the call is stricter than stamina's
            wait_initial=self.config.wait_initial_s,
            wait_max=self.config.wait_max_s,
            wait_jitter=self.config.wait_jitter_s,
        ):
            with again:
                if again.num == 1:
                    raise first
                return await attempt()
        raise first  # pragma: no cover - stamina raises the last error itself

    def _decide(self, error: Exception, made: int) -> bool | float:
        """Whether to retry after `made` attempts: True waits as configured, a number waits so many seconds."""
        if made >= self.config.attempts or not self.may_cure(error):
            return False
        asked_s = getattr(error, "retry_after_s", None)
        if not self._fits(asked_s, made):
            return False
        if not self.budget.spend():
            self._refused += 1
            return False
        self._retries += 1
        return True if asked_s is None else float(asked_s)

    def _fits(self, asked_s: float | None, made: int) -> bool:
        if asked_s is not None:
            longest_s = asked_s
            if asked_s > self.config.retry_after_max_s:
                return False
        else:
            backoff_s = self.config.wait_initial_s * 2 ** (made - 1) + self.config.wait_jitter_s
            longest_s = min(self.config.wait_max_s, backoff_s)
        return longest_s + self._min_attempt_s <= remaining_s()

    def statistics(self) -> RetryStatistics:
        """A snapshot."""
        return RetryStatistics(retries=self._retries, refused_by_budget=self._refused, budget_tokens=self.budget.tokens)
