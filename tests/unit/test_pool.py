"""The connection pool: rules R34 to R40 and R42."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from reliability.database import Database
from reliability.deadlines import cleanup, deadline
from reliability.dependency import Dependency
from reliability.errors import (
    DeadlineExceeded,
    DependencyBusy,
    DependencyError,
    DependencyFailed,
    DependencyTimeout,
    ShuttingDown,
)
from reliability.logs import log_context
from reliability.pool import Pool, PoolLimits

from tests.unit.fake_connections import FakeConnection, FakeServer
from tests.unit.support import CANCELLERS, cancel_at_every_await, let_pass, virtual_time

if TYPE_CHECKING:
    from collections.abc import Awaitable

pytestmark = [pytest.mark.anyio, virtual_time]


def make(server: FakeServer | None = None, **limits: Any) -> tuple[Pool[FakeConnection], FakeServer]:
    server = server or FakeServer()
    own: dict[str, Any] = {"max_connections": 2, "keep_idle": 5, **limits}
    clock = asyncio.get_running_loop().time
    return Pool("db", server.connect, PoolLimits(**own), clock=clock, random=lambda: 0.0), server


async def hold(pool: Pool[FakeConnection], seconds: float = 0.0, *, then: str = "clean") -> FakeConnection:
    """Borrow for so long, and leave the connection `clean`, `dirty` or `broken`."""
    async with pool.connection() as connection:
        await anyio.sleep(seconds)
        connection.clean = then != "dirty"
        connection.usable = then != "broken"
    return connection


async def settled() -> None:
    """Let every chore end that waits for nothing but its turn."""
    for _ in range(20):
        await asyncio.sleep(0)


async def failure_of(work: Awaitable[object]) -> BaseException | None:
    """What it raises."""
    try:
        await work
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the result
        return error
    return None


# R34: the maximum.


async def test_r34_nothing_is_opened_before_it_is_wanted() -> None:
    pool, server = make()
    await settled()
    assert (server.steps, pool.size) == ([], 0)


async def test_r34_a_place_is_reserved_before_a_connection_is_opened() -> None:
    pool, server = make(acquire_timeout_s=60)
    server.takes_s["open"] = 1
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(hold, pool, 1)
        await settled()
        assert (pool.size, server.steps) == (2, ["open", "open"])
    assert len(server.connections) == 2


async def test_r34_a_connection_that_is_being_closed_still_counts() -> None:
    pool, server = make(max_connections=1)
    server.takes_s["close"] = 1
    await hold(pool, then="broken")
    assert (pool.size, server.open_now) == (1, 1)
    await hold(pool)
    assert asyncio.get_running_loop().time() == 1001
    assert (pool.size, server.open_now) == (1, 1)


async def test_r34_an_idle_connection_is_lent_again_rather_than_a_new_one_opened() -> None:
    pool, server = make()
    assert await hold(pool) is await hold(pool)
    assert server.steps == ["open"]


async def test_r39_the_connection_that_was_used_last_is_lent_first() -> None:
    pool, _ = make()
    async with pool.connection(), pool.connection():
        pass
    assert pool.statistics().idle == 2
    assert await hold(pool) is await hold(pool) is await hold(pool)


# R35: waiting.


async def test_r35_the_longest_waiting_borrower_is_served_first() -> None:
    pool, _ = make(max_connections=1)
    order: list[int] = []

    async def borrow(number: int) -> None:
        async with pool.connection():
            order.append(number)

    async with anyio.create_task_group() as tasks, pool.connection():
        for number in range(4):
            tasks.start_soon(borrow, number)
            await settled()
    assert order == [0, 1, 2, 3]


async def test_r35_a_connection_that_came_free_is_not_taken_by_somebody_who_came_later() -> None:
    pool, _ = make(max_connections=1)
    order: list[str] = []

    async def borrow(name: str) -> None:
        async with pool.connection():
            order.append(name)

    async with anyio.create_task_group() as tasks:
        async with pool.connection():
            tasks.start_soon(borrow, "waited")
            await settled()
        await borrow("pushed in")  # in the same moment: before the one that waited could run
    assert order == ["waited", "pushed in"]


async def test_r35_who_waits_too_long_is_refused_with_figures_and_leaves_the_queue() -> None:
    pool, _ = make(max_connections=1, acquire_timeout_s=3)
    async with pool.connection():
        with pytest.raises(
            DependencyBusy, match=r"1 of 1 connections are in use and none came free within 3 s"
        ) as caught:
            await hold(pool)
    assert (caught.value.dependency, caught.value.retryable, caught.value.retry_after_s) == ("db", True, 3)
    assert asyncio.get_running_loop().time() == 1003
    assert (pool.statistics().waiting, pool.statistics().timeouts) == (0, 1)
    await hold(pool)


async def test_r35_no_more_may_wait_than_allowed() -> None:
    pool, _ = make(max_connections=1, max_waiting=1)
    async with anyio.create_task_group() as tasks, pool.connection():
        tasks.start_soon(hold, pool)
        await settled()
        with pytest.raises(DependencyBusy, match="1 of 1 connections are in use and 1 calls wait already"):
            await hold(pool)
    assert pool.statistics().refused == 1


async def test_r35_whoever_waits_for_a_connection_that_can_still_be_opened_is_not_one_too_many() -> None:
    pool, server = make(max_connections=2, max_waiting=0)
    server.takes_s["open"] = 1
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, pool, 5)
        tasks.start_soon(hold, pool, 5)
        await settled()
        with pytest.raises(DependencyBusy):
            await hold(pool)


async def test_r44_the_wait_ends_before_the_callers_deadline() -> None:
    pool, _ = make(max_connections=1, acquire_timeout_s=60)
    async with pool.connection():
        with pytest.raises(DependencyBusy, match=r"within 0\.9 s"), deadline(1):
            await hold(pool)
    assert asyncio.get_running_loop().time() == pytest.approx(1000.9)


async def test_r44_an_authors_own_cancel_scope_ends_the_wait_as_a_cancellation() -> None:
    pool, _ = make(max_connections=1)
    async with pool.connection():
        with deadline(60), anyio.move_on_after(1) as scope:
            await hold(pool)
    assert (scope.cancelled_caught, asyncio.get_running_loop().time()) == (True, 1001)


async def test_r44_a_cleanup_may_wait_although_the_deadline_around_it_is_over() -> None:
    pool, _ = make(max_connections=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold, pool, 3)
        await settled()
        with pytest.raises(DeadlineExceeded), deadline(1):
            try:
                await anyio.sleep(10)
            finally:
                with cleanup(10):
                    await hold(pool)
    assert asyncio.get_running_loop().time() == 1003


async def test_r55_a_dependency_that_does_not_open_in_time_is_not_taken_for_a_full_pool() -> None:
    pool, server = make(max_connections=1, acquire_timeout_s=2)
    server.takes_s["open"] = 3
    with pytest.raises(DependencyTimeout) as caught:
        await hold(pool)
    assert (caught.value.dependency, caught.value.limit_s) == ("db", 2)
    await hold(pool)  # the connection that came up late is not lost
    assert (server.steps, asyncio.get_running_loop().time()) == (["open"], 1003)


async def test_r35_a_connection_that_comes_in_the_moment_in_which_the_time_runs_out_is_used() -> None:
    pool, _ = make(max_connections=1, acquire_timeout_s=3)
    async with anyio.create_task_group() as tasks:
        async with pool.connection():
            tasks.start_soon(hold, pool)
            await settled()
            let_pass(3)
        await settled()
    assert (pool.statistics().timeouts, pool.statistics().lent) == (0, 2)


async def test_r44_a_limit_that_follows_from_a_deadline_is_told_in_milliseconds() -> None:
    pool, server = make()
    server.takes_s["open"] = 100
    with pytest.raises(DependencyTimeout) as caught, deadline(1.23456):
        await hold(pool)
    assert caught.value.limit_s == 1.111


async def test_r34_for_each_that_waits_one_connection_is_opened_and_no_more() -> None:
    pool, server = make(max_connections=5)
    server.takes_s["open"] = 1
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(hold, pool, 3)
            await settled()
    assert server.steps == ["open"] * 3


async def test_r34_one_that_is_being_checked_is_not_opened_as_well() -> None:
    pool, server = make(max_connections=5, check_after_idle_s=1)
    server.takes_s["check"] = 1
    await hold(pool)
    await anyio.sleep(2)
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(hold, pool, 3)
            await settled()
    assert server.steps == ["open", "check", "open"]


async def test_r35_nobody_waits_for_a_connection_that_is_being_closed_while_one_may_be_opened() -> None:
    pool, server = make(max_connections=2)
    server.takes_s["close"] = 3
    await hold(pool, then="broken")
    await hold(pool)
    assert asyncio.get_running_loop().time() == 1000


# R35: cancellation.


@pytest.mark.parametrize("how", CANCELLERS)
@pytest.mark.parametrize("state", ["new", "idle", "tired", "dead", "full", "dirty"])
async def test_r35_a_borrower_that_is_cancelled_at_any_await_loses_nothing(how: str, state: str) -> None:
    pool, server = make(max_connections=1, check_after_idle_s=0 if state in ("tired", "dead") else 30)
    if state != "new":
        await hold(pool)

    async def work() -> None:
        if state == "dead":
            server.connections[-1].usable = False
        if state == "full":
            async with pool.connection():
                holder = asyncio.ensure_future(hold(pool, 1))
                await asyncio.sleep(0)
            try:
                await hold(pool, 1)
            finally:
                holder.add_done_callback(lambda task: task.exception())
        else:
            await hold(pool, 1, then="dirty" if state == "dirty" else "clean")

    async def nothing_is_lost() -> None:
        await anyio.sleep(10)
        found = pool.statistics()
        assert (found.in_use, found.waiting, found.size, server.open_now) == (0, 0, found.idle, found.idle)
        with anyio.fail_after(1):
            await hold(pool)

    assert await cancel_at_every_await(work, nothing_is_lost, how=how) >= 1


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r35_a_connection_given_to_a_borrower_in_the_moment_of_its_cancellation_goes_to_the_next(
    how: str,
) -> None:
    pool, _ = make(max_connections=1)
    scope, served = anyio.CancelScope(), asyncio.Event()

    async def victim() -> None:
        with scope:
            await hold(pool)

    async def next_in_line() -> None:
        await hold(pool)
        served.set()

    async with pool.connection():
        first = asyncio.ensure_future(victim())
        await settled()
        second = asyncio.ensure_future(next_in_line())
        await settled()
    if how == "scope":
        scope.cancel()
    else:
        first.cancel()
    with anyio.fail_after(1):
        await served.wait()
    await asyncio.wait([first, second])
    assert (pool.statistics().in_use, pool.statistics().idle) == (0, 1)


async def test_r35_a_borrower_that_is_cancelled_in_the_moment_of_a_failure_ends_as_cancelled() -> None:
    pool, _ = make(max_connections=1)
    async with pool.connection():
        borrower = asyncio.ensure_future(hold(pool))
        await settled()
        closing = asyncio.ensure_future(pool.close())
        await asyncio.sleep(0)
        borrower.cancel()
        await asyncio.wait([borrower])
    assert borrower.cancelled()
    await closing


# R37 and R38: giving back.


async def test_r36_a_connection_is_lent_to_the_body_of_an_async_with_and_in_no_other_way() -> None:
    pool, server = make()
    with pytest.raises(ValueError, match="of the body"):
        async with pool.connection() as connection:
            assert (connection.is_open, pool.statistics().in_use) == (True, 1)
            raise ValueError("of the body")
    assert (pool.statistics().in_use, pool.statistics().idle) == (0, 1)
    lending = {name for name in dir(pool) if not name.startswith("_") and callable(getattr(pool, name))}
    assert lending == {"connection", "open", "close", "statistics"}
    with pytest.raises(TypeError):
        await pool.connection()  # type: ignore[misc]
    assert pool.statistics().in_use == 0
    assert server.steps == ["open"]


async def test_r37_a_loan_can_be_used_once() -> None:
    pool, _ = make()
    loan = pool.connection()
    async with loan:
        pass
    with pytest.raises((RuntimeError, AttributeError)):  # as every such context manager does
        await loan.__aenter__()
    assert pool.statistics().in_use == 0


async def test_r37_giving_back_twice_is_an_error() -> None:
    pool, _ = make()
    member = await pool._acquire()
    pool._release(member)
    with pytest.raises(RuntimeError, match="'db' has not lent this connection"):
        pool._release(member)
    assert (pool.size, pool.statistics().idle) == (1, 1)


async def test_r37_giving_back_what_another_pool_lent_is_an_error() -> None:
    pool, other = make()[0], make()[0]
    member = await other._acquire()
    with pytest.raises(RuntimeError, match="has not lent"):
        pool._release(member)
    assert (pool.size, other.statistics().in_use) == (0, 1)


async def test_r38_a_connection_that_comes_back_dirty_is_cleaned_before_it_is_lent_again() -> None:
    pool, server = make(max_connections=1)
    first = await hold(pool, then="dirty")
    async with pool.connection() as second:
        assert (second is first, second.clean) == (True, True)
    assert server.steps == ["open", "reset"]


async def test_r38_cleaning_does_not_delay_whoever_gives_back() -> None:
    pool, server = make()
    server.takes_s["reset"] = 1
    await hold(pool, then="dirty")
    assert asyncio.get_running_loop().time() == 1000
    assert (pool.size, pool.statistics().idle, pool.statistics().in_use) == (1, 0, 0)


@pytest.mark.parametrize("fault", ["raises", "hangs", "stays dirty", "is cancelled from elsewhere"])
async def test_r38_a_connection_that_cannot_be_cleaned_is_closed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, server = make(max_connections=1, cleanup_timeout_s=2)
    if fault == "raises":
        server.fails["reset"] = OSError("gone")
    elif fault == "hangs":
        server.takes_s["reset"] = 1000
    elif fault == "is cancelled from elsewhere":
        server.fails["reset"] = asyncio.CancelledError()
    else:
        monkeypatch.setattr(FakeConnection, "reset", FakeConnection.check)
    first = await hold(pool, then="dirty")
    second = await hold(pool)
    assert second is not first
    assert asyncio.get_running_loop().time() == (1002 if fault == "hangs" else 1000)
    assert (pool.size, server.open_now, pool.statistics().closed) == (1, 1, 1)


async def test_r38_a_broken_connection_is_closed_and_not_lent_again() -> None:
    pool, server = make()
    first = await hold(pool, then="broken")
    await settled()
    assert (first.is_open, pool.size) == (False, 0)
    assert await hold(pool) is not first
    assert server.steps == ["open", "close", "open"]


async def test_r38_a_close_that_fails_gives_its_place_back() -> None:
    pool, server = make(max_connections=1)
    server.fails["close"] = OSError("gone already")
    await hold(pool, then="broken")
    await hold(pool)
    assert (pool.size, pool.statistics().closed) == (1, 1)


# R39: checks, idle time, lifetime.


async def test_r39_a_connection_that_was_idle_for_long_is_checked_before_it_is_lent() -> None:
    pool, server = make(check_after_idle_s=30)
    first = await hold(pool)
    await anyio.sleep(30)
    assert await hold(pool) is first
    assert server.steps == ["open"]
    await anyio.sleep(30.1)
    assert await hold(pool) is first
    assert server.steps == ["open", "check"]


@pytest.mark.parametrize("fault", ["raises", "hangs", "known to be broken", "too old"])
async def test_r39_one_without_a_sign_of_life_is_replaced_in_its_place(fault: str) -> None:
    pool, server = make(max_connections=1, check_after_idle_s=1, cleanup_timeout_s=2)
    first = await hold(pool)
    if fault == "raises":
        server.fails["check"] = OSError("gone")
    elif fault == "hangs":
        server.takes_s["check"] = 1000
    elif fault == "known to be broken":
        first.usable = False
    else:
        let_pass(3600)
    let_pass(1.5)
    assert await hold(pool) is not first
    checked = ["check"] if fault in ("raises", "hangs") else []
    assert server.steps == ["open", *checked, "close", "open"]
    assert (pool.size, server.open_now) == (1, 1)


async def test_r39_a_connection_that_broke_while_idle_is_not_lent() -> None:
    pool, _ = make()
    first = await hold(pool)
    first.usable = False
    assert await hold(pool) is not first


async def test_r39_what_nobody_needs_is_closed_but_for_a_few() -> None:
    pool, server = make(max_connections=5, keep_idle=1, max_idle_s=300)
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(hold, pool, 1)
    newest = pool._idle[-1].connection
    await anyio.sleep(290)
    assert server.open_now == 5
    await anyio.sleep(20)
    assert (server.open_now, pool.size, newest.is_open) == (1, 1, True)
    await anyio.sleep(1000)
    assert server.open_now == 1


async def test_r39_what_is_used_again_and_again_is_not_idle() -> None:
    pool, server = make(keep_idle=0, max_idle_s=10)
    for _ in range(10):
        await hold(pool)
        await anyio.sleep(9)
    assert server.steps == ["open"]


async def test_r39_a_connection_does_not_live_for_ever() -> None:
    pool, server = make(max_lifetime_s=100)
    first = await hold(pool)
    await anyio.sleep(99)
    assert first.is_open
    await anyio.sleep(3)
    assert (first.is_open, pool.size) == (False, 0)
    async with pool.connection() as second:
        await anyio.sleep(200)
        assert second.is_open  # never while it is in use
    await settled()
    assert (second.is_open, server.open_now) == (False, 0)


async def test_r39_lifetimes_differ_by_up_to_a_tenth() -> None:
    server = FakeServer()
    numbers = iter([0.0, 1.0])
    loop = asyncio.get_running_loop()
    limits = PoolLimits(max_lifetime_s=100)
    pool = Pool("db", server.connect, limits, clock=loop.time, random=lambda: next(numbers))
    async with pool.connection(), pool.connection():
        pass
    assert sorted(member.expires_at for member in pool._idle) == [1090, 1100]


async def test_r39_the_upkeep_ends_with_the_last_connection() -> None:
    pool, _ = make(keep_idle=0, max_idle_s=10)
    await hold(pool)
    await anyio.sleep(60)
    assert (pool.size, pool._upkeep_timer) == (0, None)
    await hold(pool)
    assert pool._upkeep_timer is not None


# Failures to connect.


async def test_r55_a_failure_to_connect_reaches_the_borrower() -> None:
    pool, server = make()
    server.fails["open"] = DependencyFailed("db", "It refuses.", retryable=False)
    server.fails["open"].__cause__ = reason = ConnectionRefusedError("nobody listens")
    with pytest.raises(DependencyFailed, match="It refuses") as caught:
        await hold(pool)
    assert (caught.value.dependency, caught.value.retryable) == ("db", False)
    assert caught.value.__cause__ is reason, "which the log tells of"
    assert (pool.size, pool.statistics().open_failures) == (0, 1)


async def test_r43_an_opening_that_hangs_is_ended_by_its_own_limit() -> None:
    pool, server = make(connect_timeout_s=3, acquire_timeout_s=60)
    server.takes_s["open"] = 1000
    with pytest.raises(DependencyTimeout) as caught:
        await hold(pool)
    assert (caught.value.dependency, caught.value.limit_s) == ("db", 3)
    assert (asyncio.get_running_loop().time(), pool.size) == (1003, 0)


@pytest.mark.parametrize("error", [ValueError("password=secret"), asyncio.CancelledError()])
async def test_r52_an_unexpected_failure_to_connect_is_masked_and_logged(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    pool, server = make()
    server.fails["open"] = error
    with pytest.raises(DependencyFailed, match=r"'db' broke \(it could not be opened\)\.$"):
        await hold(pool)
    assert [record.message for record in caplog.records] == ["connecting failed unexpectedly"]
    assert caplog.records[0].exc_info
    assert vars(caplog.records[0])["pool"] == "db"


async def test_r55_when_nothing_is_left_to_wait_for_everybody_is_told_at_once() -> None:
    pool, server = make(max_connections=2, acquire_timeout_s=60)
    server.takes_s["open"] = 1
    server.fails["open"] = DependencyFailed("db", "It refuses.")
    found = await asyncio.gather(*(failure_of(hold(pool)) for _ in range(20)))
    assert {type(error) for error in found} == {DependencyFailed}
    assert len({id(error) for error in found}) == 20, "an exception is raised in one task alone"
    assert asyncio.get_running_loop().time() == 1001
    assert (len(server.steps), pool.size) == (2, 0)


async def test_r55_while_other_connections_work_a_failure_to_open_one_more_ends_no_wait() -> None:
    pool, server = make(max_connections=2)
    async with anyio.create_task_group() as tasks:
        async with pool.connection() as first:
            server.fails["open"] = DependencyFailed("db", "Too many connections.")
            waiter = asyncio.ensure_future(hold(pool))
            tasks.start_soon(asyncio.wait, [waiter])
            await anyio.sleep(1)
            assert not waiter.done()
        assert await waiter is first


async def test_r55_while_another_connection_works_opening_one_more_is_tried_again() -> None:
    pool, server = make(max_connections=2)
    async with pool.connection():
        server.fails["open"] = DependencyFailed("db", "Too many connections.")
        waiter = asyncio.ensure_future(hold(pool))
        await anyio.sleep(0.05)
        server.fails.clear()
        assert await waiter
    assert asyncio.get_running_loop().time() == pytest.approx(1000.1)


async def test_r59_after_a_failure_connecting_is_tried_again_after_growing_waits() -> None:
    pool, server = make()
    server.fails["open"] = DependencyFailed("db", "It refuses.")
    times: list[float] = []
    for _ in range(8):
        await failure_of(hold(pool))
        times.append(asyncio.get_running_loop().time())
    waits = [round(after - before, 3) for before, after in itertools.pairwise(times)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 2, 2]
    server.fails.clear()
    await hold(pool, then="broken")
    server.fails["open"] = DependencyFailed("db", "It refuses.")
    started = asyncio.get_running_loop().time()
    await failure_of(hold(pool))
    assert asyncio.get_running_loop().time() == started, "a success ends the waiting"
    await failure_of(hold(pool))
    assert asyncio.get_running_loop().time() == pytest.approx(started + 0.1)


async def test_r59_waits_before_connecting_again_differ_by_up_to_a_half() -> None:
    server = FakeServer()
    server.fails["open"] = DependencyFailed("db", "It refuses.")
    loop = asyncio.get_running_loop()
    pool = Pool("db", server.connect, PoolLimits(), clock=loop.time, random=lambda: 1.0)
    await failure_of(hold(pool))
    await failure_of(hold(pool))
    assert loop.time() == pytest.approx(1000.05)


async def test_r59_failures_at_the_same_time_count_once() -> None:
    pool, server = make(max_connections=5)
    server.fails["open"] = DependencyFailed("db", "It refuses.")
    await asyncio.gather(*(failure_of(hold(pool)) for _ in range(5)))
    await failure_of(hold(pool))
    assert asyncio.get_running_loop().time() == pytest.approx(1000.1)


async def test_r38_a_server_that_restarts_is_connected_to_again_without_an_error() -> None:
    pool, server = make()
    async with pool.connection(), pool.connection():
        pass
    for connection in server.connections:
        connection.usable = False
    assert (await hold(pool)).is_open
    assert pool.statistics().open_failures == 0


# R40: closing.


async def test_r40_a_closed_pool_refuses_borrowers_and_holds_nothing() -> None:
    pool, server = make()
    await hold(pool)
    await pool.close()
    with pytest.raises(ShuttingDown):
        await hold(pool)
    assert (pool.size, server.open_now) == (0, 0)


async def test_r40_closing_wakes_whoever_waits() -> None:
    pool, _ = make(max_connections=1)
    async with pool.connection():
        waiting = asyncio.ensure_future(failure_of(hold(pool)))
        await settled()
        await pool.close(0.01)
        assert isinstance(await waiting, ShuttingDown)


async def test_r40_closing_waits_for_what_is_in_use_and_then_closes_it() -> None:
    pool, server = make()
    borrower = asyncio.ensure_future(hold(pool, 3))
    await settled()
    await pool.close(5)
    assert (asyncio.get_running_loop().time(), server.open_now, pool.size) == (1003, 0, 0)
    await borrower


async def test_r40_what_is_in_use_after_the_limit_is_closed_when_it_is_given_back() -> None:
    pool, server = make()
    borrower = asyncio.ensure_future(hold(pool, 60, then="dirty"))
    await settled()
    await pool.close()
    assert (asyncio.get_running_loop().time(), server.open_now) == (1005, 1)
    await borrower
    await settled()
    assert (server.open_now, pool.size, server.steps) == (0, 0, ["open", "close"])


async def test_r40_a_connection_that_comes_up_after_the_close_is_closed() -> None:
    server = FakeServer()

    async def connect() -> FakeConnection:
        with cleanup(5):  # as a library that does not let itself be cancelled
            await anyio.sleep(2)
        return await server.connect()

    pool = Pool("db", connect, PoolLimits())
    borrower = asyncio.ensure_future(failure_of(hold(pool)))
    await settled()
    await pool.close()
    assert isinstance(await borrower, ShuttingDown)
    assert (server.open_now, pool.size) == (0, 0)


@pytest.mark.parametrize("state", ["connecting", "waiting to connect again"])
async def test_r40_closing_does_not_wait_for_a_connection_that_nobody_wants_any_more(state: str) -> None:
    pool, server = make()
    if state == "connecting":
        server.takes_s["open"] = 4
    else:
        server.fails["open"] = DependencyFailed("db", "Down.")
        await failure_of(hold(pool))
    borrower = asyncio.ensure_future(failure_of(hold(pool)))
    await settled()
    started = anyio.current_time()
    await pool.close()
    assert anyio.current_time() - started == 0
    assert isinstance(await borrower, ShuttingDown)
    assert (server.open_now, pool.size) == (0, 0)
    pool.open()
    server.takes_s.clear()
    server.fails.clear()
    await hold(pool)
    await pool.close()


async def test_r40_closing_runs_to_its_end_when_it_is_cancelled() -> None:
    pool, server = make()
    await hold(pool)
    server.takes_s["close"] = 1
    with anyio.CancelScope() as scope:
        scope.cancel()
        await pool.close()
    assert (pool.size, server.open_now) == (0, 0)


async def test_r40_a_database_closes_its_pools_within_one_limit() -> None:
    (writers, server), (readers, other) = make(), make()
    borrowers = [asyncio.ensure_future(hold(pool, 60)) for pool in (writers, readers)]
    await settled()
    async with Database(Dependency("db"), writers, readers):
        pass
    assert asyncio.get_running_loop().time() == 1005
    await asyncio.wait(borrowers)
    await settled()
    assert (server.open_now, other.open_now) == (0, 0)


async def test_r40_closing_twice_changes_nothing() -> None:
    pool, _ = make()
    await pool.close()
    await pool.close()


async def test_r40_a_closed_pool_can_be_opened_again() -> None:
    pool, server = make(keep_idle=0, max_idle_s=10)
    await hold(pool)
    await pool.close()
    pool.open()
    await hold(pool)
    assert server.steps == ["open", "close", "open"]
    await anyio.sleep(20)
    assert (pool.size, server.open_now) == (0, 0), "the upkeep goes on, too"
    await pool.close()


async def test_r40_a_closed_pool_leaves_no_timer_behind() -> None:
    pool, server = make()
    await hold(pool)
    await pool.close()
    await anyio.sleep(5)
    assert server.steps == ["open", "close"]


# R42: statistics and warnings.


async def test_r42_statistics_say_what_is_the_case() -> None:
    pool, _ = make(max_connections=1, max_waiting=1, acquire_timeout_s=2)
    async with anyio.create_task_group() as tasks, pool.connection():
        tasks.start_soon(failure_of, hold(pool))
        await settled()
        await failure_of(hold(pool))
        await anyio.sleep(1.5)
        now = pool.statistics()
        assert (now.name, now.max_connections, now.size, now.in_use, now.idle, now.waiting) == ("db", 1, 1, 1, 0, 1)
        assert (now.longest_hold_s, now.refused) == (1.5, 1)
        await anyio.sleep(1)
    end = pool.statistics()
    assert (end.lent, end.waited, end.wait_total_s, end.timeouts) == (1, 2, 2, 1)
    assert (end.in_use, end.idle, end.waiting, end.longest_hold_s) == (0, 1, 0, 0)
    assert (end.opened, end.open_failures, end.closed) == (1, 0, 0)


async def test_r42_a_connection_that_is_held_for_long_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    pool, _ = make(long_hold_s=10)
    await hold(pool, 9)
    assert not caplog.records
    await hold(pool, 60)
    assert [record.message for record in caplog.records] == ["connection held for long"]
    held = vars(caplog.records[0])
    assert (held["pool"], 10 < held["held_s"] <= 12) == ("db", True)
    await hold(pool, 60)
    assert len(caplog.records) == 2


async def test_r42_the_warning_names_the_call_that_holds_the_connection() -> None:
    pool, _ = make(long_hold_s=10)
    warned: list[object] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            del record
            warned.append((log_context.get() or {})["request_id"])

    handler = Listener()
    logging.getLogger("reliability.pool").addHandler(handler)
    try:
        for request, seconds in (("opens it", 1.0), ("holds it", 60.0), ("comes later", 1.0)):
            token = log_context.set({"request_id": request})
            await asyncio.ensure_future(hold(pool, seconds))
            log_context.reset(token)
    finally:
        logging.getLogger("reliability.pool").removeHandler(handler)
    assert warned == ["holds it"]


async def test_r42_the_dependencys_name_stands_in_errors_where_the_pool_has_its_own() -> None:
    server = FakeServer()
    limits = PoolLimits(max_connections=1, acquire_timeout_s=1)
    pool = Pool("db.writer", server.connect, limits, dependency="db", clock=asyncio.get_running_loop().time)
    async with pool.connection():
        error = await failure_of(hold(pool))
    assert isinstance(error, DependencyError)
    assert (error.dependency, pool.statistics().name) == ("db", "db.writer")


async def test_r42_every_count_goes_on() -> None:
    pool, server = make(max_connections=1, max_waiting=0, acquire_timeout_s=1)
    for _ in range(2):
        await hold(pool, then="broken")
        server.fails["open"] = DependencyFailed("db", "It refuses.")
        await failure_of(hold(pool))
        server.fails.clear()
        server.takes_s["open"] = 2
        await failure_of(hold(pool))
        await anyio.sleep(2)
        async with pool.connection():
            await failure_of(hold(pool))
        pool._idle[-1].connection.usable = False
        await anyio.sleep(2)
        server.takes_s.clear()
    found = pool.statistics()
    assert (found.lent, found.refused, found.timeouts, found.waited) == (4, 2, 2, 6)
    assert (found.opened, found.open_failures, found.closed) == (4, 2, 4)
    assert found.wait_total_s == pytest.approx(2)


async def test_r42_why_a_connection_is_not_used_again_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pool, server = make()
    server.fails["reset"] = OSError("gone")
    await hold(pool, then="dirty")
    await settled()
    assert caplog.messages == ["connection lost"]
    logged = vars(caplog.records[0])
    assert (logged["pool"], logged["error"]) == ("db", "OSError('gone')")


async def test_r39_there_is_one_timer_however_many_connections() -> None:
    pool, _ = make()
    async with pool.connection():
        timer = pool._upkeep_timer
        await hold(pool)
        assert timer is not None
        assert pool._upkeep_timer is timer


@pytest.mark.parametrize(
    "wrong", [{"max_connections": 0}, {"keep_idle": -1}, {"max_waiting": -1}, {"acquire_timeout_s": 0}]
)
async def test_r34_limits_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PoolLimits(**wrong)


async def test_r43_the_end_of_a_callers_deadline_is_reported_by_the_deadline() -> None:
    pool, _ = make(max_connections=1)
    with pytest.raises(DeadlineExceeded), deadline(1):
        await hold(pool, 60, then="dirty")
    await settled()
    assert (pool.statistics().idle, pool.statistics().in_use) == (1, 0)
