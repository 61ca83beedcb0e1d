"""The connection pool under everything at once, against a model that knows nothing of how it works (R34-R40).

The model is two lists, of those who hold a connection and of those who wait, and the connections of a server that
counts them. Opening, checking, cleaning and closing take virtual time, so that they overlap with everything else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import anyio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from reliability.errors import DependencyBusy, DependencyFailed, DependencyTimeout, ShuttingDown
from reliability.pool import Pool, PoolLimits

from tests.unit.fake_connections import FakeConnection, FakeServer
from tests.unit.support import CANCELLERS, VirtualTimeLoop

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MAX, QUEUE = 2, 3
DURATIONS = st.sampled_from([0.0, 0.5, 1.5])


class CountingServer(FakeServer):
    """Remembers the most connections that there ever were; those that are on their way count."""

    def __init__(self) -> None:
        super().__init__()
        self.on_their_way = self.most = 0

    async def connect(self) -> FakeConnection:
        self.on_their_way += 1
        self.most = max(self.most, self.open_now + self.on_their_way)
        try:
            return await super().connect()
        finally:
            self.on_their_way -= 1


class Borrower:
    """Borrows a connection, holds it until it is told to end, and can be cancelled in both ways."""

    def __init__(self, pool: Pool[FakeConnection], log: list[Borrower]) -> None:
        self.connection: FakeConnection | None = None
        self.leaves = "clean"
        self.end = asyncio.Event()
        self.scope = anyio.CancelScope()
        self.task = asyncio.ensure_future(self._borrow(pool, log))

    async def _borrow(self, pool: Pool[FakeConnection], log: list[Borrower]) -> None:
        with self.scope:
            async with pool.connection() as connection:
                log.append(self)
                assert connection.is_open
                assert connection.clean, "lent before it was cleaned"
                self.connection = connection
                connection.clean = False
                try:
                    await self.end.wait()
                finally:
                    self.connection = None
                    connection.clean = self.leaves == "clean"
                    connection.usable = self.leaves != "broken" and connection.usable

    def cancel(self, how: str) -> None:
        if how == "scope":
            self.scope.cancel()
        else:
            self.task.cancel()


class PoolMachine(RuleBasedStateMachine):
    """Borrowers come, end and are cancelled, and the server slows down, dies and comes back, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.server = CountingServer()
        limits = PoolLimits(
            max_connections=MAX,
            max_waiting=QUEUE,
            acquire_timeout_s=20,
            check_after_idle_s=5,
            max_idle_s=60,
            max_lifetime_s=200,
        )
        clock = self.runner.get_loop().time
        self.pool = Pool("db", self.server.connect, limits, clock=clock, random=lambda: 0.0)
        self.arrived: list[Borrower] = []
        self.served: list[Borrower] = []
        self.closed = False

    def teardown(self) -> None:
        self.server_comes_back()
        self.do(self.everybody_ends, 100)
        assert all(borrower.task.done() for borrower in self.arrived)
        found = self.pool.statistics()
        assert (found.in_use, found.waiting, found.size) == (0, 0, found.idle)
        assert self.server.open_now == found.idle
        self.runner.run(self.pool.close())
        assert (self.server.open_now, self.pool.size) == (0, 0)
        self.runner.close()

    def everybody_ends(self) -> None:
        for borrower in self.arrived:
            borrower.end.set()

    def do(self, action: Callable[[], T], seconds: float = 0.0) -> T:
        async def and_settle() -> T:
            result = action()
            await asyncio.sleep(seconds)
            for _ in range(30):
                await asyncio.sleep(0)
            return result

        return self.runner.run(and_settle())

    @property
    def holding(self) -> list[Borrower]:
        return [borrower for borrower in self.arrived if borrower.connection is not None]

    @property
    def waiting(self) -> list[Borrower]:
        return [borrower for borrower in self.arrived if borrower.connection is None and not borrower.task.done()]

    @rule()
    def a_borrower_comes(self) -> None:
        in_use, waiting = len(self.holding), len(self.waiting)
        borrower = self.do(lambda: Borrower(self.pool, self.served))
        if self.closed:
            assert isinstance(borrower.task.exception(), ShuttingDown)
        elif waiting - (MAX - in_use) >= QUEUE:
            assert isinstance(borrower.task.exception(), DependencyBusy)
        self.arrived.append(borrower)

    @precondition(lambda self: self.holding)
    @rule(data=st.data(), leaves=st.sampled_from(["clean", "dirty", "broken"]))
    def a_borrower_ends(self, data: st.DataObject, leaves: str) -> None:
        borrower = data.draw(st.sampled_from(self.holding))
        borrower.leaves = leaves
        self.do(borrower.end.set)
        assert borrower.task.done()

    @precondition(lambda self: self.holding or self.waiting)
    @rule(data=st.data(), how=st.sampled_from(CANCELLERS), while_another_ends=st.booleans())
    def a_borrower_is_cancelled(self, data: st.DataObject, how: str, *, while_another_ends: bool) -> None:
        victim = data.draw(st.sampled_from(self.holding + self.waiting))
        victim.leaves = "dirty"
        others = [borrower for borrower in self.holding if borrower is not victim]

        def act() -> None:
            if others and while_another_ends:
                others[0].end.set()
            victim.cancel(how)

        self.do(act)
        assert victim.task.done()

    @rule(seconds=st.sampled_from([0.3, 1.0, 6.0, 30.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.do(lambda: None, seconds)

    @rule(step=st.sampled_from(["open", "check", "reset", "close"]), seconds=DURATIONS)
    def the_server_changes_its_pace(self, step: str, seconds: float) -> None:
        self.server.takes_s[step] = seconds

    @rule(drops=st.booleans())
    def the_server_dies(self, *, drops: bool) -> None:
        gone = ConnectionError("gone")
        self.server.fails.update({"open": DependencyFailed("db", "It refuses."), "check": gone, "reset": gone})
        for connection in self.server.connections:
            connection.usable = connection.usable and not drops

    @rule()
    def server_comes_back(self) -> None:
        self.server.fails.clear()

    @rule()
    def the_pool_is_closed(self) -> None:
        self.do(lambda: asyncio.ensure_future(self.pool.close(1)), 1.5)
        self.closed = True

    @invariant()
    def never_more_connections_than_allowed(self) -> None:
        assert self.server.open_now <= self.pool.size <= MAX
        assert self.server.most <= MAX, "opened before a place was reserved"

    @invariant()
    def a_connection_is_lent_to_one_borrower(self) -> None:
        connections = [borrower.connection for borrower in self.holding]
        assert len(set(connections)) == len(connections)

    @invariant()
    def the_pool_counts_as_the_model_does(self) -> None:
        found = self.pool.statistics()
        assert (found.in_use, found.waiting) == (len(self.holding), len(self.waiting))

    @invariant()
    def they_are_served_in_the_order_in_which_they_came(self) -> None:
        order = [self.arrived.index(borrower) for borrower in self.served]
        assert order == sorted(order)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """Whoever waits, waits for a connection in use or for a chore."""
        if self.waiting:
            assert self.pool.size > self.pool.statistics().idle

    @invariant()
    def borrowers_fail_for_a_reason(self) -> None:
        for borrower in self.arrived:
            if borrower.task.done() and not borrower.task.cancelled():
                error = borrower.task.exception()
                assert isinstance(error, DependencyFailed | DependencyBusy | DependencyTimeout | ShuttingDown | None)


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestR34ToR40AnyOrderOfEvents = PoolMachine.TestCase
