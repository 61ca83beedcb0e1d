"""Numbers of a configuration and their bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from reliability.bounds import bounded, check_bounds


@dataclass(frozen=True, kw_only=True)
class Config:
    size: int = bounded(5, 1, 10)
    limit_s: float | None = bounded(2.5, 0.5, 100_000)
    name: str = "any"

    def __post_init__(self) -> None:
        check_bounds(self)


def test_the_default_is_what_stands_there() -> None:
    assert (Config().size, Config().limit_s) == (5, 2.5)


@pytest.mark.parametrize("values", [{"size": 1}, {"size": 10}, {"limit_s": 0.5}, {"limit_s": None}, {"name": "x"}])
def test_everything_within_the_bounds_is_fine(values: dict[str, Any]) -> None:
    assert Config(**values) == Config(**values)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"size": 0}, r"^size must be from 1 to 10; it is 0\.$"),
        ({"size": 11}, r"^size must be from 1 to 10; it is 11\.$"),
        ({"limit_s": 0.4}, r"^limit_s must be from 0\.5 to 100000; it is 0\.4\.$"),
        ({"limit_s": float("nan")}, r"^limit_s must be from 0\.5 to 100000; it is nan\.$"),
    ],
)
def test_anything_else_is_refused_with_the_name_and_the_bounds(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Config(**values)
