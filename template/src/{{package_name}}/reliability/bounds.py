"""Numbers of a configuration, with their default, their lowest and their highest value side by side.

@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    max_size: int = bounded(5, 1, 1000)

    def __post_init__(self) -> None:
        check_bounds(self)
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any


def bounded(default: float, lowest: float, highest: float) -> Any:
    """A field of a dataclass. None is within the bounds of a field whose type allows it."""
    return field(default=default, metadata={"bounds": (lowest, highest)})


def check_bounds(config: Any) -> None:
    """Refuse a number beyond its bounds.

    Raises:
        ValueError: Names the field, its bounds and the value.
    """
    for number in fields(config):
        value = getattr(config, number.name)
        lowest, highest = number.metadata.get("bounds", (None, None))
        if lowest is not None and value is not None and not lowest <= value <= highest:
            raise ValueError(f"{number.name} must be from {lowest:g} to {highest:g}; it is {value!r}.")
