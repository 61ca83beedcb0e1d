"""Blocking functions in threads: rules R8 and R47."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio._backends import _asyncio as anyio_asyncio
from reliability.errors import Overloaded
from reliability.worker_threads import WorkerThreads

from tests.unit.support import CANCELLERS, cancel_at_every_await, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio


def workers(max_threads: int, *, queue_timeout_s: float = 60) -> WorkerThreads:
    return WorkerThreads(max_threads, queue_timeout_s=queue_timeout_s, what="The tool 'add'")


async def all_places_free(threads: WorkerThreads) -> None:
    """Wait until every thread has ended: a place is given back by a callback that the thread leaves in the loop."""
    await until(lambda: not threads.busy)


async def test_r8_a_blocking_function_does_not_block_the_event_loop() -> None:
    threads, begun, go_on = workers(1), threading.Event(), threading.Event()

    def blocking() -> str:
        begun.set()
        assert go_on.wait(5)
        return "done"

    call = asyncio.ensure_future(threads.run(blocking))
    await until(begun.is_set)
    go_on.set()  # the loop is free to get here
    assert await call == "done"
    await all_places_free(threads)


async def test_r8_errors_and_results_come_back_to_the_caller() -> None:
    threads = workers(1)
    assert await threads.run(lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    await all_places_free(threads)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration()])
async def test_r4_even_an_exit_in_a_thread_gives_the_place_back(error: BaseException) -> None:
    threads = workers(1)

    def leave() -> None:
        raise error

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - anything but a hang
        await threads.run(leave)
    assert isinstance(caught.value, SystemExit | KeyboardInterrupt | RuntimeError)
    await all_places_free(threads)


async def test_r8_the_wrapped_function_keeps_its_name_documentation_and_signature() -> None:
    def add(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    wrapped = workers(1).wrap(add)
    assert (wrapped.__name__, wrapped.__doc__, wrapped.__wrapped__) == ("add", "Add.", add)  # type: ignore[attr-defined]
    assert await wrapped(1, b=3) == 4


async def test_r8_the_function_sees_the_context_of_its_call() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    token = variable.set("here")
    assert await workers(1).run(variable.get) == "here"
    variable.reset(token)


async def test_r47_no_more_functions_run_at_once_than_allowed() -> None:
    asyncio.get_running_loop().set_debug(True)  # then a place that a thread gives back by itself is an error
    threads, lock, go_on = workers(2), threading.Lock(), threading.Event()
    running = most = 0

    def blocking() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        assert go_on.wait(5)
        with lock:
            running -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(threads.run, blocking)
        await until(lambda: most == 2)
        assert threads.busy == 2
        go_on.set()
    assert most == 2
    await all_places_free(threads)


async def test_r47_an_abandoned_function_keeps_its_place_until_it_ends() -> None:
    threads, begun, go_on = workers(1), threading.Event(), threading.Event()

    def hanging() -> None:
        begun.set()
        assert go_on.wait(5)

    with anyio.move_on_after(5) as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(threads.run, hanging)
            await until(begun.is_set)
            scope.cancel()
    assert threads.busy == 1
    with anyio.move_on_after(0.01) as waiting:
        await threads.run(lambda: None)
    assert waiting.cancelled_caught, "the hanging function's place was given to another"
    go_on.set()
    await all_places_free(threads)
    await threads.run(lambda: None)


async def test_r59_as_many_callers_as_there_are_threads_may_wait_and_more_are_refused() -> None:
    threads, go_on = workers(2), threading.Event()
    calls = [asyncio.ensure_future(threads.run(lambda: go_on.wait(5))) for _ in range(4)]
    await anyio.wait_all_tasks_blocked()
    with anyio.fail_after(5), pytest.raises(Overloaded, match="The tool 'add' is busy"):
        await threads.run(lambda: None)
    go_on.set()
    await asyncio.gather(*calls)
    await all_places_free(threads)


async def test_r47_a_caller_that_waited_too_long_for_a_hung_function_is_refused() -> None:
    threads, go_on = workers(1, queue_timeout_s=0.001), threading.Event()
    hung = asyncio.ensure_future(threads.run(lambda: go_on.wait(5)))
    await anyio.wait_all_tasks_blocked()
    with pytest.raises(Overloaded, match=r"The tool 'add' is busy: no place came free within 0\.001 s"):
        await threads.run(lambda: None)
    go_on.set()
    await hung
    await all_places_free(threads)


async def test_r47_a_function_that_hangs_takes_no_place_of_another_kind() -> None:
    hung, other, go_on = workers(1), workers(1), threading.Event()
    call = asyncio.ensure_future(hung.run(lambda: go_on.wait(5)))
    with anyio.fail_after(5):
        assert await other.run(lambda: "free") == "free"
    go_on.set()
    await call


async def test_r47_a_hundred_hung_functions_of_one_kind_leave_the_others_alone() -> None:
    kinds, other, go_on = [workers(8) for _ in range(8)], workers(1), threading.Event()
    calls = [asyncio.ensure_future(kind.run(lambda: go_on.wait(10))) for kind in kinds for _ in range(8)]
    await until(lambda: sum(kind.busy for kind in kinds) == 64)
    with anyio.fail_after(5):
        assert await other.run(lambda: "free") == "free"
    go_on.set()
    await asyncio.gather(*calls)


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r47_cancelled_at_any_await_no_place_is_lost(how: str) -> None:
    threads = workers(1)

    async def nothing_is_lost() -> None:
        await all_places_free(threads)
        assert await threads.run(lambda: "free") == "free"
        await all_places_free(threads)

    assert await cancel_at_every_await(lambda: threads.run(lambda: None), nothing_is_lost, how=how) >= 2


@pytest.mark.parametrize("how", CANCELLERS)
async def test_r47_a_caller_that_is_cancelled_while_it_waits_for_a_place_leaves_none_behind(how: str) -> None:
    threads = workers(1)

    async def work() -> None:
        go_on = threading.Event()
        holder = asyncio.ensure_future(threads.run(lambda: go_on.wait(5)))
        try:
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.002, go_on.set)
            await threads.run(lambda: None)
        finally:
            go_on.set()
            holder.add_done_callback(lambda task: task.exception())

    assert await cancel_at_every_await(work, lambda: all_places_free(threads), how=how) >= 2


async def test_r47_a_function_whose_caller_left_just_before_it_began_does_not_run_without_a_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = workers(1)
    picked_up, caller_left, ended = threading.Event(), threading.Event(), threading.Event()
    ran_without_a_place: list[bool] = []

    class SlowContext:
        """Holds the thread in the moment between taking up the work and beginning it."""

        def __init__(self, context: contextvars.Context) -> None:
            self._context = context

        def run(self, function: Callable[..., object], *args: object) -> object:
            if args:  # anyio's own preparation
                return self._context.run(function, *args)
            picked_up.set()
            assert caller_left.wait(5)
            try:
                return self._context.run(function)
            finally:
                ended.set()

    monkeypatch.setattr(anyio_asyncio, "copy_context", lambda: SlowContext(contextvars.copy_context()))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(threads.run, lambda: ran_without_a_place.append(threads.busy == 0))
        await until(picked_up.is_set)
        tasks.cancel_scope.cancel()
    caller_left.set()
    await until(ended.is_set)
    assert ran_without_a_place in ([], [False])
    await all_places_free(threads)
