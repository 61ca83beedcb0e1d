"""Liveness, readiness and a detailed report: three different questions (R9-R15).

Liveness asks whether a restart would help, so no dependency takes part in it (R13). Readiness asks whether calls should
be sent here. The report is for people, and says why. Checks run together, each with a limit of its own; whoever asks
while they run waits for that same run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import anyio

from .cancellation import is_cancelled
from .parts import DependencyState, Parts

logger = logging.getLogger(__name__)

_LAG_INTERVAL_S = 0.5
_TASK_INFO, _TASK_INFO_BYTES = 4, 96
"""PROC_PIDTASKINFO of macOS, and the size of its answer."""


class Status(StrEnum):
    """The verdict on one check, or on the server (R12)."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What one check found. `detail` is safe to show."""

    name: str
    status: Status
    critical: bool
    detail: str
    duration_ms: float
    worker: int | None = None
    """Which of several processes found it; None where there is one."""


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """One of several processes that are one service together."""

    number: int
    status: Status
    """`failed` for one that does not answer."""
    pid: int | None
    uptime_s: float | None
    rss_mb: float | None
    restarts: int


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question about one dependency.

    Args:
        name: A short stable name.
        probe: Returns a sentence when all is well; raises `Unhealthy` with a sentence when it is not.
        critical: Whether the server is of no use without it; otherwise a failure only degrades it.
    """

    name: str
    probe: Callable[[], Awaitable[str]]
    critical: bool = True


class Unhealthy(Exception):
    """Raised by a probe; its text is shown in the report."""


def check_of(name: str, trouble: Callable[[], str | None], *, well: str, critical: bool = False) -> Check:
    """A check of what is known without asking.

    Args:
        name: As in `Check`.
        trouble: Says what is wrong; None when nothing is.
        well: What the report says then.
        critical: As in `Check`.
    """

    async def probe() -> str:
        found = trouble()
        if found is not None:
            raise Unhealthy(found)
        return well

    return Check(name=name, probe=probe, critical=critical)


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """Everything an operator wants to see at one glance (R14)."""

    status: Status
    live: bool
    ready: bool
    name: str
    version: str
    uptime_s: float
    rss_mb: float | None
    """Resident memory in MB (10^6 bytes); None where the platform does not tell."""
    event_loop_lag_ms: float
    """The longest delay of the event loop in the last half second."""
    calls_in_flight: int
    calls_queued: int
    checked_s_ago: float | None
    """None before the first run of the checks; the server is not ready until then."""
    checks: list[CheckResult] = field(default_factory=list)
    dependencies: list[DependencyState] = field(default_factory=list)
    pools: list[Any] = field(default_factory=list)
    """The statistics of every pool, as they are at this moment; the same for caches."""
    caches: list[Any] = field(default_factory=list)
    workers: list[WorkerState] = field(default_factory=list)
    """Where the service is several processes, each of them; then the figures above are those of all together."""


class HealthMonitor:
    """Runs the checks now and then, and whenever somebody asks and the last answer is old.

    Args:
        name: The server's name.
        version: The server's version.
        interval_s: Seconds between two runs in the background, varied by a tenth.
        timeout_s: Limit of each single check, in seconds.
        max_age_s: A result that is younger is served again.
        calls: Returns the numbers of calls in flight and waiting.
        parts: What the server consists of.
    """

    def __init__(
        self,
        *,
        name: str,
        version: str,
        interval_s: float = 30,
        timeout_s: float = 5,
        max_age_s: float = 1,
        calls: Callable[[], tuple[int, int]] = lambda: (0, 0),
        parts: Parts | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.name = name
        self.version = version
        self.draining = False
        self.others_unready_because: Callable[[], str] = lambda: ""
        """Why another process of the same service is not ready."""
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._max_age_s = max_age_s
        self._calls = calls
        self._parts = parts or Parts()
        self._clock = clock
        self._jitter = jitter
        self._checks: dict[str, Check] = {}
        self._results: list[CheckResult] = []
        self._checked_at = -float("inf")
        self._runs = 0
        self._running: anyio.Event | None = None
        self._lag_s = 0.0
        self._started_at = clock()

    def add(self, check: Check) -> None:
        """Add a check.

        Raises:
            ValueError: The name is taken.
        """
        if check.name in self._checks:
            raise ValueError(f"A health check called {check.name!r} exists already; give this one another name.")
        self._checks[check.name] = check

    def report(self) -> HealthReport:
        """The last known state, at once and without asking anybody."""
        status = self._status()
        in_flight, queued = self._calls()
        return HealthReport(
            status=status,
            live=True,  # whoever can answer this is alive; a stuck process does not answer
            ready=not self.unready_because(),
            name=self.name,
            version=self.version,
            uptime_s=self.uptime_s(),
            rss_mb=rss_mb(),
            event_loop_lag_ms=round(self._lag_s * 1000, 1),
            calls_in_flight=in_flight,
            calls_queued=queued,
            checked_s_ago=round(max(0.0, self._clock() - self._checked_at), 1) if self._runs else None,
            checks=self._results,
            dependencies=self._parts.dependency_states(),
            pools=self._parts.statistics("pool"),
            caches=self._parts.statistics("cache"),
        )

    def unready_because(self) -> str:
        """Why no calls should be sent here, safe to show; empty while they should."""
        if self.draining:
            return "the server is stopping"
        if not self._runs:
            return "the server is starting"
        return self.failures() or self.others_unready_because()

    def failures(self) -> str:
        """What is wrong with critical dependencies; empty while nothing is."""
        return "; ".join(f"{found.name}: {found.detail}" for found in self._results if found.status is Status.FAILED)

    def uptime_s(self) -> float:
        """Seconds since the process began to serve, by the monotonic clock."""
        return round(self._clock() - self._started_at, 1)

    async def fresh_report(self) -> HealthReport:
        """The state after a run of the checks, unless the last one is younger than `max_age_s` (R11)."""
        if self._clock() - self._checked_at > self._max_age_s:
            await self._run_or_join()
        return self.report()

    async def _run_or_join(self) -> None:
        finished = self._runs
        while self._runs == finished:  # the asker who runs them may be cancelled; then the next one takes over
            if self._running is None:
                await self.run_checks()
            else:
                await self._running.wait()

    async def run_checks(self) -> None:
        """Run every check once, all at the same time. Never raises for a check (R10)."""
        self._running = anyio.Event()
        checks = list(self._checks.values())
        results: dict[str, CheckResult] = {}
        try:
            async with anyio.create_task_group() as tasks:
                for check in checks:
                    tasks.start_soon(self._run_check, check, results)
            self._results = [results[check.name] for check in checks]
            self._checked_at = self._clock()
            self._runs += 1
        finally:
            self._running.set()
            self._running = None

    async def run(self) -> None:
        """Run the checks in the background and watch the event loop's lag, until cancelled (R15)."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_lag)
            while True:
                if self._running is None:
                    await self.run_checks()
                await anyio.sleep(self._interval_s * self._jitter(0.9, 1.1))

    async def _run_check(self, check: Check, results: dict[str, CheckResult]) -> None:
        started = self._clock()
        status, detail = Status.OK, ""
        failed = Status.FAILED if check.critical else Status.DEGRADED
        try:
            with anyio.move_on_after(self._timeout_s) as limit:
                detail = await check.probe()
            if limit.cancelled_caught:
                status, detail = failed, f"no answer within {self._timeout_s:g} s"
        except Unhealthy as problem:
            status, detail = failed, str(problem)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            status, detail = failed, f"the check itself failed ({type(error).__name__})"
            logger.warning("health check raised", exc_info=True, extra={"check": check.name})
        previous = next((r.status for r in self._results if r.name == check.name), Status.OK)
        if status is not previous:
            logger.log(
                logging.INFO if status is Status.OK else logging.WARNING,
                "health changed",
                extra={"check": check.name, "from": previous, "to": status, "detail": detail},
            )
        results[check.name] = CheckResult(
            name=check.name,
            status=status,
            critical=check.critical,
            detail=detail,
            duration_ms=round((self._clock() - started) * 1000, 1),
        )

    async def _watch_lag(self) -> None:
        while True:
            due = time.monotonic() + _LAG_INTERVAL_S
            await anyio.sleep(_LAG_INTERVAL_S)
            self._lag_s = max(0.0, time.monotonic() - due)

    def _status(self) -> Status:
        found = {result.status for result in self._results}
        return next((s for s in (Status.FAILED, Status.DEGRADED) if s in found), Status.OK)


def rss_mb() -> float | None:
    """Resident memory of this process in MB (10^6 bytes); None where the platform does not tell."""
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
        return round(pages * _PAGE_BYTES / 1e6, 1)
    if sys.platform == "darwin":
        import ctypes

        task = ctypes.create_string_buffer(_TASK_INFO_BYTES)
        filled = ctypes.CDLL(None).proc_pidinfo(os.getpid(), _TASK_INFO, ctypes.c_uint64(0), task, _TASK_INFO_BYTES)
        if filled == _TASK_INFO_BYTES:
            return round(int.from_bytes(task[8:16], sys.byteorder) / 1e6, 1)  # the second field, pti_resident_size
    return None


def memory_check(soft_limit_mb: float) -> Check:
    """Degraded above `soft_limit_mb`: the warning before a supervisor's hard limit (R69)."""

    async def probe() -> str:
        used = rss_mb()
        if used is None:
            return "not measured on this platform"
        if used > soft_limit_mb:
            raise Unhealthy(f"{used:g} MB resident, over the soft limit of {soft_limit_mb:g} MB")
        return f"{used:g} MB resident"

    return Check(name="memory", probe=probe, critical=False)


if sys.platform == "linux":
    _PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
