"""What happens to an MCP request over HTTP before the SDK sees it.

Its body is read within bounds and must be a message; it ends when its client hangs up; and a stream that could carry
nothing is not opened. Probes and other paths pass untouched.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
from mcp_types import INVALID_REQUEST, ErrorData, JSONRPCError
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .json_lines import parse_line

HANG_UP = "reliability.hang_up"
"""Key in a request's ASGI scope: what to call when its client is gone."""
_BODIES_HELD = 8
"""All bodies that are held at one time, in multiples of the largest."""


class RequestGate:
    """The ASGI application in front of the SDK's.

    Args:
        app: The SDK's application.
        path: The path of MCP; every other one is passed on.
        stateless: There are no sessions, so that nothing could ever be sent on a stream opened with GET.
        max_request_bytes: Largest body; a larger one gets status 413.
        max_connections: More open connections than these get status 503 instead of an answer.
        connections: The number of open connections.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        path: str,
        stateless: bool,
        max_request_bytes: int,
        max_connections: int,
        connections: Callable[[], int],
    ) -> None:
        self._app = app
        self._path = path
        self._stateless = stateless
        self._max_request_bytes = max_request_bytes
        self._max_connections = max_connections
        self._connections = connections
        self._is_closing = False
        self._held_bytes = 0
        self._waiting: set[anyio.CancelScope] = set()
        self._serving: set[anyio.CancelScope] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope.get("path") == f"{self._path}/":  # answered at once: a redirect could lead away from TLS
            scope["path"] = self._path
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
        elif self._connections() > self._max_connections:
            await _refusal(503, "Too many connections.", {"Retry-After": "1"})(scope, receive, send)
        elif scope["method"] == "GET" and self._stateless:
            await _refusal(405, "Without sessions there are no streams.", {"Allow": "POST"})(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    def close_connections(self) -> None:
        """Close every connection with its next answer, which says so: the next request of its client goes elsewhere."""
        self._is_closing = True

    def stop_waiting(self) -> None:
        """End what waits for a client, because the server is about to stop: open streams, and half-sent requests."""
        for request in self._waiting:
            request.cancel()

    def end(self) -> None:
        """End every request, because the time for them is over."""
        for request in self._serving:
            request.cancel()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_begun = False

        async def answer(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            if self._is_closing and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        with anyio.CancelScope() as request:
            scope[HANG_UP] = request.cancel
            self._waiting.add(request)
            self._serving.add(request)
            try:
                if scope["method"] == "POST":
                    await self._post(scope, receive, answer, request)
                else:
                    await self._app(scope, receive, answer)
            finally:
                self._waiting.discard(request)
                self._serving.discard(request)
        if request.cancelled_caught and is_begun:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif request.cancelled_caught:
            await _refusal(503, "The server is shutting down.")(scope, receive, send)

    async def _post(self, scope: Scope, receive: Receive, send: Send, request: anyio.CancelScope) -> None:
        held = _Body()
        try:
            refusal = await self._read(scope, receive, held) or _refusal_of(scope, bytes(held.data))
            self._waiting.discard(request)
            await (refusal or self._app)(scope, _replay(bytes(held.data), receive), send)
        finally:
            self._held_bytes -= len(held.data)

    async def _read(self, scope: Scope, receive: Receive, held: _Body) -> Response | None:
        """Read the body into `held`, or say why not."""
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_request_bytes:
            return self._too_large()
        while held.is_incomplete:
            message = await receive()
            chunk = message.get("body", b"")
            if len(held.data) + len(chunk) > self._max_request_bytes:
                return self._too_large()
            if self._held_bytes + len(chunk) > _BODIES_HELD * self._max_request_bytes:
                return _refusal(503, "Too many large requests at once.", {"Retry-After": "1"})
            self._held_bytes += len(chunk)
            held.data += chunk
            held.is_incomplete = message.get("more_body", False)
        return None

    def _too_large(self) -> Response:
        return _refusal(413, f"The request is longer than the limit of {self._max_request_bytes} bytes.")


class _Body:
    """A body as far as it has arrived."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_incomplete = True


def _refusal(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(text, status, headers)


def _refusal_of(scope: Scope, body: bytes) -> Response | None:
    """The answer to a body that is no message; None for one that is, and for what the SDK refuses by its type."""
    if not Headers(scope=scope).get("content-type", "").startswith("application/json"):
        return None
    message = parse_line(body)
    if message is None:
        error = ErrorData(code=INVALID_REQUEST, message="Invalid request: not a JSON-RPC 2.0 message.")
        message = JSONRPCError(jsonrpc="2.0", id=None, error=error)
    if isinstance(message, JSONRPCError):
        return Response(message.model_dump_json(exclude_unset=True), 400, media_type="application/json")
    return None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, and then what the connection gives."""
    is_given = False

    async def give() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give
