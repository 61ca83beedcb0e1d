"""What several unit tests need: a clock that is moved by hand, and cancellation at a chosen await point."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CANCELLERS = ("scope", "task")
"""`scope`: anyio's cancellation, which is level-triggered; `task`: one `asyncio.Task.cancel()`."""


@dataclass
class FakeClock:
    """Monotonic seconds that pass only when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread or process brings about; the limit only ends a test that fails."""
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - threads and processes set no event of this loop
            await anyio.sleep(0.001)


class _Suspensions:
    """Passes an awaitable through, and counts how often it suspends."""

    def __init__(self, awaitable: Awaitable[Any], cancel_at: int, cancel: Callable[[], object]) -> None:
        self._awaitable = awaitable
        self._cancel_at = cancel_at
        self._cancel = cancel
        self.count = 0

    def __await__(self) -> Any:
        inner: Any = self._awaitable.__await__()
        to_send: Any = None
        error: BaseException | None = None
        while True:
            try:
                waiting_for = inner.send(to_send) if error is None else inner.throw(error)
            except StopIteration as done:
                return done.value
            self.count += 1
            if self.count == self._cancel_at:
                # When the loop has parked the task on what it waits for: the usual moment of a cancellation.
                asyncio.get_running_loop().call_soon(self._cancel)
            to_send, error = None, None
            try:
                to_send = yield waiting_for
            except BaseException as thrown:  # noqa: BLE001 - handed on to where it belongs
                error = thrown


async def cancel_at_every_await(
    work: Callable[[], Awaitable[object]], afterwards: Callable[[], Awaitable[None]], *, how: str, limit: int = 50
) -> int:
    """Run `work` again and again, cancelled at its first await, at its second, and so on until it is not reached.

    Args:
        work: Makes a new awaitable; must end by itself when it is not cancelled.
        afterwards: Checks, after each round, that nothing is lost.
        how: One of `CANCELLERS`.
        limit: A work that awaits more often than this does not end by itself: an error.

    Returns:
        How many await points were tried.
    """
    for n in range(1, limit + 1):
        reached = await _cancel_at(n, work, how)
        await anyio.wait_all_tasks_blocked()
        await afterwards()
        if not reached:
            return n - 1
    raise AssertionError(f"still not finished after {limit} await points")


async def _cancel_at(n: int, work: Callable[[], Awaitable[object]], how: str) -> bool:
    reached = False

    async def in_scope() -> None:
        nonlocal reached
        with anyio.CancelScope() as scope:
            probe = _Suspensions(work(), n, scope.cancel)
            try:
                await probe
            finally:
                reached = probe.count >= n

    async def in_task() -> None:
        nonlocal reached
        current = asyncio.current_task()
        assert current is not None
        probe = _Suspensions(work(), n, current.cancel)
        try:
            await probe
        finally:
            reached = probe.count >= n

    if how == "scope":
        await in_scope()
    else:
        task = asyncio.ensure_future(in_task())
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()
    return reached


_A_DAY_S = 24 * 3600.0


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Time passes only while everything waits for it, and then at once. Not for tests with threads or sockets.

    That nothing at all can go on is an error instead of a hang.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        selector: Any = self._selector  # type: ignore[attr-defined]
        self._select = selector.select
        selector.select = self._pass_time

    def time(self) -> float:
        return self.now

    def _pass_time(self, timeout: float | None) -> Any:
        ready = self._select(0)
        if not ready and (timeout is None or timeout >= _A_DAY_S):  # anyio sleeps for ever by a timer without end
            raise AssertionError("everything waits for ever")
        self.now += 0 if ready else timeout or 0
        return ready


virtual_time = pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("asyncio", {"loop_factory": VirtualTimeLoop}), id="virtual time")]
)
"""Marks a test that runs in a `VirtualTimeLoop`."""


def let_pass(seconds: float) -> None:
    """Block the event loop, in virtual time: its timers fire afterwards."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.now += seconds
