"""The way of every call: rules R43, R44, R46, R52, R59, R62 and R64."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from typing import NoReturn

import anyio
import pytest
from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp.shared.exceptions import MCPError
from reliability.deadlines import paused, remaining_s
from reliability.errors import (
    CircuitOpen,
    DeadlineExceeded,
    DependencyFailed,
    DependencyTimeout,
    Overloaded,
    ShuttingDown,
    ToolFailure,
)
from reliability.health import Unhealthy
from reliability.load_shedding import LoadShedder
from reliability.logs import JsonFormatter, log_context
from reliability.metrics import CallMetrics, CallStatistics, Outcome
from reliability.pipeline import Call, Pipeline, overdue_check

from tests.unit.support import CANCELLERS, FakeClock, cancel_at_every_await, virtual_time

pytestmark = pytest.mark.anyio


class Setup:
    """A pipeline for one tool called `add`, and everything it leaves behind."""

    def __init__(self, *, places: int = 2, queue: int = 2, queue_timeout_s: float = 60) -> None:
        self.clock = FakeClock()
        self.metrics = CallMetrics()
        self.metrics.register("add")
        self.gate = LoadShedder(max_concurrent=places, max_queued=queue, queue_timeout_s=queue_timeout_s)
        self.pipeline = Pipeline(metrics=self.metrics, load_shedder=self.gate, clock=self.clock)

    @property
    def figures(self) -> CallStatistics:
        (figures,) = self.metrics.statistics()
        return figures

    def counted(self) -> dict[str, int]:
        return {o.value: n for o in Outcome if (n := getattr(self.figures, o.value))}

    def assert_nothing_is_held(self) -> None:
        assert (self.gate.in_flight, self.gate.queued, self.figures.in_flight) == (0, 0, 0)
        assert log_context.get() is None
        assert remaining_s() == float("inf")


def call(*, timeout_s: float = 60) -> Call:
    return Call("add", "7", timeout_s)


async def work() -> str:
    return "done"


async def endless() -> NoReturn:
    await anyio.sleep_forever()
    raise AssertionError


def raising(error: BaseException) -> Raising:
    return Raising(error)


class Raising:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def __call__(self) -> NoReturn:
        raise self.error


async def test_r64_a_successful_call_is_counted_with_its_duration_and_leaves_nothing_behind() -> None:
    setup = Setup()

    async def slow() -> str:
        setup.clock.now += 0.5
        return "done"

    assert await setup.pipeline.run(call(), slow) == "done"
    assert setup.counted() == {"ok": 1}
    assert setup.figures.mean_ms == 500
    setup.assert_nothing_is_held()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ToolFailure("No."), Outcome.TOOL_ERROR),
        (MCPError(code=-32602, message="No."), Outcome.TOOL_ERROR),
        (ResourceNotFoundError("No."), Outcome.TOOL_ERROR),
        (Overloaded("Busy."), Outcome.REJECTED),
        (ShuttingDown(), Outcome.REJECTED),
        (DeadlineExceeded(1), Outcome.TIMEOUT),
        (DependencyTimeout("api", 5), Outcome.TIMEOUT),
        (DependencyFailed("api", "No."), Outcome.ERROR),
        (CircuitOpen("api", retry_after_s=3), Outcome.ERROR),
        (TimeoutError(), Outcome.ERROR),
        (ValueError("hunter2"), Outcome.ERROR),
    ],
)
async def test_r62_each_way_of_failing_is_counted_apart_and_raised_unchanged(
    error: Exception, outcome: Outcome
) -> None:
    setup = Setup()
    with pytest.raises(type(error)) as caught:
        await setup.pipeline.run(call(), raising(error))
    assert caught.value is error
    assert setup.counted() == {outcome: 1}
    setup.assert_nothing_is_held()


async def test_r62_a_result_may_count_as_a_failure() -> None:
    setup = Setup()
    assert await setup.pipeline.run(call(), work, outcome_of=lambda _: Outcome.TOOL_ERROR) == "done"
    assert setup.counted() == {"tool_error": 1}


async def test_r43_a_call_over_its_limit_is_stopped_and_counted_as_a_timeout() -> None:
    setup = Setup()
    with pytest.raises(DeadlineExceeded, match=r"The call took longer than its limit of 0\.001 s"):
        await setup.pipeline.run(call(timeout_s=0.001), endless)
    assert setup.counted() == {"timeout": 1}
    setup.assert_nothing_is_held()


async def test_r44_the_wait_for_a_place_counts_towards_the_deadline() -> None:
    setup = Setup(places=1)
    await setup.gate.acquire()
    with pytest.raises(DeadlineExceeded):
        await setup.pipeline.run(call(timeout_s=0.001), work)
    assert setup.counted() == {"timeout": 1}
    setup.gate.release()
    setup.assert_nothing_is_held()


async def test_r44_the_work_sees_what_is_left_of_the_deadline() -> None:
    async def look() -> float:
        return remaining_s()

    assert 59 < await Setup().pipeline.run(call(timeout_s=60), look) <= 60


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r46_a_cancellation_by_the_client_stops_the_work_and_is_no_error(how: str) -> None:
    setup = Setup()
    stopped = []

    async def cancellable() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.append(True)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            running = asyncio.ensure_future(setup.pipeline.run(call(), cancellable))
            await anyio.wait_all_tasks_blocked()
            if how == "task":
                running.cancel()
                await asyncio.wait([running])
            else:
                running.cancel()
                await asyncio.wait([running])
                tasks.start_soon(setup.pipeline.run, call(), cancellable)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
    calls = 1 if how == "task" else 2
    assert stopped == [True] * calls
    assert setup.counted() == {"cancelled": calls}
    assert (setup.figures.errors, setup.figures.error_rate) == (0, 0)
    setup.assert_nothing_is_held()


async def test_r4_something_cancelled_that_the_work_awaited_is_an_error_and_no_cancellation() -> None:
    setup = Setup()

    async def dead_background_task() -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    with pytest.raises(RuntimeError, match="cancelled"):
        await setup.pipeline.run(call(), dead_background_task)
    assert setup.counted() == {"error": 1}
    setup.assert_nothing_is_held()


async def test_r59_a_call_over_the_limits_is_refused_without_doing_any_work() -> None:
    setup = Setup(places=1, queue=0)
    await setup.gate.acquire()
    with pytest.raises(Overloaded):
        await setup.pipeline.run(call(), raising(AssertionError("it ran")))
    assert setup.counted() == {"rejected": 1}
    setup.gate.release()
    setup.assert_nothing_is_held()


async def test_r59_a_call_within_a_call_does_not_wait_for_the_place_that_its_own_caller_holds() -> None:
    setup = Setup(places=1, queue=0)
    assert await setup.pipeline.run(call(), lambda: setup.pipeline.run(call(), work)) == "done"
    assert setup.counted() == {"ok": 2}
    setup.assert_nothing_is_held()


async def test_r59_after_a_call_the_next_one_of_the_same_task_needs_a_place_again() -> None:
    setup = Setup(places=1, queue=0)
    await setup.pipeline.run(call(), work)
    await setup.gate.acquire()
    with pytest.raises(Overloaded):
        await setup.pipeline.run(call(), work)


async def test_r9_a_health_check_is_answered_while_everything_else_is_refused() -> None:
    setup = Setup(places=1, queue=0)
    await setup.gate.acquire()
    setup.gate.drain()
    assert await setup.pipeline.run(call(), work, always_admit=True) == "done"


async def test_r62_the_gauge_counts_calls_that_wait_and_calls_that_run() -> None:
    setup = Setup(places=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(setup.pipeline.run, call(), endless)
        tasks.start_soon(setup.pipeline.run, call(), work)
        await anyio.wait_all_tasks_blocked()
        assert (setup.figures.in_flight, setup.gate.in_flight, setup.gate.queued) == (2, 1, 1)
        tasks.cancel_scope.cancel()
    setup.assert_nothing_is_held()
    assert setup.counted() == {"cancelled": 2}


@pytest.mark.parametrize("how", CANCELLERS)
@pytest.mark.parametrize("busy", [False, True], ids=["a place is free", "has to wait"])
async def test_r46_cancelled_at_any_await_nothing_is_lost(how: str, *, busy: bool) -> None:
    setup = Setup(places=1)
    rounds = 0

    async def tool() -> None:
        await anyio.lowlevel.checkpoint()
        try:
            await asyncio.sleep(0)
        finally:
            with anyio.move_on_after(1, shield=True):
                await asyncio.sleep(0)

    async def one_call() -> None:
        nonlocal rounds
        rounds += 1
        if not busy:
            return await setup.pipeline.run(call(), tool)
        await setup.gate.acquire()
        asyncio.get_running_loop().call_soon(setup.gate.release)
        return await setup.pipeline.run(call(), tool)

    async def nothing_is_lost() -> None:
        setup.assert_nothing_is_held()
        assert setup.figures.calls == rounds
        assert setup.figures.ok + setup.figures.cancelled == rounds

    assert await cancel_at_every_await(one_call, nothing_is_lost, how=how) >= 3
    assert setup.figures.errors == 0


async def test_r44_after_every_outcome_the_context_is_as_it_was() -> None:
    setup = Setup()
    before = contextvars.copy_context()
    await setup.pipeline.run(call(), work)
    for error in (ValueError(), ToolFailure("x"), Overloaded("x")):
        with pytest.raises(type(error)):
            await setup.pipeline.run(call(), raising(error))
    with anyio.move_on_after(0.001):
        await setup.pipeline.run(call(), endless)
    after = contextvars.copy_context()
    ours = [v for v in after if after[v] != before.get(v, None) and v.name in ("log_context", "place", "deadline")]
    assert [v for v in ours if after[v] is not None] == []


async def test_r52_every_call_has_a_reference_of_its_own_that_finds_its_log_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    caplog.handler.setFormatter(JsonFormatter())
    setup, calls = Setup(), [call(), call()]
    for each in calls:
        with pytest.raises(ValueError, match="hunter2"):
            await setup.pipeline.run(each, raising(ValueError("hunter2")))
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    assert calls[0].reference != calls[1].reference
    for each in calls:
        failed, ended = [line for line in lines if line["reference"] == each.reference]
        assert (failed["event"], failed["level"], "hunter2" in failed["exception"]) == (
            "call failed unexpectedly",
            "error",
            True,
        )
        assert (ended["event"], ended["tool"], ended["request_id"], ended["outcome"]) == ("call", "add", "7", "error")
        assert ended["duration_ms"] == 0


async def test_r6_a_foreseen_failure_is_logged_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(ToolFailure):
        await Setup().pipeline.run(call(), raising(ToolFailure("No.")))
    assert [(r.getMessage(), r.exc_info) for r in caplog.records] == [("call", None)]


@virtual_time
async def test_r43_a_tool_that_swallows_its_cancellation_is_reported_until_it_ends() -> None:
    setup = Setup()
    probe = overdue_check(setup.pipeline).probe

    async def stubborn() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(30)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(setup.pipeline.run, call(timeout_s=10), stubborn)
        await anyio.sleep(10.9)
        assert setup.pipeline.overdue() == 0
        await anyio.sleep(0.2)
        with pytest.raises(Unhealthy, match="1 calls go on after their deadline"):
            await probe()
    assert await probe() == "every call ends in time"


@virtual_time
async def test_r44_a_call_that_asks_a_person_is_not_overdue() -> None:
    setup = Setup()

    async def asking() -> float:
        with paused():
            await anyio.sleep(100)
            assert setup.pipeline.overdue() == 0
        return remaining_s()

    assert await setup.pipeline.run(call(timeout_s=10), asking) == pytest.approx(10)


async def test_r6_a_failed_dependency_is_one_line_with_its_cause_and_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refused() -> NoReturn:
        broken = ConnectionResetError(104, "Connection reset by peer")
        raise DependencyFailed("api", "The connection to 'api' broke.") from broken

    with pytest.raises(DependencyFailed):
        await Setup().pipeline.run(call(), refused)
    (record,) = caplog.records
    assert (record.getMessage(), record.levelname, record.exc_info) == ("call", "WARNING", None)
    assert {name: record.__dict__[name] for name in ("outcome", "dependency", "kind", "text", "cause")} == {
        "outcome": "error",
        "dependency": "api",
        "kind": "dependency_failed",
        "text": "The connection to 'api' broke.",
        "cause": "ConnectionResetError (Connection reset by peer)",
    }


async def ask(setup: Setup, seconds: float) -> str:
    async with setup.pipeline.asking():
        await anyio.sleep(seconds)
    return "answered"


@virtual_time
async def test_r59_while_a_person_is_asked_the_place_is_free_for_others() -> None:
    setup = Setup(places=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(setup.pipeline.run, call(), lambda: ask(setup, 100))
        await anyio.sleep(1)
        assert (setup.gate.in_flight, setup.figures.in_flight) == (0, 1)
        assert await setup.pipeline.run(call(), work) == "done"
    assert setup.counted() == {"ok": 2}
    setup.assert_nothing_is_held()


@virtual_time
async def test_r59_after_the_answer_the_call_waits_for_a_place_and_is_never_refused() -> None:
    setup = Setup(places=1, queue=1, queue_timeout_s=0.001)
    in_flight: list[int] = []

    async def asking() -> None:
        await ask(setup, 10)
        in_flight.append(setup.gate.in_flight)

    async def busy() -> None:
        await anyio.sleep(30)
        in_flight.append(setup.gate.in_flight)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(setup.pipeline.run, call(), asking)
        await anyio.sleep(1)
        tasks.start_soon(setup.pipeline.run, call(), busy)
        await anyio.sleep(10)
        assert setup.gate.queued == 1
        setup.gate.drain()
    assert in_flight == [1, 1]
    assert setup.counted() == {"ok": 2}
    setup.assert_nothing_is_held()


@virtual_time
async def test_r59_only_as_many_places_are_lent_as_calls_may_wait() -> None:
    setup = Setup(places=3, queue=2)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(setup.pipeline.run, call(), lambda: ask(setup, 10))
        await anyio.sleep(1)
        assert setup.gate.in_flight == 1
    assert setup.counted() == {"ok": 3}
    setup.assert_nothing_is_held()


@virtual_time
async def test_r59_a_call_that_asks_several_people_at_once_lends_its_place_once() -> None:
    setup = Setup(places=1)

    async def asking() -> None:
        async with anyio.create_task_group() as tasks:
            for seconds in (5, 20, 10):
                tasks.start_soon(ask, setup, seconds)
            await anyio.sleep(1)
            assert setup.gate.in_flight == 0
        assert setup.gate.in_flight == 1

    await setup.pipeline.run(call(), asking)
    assert setup.counted() == {"ok": 1}
    setup.assert_nothing_is_held()


@virtual_time
async def test_r59_a_task_that_a_call_left_behind_asks_without_a_place() -> None:
    setup = Setup(places=1)
    async with anyio.create_task_group() as tasks:

        async def leaving_one_behind() -> None:
            tasks.start_soon(ask, setup, 10)

        await setup.pipeline.run(call(), leaving_one_behind)
        await anyio.sleep(1)
        assert setup.gate.in_flight == 0
    setup.assert_nothing_is_held()


@virtual_time
@pytest.mark.parametrize("call_s", [1, 5.5, 20])
async def test_r59_a_call_that_ends_before_the_answer_to_its_task_leaves_no_place_taken(call_s: float) -> None:
    setup = Setup(places=1)
    async with anyio.create_task_group() as tasks:

        async def leaving_one_behind() -> None:
            tasks.start_soon(ask, setup, 5)
            await anyio.sleep(call_s)

        async def busy() -> None:
            await anyio.sleep(5)

        tasks.start_soon(setup.pipeline.run, call(), leaving_one_behind)
        await anyio.sleep(0.5)
        await setup.pipeline.run(call(), busy)
    setup.assert_nothing_is_held()
    assert setup.pipeline._lent == 0


@virtual_time
async def test_r44_no_answer_in_time_is_a_timeout_of_the_answer() -> None:
    setup = Setup()
    with pytest.raises(DeadlineExceeded, match="The answer to a question took longer than its limit of 300 s"):
        await setup.pipeline.run(call(), lambda: ask(setup, 1000))
    assert setup.counted() == {"timeout": 1}
    setup.assert_nothing_is_held()


@pytest.mark.parametrize("how", CANCELLERS)
@pytest.mark.parametrize("busy", [False, True], ids=["a place is free", "has to wait"])
async def test_r46_cancelled_at_any_await_of_a_question_nothing_is_lost(how: str, *, busy: bool) -> None:
    setup = Setup(places=1)

    async def asking() -> None:
        async with setup.pipeline.asking():
            await asyncio.sleep(0)
            if busy:
                await setup.gate.acquire()
                asyncio.get_running_loop().call_soon(setup.gate.release)

    async def one_call() -> None:
        await setup.pipeline.run(call(), asking)

    async def nothing_is_lost() -> None:
        setup.assert_nothing_is_held()
        assert setup.pipeline._lent == 0

    assert await cancel_at_every_await(one_call, nothing_is_lost, how=how) >= 1
