"""When a circuit breaker opens and closes: every number of it, with its unit and its limits (R54, R56, R58)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from .bounds import bounded, check_bounds
from .sliding_window import WindowType


@dataclass(frozen=True, kw_only=True)
class CircuitBreakerConfig:
    """When a breaker opens and closes. The names are resilience4j's, with the units added.

    Beside each number stand its default, its lowest and its highest value.

    Raises:
        ValueError: A value is beyond its limits, or does not fit another one.
    """

    sliding_window_type: WindowType = "count"
    """`count`: the last calls; `time`: the last seconds; `consecutive`: failures in a row."""
    sliding_window_size: int = bounded(20, 1, 10_000)
    """Calls or seconds; not used by `consecutive`."""
    minimum_number_of_calls: int = bounded(5, 1, 10_000)
    """No rate is looked at before so many calls are in the window; `consecutive`: so many failures in a row open it."""
    failure_rate_threshold: float = bounded(0.5, 0.001, 1)
    """Share of failures that opens it."""
    slow_call_duration_threshold_s: float = bounded(math.inf, 0.001, math.inf)
    """A call that takes as long is slow, even if it is cancelled then; by default, none is."""
    slow_call_rate_threshold: float = bounded(1, 0.001, 1)
    """Share of slow calls that opens it."""
    wait_duration_in_open_state_s: float = bounded(60, 0.001, 86_400)
    """Time before the first probe."""
    wait_duration_multiplier: float = bounded(1.5, 1, 100)
    """What the wait grows by whenever probes fail."""
    max_wait_duration_in_open_state_s: float = bounded(180, 0.001, 86_400)
    """Where it stops growing."""
    wait_duration_jitter: float = bounded(0.1, 0, 0.9)
    """Largest share that a wait is shortened by, at random: not every process should ask at the same moment."""
    permitted_number_of_calls_in_half_open_state: int = bounded(3, 1, 1000)
    """Probes that must succeed, and that may run at once."""
    max_wait_duration_in_half_open_state_s: float = bounded(30, 0.001, 86_400)
    """A probe that has not ended by then has failed."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.sliding_window_type not in get_args(WindowType):
            raise ValueError(f"sliding_window_type must be one of {get_args(WindowType)}.")
        if self.sliding_window_type == "count" and self.minimum_number_of_calls > self.sliding_window_size:
            raise ValueError("minimum_number_of_calls is greater than sliding_window_size: it would never open.")
        if self.wait_duration_in_open_state_s > self.max_wait_duration_in_open_state_s:
            raise ValueError("wait_duration_in_open_state_s is greater than max_wait_duration_in_open_state_s.")
