"""The parts of a server that have a state of their own: dependencies, pools and caches.

One place knows them all. The health report, `get-metrics` and `/metrics` read their snapshots when somebody asks;
nothing is counted twice, and a part knows nothing of its readers (R14, R63).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal, Protocol

logger = logging.getLogger(__name__)

Kind = Literal["dependency", "pool", "cache"]


class Part(Protocol):
    """What can be watched. Several parts within one, such as the hosts of a group, give a list of snapshots."""

    @property
    def name(self) -> str:
        """Short and stable, for reports and labels."""

    def statistics(self) -> Any:
        """A snapshot, or a list of them; each is a frozen dataclass with a `name`."""


@dataclass(frozen=True, kw_only=True)
class DependencyState:
    """What to know first about one dependency."""

    name: str
    state: str
    """Of its circuit breaker: `closed` is well; `open`, `half_open` and `isolated` refuse calls."""
    reason: str
    """Why it is in this state."""
    retry_after_s: float | None
    """Seconds until it is tried again, while it is open."""
    in_flight: int
    queued: int
    worker: int | None = None
    """Which of several processes says so; None where there is one."""


class Parts:
    """All parts of a server, by kind and name."""

    def __init__(self) -> None:
        self._parts: dict[Kind, dict[str, Part]] = {"dependency": {}, "pool": {}, "cache": {}}

    def add(self, kind: Kind, part: Part) -> None:
        """Watch `part` from now on, in place of an earlier one of this name."""
        self._parts[kind][part.name] = part

    def of(self, kind: Kind) -> list[Part]:
        """The parts themselves."""
        return list(self._parts[kind].values())

    def statistics(self, kind: Kind) -> list[Any]:
        """A snapshot of each part; one that raises is logged and left out, so that the report still has the others."""
        found: list[Any] = []
        for part in self._parts[kind].values():
            try:
                snapshot = part.statistics()
            except Exception:
                logger.exception("a part has no statistics", extra={"part": part.name})
                continue
            found += snapshot if isinstance(snapshot, list | tuple) else [snapshot]
        return found

    def dependency_states(self) -> list[DependencyState]:
        """The short form of the dependencies' snapshots."""
        return [
            DependencyState(
                name=one.name,
                state=one.state,
                reason=one.breaker.reason,
                retry_after_s=one.breaker.retry_after_s,
                in_flight=one.in_flight,
                queued=one.queued,
            )
            for one in self.statistics("dependency")
        ]
