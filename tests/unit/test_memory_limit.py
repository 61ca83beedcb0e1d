"""When a process that has grown too large is restarted, in virtual time: rule R69."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from reliability import memory_limit
from reliability.memory_limit import MemoryLimit

from tests.unit.support import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

LIMIT_MB = 512
PATIENCE_S = 25.0


class World:
    """A process whose memory and calls follow a script, on a clock of its own."""

    def __init__(
        self,
        used_mb: Callable[[float], float | None],
        *,
        is_busy: Callable[[float], bool] = lambda _: False,
        freed_mb: float = 0,
        ends_at: float = 1_000,
    ) -> None:
        self.clock = FakeClock(0)
        self.restarts: list[tuple[float, str]] = []
        self.freed: list[float] = []
        self._ends_at = ends_at
        self._used_mb = used_mb
        self._freed_mb = freed_mb
        self.limit = MemoryLimit(
            LIMIT_MB,
            is_busy=lambda: is_busy(self.clock()),
            restart=lambda why: self.restarts.append((self.clock(), why)),
            patience_s=PATIENCE_S,
            used_mb=self.used,
            free=lambda: self.freed.append(self.clock()),
            clock=self.clock,
            sleep=self.sleep,
        )

    def used(self) -> float | None:
        used = self._used_mb(self.clock())
        return None if used is None else used - self._freed_mb * bool(self.freed)

    async def sleep(self, seconds: float) -> None:
        await anyio.lowlevel.checkpoint()
        self.clock.now += seconds
        if self.clock.now > self._ends_at:
            raise TimeoutError

    async def run(self) -> list[tuple[float, str]]:
        try:
            await self.limit.run()
        except TimeoutError:
            assert self.restarts == []
        return self.restarts


def grows(at: float) -> float:
    """100 MB at the start, 10 MB more every second: over the limit after 41.2 s."""
    return 100 + 10 * at


async def test_r69_a_leak_is_answered_with_one_restart_that_says_why() -> None:
    ((at, why),) = await World(grows).run()
    assert 41.2 < at <= 41.2 + memory_limit._INTERVAL_S
    assert why == "550 MB resident, over the hard limit of 512 MB"


async def test_r69_below_the_limit_nothing_happens() -> None:
    world = World(lambda _: LIMIT_MB)
    assert await world.run() == []
    assert world.freed == []


async def test_r69_it_waits_until_no_call_runs() -> None:
    ((at, _),) = await World(grows, is_busy=lambda at: at < 60).run()
    assert 60 <= at < 60.1


async def test_r69_it_does_not_wait_for_ever() -> None:
    ((at, _),) = await World(grows, is_busy=lambda _: True).run()
    assert 45 + PATIENCE_S <= at < 45 + PATIENCE_S + 0.1


async def test_r69_what_a_call_uses_and_gives_back_is_no_leak() -> None:
    world = World(lambda at: 700 if 20 <= at < 40 else 100, is_busy=lambda at: 20 <= at < 40)
    assert await world.run() == []
    assert world.freed == []


async def test_r69_garbage_is_no_leak() -> None:
    world = World(lambda at: 700 if at > 20 else 100, freed_mb=300)
    assert await world.run() == []
    assert len(world.freed) == 1


async def test_r69_memory_is_freed_between_calls_because_it_takes_time() -> None:
    world = World(grows, is_busy=lambda at: at < 60)
    await world.run()
    (at,) = world.freed
    assert at >= 60


async def test_r69_a_process_that_grows_at_once_lives_long_enough_to_look_stable() -> None:
    ((at, _),) = await World(lambda at: 700 if at > 0 else 100).run()
    assert at == memory_limit._SETTLE_S == 10  # the stable time of R29


async def test_r69_a_restart_that_would_not_help_is_not_made(caplog: pytest.LogCaptureFixture) -> None:
    assert await World(lambda _: 700).run() == []
    assert "needs more already when it starts" in caplog.text


async def test_r69_without_a_measurement_there_is_no_limit() -> None:
    world = World(lambda _: None)
    assert await world.run() == []
    assert world.clock() == 0
