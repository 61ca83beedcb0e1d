"""The HTTP client against a real server that does its part, or says that it cannot (R7, R51, R55)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from reliability.dependency import Dependency
from reliability.http_client import HttpClient

if TYPE_CHECKING:
    from tests.http.conftest import Server

pytestmark = pytest.mark.anyio


async def test_an_answer_is_whole_and_typed(server: Server) -> None:
    async with HttpClient(Dependency("api"), base_url=f"http://127.0.0.1:{server.port}") as client:
        answer = await client.get("hello")
    assert (answer.status, answer.json()) == (200, {"path": "/hello"})
