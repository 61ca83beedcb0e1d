"""Connections to nowhere, for the tests of the pool: they take as long, and fail as often, as a test wants."""

from __future__ import annotations

import anyio


class FakeConnection:
    """A connection that takes a moment for everything, and fails when it is told to."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.usable = True
        self.clean = True
        self.is_open = True

    async def check(self) -> None:
        await self._work("check")

    async def reset(self) -> None:
        await self._work("reset")
        self.clean = True

    async def close(self) -> None:
        try:
            await self._work("close")
        finally:
            self.usable = self.is_open = False

    async def _work(self, step: str) -> None:
        self.server.steps.append(step)
        await anyio.sleep(self.server.takes_s.get(step, 0))
        if step in self.server.fails:
            raise self.server.fails[step]


class FakeServer:
    """Opens connections and remembers them."""

    def __init__(self) -> None:
        self.connections: list[FakeConnection] = []
        self.steps: list[str] = []
        self.takes_s: dict[str, float] = {}
        self.fails: dict[str, BaseException] = {}

    @property
    def open_now(self) -> int:
        return sum(connection.is_open for connection in self.connections)

    async def connect(self) -> FakeConnection:
        self.steps.append("open")
        await anyio.sleep(self.takes_s.get("open", 0))
        if "open" in self.fails:
            raise self.fails["open"]
        connection = FakeConnection(self)
        self.connections.append(connection)
        return connection
