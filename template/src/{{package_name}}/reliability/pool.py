"""A bounded pool of connections (R34-R40, R42).

Every decision is taken synchronously. Whatever has to wait for the network or the disk (opening, checking, cleaning,
closing) is a chore: a task of the pool, which keeps one place of it until it is done, and which no cancellation and no
deadline of a borrower can stop halfway. A borrower waits for one future, and gives back without waiting at all.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import anyio

from .bounds import bounded, check_bounds
from .cancellation import is_cancelled
from .deadlines import cleanup, expires_at, remaining_s
from .errors import ConnectionBroken, DependencyBusy, DependencyError, DependencyTimeout, ShuttingDown

logger = logging.getLogger(__name__)

_UPKEEP_S = 1.0
_RECONNECT_INITIAL_S = 0.1
_RECONNECT_MAX_S = 2.0
_SHARE_OF_DEADLINE = 0.9
"""Then the end of a wait is told from the end of everything, and a full pool from a dead dependency."""


def limited_by_deadline(limit_s: float) -> float:
    """The limit, in seconds, or less: before the surrounding deadline, but not before an author's own cancel scope."""
    left_s = max(remaining_s(), expires_at() - asyncio.get_running_loop().time())
    return min(limit_s, left_s * _SHARE_OF_DEADLINE)


class Connection(Protocol):
    """What the pool asks of a connection."""

    @property
    def usable(self) -> bool:
        """False from the moment in which it is known to be broken."""

    @property
    def clean(self) -> bool:
        """Whether nothing runs on it and no transaction is open, so that it can be lent as it is."""

    async def check(self) -> None:
        """Ask for a sign of life; raises without one."""

    async def reset(self) -> None:
        """Stop what still runs on it, and roll back; raises if that fails."""

    async def close(self) -> None:
        """Return when it holds nothing any more: the pool waits, so that it never has more than it may."""


C = TypeVar("C", bound=Connection)


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """How many, and for how long. Beside each number stand its default, its lowest and its highest value.

    Raises:
        ValueError: A value is beyond its limits.
    """

    max_connections: int = bounded(5, 1, 1000)
    """Those that are being opened or closed included (R34)."""
    keep_idle: int = bounded(1, 0, 1000)
    """Idle connections that are kept, however long nobody wants them."""
    max_waiting: int = bounded(100, 0, 10_000)
    """Calls that may wait for a connection; more are refused at once."""
    acquire_timeout_s: float = bounded(5, 0.001, 3600)
    """Longest wait for a connection; shorter where the caller's deadline is near (R35, R44)."""
    connect_timeout_s: float = bounded(5, 0.001, 3600)
    cleanup_timeout_s: float = bounded(2, 0.001, 3600)
    """Limit of checking a connection, and of cleaning it after a cancellation."""
    check_after_idle_s: float = bounded(30, 0, 86_400)
    """A connection that was idle for longer is asked for a sign of life before it is lent (R39)."""
    max_idle_s: float = bounded(300, 1, 86_400)
    """A connection that was idle for longer is closed (R39)."""
    max_lifetime_s: float = bounded(3600, 1, 604_800)
    """An older one is replaced when nobody uses it: up to a tenth earlier, so that not all go at once (R39)."""
    long_hold_s: float = bounded(10, 0.001, 3600)
    """A connection that is held for longer is logged as a warning (R42)."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class PoolStatistics:
    """What a pool does now, and what it has done since it was made (R42)."""

    name: str
    max_connections: int
    size: int
    """Places that are taken: in use, idle, or being opened, checked, cleaned or closed."""
    in_use: int
    idle: int
    waiting: int
    longest_hold_s: float
    """For how long the connection that was lent first has been in use."""
    lent: int
    waited: int
    """Calls that did not get a connection at once; `wait_total_s` is their time."""
    wait_total_s: float
    timeouts: int
    """Calls that waited in vain."""
    refused: int
    """Calls that found too many others waiting."""
    opened: int
    open_failures: int
    closed: int


@dataclass(slots=True, eq=False)
class _Member(Generic[C]):
    connection: C
    expires_at: float
    since: float
    """When it was lent, or became idle."""
    holder: Context | None = None
    """The borrower's, for the warning that names its call; None when that was given, or nobody borrows."""


class Pool(Generic[C]):
    """Lends connections, the longest waiting borrower first (R35). It opens them when they are first wanted.

    Args:
        name: Names the pool in statistics and logs.
        connect: Opens a connection, or raises a `DependencyError`; anything else is logged and masked.
        limits: See `PoolLimits`.
        dependency: The dependency's name in errors, where it is not `name`.
        clock: Monotonic seconds.
        random: Returns a number from 0 to 1, for lifetimes and reconnections that do not fall together.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Awaitable[C]],
        limits: PoolLimits,
        *,
        dependency: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.limits = limits
        self._dependency = dependency or name
        self._connect = connect
        self._clock = clock
        self._random = random
        self._lent: set[_Member[C]] = set()
        self._idle: list[_Member[C]] = []  # the last in is the first out: what nobody needs grows old
        self._chores: dict[
            asyncio.Task[_Member[C] | None], anyio.CancelScope | None
        ] = {}  # with one: supplies a waiter
        self._waiting: list[asyncio.Future[_Member[C]]] = []
        self._closed = False
        self._empty = asyncio.Event()
        self._upkeep_timer: asyncio.TimerHandle | None = None
        self._reconnect_wait_s = self._reconnect_at = 0.0
        self._wait_total_s = 0.0
        self._counts = dict.fromkeys(("lent", "waited", "timeouts", "refused", "opened", "open_failures", "closed"), 0)

    @property
    def size(self) -> int:
        """Places that are taken; never more than `max_connections` (R34)."""
        return len(self._lent) + len(self._idle) + len(self._chores)

    @property
    def is_full(self) -> bool:
        """Whether all connections are lent, so that a borrower waits for other borrowers and not for the dependency."""
        return len(self._lent) == self.limits.max_connections

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[C]:
        """Lend a connection to the body (R36).

        Raises:
            DependencyBusy: All are in use and none came free in time, or too many wait already (R35).
            DependencyError: What `connect` raised, when there is nothing left to wait for.
            ConnectionBroken: It raised something else.
            DependencyTimeout: None came up in time, although not all are in use.
            ShuttingDown: The pool is closed.
        """
        member = await self._acquire()
        member.holder = copy_context()
        try:
            yield member.connection
        finally:
            member.holder = None
            self._release(member)

    def open(self) -> None:
        """Lend again after `close`, if in another event loop; a new pool is open."""
        self._closed = False
        self._empty = asyncio.Event()

    async def close(self, timeout_s: float = 5) -> None:
        """Refuse borrowers, wake those that wait, and give those that borrow `timeout_s` seconds to end (R40).

        Goes on when it is cancelled. What is in use after that time is closed when it is given back.
        """
        self._closed = True
        if self._upkeep_timer is not None:
            self._upkeep_timer.cancel()
            self._upkeep_timer = None
        for waiter in self._live_waiters():
            waiter.set_exception(ShuttingDown())
        while self._idle:
            self._begin(self._close(self._idle.pop()))
        for opening in filter(None, self._chores.values()):  # nobody wants what it would open
            opening.cancel()
        with cleanup(timeout_s, what=f"Closing the pool {self.name!r}"):
            while self.size:
                self._empty.clear()
                await self._empty.wait()

    def statistics(self) -> PoolStatistics:
        """A snapshot."""
        now = self._clock()
        return PoolStatistics(
            name=self.name,
            max_connections=self.limits.max_connections,
            size=self.size,
            in_use=len(self._lent),
            idle=len(self._idle),
            waiting=len(self._live_waiters()),
            longest_hold_s=round(max((now - member.since for member in self._lent), default=0.0), 3),
            wait_total_s=round(self._wait_total_s, 3),
            **self._counts,
        )

    async def _acquire(self) -> _Member[C]:
        if self._closed:
            raise ShuttingDown
        now = self._clock()
        latest = self._idle[-1] if self._idle else None
        if latest is not None and self._fit(latest, now) and now - latest.since <= self.limits.check_after_idle_s:
            return self._lend(self._idle.pop(), now)
        waiting = len(self._live_waiters())
        if len(self._lent) + waiting >= self.limits.max_connections + self.limits.max_waiting:
            self._counts["refused"] += 1
            raise self._busy(f"{waiting} calls wait already")
        return await self._wait(now)

    async def _wait(self, started: float) -> _Member[C]:
        limit_s = limited_by_deadline(self.limits.acquire_timeout_s)
        waiter: asyncio.Future[_Member[C]] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._counts["waited"] += 1
        self._supply_waiters()
        try:
            with anyio.move_on_after(limit_s):
                await waiter
            if waiter.done() and not waiter.cancelled():  # served, if only in the moment in which its time ran out
                return waiter.result()
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._release(waiter.result())  # served, and cancelled in the same moment
            raise
        finally:
            self._waiting.remove(waiter)
            self._wait_total_s += self._clock() - started
        self._counts["timeouts"] += 1
        if not self.is_full:
            raise DependencyTimeout(self._dependency, round(limit_s, 3))
        raise self._busy(f"none came free within {limit_s:.3g} s")

    def _lend(self, member: _Member[C], now: float) -> _Member[C]:
        member.since = now
        self._lent.add(member)
        self._counts["lent"] += 1
        return member

    def _release(self, member: _Member[C]) -> None:
        if member not in self._lent:
            raise RuntimeError(f"The pool {self.name!r} has not lent this connection, or has it back already (R37).")
        self._lent.remove(member)
        if member.connection.usable and not member.connection.clean and not self._closed:
            self._begin(self._clean(member))
        else:
            self._take_back(member)

    def _take_back(self, member: _Member[C]) -> None:
        """What becomes of a connection that nobody uses any more."""
        now = self._clock()
        waiters = self._live_waiters()
        if self._closed or not self._fit(member, now):
            self._begin(self._close(member))
        elif waiters:
            waiters[0].set_result(self._lend(member, now))
        else:
            member.since = now
            self._idle.append(member)

    def _fit(self, member: _Member[C], now: float) -> bool:
        return member.connection.usable and now < member.expires_at

    def _live_waiters(self) -> list[asyncio.Future[_Member[C]]]:
        return [waiter for waiter in self._waiting if not waiter.done()]  # the others have yet to leave

    def _busy(self, why: str) -> DependencyBusy:
        state = f"{len(self._lent)} of {self.limits.max_connections} connections are in use"
        return DependencyBusy(
            self._dependency,
            f"The dependency {self._dependency!r} is busy: {state} and {why}.",
            retry_after_s=self.limits.acquire_timeout_s,
        )

    def _begin(self, chore: Coroutine[Any, Any, _Member[C] | None], opening: anyio.CancelScope | None = None) -> None:
        task = asyncio.get_running_loop().create_task(chore)
        self._chores[task] = opening
        task.add_done_callback(self._settle)

    def _settle(self, task: asyncio.Task[_Member[C] | None]) -> None:
        """Decide what follows from the end of a chore."""
        supplied = self._chores.pop(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None and (member := task.result()) is not None:
            self._take_back(member)
        if supplied is not None and error is not None:
            self._on_connect_failure(error)
        if error is None or self._lent or self._idle:
            self._supply_waiters()
        elif not self.size:
            for waiter in self._live_waiters():  # there is nothing left that they could wait for
                waiter.set_exception(self._failure(error))
        if not self.size:
            self._empty.set()

    def _supply_waiters(self) -> None:
        """Begin to open, or to check, as many connections as are waited for."""
        for _ in range(len(self._live_waiters()) - sum(map(bool, self._chores.values()))):
            if self._idle or self.size < self.limits.max_connections:
                opening = anyio.CancelScope()
                self._begin(self._supply(self._idle.pop() if self._idle else None, opening), opening)

    async def _supply(self, rested: _Member[C] | None, opening: anyio.CancelScope) -> _Member[C] | None:
        """The connection that was idle for long, if it gives a sign of life; otherwise a new one in its place.

        None if the pool was closed meanwhile.
        """
        if rested is not None:
            if self._fit(rested, self._clock()) and await self._succeeds(rested.connection.check):
                return rested
            await self._close(rested)
        with opening:
            await anyio.sleep(max(0.0, self._reconnect_at - self._clock()))
            with anyio.fail_after(self.limits.connect_timeout_s):
                return self._joined(await self._connect(), self._clock())
        return None

    def _joined(self, connection: C, now: float) -> _Member[C]:
        self._counts["opened"] += 1
        self._reconnect_wait_s, self._reconnect_at = 0.0, now
        self._arm_upkeep()
        return _Member(connection, now + self.limits.max_lifetime_s * (1 - 0.1 * self._random()), now)

    def _on_connect_failure(self, error: BaseException) -> None:
        now = self._clock()
        self._counts["open_failures"] += 1
        if now >= self._reconnect_at:  # otherwise another one failed just now, and has been counted
            self._reconnect_wait_s = min(_RECONNECT_MAX_S, self._reconnect_wait_s * 2 or _RECONNECT_INITIAL_S)
            self._reconnect_at = now + self._reconnect_wait_s * (1 - 0.5 * self._random())
        if not isinstance(error, DependencyError | TimeoutError):
            logger.warning("connecting failed unexpectedly", exc_info=error, extra={"pool": self.name})

    def _failure(self, error: BaseException) -> DependencyError:
        if isinstance(error, TimeoutError):
            return DependencyTimeout(self._dependency, self.limits.connect_timeout_s)
        if not isinstance(error, DependencyError):
            return ConnectionBroken(self._dependency, "it could not be opened")
        twin = type(error).__new__(type(error), *error.args)  # each borrower raises an exception of its own
        vars(twin).update(vars(error))
        twin.__cause__ = error.__cause__
        return twin

    async def _clean(self, member: _Member[C]) -> _Member[C] | None:
        if await self._succeeds(member.connection.reset) and member.connection.clean:
            return member
        await self._close(member)
        return None

    async def _close(self, member: _Member[C]) -> None:
        self._counts["closed"] += 1
        await self._succeeds(member.connection.close, is_limited=False)

    async def _succeeds(self, step: Callable[[], Awaitable[None]], *, is_limited: bool = True) -> bool:
        try:
            with anyio.fail_after(self.limits.cleanup_timeout_s if is_limited else None):
                await step()
        except (Exception, asyncio.CancelledError) as error:  # however it fails, the connection is not used again
            if is_cancelled(error):
                raise
            logger.info("connection lost", extra={"pool": self.name, "error": repr(error)})
            return False
        return True

    def _arm_upkeep(self) -> None:
        if self._upkeep_timer is None and not self._closed:
            self._upkeep_timer = asyncio.get_running_loop().call_later(_UPKEEP_S, self._upkeep, context=Context())

    def _upkeep(self) -> None:
        """Close what nobody needs (R39) and warn of what is held for long (R42), as long as there is anything."""
        self._upkeep_timer = None
        now = self._clock()
        surplus = self._idle[: max(0, len(self._idle) - self.limits.keep_idle)]
        for member in [*self._idle]:
            bored = member in surplus and now - member.since > self.limits.max_idle_s
            if bored or not self._fit(member, now):
                self._idle.remove(member)
                self._begin(self._close(member))
        for member in self._lent:
            if member.holder is not None and now - member.since > self.limits.long_hold_s:
                about = {"pool": self.name, "held_s": now - member.since}
                member.holder.run(logger.warning, "connection held for long", extra=about)
                member.holder = None
        if self.size:
            self._arm_upkeep()
