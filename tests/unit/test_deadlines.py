"""The total deadline of a call: rules R43 and R44."""

from __future__ import annotations

import math
import time

import anyio
import anyio.to_thread
import pytest
from reliability.deadlines import deadline, remaining_s
from reliability.errors import DeadlineExceeded

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
