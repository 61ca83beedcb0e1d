"""Liveness, readiness and the report: rules R9 to R15 and R69."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from reliability.health import Check, CheckResult, HealthMonitor, HealthReport, Status, Unhealthy, memory_check, rss_mb

from tests.unit.support import CANCELLERS, FakeClock, cancel_at_every_await, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.anyio


async def well() -> str:
    return "fine"


async def unwell() -> str:
    raise Unhealthy("the database does not answer")


async def broken() -> str:
    raise ValueError("hunter2")


async def hanging() -> str:
    await anyio.sleep_forever()
    raise AssertionError


async def cancelled_inside() -> str:
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task
    raise AssertionError


def monitor(
    *probes: Callable[[], Awaitable[str]], critical: bool = True, clock: FakeClock | None = None, timeout_s: float = 60
) -> HealthMonitor:
    made = HealthMonitor(
        name="my-server", version="1.2.3", timeout_s=timeout_s, clock=clock or FakeClock(), calls=lambda: (3, 4)
    )
    for number, probe in enumerate(probes):
        made.add(Check(name=f"{number}", probe=probe, critical=critical))
    return made


async def checked(health: HealthMonitor) -> HealthReport:
    with anyio.fail_after(5):
        await health.run_checks()
    return health.report()


def only(report: HealthReport) -> CheckResult:
    (result,) = report.checks
    return result


async def test_r12_without_checks_the_server_is_ok_and_ready() -> None:
    report = await checked(monitor())
    assert (report.status, report.live, report.ready) == (Status.OK, True, True)


@pytest.mark.parametrize(
    ("probe", "critical", "status", "ready"),
    [
        (well, True, Status.OK, True),
        (well, False, Status.OK, True),
        (unwell, True, Status.FAILED, False),
        (unwell, False, Status.DEGRADED, True),
        (broken, True, Status.FAILED, False),
        (broken, False, Status.DEGRADED, True),
        (cancelled_inside, True, Status.FAILED, False),
    ],
)
async def test_r12_a_critical_dependency_fails_the_server_and_an_optional_one_degrades_it(
    probe: Callable[[], Awaitable[str]], status: Status, *, critical: bool, ready: bool
) -> None:
    report = await checked(monitor(probe, critical=critical))
    assert (report.status, report.ready, only(report).critical) == (status, ready, critical)


async def test_r12_the_worst_check_decides() -> None:
    health = monitor(well)
    health.add(Check(name="optional", probe=unwell, critical=False))
    assert (await checked(health)).status is Status.DEGRADED
    health.add(Check(name="critical", probe=unwell))
    assert (await checked(health)).status is Status.FAILED


@pytest.mark.parametrize("probe", [unwell, broken, cancelled_inside])
async def test_r13_a_failed_dependency_never_fails_liveness(probe: Callable[[], Awaitable[str]]) -> None:
    assert (await checked(monitor(probe))).live


async def test_r10_a_probe_that_says_what_is_wrong_is_quoted() -> None:
    assert only(await checked(monitor(unwell))).detail == "the database does not answer"
    assert only(await checked(monitor(well))).detail == "fine"


async def test_r10_an_unexpected_error_of_a_probe_is_masked_in_the_report_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = only(await checked(monitor(broken)))
    assert result.detail == "the check itself failed (ValueError)"
    assert "hunter2" in caplog.text


async def test_r10_a_hanging_check_is_stopped_at_its_limit() -> None:
    result = only(await checked(monitor(hanging, timeout_s=0.001)))
    assert (result.status, result.detail) == (Status.FAILED, "no answer within 0.001 s")


async def test_r10_checks_run_at_the_same_time() -> None:
    started = 0
    both = anyio.Event()

    async def meets_the_other() -> str:
        nonlocal started
        started += 1
        if started == 2:
            both.set()
        await both.wait()
        return "met"

    report = await checked(monitor(meets_the_other, meets_the_other))
    assert [result.detail for result in report.checks] == ["met", "met"]


async def test_r10_every_check_is_reported_whatever_happens_to_the_others() -> None:
    report = await checked(monitor(well, hanging, broken, cancelled_inside, unwell, well, timeout_s=0.01))
    assert [r.status for r in report.checks] == [Status.OK, *[Status.FAILED] * 4, Status.OK]


async def test_r10_a_probe_that_times_out_by_itself_is_a_failed_probe() -> None:
    async def slow() -> str:
        with anyio.fail_after(0.001):
            await anyio.sleep_forever()
        return "never"

    assert only(await checked(monitor(slow))).detail == "the check itself failed (TimeoutError)"


async def test_r10_a_check_that_is_added_during_a_run_is_part_of_the_next_one() -> None:
    health = monitor()

    async def adds_another() -> str:
        health.add(Check(name="late", probe=well))
        return "added"

    health.add(Check(name="early", probe=adds_another))
    assert [r.name for r in (await checked(health)).checks] == ["early"]


async def test_r1_two_checks_of_one_name_are_refused() -> None:
    health = monitor(well)
    with pytest.raises(ValueError, match="'0' exists already"):
        health.add(Check(name="0", probe=well))


async def test_r11_a_young_result_is_served_again_and_an_old_one_is_not() -> None:
    clock, runs = FakeClock(), 0

    async def counting() -> str:
        nonlocal runs
        runs += 1
        return f"run {runs}"

    health = monitor(counting, clock=clock)
    assert only(await health.fresh_report()).detail == "run 1"
    clock.now += 0.9
    report = await health.fresh_report()
    assert (only(report).detail, report.checked_s_ago) == ("run 1", 0.9)
    clock.now += 0.2
    assert only(await health.fresh_report()).detail == "run 2"


async def test_r11_askers_at_the_same_time_share_one_run() -> None:
    go_on, runs = anyio.Event(), 0

    async def counting() -> str:
        nonlocal runs
        runs += 1
        await go_on.wait()
        return "done"

    health = monitor(counting)
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(health.fresh_report)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
    assert runs == 1


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r11_when_the_asker_that_runs_the_checks_is_cancelled_the_next_one_takes_over(how: str) -> None:
    go_on, runs = anyio.Event(), 0

    async def counting() -> str:
        nonlocal runs
        runs += 1
        await go_on.wait()
        return "done"

    health = monitor(counting)
    scope = anyio.CancelScope()

    async def first() -> None:
        with scope:
            await health.fresh_report()

    runner = asyncio.ensure_future(first())
    await anyio.wait_all_tasks_blocked()
    waiter = asyncio.ensure_future(health.fresh_report())
    await anyio.wait_all_tasks_blocked()
    if how == "scope":
        scope.cancel()
    else:
        runner.cancel()
    await anyio.wait_all_tasks_blocked()
    go_on.set()
    assert only(await waiter).detail == "done"
    assert runs == 2


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r11_an_asker_that_is_cancelled_at_any_await_leaves_the_next_one_a_working_monitor(how: str) -> None:
    clock = FakeClock()

    async def two_steps() -> str:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "done"

    health = monitor(two_steps, well, clock=clock)

    async def ask() -> HealthReport:
        clock.now += 10
        return await health.fresh_report()

    async def still_works() -> None:
        with anyio.fail_after(5):
            report = await ask()
        assert [result.status for result in report.checks] == [Status.OK, Status.OK]

    assert await cancel_at_every_await(ask, still_works, how=how) >= 1


async def test_r11_a_report_is_given_even_if_no_result_is_young_enough() -> None:
    class RunningClock(FakeClock):
        def __call__(self) -> float:
            self.now += 0.001
            return self.now

    health = HealthMonitor(name="x", version="1", max_age_s=0, clock=RunningClock())
    health.add(Check(name="a", probe=well))
    with anyio.fail_after(1):
        assert only(await health.fresh_report()).status is Status.OK


async def test_r9_a_server_that_drains_is_alive_but_not_ready() -> None:
    health = monitor(well)
    health.draining = True
    report = await checked(health)
    assert (report.status, report.live, report.ready) == (Status.OK, True, False)


async def test_r9_the_last_known_state_is_told_without_asking_anybody() -> None:
    async def never() -> str:
        raise AssertionError("it was asked")

    assert monitor(never).report().checks == []


async def test_r14_the_report_holds_what_an_operator_asks_for() -> None:
    clock = FakeClock()
    health = monitor(well, clock=clock)
    clock.now += 12.34
    report = await checked(health)
    clock.now += 3
    report = health.report()
    assert (report.name, report.version, report.uptime_s, report.checked_s_ago) == ("my-server", "1.2.3", 15.3, 3)
    assert (report.calls_in_flight, report.calls_queued) == (3, 4)
    assert report.rss_mb is None or 1 < report.rss_mb < 10_000
    assert report.event_loop_lag_ms == 0


async def test_r14_the_report_can_be_written_as_json() -> None:
    import json

    json.dumps(asdict(await checked(monitor(well, unwell))))


async def test_r15_checks_run_in_the_background_and_stop_when_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    runs = 0
    enough = anyio.Event()

    async def sleep(seconds: float) -> None:
        if seconds == 0.5:  # the watch on the event loop
            return await anyio.sleep_forever()
        slept.append(seconds)
        await asyncio.sleep(0)
        return None

    async def counting() -> str:
        nonlocal runs
        runs += 1
        if runs == 3:
            enough.set()
        return "fine"

    health = HealthMonitor(name="x", version="1", interval_s=30, jitter=lambda low, high: low)
    health.add(Check(name="a", probe=counting))
    monkeypatch.setattr("reliability.health.anyio.sleep", sleep)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(health.run)
        with anyio.fail_after(5):
            await enough.wait()
        tasks.cancel_scope.cancel()
    assert set(slept) == {27}


async def test_r15_the_background_never_runs_the_checks_beside_an_asker() -> None:
    runs = running = most = 0
    go_on = anyio.Event()

    async def counting() -> str:
        nonlocal runs, running, most
        runs += 1
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1
        return "fine"

    health = HealthMonitor(name="x", version="1", interval_s=0.001)
    health.add(Check(name="a", probe=counting))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(health.fresh_report)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(health.run)
        tasks.start_soon(health.fresh_report)
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        await until(lambda: runs > 3)
        tasks.cancel_scope.cancel()
    assert most == 1


async def test_r15_a_probe_in_which_something_was_cancelled_does_not_end_the_background_task() -> None:
    runs = 0

    async def counted() -> str:
        nonlocal runs
        runs += 1
        return await cancelled_inside()

    health = HealthMonitor(name="x", version="1", interval_s=0.001)
    health.add(Check(name="a", probe=counted))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(health.run)
        await until(lambda: runs == 3)
        tasks.cancel_scope.cancel()
    assert only(health.report()).status is Status.FAILED


async def test_r12_every_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now: Callable[[], Awaitable[str]] = well

    async def varying() -> str:
        return await now()

    health = monitor(varying)
    for now in (well, unwell, unwell, well):  # noqa: B007 - `varying` looks at it
        await checked(health)
    changes = [(r.levelname, r.__dict__["from"], r.__dict__["to"]) for r in caplog.records]
    assert changes == [("WARNING", "ok", "failed"), ("INFO", "failed", "ok")]


async def test_r69_memory_over_the_soft_limit_degrades_the_server() -> None:
    health = monitor()
    health.add(memory_check(1e9))
    assert (await checked(health)).status is Status.OK
    health = monitor()
    health.add(memory_check(0.001))
    report = await checked(health)
    assert (report.status, report.ready) == (Status.DEGRADED, True)
    assert "over the soft limit of 0.001 MB" in only(report).detail


def test_r14_resident_memory_grows_with_what_is_allocated() -> None:
    before = rss_mb()
    if before is None:
        pytest.skip("not measured on this platform")
    ballast = bytearray(b"x" * 50_000_000)
    after = rss_mb()
    assert after is not None
    assert after > before + 40
    del ballast


class Asker:
    """Asks for a fresh report, and can be cancelled in both ways."""

    def __init__(self, health: HealthMonitor) -> None:
        self.scope = anyio.CancelScope()
        self.report: HealthReport | None = None
        self.task = asyncio.ensure_future(self._ask(health))

    async def _ask(self, health: HealthMonitor) -> None:
        with self.scope:
            self.report = await health.fresh_report()


class SingleFlightMachine(RuleBasedStateMachine):
    """Askers come and are cancelled in any order while runs begin and end: nobody hangs, no two runs overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.askers: list[Asker] = []
        self.running = self.most = 0
        self.runner.run(self.create())

    async def create(self) -> None:
        self.go_on = asyncio.Event()
        self.health = monitor(self.probe, clock=self.clock)

    async def probe(self) -> str:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go_on.wait()
        finally:
            self.running -= 1
        return "fine"

    def do(self, action: Callable[[], object]) -> None:
        async def and_settle() -> None:
            action()
            for _ in range(12):
                await asyncio.sleep(0)

        self.runner.run(and_settle())

    @rule()
    def somebody_asks(self) -> None:
        self.do(lambda: self.askers.append(Asker(self.health)))

    @precondition(lambda self: self.askers)
    @rule(data=st.data(), how=st.sampled_from(CANCELLERS))
    def an_asker_is_cancelled(self, data: st.DataObject, how: str) -> None:
        asker = self.askers.pop(data.draw(st.integers(0, len(self.askers) - 1)))
        self.do(asker.scope.cancel if how == "scope" else asker.task.cancel)
        assert asker.task.done()

    @rule()
    def the_dependency_answers(self) -> None:
        self.do(self.go_on.set)
        self.do(self.go_on.clear)

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def no_two_runs_overlap_and_somebody_runs_while_somebody_waits(self) -> None:
        assert self.most <= 1
        waiting = [asker for asker in self.askers if not asker.task.done()]
        assert self.running == (1 if waiting else 0)
        for asker in self.askers:
            assert asker.report is None or asker.report.status is Status.OK

    def teardown(self) -> None:
        self.do(self.go_on.set)
        assert all(asker.report for asker in self.askers)
        self.runner.close()


SingleFlightMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestR11AnyOrderOfAskersAndCancellations = SingleFlightMachine.TestCase
