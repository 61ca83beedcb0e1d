"""Dependencies that are alike and fail apart, such as the hosts that a tool may ask: one breaker for each.

apis = DependencyGroup("apis", DependencyLimits(attempt_timeout_s=5))
answer = await apis.of(url.host).call(lambda: client.get(url), idempotent=True)
"""

from __future__ import annotations

import functools
import time
from collections import OrderedDict
from collections.abc import Callable

from .chaos import Chaos
from .circuit_breaker import State
from .dependency import Dependency, DependencyLimits
from .dependency_statistics import DependencyStatistics, DependencyTotals
from .health import Check, check_of


class DependencyGroup:
    """One dependency for each key, such as a host, all with the same limits: one that fails stops no other.

    Args:
        name: The group's name; its members are called `name/key`.
        limits: Of each member.
        max_members: Beyond as many the one that was not used for longest is forgotten, an idle one first; at least 1.
        critical: As in `Dependency`; a group is refused when one of its members is.
        is_failure: As in `Dependency`.
        chaos: As in `Dependency`.
        clock: As in `Dependency`.
    """

    def __init__(
        self,
        name: str,
        limits: DependencyLimits | None = None,
        *,
        max_members: int = 64,
        critical: bool = False,
        is_failure: Callable[[Exception], bool] | None = None,
        chaos: Chaos | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.limits = limits or DependencyLimits()
        self.critical = critical
        self._max_members = max_members
        self._members: OrderedDict[str, Dependency] = OrderedDict()
        self._forgotten = DependencyTotals()
        self._make = functools.partial(
            Dependency, limits=self.limits, critical=critical, is_failure=is_failure, chaos=chaos, clock=clock
        )

    def of(self, key: str) -> Dependency:
        """The dependency of `key`, made when it is first asked for."""
        if key not in self._members:
            if len(self._members) >= self._max_members:
                self._forget_one()
            self._members[key] = self._make(f"{self.name}/{key}")
        self._members.move_to_end(key)
        return self._members[key]

    def _forget_one(self) -> None:
        oldest = next(iter(self._members))
        forgotten = next((key for key, member in self._members.items() if _is_idle(member)), oldest)
        self._forgotten += self._members.pop(forgotten).statistics().totals

    def check(self) -> Check:
        """The group's health check: unhealthy while calls to a member are refused."""

        def refusals() -> str | None:
            return "; ".join(f"{one.name} is {one.refusal}" for one in self._members.values() if one.refusal) or None

        return check_of(self.name, refusals, well="calls go through", critical=self.critical)

    def statistics(self) -> list[DependencyStatistics]:
        """A snapshot of each member."""
        return [member.statistics() for member in self._members.values()]

    def totals(self) -> DependencyTotals:
        """The sums of all members, those included that are forgotten."""
        return sum((member.totals for member in self.statistics()), self._forgotten)


def _is_idle(member: Dependency) -> bool:
    """Whether nothing is lost with it: no call is in progress, and the breaker has nothing against it."""
    return member.breaker.state is State.CLOSED and member.statistics().in_flight == 0
