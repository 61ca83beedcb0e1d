"""Asks a dependency again, seldom enough that it helps instead of hurting (R59).

Only idempotent calls are repeated, and only after a failure that a repetition may cure. Retries are paid for from a
budget that all calls to the dependency share: a dead dependency gets the calls once, and a few more, rather than three
times over.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio

from .bounds import bounded, check_bounds
from .deadlines import remaining_s
from .errors import CircuitOpen, DependencyBusy, DependencyError

T = TypeVar("T")

_DIGITS = 3
"""Tokens are exact to a thousandth: sums of 0.1 would never reach a whole one."""


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    """How often, and after how long. Beside each number stand its default, its lowest and its highest value.

    Raises:
        ValueError: A value is beyond its limits.
    """

    attempts: int = bounded(3, 1, 10)
    """In total, the first one included; 1 never asks again."""
    wait_initial_s: float = bounded(0.1, 0, 3600)
    """Before the first retry; doubled for each further one."""
    wait_max_s: float = bounded(2, 0, 3600)
    """Where it stops growing."""
    wait_jitter: float = bounded(0.5, 0, 1)
    """Up to this share of a wait is added at random: not everybody should ask at the same moment."""
    retry_after_max_s: float = bounded(10, 0, 3600)
    """A dependency that asks to be left alone for longer is not waited for."""
    budget_tokens: float = bounded(10, 0, 1_000_000)
    """Retries that can be made without a success between them."""
    tokens_per_success: float = bounded(0.1, 0, 1)
    """What a call that succeeds at once pays in; exact to a thousandth."""

    def __post_init__(self) -> None:
        check_bounds(self)


class RetryBudget:
    """A bounded account of tokens: a success pays in a little, each retry costs one.

    Args:
        config: `budget_tokens` is what it begins with and never exceeds.
    """

    def __init__(self, config: RetryConfig) -> None:
        self.tokens = self._full = round(config.budget_tokens, _DIGITS)
        self._income = config.tokens_per_success

    def earn(self) -> None:
        """A call succeeded at its first attempt."""
        if self.tokens < self._full:
            self.tokens = min(self._full, round(self.tokens + self._income, _DIGITS))

    def spend(self) -> bool:
        """Pay for one retry; False when there is less than a token."""
        if self.tokens < 1:
            return False
        self.tokens = round(self.tokens - 1, _DIGITS)
        return True


class Retry:
    """The retries of one dependency.

    Args:
        config: See `RetryConfig`.
        random: Returns a number from 0 to below 1.
    """

    def __init__(self, config: RetryConfig, *, random: Callable[[], float] = random.random) -> None:
        self.config = config
        self.budget = RetryBudget(config)
        self.retries = 0
        self.refused = 0
        """Retries that the budget did not pay for."""
        self._random = random

    async def call(self, attempt: Callable[[], Awaitable[T]], *, idempotent: bool, min_attempt_s: float = 0) -> T:
        """Make an attempt, and further ones after a failure, while that is allowed, affordable and may help.

        Args:
            attempt: Asks the dependency once.
            idempotent: Whether asking twice is the same as asking once; otherwise there is one attempt.
            min_attempt_s: An attempt is not worth waiting for when less than this will be left then, in seconds.

        Raises:
            DependencyError: The last attempt's.
            Exception: Whatever else `attempt` raised.
        """
        attempts = 1
        while True:
            try:
                result = await attempt()
            except DependencyError as error:
                wait_s = self._wait_s(error, attempts, min_attempt_s) if idempotent else None
                if wait_s is None:
                    raise
            else:
                if attempts == 1:
                    self.budget.earn()
                return result
            await anyio.sleep(wait_s)
            attempts += 1

    def _wait_s(self, error: DependencyError, attempts: int, min_attempt_s: float) -> float | None:
        """Seconds to wait for a retry after `attempts` attempts; None for none. A retry is paid for here."""
        was_asked = not isinstance(error, (CircuitOpen, DependencyBusy))
        if not was_asked or not error.retryable or attempts >= self.config.attempts:
            return None
        asked_s = error.retry_after_s
        backoff_s = min(self.config.wait_max_s, self.config.wait_initial_s * 2.0 ** (attempts - 1))
        wait_s = backoff_s if asked_s is None else asked_s
        wait_s += wait_s * self.config.wait_jitter * self._random()
        if (asked_s or 0) > self.config.retry_after_max_s or wait_s + min_attempt_s > remaining_s():
            return None
        if not self.budget.spend():
            self.refused += 1
            return None
        self.retries += 1
        return wait_s
