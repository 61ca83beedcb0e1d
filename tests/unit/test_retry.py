"""Retries and their budget: rule R59 (idempotent calls only is the dependency's part, and tested there)."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, TypeVar

import anyio
import pytest
from reliability.deadlines import deadline
from reliability.dependency import Dependency
from reliability.errors import (
    CircuitOpen,
    DependencyBusy,
    DependencyError,
    DependencyFailed,
    DependencyTimeout,
    ToolFailure,
)
from reliability.retry import Retry, RetryConfig

from tests.unit.support import virtual_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

pytestmark = [pytest.mark.anyio, virtual_time]


def failed(*, retry_after_s: float | None = None, retryable: bool | None = None) -> DependencyFailed:
    return DependencyFailed("api", "It failed.", retry_after_s=retry_after_s, retryable=retryable)


class Upstream:
    """Fails as often as it is told to, and notes when it was asked."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked_at: list[float] = []

    async def ask(self) -> str:
        self.asked_at.append(asyncio.get_running_loop().time())
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def after(first: DependencyError, ask: Callable[[], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
    """What fails the first time it is tried."""
    errors = [first]

    async def attempt() -> T:
        if errors:
            raise errors.pop()
        return await ask()

    return attempt


def retries(*, random: Callable[[], float] = lambda: 0.0, **config: float) -> Retry:
    return Retry(RetryConfig(**config), random=random)  # type: ignore[arg-type] # ints and floats


async def test_r59_a_second_attempt_that_succeeds_gives_the_answer() -> None:
    retry, upstream = retries(), Upstream()
    assert await retry.call(after(failed(), upstream.ask), idempotent=True) == "answer"
    assert len(upstream.asked_at) == 1
    assert retry.retries == 1


async def test_r59_the_last_error_is_raised_after_the_last_attempt() -> None:
    retry, last = retries(attempts=3), DependencyTimeout("api", 5)
    upstream = Upstream(failed(), last)
    with pytest.raises(DependencyTimeout) as caught:
        await retry.call(after(failed(), upstream.ask), idempotent=True)
    assert caught.value is last
    assert upstream.errors == []
    assert retry.retries == 2


async def test_r59_one_attempt_means_no_retry() -> None:
    upstream, first = Upstream(), failed()
    with pytest.raises(DependencyFailed) as caught:
        await retries(attempts=1).call(after(first, upstream.ask), idempotent=True)
    assert caught.value is first
    assert upstream.asked_at == []


async def test_r59_the_waits_grow_exponentially_up_to_their_limit() -> None:
    retry = retries(attempts=5, wait_initial_s=1, wait_max_s=3)
    upstream = Upstream(failed(), failed(), failed())
    begun = asyncio.get_running_loop().time()
    await retry.call(after(failed(), upstream.ask), idempotent=True)
    assert [at - begun for at in upstream.asked_at] == pytest.approx([1, 1 + 2, 1 + 2 + 3, 1 + 2 + 3 + 3])


@pytest.mark.parametrize(("asked_s", "waited_s"), [(None, 1.3), (4, 4 * 1.3), (0, 0)])
async def test_r59_jitter_adds_its_share_to_every_kind_of_wait(asked_s: float | None, waited_s: float) -> None:
    retry, upstream = retries(wait_initial_s=1, wait_jitter=0.5, random=lambda: 0.6), Upstream()
    begun = asyncio.get_running_loop().time()
    await retry.call(after(failed(retry_after_s=asked_s), upstream.ask), idempotent=True)
    assert upstream.asked_at == [pytest.approx(begun + waited_s)]


async def test_r59_by_default_the_jitter_is_random() -> None:
    waits = set()
    for _ in range(5):
        upstream = Upstream()
        begun = asyncio.get_running_loop().time()
        await Retry(RetryConfig()).call(after(failed(), upstream.ask), idempotent=True)
        waits.add(upstream.asked_at[0] - begun)
    assert len(waits) == 5
    assert all(0.1 <= wait <= 0.15001 for wait in waits)


@pytest.mark.parametrize(("asked_s", "asks"), [(10, 1), (10.1, 0)])
async def test_r59_a_dependency_that_wants_a_long_rest_is_not_waited_for(asked_s: float, asks: int) -> None:
    upstream, first = Upstream(), failed(retry_after_s=asked_s)
    if asks:
        await retries(retry_after_max_s=10).call(after(first, upstream.ask), idempotent=True)
    else:
        with pytest.raises(DependencyFailed):
            await retries(retry_after_max_s=10).call(after(first, upstream.ask), idempotent=True)
    assert len(upstream.asked_at) == asks


@pytest.mark.parametrize(("left_s", "asks"), [(1.51, 1), (1.5, 1), (1.49, 0)])
async def test_r59_a_wait_that_leaves_no_time_for_the_attempt_is_not_begun(left_s: float, asks: int) -> None:
    retry, upstream, first = retries(wait_initial_s=1), Upstream(), failed()
    begun = asyncio.get_running_loop().time()
    with deadline(left_s), nullcontext() if asks else pytest.raises(DependencyFailed) as caught:
        await retry.call(after(first, upstream.ask), idempotent=True, min_attempt_s=0.5)
    assert caught is None or caught.value is first
    assert asyncio.get_running_loop().time() - begun == asks  # seconds: it gave up at once, or waited
    assert len(upstream.asked_at) == asks
    assert retry.retries == asks
    assert retry.budget.tokens == 10 - asks


async def test_r59_an_attempt_may_be_worth_any_time() -> None:
    retry, upstream = retries(wait_initial_s=1), Upstream()
    with deadline(1.01):
        await retry.call(after(failed(), upstream.ask), idempotent=True)
    assert len(upstream.asked_at) == 1


async def test_r59_without_a_wish_of_the_dependency_its_longest_wish_does_not_matter() -> None:
    upstream = Upstream()
    await retries(retry_after_max_s=0).call(after(failed(), upstream.ask), idempotent=True)
    assert len(upstream.asked_at) == 1


@pytest.mark.parametrize(
    "error",
    [
        CircuitOpen("api", retry_after_s=1),
        DependencyBusy("api", "Busy."),
        failed(retryable=False),
        ToolFailure("No such note."),
        ToolFailure("Later.", retryable=True),
        ConnectionResetError(),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_r59_only_an_error_of_a_dependency_that_was_asked_and_may_recover_is_retried(
    error: BaseException,
) -> None:
    retry, upstream = retries(), Upstream()

    async def ask() -> str:
        await upstream.ask()
        raise error

    with pytest.raises(type(error)):
        await retry.call(after(failed(), ask), idempotent=True)
    assert len(upstream.asked_at) == 1
    assert retry.budget.tokens == 9


@pytest.mark.parametrize("error", [failed(), DependencyTimeout("api", 5), DependencyError("api", "Odd.")])
async def test_r59_failures_and_timeouts_may_be_cured(error: DependencyError) -> None:
    assert await retries().call(after(error, Upstream().ask), idempotent=True) == "answer"


async def test_r59_what_is_not_idempotent_is_done_once() -> None:
    upstream = Upstream(failed())
    with pytest.raises(DependencyFailed):
        await retries().call(upstream.ask, idempotent=False)
    assert len(upstream.asked_at) == 1


@pytest.mark.parametrize("idempotent", [False, True])
async def test_r59_only_a_success_without_a_retry_pays_in(*, idempotent: bool) -> None:
    retry = retries()
    retry.budget.spend()
    await retry.call(Upstream().ask, idempotent=idempotent)
    assert retry.budget.tokens == 9.1
    await retry.call(Upstream(failed()).ask, idempotent=True)
    assert retry.budget.tokens == 8.1


async def test_r59_without_a_token_there_is_no_retry_and_it_is_counted() -> None:
    retry, upstream = retries(budget_tokens=1), Upstream(failed())
    with pytest.raises(DependencyFailed):
        await retry.call(after(failed(), upstream.ask), idempotent=True)
    with pytest.raises(DependencyFailed):
        await retry.call(after(failed(), upstream.ask), idempotent=True)
    assert len(upstream.asked_at) == 1
    assert (retry.retries, retry.refused, retry.budget.tokens) == (1, 2, 0)


async def test_r59_after_the_last_attempt_nothing_is_paid() -> None:
    retry = retries(attempts=2)
    with pytest.raises(DependencyFailed):
        await retry.call(after(failed(), Upstream(failed()).ask), idempotent=True)
    assert retry.budget.tokens == 9


@pytest.mark.parametrize("how", ["scope", "task"])
async def test_r46_a_cancellation_ends_the_wait_at_once(how: str) -> None:
    retry, upstream = retries(wait_initial_s=1000, wait_max_s=1000), Upstream()
    scope = anyio.CancelScope()

    async def call() -> None:
        with scope:
            await retry.call(after(failed(), upstream.ask), idempotent=True)

    begun = asyncio.get_running_loop().time()
    task = asyncio.ensure_future(call())
    await anyio.wait_all_tasks_blocked()
    (scope if how == "scope" else task).cancel()
    await asyncio.wait([task])
    assert asyncio.get_running_loop().time() < begun + 1
    assert upstream.asked_at == []
    assert task.cancelled() == (how == "task")


async def test_errors_are_freed_at_once_and_not_by_the_garbage_collector() -> None:
    """Each may hold an answer's whole body, and fails again and again while a dependency is down."""
    freed: list[int] = []

    def tracked() -> DependencyFailed:
        error = failed()
        weakref.finalize(error, freed.append, 1)
        return error

    async def ask() -> None:
        raise tracked()

    dependency = Dependency("api")
    gc.disable()
    try:
        with suppress(DependencyFailed):
            await dependency.call(ask, idempotent=True)
        assert freed == [1] * 3
    finally:
        gc.enable()
