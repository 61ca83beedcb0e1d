"""One piece of work for all who ask at the same time: rules R44, R46 and R49."""

from __future__ import annotations

import asyncio
import gc
import logging
import traceback
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, NoReturn

import anyio
import pytest
from anyio.lowlevel import checkpoint
from reliability.deadlines import deadline, expires_at, remaining_s
from reliability.errors import DeadlineExceeded, DependencyFailed, ShuttingDown
from reliability.single_flight import SingleFlight

from tests.unit.support import CANCELLERS, cancel_at_every_await, virtual_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.anyio


def flights(*, max_background: int = 2, background_timeout_s: float = 10) -> SingleFlight[str]:
    return SingleFlight("tests", max_background=max_background, background_timeout_s=background_timeout_s)


class Work:
    """Work that a test lets end, and that tells how often it was begun and how it ended."""

    def __init__(self, result: str = "done", *, fails: Exception | None = None) -> None:
        self.result = result
        self.fails = fails
        self.begun = 0
        self.ended: list[str] = []
        self.may_end = anyio.Event()

    async def __call__(self) -> str:
        self.begun += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        if self.fails is not None:
            self.ended.append("failed")
            raise self.fails
        self.ended.append("done")
        return self.result


class Caller:
    """One caller in a task of its own: what it got, and a way to cancel it."""

    def __init__(self, tasks: anyio.abc.TaskGroup, call: Callable[[], Awaitable[str]]) -> None:
        self.got: str | Exception | None = None
        self.gone = False
        self.scope = anyio.CancelScope()
        self._call = call
        tasks.start_soon(self._run)

    async def _run(self) -> None:
        with self.scope:
            try:
                self.got = await self._call()
            except Exception as error:  # noqa: BLE001 - looked at by the test
                self.got = error
        self.gone = True


async def settled() -> None:
    """Wait until every task waits for something, and those that have ended are forgotten."""
    await anyio.wait_all_tasks_blocked()
    await asyncio.sleep(0)


async def failing(error: Exception) -> NoReturn:
    await checkpoint()
    raise error


async def test_r49_all_who_ask_at_the_same_time_get_the_same_result_of_one_piece_of_work() -> None:
    some, work = flights(), Work()
    async with anyio.create_task_group() as tasks:
        callers = [Caller(tasks, lambda: some.run("key", work)) for _ in range(10)]
        await settled()
        assert some.in_flight == 1
        work.may_end.set()
    assert [caller.got for caller in callers] == ["done"] * 10
    assert (work.begun, some.shared, some.in_flight) == (1, 9, 0)


async def test_r49_different_keys_are_different_flights() -> None:
    some, one, two = flights(), Work("one"), Work("two")
    async with anyio.create_task_group() as tasks:
        callers = [Caller(tasks, lambda: some.run("1", one)), Caller(tasks, lambda: some.run("2", two))]
        await settled()
        one.may_end.set()
        two.may_end.set()
    assert [caller.got for caller in callers] == ["one", "two"]
    assert some.shared == 0


async def test_r49_the_next_caller_after_the_end_begins_anew() -> None:
    some, work = flights(), Work()
    work.may_end.set()
    assert [await some.run("key", work), await some.run("key", work)] == ["done", "done"]
    assert (work.begun, some.shared) == (2, 0)


async def test_r51_all_who_wait_get_the_failure_and_the_next_one_does_not() -> None:
    some, work = flights(), Work(fails=DependencyFailed("api", "It is down."))
    async with anyio.create_task_group() as tasks:
        callers = [Caller(tasks, lambda: some.run("key", work)) for _ in range(3)]
        await settled()
        work.may_end.set()
    assert [caller.got for caller in callers] == [work.fails] * 3
    assert await some.run("key", lambda: _value("well")) == "well"


async def _value(value: str) -> str:
    await checkpoint()
    return value


async def test_r49_the_traceback_of_a_shared_failure_does_not_grow_with_those_who_share_it() -> None:
    some, error = flights(), DependencyFailed("api", "It is down.")
    lengths: list[int] = []
    names: set[str] = set()

    async def caller() -> None:
        try:
            await some.run("key", lambda: failing(error))
        except DependencyFailed as caught:
            frames = traceback.extract_tb(caught.__traceback__)
            lengths.append(len(frames))
            names.add(frames[-1].name)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(caller)
    assert len(lengths) == 20
    assert max(lengths) == min(lengths)
    assert names == {"failing"}


@pytest.mark.parametrize("callers", [0, 1, 3])
async def test_r49_a_failure_is_forgotten_with_everything_that_its_frames_hold(callers: int) -> None:
    class Held:
        pass

    some = flights()
    held: list[weakref.ref[Held]] = []

    async def work() -> str:
        precious = Held()
        held.append(weakref.ref(precious))
        await checkpoint()
        raise DependencyFailed("api", "It is down.")

    async def caller() -> None:
        with pytest.raises(DependencyFailed):
            await some.run("key", work)

    gc.collect()
    gc.disable()
    try:
        some.run_in_background("key", work) if callers == 0 else None
        async with anyio.create_task_group() as tasks:
            for _ in range(callers):
                tasks.start_soon(caller)
        await settled()
        await checkpoint()
        assert [ref() for ref in held] == [None]
    finally:
        gc.enable()


async def test_r46_who_began_it_may_leave_and_the_work_goes_on_for_the_others() -> None:
    some, work = flights(), Work()
    async with anyio.create_task_group() as tasks:
        first, second = (Caller(tasks, lambda: some.run("key", work)) for _ in range(2))
        await settled()
        first.scope.cancel()
        await settled()
        assert (first.gone, second.gone, work.ended) == (True, False, [])
        work.may_end.set()
    assert (first.got, second.got, work.begun) == (None, "done", 1)


async def test_r46_one_who_joined_may_leave_and_nobody_notices() -> None:
    some, work = flights(), Work()
    async with anyio.create_task_group() as tasks:
        first, second = (Caller(tasks, lambda: some.run("key", work)) for _ in range(2))
        await settled()
        second.scope.cancel()
        await settled()
        work.may_end.set()
    assert (first.got, second.got, work.begun) == ("done", None, 1)


async def test_r46_when_all_have_left_the_work_is_cancelled() -> None:
    some, work = flights(), Work()
    async with anyio.create_task_group() as tasks:
        callers = [Caller(tasks, lambda: some.run("key", work)) for _ in range(3)]
        await settled()
        for caller in callers:
            caller.scope.cancel()
    await settled()
    assert (work.begun, work.ended, some.in_flight) == (1, ["cancelled"], 0)


async def test_r46_nobody_joins_work_that_is_being_cancelled() -> None:
    some, cleaned_up = flights(), anyio.Event()

    async def slow_to_end() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await cleaned_up.wait()
        raise AssertionError

    async with anyio.create_task_group() as tasks:
        first = Caller(tasks, lambda: some.run("key", slow_to_end))
        await settled()
        first.scope.cancel()
        await settled()
        assert await some.run("key", lambda: _value("new")) == "new"
        await settled()
        assert some.in_flight == 1
        cleaned_up.set()
    await settled()
    assert some.in_flight == 0


async def test_r46_nobody_joins_what_is_being_cancelled_because_its_last_follower_left() -> None:
    some, cleaned_up = flights(), anyio.Event()

    async def slow_to_end() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await cleaned_up.wait()
        raise AssertionError

    async with anyio.create_task_group() as tasks:
        first, follower = (Caller(tasks, lambda: some.run("key", slow_to_end)) for _ in range(2))
        await settled()
        first.scope.cancel()
        await settled()
        follower.scope.cancel()
        await settled()
        assert await some.run("key", lambda: _value("new")) == "new"
        cleaned_up.set()


async def test_r46_one_that_is_slow_to_end_does_not_end_its_successor() -> None:
    some, cleaned_up, work = flights(), anyio.Event(), Work("new")

    async def slow_to_end() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await cleaned_up.wait()
        raise AssertionError

    async with anyio.create_task_group() as tasks:
        first = Caller(tasks, lambda: some.run("key", slow_to_end))
        await settled()
        first.scope.cancel()
        await settled()
        second = Caller(tasks, lambda: some.run("key", work))
        await settled()
        cleaned_up.set()
        await settled()
        third = Caller(tasks, lambda: some.run("key", work))
        await settled()
        work.may_end.set()
    assert (second.got, third.got, work.begun) == ("new", "new", 1)


async def test_r43_what_only_looks_like_a_cancellation_is_a_failure() -> None:
    some = flights()

    async def dead_library() -> str:
        task = asyncio.get_running_loop().create_future()
        task.cancel()
        await task
        raise AssertionError

    with pytest.raises(RuntimeError, match="was cancelled") as caught:
        await some.run("key", dead_library)
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


@virtual_time
async def test_r44_the_work_has_the_deadline_of_who_began_it() -> None:
    some = flights()
    seen: list[float] = []

    async def work() -> str:
        seen.append(round(remaining_s(), 3))
        seen.append(round(expires_at() - asyncio.get_running_loop().time(), 3))
        return "done"

    with deadline(7):
        await some.run("key", work)
    await some.run("key", work)
    assert seen == [7, 7, float("inf"), float("inf")]


@virtual_time
async def test_r44_the_work_ends_with_the_deadline_of_its_last_caller() -> None:
    some, work = flights(), Work()
    with pytest.raises(DeadlineExceeded, match="limit of 7 s"), deadline(7):
        await some.run("key", work)
    await settled()
    assert (work.ended, some.in_flight) == (["cancelled"], 0)


@virtual_time
async def test_r44_a_caller_with_more_time_than_the_one_who_began_it_begins_anew() -> None:
    some, work = flights(), Work()

    async def call(limit_s: float) -> str:
        with deadline(limit_s):
            return await some.run("key", work)

    async with anyio.create_task_group() as tasks:
        first = Caller(tasks, lambda: call(1))
        await settled()
        others = [Caller(tasks, lambda: call(5)) for _ in range(3)]
        await anyio.sleep(1.5)
        assert isinstance(first.got, DeadlineExceeded)
        assert (work.begun, some.in_flight) == (2, 1)
        work.may_end.set()
    assert [caller.got for caller in others] == ["done"] * 3


@virtual_time
async def test_r44_a_timeout_of_the_work_itself_is_shared_like_any_failure() -> None:
    some, begun = flights(), []

    async def work() -> str:
        begun.append(1)
        with deadline(2, what="The download"):
            await anyio.sleep_forever()
        raise AssertionError

    async with anyio.create_task_group() as tasks:
        callers = [Caller(tasks, lambda: some.run("key", work)) for _ in range(3)]
    assert [str(caller.got)[:12] for caller in callers] == ["The download"] * 3
    assert len(begun) == 1


async def test_work_in_the_background_needs_nobody_to_wait() -> None:
    some, work = flights(), Work()
    some.run_in_background("key", work)
    await settled()
    assert (work.begun, some.in_flight) == (1, 1)
    work.may_end.set()
    await settled()
    assert (work.ended, some.in_flight) == (["done"], 0)


async def test_work_in_the_background_can_be_joined_and_left() -> None:
    some, work = flights(), Work()
    some.run_in_background("key", work)
    async with anyio.create_task_group() as tasks:
        leaves, stays = (Caller(tasks, lambda: some.run("key", work)) for _ in range(2))
        await settled()
        leaves.scope.cancel()
        stays.scope.cancel()
        await settled()
        assert (leaves.gone, stays.gone, work.ended) == (True, True, [])
        another = Caller(tasks, lambda: some.run("key", work))
        await settled()
        work.may_end.set()
    assert (another.got, work.begun, some.shared) == ("done", 1, 3)


async def test_work_in_the_background_is_bounded_and_never_done_twice_at_once() -> None:
    some, work = flights(max_background=2), Work()
    for key in ("a", "a", "b", "c"):
        some.run_in_background(key, work)
    await settled()
    assert (work.begun, some.in_flight) == (2, 2)
    work.may_end.set()
    await settled()
    some.run_in_background("c", work)
    await settled()
    assert (work.begun, some.in_flight) == (3, 0)


async def test_work_that_somebody_waits_for_takes_no_place_in_the_background() -> None:
    some, waited_for, work = flights(max_background=1), Work(), Work()
    async with anyio.create_task_group() as tasks:
        Caller(tasks, lambda: some.run("a", waited_for))
        await settled()
        some.run_in_background("b", work)
        await settled()
        assert work.begun == 1
        waited_for.may_end.set()
        work.may_end.set()


@virtual_time
async def test_r43_work_in_the_background_has_a_limit_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    some, work = flights(background_timeout_s=10), Work()
    seen: list[float] = []

    async def measured() -> str:
        seen.extend((remaining_s(), expires_at() - asyncio.get_running_loop().time()))
        return await work()

    with deadline(1):
        some.run_in_background("key", measured)
        await settled()
    await anyio.sleep(9)
    assert some.in_flight == 1
    await anyio.sleep(2)
    assert seen == [pytest.approx(10)] * 2
    assert (work.ended, some.in_flight) == (["cancelled"], 0)
    assert [(r.getMessage(), r.__dict__["what"]) for r in caplog.records] == [("failed in the background", "tests")]


@pytest.mark.parametrize("error", [DependencyFailed("api", "It is down."), KeyError("bug")])
async def test_r51_a_failure_in_the_background_is_logged_and_only_a_surprise_with_its_traceback(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    some = flights()
    some.run_in_background("key", lambda: failing(error))
    await settled()
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.WARNING, "failed in the background")
    assert record.__dict__["reason"] == str(error)
    assert bool(record.exc_info) is isinstance(error, KeyError)


async def test_r51_a_failure_in_the_background_that_somebody_waits_for_is_theirs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    some, work = flights(), Work(fails=DependencyFailed("api", "It is down."))
    some.run_in_background("key", work)
    async with anyio.create_task_group() as tasks:
        caller = Caller(tasks, lambda: some.run("key", work))
        await settled()
        work.may_end.set()
    assert caller.got is work.fails
    assert not caplog.records


async def test_r68_after_drain_nothing_begins_in_the_background_and_callers_are_still_served() -> None:
    some, work = flights(), Work()
    some.run_in_background("running", work)
    await settled()
    some.drain()
    some.run_in_background("new", work)
    await settled()
    assert (work.begun, some.in_flight) == (1, 1)
    work.may_end.set()
    assert await some.run("asked", work) == "done"


async def test_r68_closing_cancels_all_and_waits_for_the_end() -> None:
    some, work, waited_for = flights(), Work(), Work()
    some.run_in_background("a", work)
    async with anyio.create_task_group() as tasks:
        caller = Caller(tasks, lambda: some.run("b", waited_for))
        await settled()
        await some.aclose()
        assert (work.ended, waited_for.ended, some.in_flight) == (["cancelled"], ["cancelled"], 0)
    assert isinstance(caller.got, ShuttingDown)


async def test_r68_closing_before_the_work_has_begun_leaves_nothing_behind() -> None:
    some, work = flights(), Work()
    some.run_in_background("a", work)
    await some.aclose()
    assert (work.ended, some.in_flight) == (["cancelled"], 0)


@virtual_time
async def test_r68_closing_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    some, never = flights(), anyio.Event()

    async def stubborn() -> str:
        with anyio.CancelScope(shield=True):
            await never.wait()
        return "late"

    some.run_in_background("a", stubborn)
    await settled()
    started = anyio.current_time()
    await some.aclose()
    assert anyio.current_time() - started == pytest.approx(5)
    assert "stopped before it was done" in caplog.messages
    never.set()
    await settled()
    assert some.in_flight == 0


async def test_r68_closing_works_for_a_caller_that_is_itself_cancelled() -> None:
    some, work = flights(), Work()
    some.run_in_background("a", work)
    await settled()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await some.aclose()
    assert (work.ended, some.in_flight) == (["cancelled"], 0)


async def test_the_work_has_a_copy_of_the_context_of_who_began_it() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nobody")
    some = flights()

    async def work() -> str:
        seen = variable.get()
        variable.set("changed")
        return seen

    variable.set("first")
    assert await some.run("key", work) == "first"
    assert variable.get() == "first"


async def test_a_task_that_is_cancelled_from_outside_tells_those_who_wait() -> None:
    some, work = flights(), Work()
    async with anyio.create_task_group() as tasks:
        caller = Caller(tasks, lambda: some.run("key", work))
        await settled()
        for task in some._tasks:
            task.cancel()
    assert isinstance(caller.got, ShuttingDown)
    assert some.in_flight == 0


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r46_a_lone_caller_cancelled_at_any_await_leaves_no_task(how: str) -> None:
    some, ended = flights(), []

    async def work() -> str:
        try:
            await checkpoint()
            await checkpoint()
        finally:
            ended.append(1)
        return "done"

    async def call() -> None:
        await some.run("key", work)

    async def nothing_is_left() -> None:
        await settled()
        assert (some.in_flight, some._flights) == (0, {})

    rounds = await cancel_at_every_await(call, nothing_is_left, how=how)
    assert rounds >= 1
    assert some.shared == 0


@pytest.mark.parametrize("how", CANCELLERS)
@pytest.mark.parametrize("cancelled", ["who began it", "who joined"])
async def test_r46_one_of_two_cancelled_at_any_await_costs_the_other_nothing(how: str, cancelled: str) -> None:
    some = flights()
    begun: list[int] = []
    other: list[str] = []

    async def work() -> str:
        begun.append(1)
        for _ in range(3):
            await checkpoint()
        return "done"

    async def the_other() -> None:
        other.append(await some.run("key", work))

    async def two() -> None:
        begun.clear()
        other.clear()
        if cancelled == "who joined":
            background.append(asyncio.create_task(the_other()))
            await checkpoint()  # the other has begun it
        else:
            asyncio.get_running_loop().call_soon(lambda: background.append(asyncio.create_task(the_other())))
        await some.run("key", work)

    background: list[asyncio.Task[None]] = []

    async def the_other_got_it() -> None:
        await asyncio.gather(*background)
        await settled()
        assert (other, len(begun)) == (["done"], 1)
        assert (some.in_flight, some._flights) == (0, {})
        background.clear()

    assert await cancel_at_every_await(two, the_other_got_it, how=how) >= 1
