"""A real HTTP server in the test's own event loop, and the proxy that breaks what it says."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from tests.support_proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    Scope = dict[str, Any]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Receive = Callable[[], Awaitable[dict[str, Any]]]


@pytest.fixture
def anyio_backend() -> str:
    """Return the only backend that the servers run on."""
    return "asyncio"


@pytest.fixture(autouse=True)
def quiet_server() -> Iterator[None]:
    """Errors that a test provokes in the server are not worth reading."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("uvicorn.error").setLevel(logging.NOTSET)


class Server:
    """A server whose paths say what it does.

    Attributes:
        port: Where it listens.
        seen: `METHOD path` of every request.
        headers: Of the last request.
        statuses: What the next requests to `/next` get; 200 when there are none left.
    """

    def __init__(self) -> None:
        self.port = 0
        self.seen: list[str] = []
        self.headers: dict[str, str] = {}
        self.body = b""
        self.statuses: list[int] = []
        self.retry_after = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.seen.append(f"{scope['method']} {scope['path']}")
        self.headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.body = (await receive()).get("body", b"")
        name, _, argument = scope["path"].strip("/").partition("/")
        await getattr(self, f"_{name}", self._plain)(send, argument, scope)

    async def _plain(self, send: Send, argument: str, scope: Scope) -> None:
        await reply(send, 200, json.dumps({"path": scope["path"]}).encode())

    async def _next(self, send: Send, argument: str, scope: Scope) -> None:
        status = self.statuses.pop(0) if self.statuses else 200
        await reply(send, status, b"{}", {"retry-after": self.retry_after} if self.retry_after else {})

    async def _status(self, send: Send, argument: str, scope: Scope) -> None:
        await reply(send, int(argument), b'{"problem": "it is broken"}')

    async def _slow(self, send: Send, argument: str, scope: Scope) -> None:
        await asyncio.sleep(float(argument))
        await reply(send, 200, b"{}")

    async def _redirect(self, send: Send, argument: str, scope: Scope) -> None:
        location = scope["query_string"].decode().replace("PORT", str(self.port)) or "/plain"
        await reply(send, int(argument or 302), b"", {"location": location})

    async def _loop(self, send: Send, argument: str, scope: Scope) -> None:
        await reply(send, 302, b"", {"location": f"/loop/{int(argument or 0) + 1}"})

    async def _gzip(self, send: Send, argument: str, scope: Scope) -> None:
        await reply(send, 200, gzip.compress(b'{"packed": true}'), {"content-encoding": "gzip"})

    async def _bomb(self, send: Send, argument: str, scope: Scope) -> None:
        packer = zlib.compressobj(9, wbits=31)
        bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(20)) + packer.flush()
        await reply(send, 200, bomb, {"content-encoding": "gzip"})

    async def _pieces(self, send: Send, argument: str, scope: Scope) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(4):
            await send({"type": "http.response.body", "body": b"piece", "more_body": True})
            await asyncio.sleep(0.001)
        await send({"type": "http.response.body", "body": b""})

    async def _endless(self, send: Send, argument: str, scope: Scope) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):  # endless enough
            await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
            await asyncio.sleep(0)  # uvicorn does not wait for a client that has gone


async def reply(send: Send, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    listed = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": [*listed, _length(body)]})
    await send({"type": "http.response.body", "body": body})


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", str(len(body)).encode()


@asynccontextmanager
async def serving(*, on_server_name: Callable[..., None] | None = None, **options: Any) -> AsyncIterator[Server]:
    """A server with uvicorn's `options`."""
    app = Server()
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", timeout_keep_alive=60, **options)
    config.load()
    if config.ssl is not None and on_server_name is not None:
        config.ssl.set_servername_callback(on_server_name)
    running = uvicorn.Server(config)
    running.lifespan = config.lifespan_class(config)
    await running.startup()
    app.port = running.servers[0].sockets[0].getsockname()[1]
    yield app
    running.force_exit = True
    await running.shutdown()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """Start a server for one test."""
    async with serving() as running:
        yield running


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[FaultProxy]:
    """A proxy in front of the server, which breaks nothing yet."""
    async with FaultProxy(server.port) as running:
        yield running
