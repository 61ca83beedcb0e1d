"""The total deadline of a call: rules R43 and R44."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress

import anyio
import anyio.to_thread
import pytest
from reliability.deadlines import (
    cleanup,
    context_without_deadlines,
    deadline,
    expires_at,
    leaving,
    paused,
    remaining_s,
    require_s,
)
from reliability.errors import DeadlineExceeded, NotEnoughTime

from tests.unit.support import CANCELLERS, cancel_at_every_await, let_pass, virtual_time

pytestmark = pytest.mark.anyio


async def test_r43_work_over_its_limit_is_cancelled_and_reported_as_a_distinct_error() -> None:
    ended = []
    with pytest.raises(DeadlineExceeded, match="The download took") as caught, deadline(0.01, what="The download"):
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cleaned up")
    assert ended == ["cleaned up"]
    assert caught.value.limit_s == 0.01
    assert caught.value.retryable


async def test_r43_work_within_its_limit_is_untouched() -> None:
    with deadline(60):
        await anyio.lowlevel.checkpoint()


async def test_r43_an_error_of_the_work_is_not_replaced_by_the_deadline() -> None:
    with pytest.raises(KeyError), deadline(60):
        raise KeyError


async def test_r43_work_that_ends_in_spite_of_an_expired_deadline_keeps_its_result() -> None:
    with deadline(0.001):
        time.sleep(0.002)  # noqa: ASYNC251 - a blocked loop is the subject
        result = "done"
    assert result == "done"


async def test_r43_a_cancellation_from_outside_is_not_reported_as_a_deadline() -> None:
    with anyio.CancelScope() as outside:
        with deadline(60):
            outside.cancel()
            await anyio.sleep_forever()
    assert outside.cancelled_caught


async def test_r43_a_timeout_of_the_tool_itself_is_not_reported_as_a_deadline() -> None:
    with pytest.raises(TimeoutError), deadline(60), anyio.fail_after(0.001):
        await anyio.sleep_forever()


async def test_r44_an_inner_deadline_is_never_longer_than_what_is_left_of_the_outer_one() -> None:
    with deadline(10):
        with deadline(100):
            assert remaining_s() <= 10
        with deadline(5):
            assert remaining_s() <= 5
        assert 9 < remaining_s() <= 10


async def test_r44_the_inner_deadline_is_reported_when_it_expires_first() -> None:
    with deadline(60, what="The call"):
        with pytest.raises(DeadlineExceeded, match="The query"), deadline(0.001, what="The query"):
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()  # the call itself goes on


async def test_r44_the_outer_deadline_is_reported_when_it_expires_first() -> None:
    with pytest.raises(DeadlineExceeded, match="The call"), deadline(0.001, what="The call"):  # noqa: SIM117
        with deadline(60, what="The query"):
            await anyio.sleep_forever()


async def test_r44_the_outer_deadline_is_reported_when_both_expire_in_the_same_moment() -> None:
    with pytest.raises(DeadlineExceeded, match="The call"):  # noqa: SIM117
        with deadline(0.002, what="The call"), deadline(0.001, what="The query"):
            time.sleep(0.01)  # noqa: ASYNC251 - both limits pass while the loop is blocked
            await anyio.sleep_forever()


async def test_r44_outside_of_any_deadline_there_is_no_end_of_time() -> None:
    assert remaining_s() == math.inf


async def test_r44_an_expired_deadline_has_nothing_left_rather_than_less_than_nothing() -> None:
    with deadline(0.001):
        time.sleep(0.003)  # noqa: ASYNC251 - the deadline passes while the loop is blocked
        assert remaining_s() == 0


async def test_r44_the_outer_deadline_is_back_after_the_inner_one_however_it_ended() -> None:
    with deadline(10):
        with pytest.raises(KeyError), deadline(1):
            raise KeyError
        assert remaining_s() > 9
    assert remaining_s() == math.inf


async def test_r44_tasks_of_a_call_share_its_deadline() -> None:
    seen: list[float] = []

    async def child() -> None:
        seen.append(remaining_s())

    with deadline(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
    assert 9 < seen[0] <= 10


async def test_r44_a_blocking_function_in_a_thread_sees_what_is_left() -> None:
    with deadline(10):
        left = await anyio.to_thread.run_sync(remaining_s)
    assert 9 < left <= 10


async def test_r43_a_cleanup_that_is_shielded_from_the_expired_deadline_has_a_limit_of_its_own() -> None:
    patience = anyio.CancelScope()
    with pytest.raises(DeadlineExceeded), deadline(0.001):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.move_on_after(1, shield=True) as patience, deadline(0.01):
                await anyio.sleep_forever()
    assert not patience.cancelled_caught


async def test_r43_a_background_task_that_a_call_started_has_a_limit_of_its_own_after_the_call() -> None:
    call_ended = anyio.Event()
    outcome: list[str] = []

    async def background() -> None:
        await call_ended.wait()
        with anyio.move_on_after(1) as patience:
            try:
                with deadline(0.01):
                    await anyio.sleep_forever()
            except DeadlineExceeded:
                outcome.append("limited")
        if patience.cancelled_caught:
            outcome.append("without a limit")

    async with anyio.create_task_group() as tasks:
        with pytest.raises(DeadlineExceeded), deadline(0.001):
            tasks.start_soon(background)  # outlives the call: its tasks are not in the call's scope
            await anyio.sleep_forever()
        call_ended.set()
    assert outcome == ["limited"]


@virtual_time
async def test_r44_a_pause_stops_the_clock_of_every_deadline_around_it() -> None:
    begun = anyio.current_time()
    with pytest.raises(DeadlineExceeded, match="The query") as caught, deadline(10), deadline(3, what="The query"):
        await anyio.sleep(1)
        with paused():
            assert remaining_s() == math.inf
            await anyio.sleep(1000)
        assert remaining_s() == pytest.approx(2)
        await anyio.sleep_forever()
    assert caught.value.limit_s == 3
    assert anyio.current_time() - begun == pytest.approx(1003)


@virtual_time
async def test_r44_the_outer_deadline_goes_on_after_a_pause_where_it_stood() -> None:
    with deadline(10):
        await anyio.sleep(4)
        with deadline(3), paused():
            await anyio.sleep(100)
        assert remaining_s() == pytest.approx(6)


@virtual_time
async def test_r44_a_pause_has_only_the_limits_that_are_set_within_it() -> None:
    with deadline(10):
        with pytest.raises(DeadlineExceeded, match="The question"), paused(), deadline(60, what="The question"):
            await anyio.sleep_forever()
        assert remaining_s() == pytest.approx(10)


@virtual_time
async def test_r44_the_clock_goes_on_when_the_last_of_several_pauses_ends() -> None:
    async def ask(seconds: float) -> None:
        with paused():
            await anyio.sleep(seconds)

    with deadline(10):
        await anyio.sleep(1)
        async with anyio.create_task_group() as tasks:
            for seconds in (50, 100, 70):
                tasks.start_soon(ask, seconds)
        assert remaining_s() == pytest.approx(9)


@virtual_time
async def test_r44_a_pause_leaves_the_deadlines_of_other_tasks_alone() -> None:
    cut: list[float] = []
    begun = anyio.current_time()

    async def other() -> None:
        with pytest.raises(DeadlineExceeded), deadline(3):
            await anyio.sleep_forever()
        cut.append(anyio.current_time() - begun)

    with deadline(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            with paused():
                await anyio.sleep(100)
    assert cut == [pytest.approx(3)]


@virtual_time
@pytest.mark.parametrize("error", [KeyError(), None])
async def test_r44_however_a_pause_ends_the_clock_goes_on(error: Exception | None) -> None:
    with pytest.raises(DeadlineExceeded), deadline(1):
        with suppress(KeyError), paused():
            if error:
                raise error
        await anyio.sleep_forever()


@virtual_time
async def test_r44_a_deadline_that_passed_before_a_pause_ends_the_call_after_it() -> None:
    with pytest.raises(DeadlineExceeded), deadline(1):
        let_pass(2)
        with paused():
            await anyio.sleep(5)
        await anyio.sleep_forever()


@virtual_time
async def test_r44_a_pause_outside_of_any_deadline_changes_nothing() -> None:
    with paused():
        await anyio.sleep(1)
    assert remaining_s() == math.inf


@virtual_time
async def test_r44_a_background_task_that_outlived_its_call_may_pause() -> None:
    call_ended = anyio.Event()

    async def background() -> None:
        await call_ended.wait()
        with paused():
            await anyio.sleep(1)
        assert remaining_s() == math.inf

    async with anyio.create_task_group() as tasks:
        with deadline(10):
            tasks.start_soon(background)
            await anyio.sleep(1)
        call_ended.set()


@virtual_time
async def test_r44_a_call_that_ends_while_another_task_has_paused_it_leaves_nothing_behind() -> None:
    async def background() -> None:
        with paused():
            await anyio.sleep(100)

    async with anyio.create_task_group() as tasks:
        with deadline(10):
            tasks.start_soon(background)
            await anyio.sleep(50)
    assert remaining_s() == math.inf


async def test_r44_a_thread_of_a_background_task_that_outlived_its_call_has_no_deadline() -> None:
    call_ended = anyio.Event()
    seen: list[float] = []

    async def background() -> None:
        await call_ended.wait()
        seen.append(await anyio.to_thread.run_sync(remaining_s))

    async with anyio.create_task_group() as tasks:
        with deadline(10):
            tasks.start_soon(background)
        call_ended.set()
    assert seen == [math.inf]


async def test_r44_a_thread_sees_the_nearest_of_the_deadlines_around_it() -> None:
    with deadline(10), deadline(100):
        assert 9 < await anyio.to_thread.run_sync(remaining_s) <= 10
    with deadline(100), deadline(10):
        assert 9 < await anyio.to_thread.run_sync(remaining_s) <= 10
        with paused():
            assert await anyio.to_thread.run_sync(remaining_s) == math.inf


@virtual_time
async def test_r48_the_reserve_is_left_when_the_body_is_cut() -> None:
    with deadline(10):
        with (
            pytest.raises(DeadlineExceeded, match=r"The fetch took longer than its limit of 8 s"),
            leaving(2, what="The fetch"),
        ):
            await anyio.sleep_forever()
        assert remaining_s() == pytest.approx(2)


@virtual_time
async def test_r48_a_reserve_takes_at_most_half_of_what_is_left() -> None:
    with deadline(1):
        with pytest.raises(DeadlineExceeded), leaving(2):
            await anyio.sleep_forever()
        assert remaining_s() == pytest.approx(0.5)


@virtual_time
async def test_r48_a_reserve_without_a_deadline_is_no_limit() -> None:
    with leaving(2):
        await anyio.sleep(10_000)


@virtual_time
async def test_r44_work_that_needs_more_than_is_left_is_refused() -> None:
    require_s(1e9)
    with deadline(10):
        require_s(10)
        with pytest.raises(NotEnoughTime) as caught:
            require_s(12, what="The query")
    assert str(caught.value) == "The query was not begun: it needs 12 s, and 10 s of the time limit are left."
    assert (caught.value.left_s, caught.value.limit_s, caught.value.needed_s) == (10, 10, 12)
    assert (caught.value.kind, caught.value.retryable) == ("timeout", True)


@virtual_time
async def test_r43_a_cleanup_is_done_although_the_call_is_over() -> None:
    done: list[str] = []
    with pytest.raises(DeadlineExceeded), deadline(1):
        try:
            await anyio.sleep_forever()
        finally:
            with cleanup(5):
                await anyio.sleep(1)
                assert remaining_s() == pytest.approx(4)
                done.append("rolled back")
    assert done == ["rolled back"]


@virtual_time
async def test_r43_a_cleanup_that_hangs_is_left_at_its_limit_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    begun = anyio.current_time()
    with pytest.raises(KeyError), deadline(100):
        try:
            raise KeyError
        finally:
            with cleanup(5, what="The rollback"):
                await anyio.sleep_forever()
    assert anyio.current_time() - begun == pytest.approx(5)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("WARNING", "stopped before it was done")
    assert (record.__dict__["what"], record.__dict__["limit_s"]) == ("The rollback", 5)


@virtual_time
async def test_r43_the_cancellation_goes_on_after_a_cleanup() -> None:
    with anyio.CancelScope() as outside:
        try:
            outside.cancel()
            await anyio.sleep_forever()
        finally:
            with cleanup(5):
                await anyio.sleep(1)
            outside.shield = False
            await anyio.sleep_forever()
    assert outside.cancelled_caught


@virtual_time
async def test_r43_an_error_of_a_cleanup_is_raised() -> None:
    with pytest.raises(KeyError), cleanup(5):
        raise KeyError


@virtual_time
async def test_r43_a_cleanup_stands_alone() -> None:
    with deadline(10):
        with cleanup(50):
            assert remaining_s() == pytest.approx(50)
            with paused():
                await anyio.sleep(4)  # the call's own clock goes on
        assert remaining_s() == pytest.approx(6)


async def test_r43_a_thread_of_a_cleanup_sees_the_limit_of_the_cleanup() -> None:
    with deadline(10), cleanup(50):
        assert 49 < await anyio.to_thread.run_sync(remaining_s) <= 50


@virtual_time
async def test_r43_how_long_work_goes_on_after_its_deadline_is_known() -> None:
    limit = deadline(10)
    assert limit.overdue_s() == -math.inf
    with limit:
        assert limit.overdue_s() == pytest.approx(-10)
        let_pass(13)
        assert limit.overdue_s() == pytest.approx(3)
        with paused():
            assert limit.overdue_s() == -math.inf
    assert limit.overdue_s() == -math.inf


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r43_cancelled_at_any_await_no_deadline_is_left_behind(how: str) -> None:
    async def work() -> None:
        with deadline(60), leaving(1):
            with paused():
                await asyncio.sleep(0)
            try:
                await asyncio.sleep(0)
            finally:
                with cleanup(5):
                    await asyncio.sleep(0)

    async def nothing_is_left() -> None:
        assert remaining_s() == math.inf
        assert await anyio.to_thread.run_sync(remaining_s) == math.inf

    assert await cancel_at_every_await(work, nothing_is_left, how=how) >= 3


@virtual_time
async def test_r44_a_task_that_outlives_its_caller_has_none_of_its_deadlines() -> None:
    seen: list[float] = []

    async def task() -> None:
        seen.append(expires_at())
        with deadline(3):
            seen.append(expires_at() - asyncio.get_running_loop().time())

    with deadline(60), leaving(1):
        await asyncio.create_task(task(), context=context_without_deadlines())
        assert remaining_s() == pytest.approx(59)
    assert seen == [math.inf, pytest.approx(3)]


@virtual_time
async def test_r43_what_ran_out_of_time_is_the_call_unless_it_has_a_name(caplog: pytest.LogCaptureFixture) -> None:
    with deadline(10):
        with (
            pytest.raises(DeadlineExceeded, match=r"^The call took longer than its limit of 8\.877 s"),
            leaving(1.1234),
        ):
            await anyio.sleep_forever()
        with pytest.raises(NotEnoughTime, match=r"^The call was not begun"):
            require_s(100)
    with cleanup(1):
        await anyio.sleep_forever()
    assert caplog.records[0].__dict__["what"] == "The cleanup"
