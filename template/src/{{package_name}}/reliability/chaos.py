"""Injects latency, errors and hangs into dependencies, so that an owner can rehearse their failure. Off by default.

    api: latency=2s@0.3, error@0.1, hang@0.05; database: error@0.5; *: latency=100ms

For each dependency, by name, or for all others as `*`: what happens, and after `@` to which share of the calls (all,
when it is left out). A call may get several at once. Injected faults take the place of real ones: breaker, retry and
fallback see no difference.
"""

from __future__ import annotations

import functools
import logging
import random
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import NamedTuple

import anyio

from .errors import ConnectionBroken

logger = logging.getLogger(__name__)

_EVERY_OTHER = "*"
_FAULT = re.compile(
    r"(?:(?P<kind>error|hang)|latency=(?P<amount>\d+(?:\.\d+)?)(?P<unit>ms|s))(?:@(?P<share>\d+(?:\.\d+)?))?"
)
_SYNTAX = "write e.g. 'api: latency=2s@0.3, error@0.1, hang@0.05; database: error'"


class Faults(NamedTuple):
    """What happens to the calls of one dependency.

    Args:
        latency_s: Added before the call, in seconds.
        latency: The share of calls that it is added to, 0 to 1.
        error: The share of calls that fail.
        hang: The share of calls that never answer.
    """

    latency_s: float = 0.0
    latency: float = 0.0
    error: float = 0.0
    hang: float = 0.0


class Chaos:
    """The faults of all dependencies.

    Args:
        faults: By the names of dependencies; `*` stands for all that are not named.
        draw: The dice: a number from 0 to 1, without 1.
    """

    def __init__(self, faults: Mapping[str, Faults], *, draw: Callable[[], float] = random.random) -> None:
        self.faults = dict(faults)
        self._draw = draw

    @classmethod
    def parse(cls, text: str, *, draw: Callable[[], float] = random.random) -> Chaos | None:
        """The setting's text, as the module shows it; None when it is empty.

        Raises:
            ValueError: It is not understood; one sentence says what, and how to write it.
        """
        faults: dict[str, Faults] = {}
        for part in filter(None, map(str.strip, text.split(";"))):
            name, colon, listed = map(str.strip, part.rpartition(":"))
            if not colon or not name:
                raise ValueError(f"{part!r} does not begin with the name of a dependency and a colon: {_SYNTAX}.")
            if name in faults:
                raise ValueError(f"the dependency {name!r} is named twice: {_SYNTAX}.")
            faults[name] = _faults(listed)
        return cls(faults, draw=draw) if faults else None

    def announce(self, dependencies: Collection[str]) -> None:
        """Say in the log, so that nobody can miss it, what is going to fail, and what is not because it is not there.

        Args:
            dependencies: The names of all dependencies and groups.
        """
        for name, faults in self.faults.items():
            logger.warning("CHAOS IS ON: calls fail on purpose", extra={"dependency": name, "faults": str(faults)})
            if not {name, name.partition("/")[0]} & {_EVERY_OTHER, *dependencies}:
                known = ", ".join(sorted(dependencies))
                logger.warning("no dependency has the name in chaos", extra={"dependency": name, "known": known})

    def of(self, dependency: str) -> Callable[[], Awaitable[None]] | None:
        """What to await before each call of `dependency`; None where nothing happens.

        A member of a group (`group/key`) has its group's faults unless it is named itself.
        """
        names = (dependency, dependency.partition("/")[0], _EVERY_OTHER)
        faults = next((self.faults[name] for name in names if name in self.faults), None)
        return None if faults is None else functools.partial(self._strike, dependency, faults)

    async def _strike(self, dependency: str, faults: Faults) -> None:
        if self._draw() < faults.latency:
            await anyio.sleep(faults.latency_s)
        if self._draw() < faults.hang:
            await anyio.sleep_forever()  # the limit of the attempt ends it
        if self._draw() < faults.error:
            raise ConnectionBroken(dependency, "the chaos setting asked for it")


def _faults(listed: str) -> Faults:
    values: dict[str, float] = {}
    for text in map(str.strip, listed.split(",")):
        found = _FAULT.fullmatch(text)
        if found is None:
            raise ValueError(f"the fault {text!r} is not understood: {_SYNTAX}.")
        kind, share = found["kind"] or "latency", float(found["share"] or 1)
        if kind in values:
            raise ValueError(f"{kind!r} is there twice for one dependency: {_SYNTAX}.")
        if share > 1:
            raise ValueError(f"{text!r}: the share after '@' is more than 1.")
        values[kind] = share
        if found["amount"]:
            values["latency_s"] = float(found["amount"]) / (1000 if found["unit"] == "ms" else 1)
    return Faults(**values)
