"""Shared by the tests of both databases."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.databases.postgres_server import PostgresServer


@pytest.fixture
def anyio_backend() -> str:
    """Return the only backend that the servers run on."""
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Return a server that runs; a test that stops it starts it again."""
    if sys.platform == "win32":
        pytest.skip("the server of the tests needs Unix sockets")
    from tests.databases.postgres_server import PostgresServer

    server = PostgresServer()
    server.start()
    yield server
    server.remove()
