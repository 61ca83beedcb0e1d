"""Asks servers over HTTP, within limits that no answer gets around (R7, R44, R47, R55).

    async with HttpClient(api, base_url="https://api.example.com/v1") as client:
        weather = (await client.get("weather", params={"city": "Bonn"})).decode(Weather)

Every request, and every hop of a redirect, is a call of its dependency: that one's breaker, bulkhead, time limit and
retries are around it. A status of 5xx or 429 is a failure and raises; every other one is an answer. Whatever a server
could send without end is bounded: headers, body (packed and unpacked), redirects, and silence.

Nothing but the connection is kept from one request for the next: no cookies, because many callers share one client.
The environment may name certificates to trust (SSL_CERT_FILE, SSL_CERT_DIR) and nothing else: no proxy, no password.
The texts of errors hold no path, header or body, because secrets are there.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack, cast

import httpx2

from .allowed_hosts import AllowedHosts, server_name
from .bounds import bounded, check_bounds
from .deadlines import cleanup, expires_at
from .dependency import Dependency
from .dependency_group import DependencyGroup
from .errors import HostNotAllowed, ShuttingDown, ToolFailure
from .http_response import HttpResponse, HttpStatusError, lasting_failure, read_body

_IDEMPOTENT = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}
_METHODS = {*_IDEMPOTENT, "POST", "PATCH"}
_REDIRECTS = {301, 302, 303, 307, 308}
_RELATIVE = re.compile(r"(?![a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)
_UPWARDS = re.compile(r"(^|[/\\]|%2f|%5c)(\.|%2e){2}($|[/\\]|%2f|%5c)", re.IGNORECASE)
"""A step out of the path of the base URL: what lies beside it is for others, and the key is sent along."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_DEFAULT_HEADERS = {"accept": "*/*", "accept-encoding": "gzip", "user-agent": "mcp-server"}
_OUR_HEADERS = {
    *("accept-encoding", "connection", "content-length", "expect", "host"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
}
"""Where a message ends, and whom it is for, is not for the caller to say."""
_HARMLESS_HEADERS = {*_DEFAULT_HEADERS, "accept-language", "content-type"}
"""All that goes along to another server after a redirect: any other header may hold a key."""
_BODY_HEADERS = {"content-length", "content-type"}
_CLOSE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """Limits of a client. Its dependency has others: `attempt_timeout_s` bounds each request as a whole.

    Args:
        connect_timeout_s: Limit for looking the name up and connecting, in seconds; as much again for TLS.
        read_timeout_s: Longest silence while a request is sent or an answer read, in seconds.
        max_body_bytes: Largest body of an answer, as it is sent and as it is unpacked.
        max_redirects: Redirects that are followed.
        max_connections: Connections to all servers together; to one of them, `max_concurrent` of its dependency.
        idle_connection_s: How long a connection is kept for the next request, in seconds; many servers keep it for 5.

    Raises:
        ValueError: A value is out of its bounds.
    """

    connect_timeout_s: float = bounded(2, 0.001, 600)
    read_timeout_s: float = bounded(5, 0.001, 600)
    max_body_bytes: int = bounded(5_000_000, 1, 1_000_000_000)
    max_redirects: int = bounded(5, 0, 20)
    max_connections: int = bounded(50, 1, 10_000)
    idle_connection_s: float = bounded(4, 0, 600)

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class HttpClientStatistics:
    """The connections of a client now."""

    name: str
    connections: int
    idle_connections: int


class RequestOptions(TypedDict, total=False):
    """What a request may have beside its method and its URL."""

    params: Mapping[str, str | int | float | bool | None] | None
    headers: Mapping[str, str] | None
    json: Any
    data: Mapping[str, str] | None
    """The fields of a form."""
    content: str | bytes | None
    idempotent: bool | None
    """Whether it may be sent twice (R59); by default all may but POST and PATCH."""
    follow_redirects: bool
    timeout_s: float | None
    """Limit of one attempt, in seconds, instead of the dependency's."""


class HttpClient:
    """See the module. Connections are opened when they are first needed, and closed at the end of the `async with`.

    Args:
        dependency: What is around each request; of a group, each server gets a member of its own.
        base_url: What URLs without a host are appended to.
        allowed_hosts: What may be asked; by default only the server of `base_url`.
        limits: See `HttpLimits`.
        headers: For every request to the server of `base_url`, or for every request when there is none.
        transport: Sends the requests, instead of connections to checked addresses: for tests and for proxies.
        clock: Monotonic seconds.
        wall_clock: Seconds since the epoch.

    Raises:
        ValueError: `base_url` is not a URL that may be asked, or neither it nor `allowed_hosts` is given.
    """

    def __init__(
        self,
        dependency: Dependency | DependencyGroup,
        *,
        base_url: str = "",
        allowed_hosts: AllowedHosts | None = None,
        limits: HttpLimits = HttpLimits(),  # noqa: B008 - frozen
        headers: Mapping[str, str] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._allowed_hosts = allowed_hosts or AllowedHosts.of(base_url)
        self._base = _base(base_url, self._allowed_hosts) if base_url else None
        self.name = dependency.name
        self._dependency = dependency
        self._limits = limits
        self._headers = _checked(headers)
        self._transport = transport
        self._clock = clock
        self._wall_clock = wall_clock
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closed = True
        if self._transport is not None:
            with cleanup(_CLOSE_S, what="closing an HTTP client"):
                await self._transport.aclose()

    async def get(self, url: str, **options: Unpack[RequestOptions]) -> HttpResponse:
        """`request("GET", ...)`."""
        return await self.request("GET", url, **options)

    async def post(self, url: str, **options: Unpack[RequestOptions]) -> HttpResponse:
        """`request("POST", ...)`."""
        return await self.request("POST", url, **options)

    async def put(self, url: str, **options: Unpack[RequestOptions]) -> HttpResponse:
        """`request("PUT", ...)`."""
        return await self.request("PUT", url, **options)

    async def patch(self, url: str, **options: Unpack[RequestOptions]) -> HttpResponse:
        """`request("PATCH", ...)`."""
        return await self.request("PATCH", url, **options)

    async def delete(self, url: str, **options: Unpack[RequestOptions]) -> HttpResponse:
        """`request("DELETE", ...)`."""
        return await self.request("DELETE", url, **options)

    async def request(self, method: str, url: str, **options: Unpack[RequestOptions]) -> HttpResponse:
        """Ask, and follow redirects.

        Args:
            method: GET, HEAD, OPTIONS, POST, PUT, PATCH or DELETE.
            url: With a host, or to be appended to `base_url`; that never leads out of the path of `base_url`.
            options: See `RequestOptions`.

        Raises:
            HostNotAllowed: The URL must not be asked.
            ToolFailure: The request cannot be sent as it is.
            HttpStatusError: The status is 5xx or 429.
            DependencyFailed: There was no connection, no valid answer, or one that is too long.
            DependencyTimeout: It took too long.
            DependencyBusy: Too many requests are in progress.
            CircuitOpen: The dependency failed too often of late.
        """
        request = self._build(method.upper(), url, options)
        redirects = self._limits.max_redirects if options.get("follow_redirects", True) else None
        while True:
            dependency, idempotent = self._of(request.url), options.get("idempotent")
            response, onward = await dependency.call(
                functools.partial(self._exchange, dependency.name, request, redirects),
                idempotent=request.method in _IDEMPOTENT if idempotent is None else idempotent,
                timeout_s=options.get("timeout_s"),
            )
            if onward is None:
                return response
            request, redirects = onward, (redirects or 0) - 1

    def statistics(self) -> HttpClientStatistics:
        """A snapshot; of another transport than ours nothing is known."""
        counts: tuple[int, int] = getattr(self._transport, "connections", lambda: (0, 0))()
        return HttpClientStatistics(name=self.name, connections=counts[0], idle_connections=counts[1])

    def _of(self, url: httpx2.URL) -> Dependency:
        group = self._dependency
        return group.of(server_name(url)) if isinstance(group, DependencyGroup) else group

    def _build(self, method: str, url: str, options: RequestOptions) -> httpx2.Request:
        if method not in _METHODS:
            raise ToolFailure(f"The method must be one of {', '.join(sorted(_METHODS))}.")
        target = self._allowed_hosts.check(self._absolute(url))
        headers = httpx2.Headers(_DEFAULT_HEADERS)
        if self._base is None or target.origin == self._base.origin:
            headers.update(self._headers)
        body: dict[str, Any] = {key: options.get(key) for key in ("json", "data", "content")}
        try:
            headers.update(_checked(options.get("headers")))
            if params := options.get("params"):
                target = target.copy_merge_params(params)
            return httpx2.Request(method, target, headers=headers, **body)
        except (httpx2.InvalidURL, UnicodeError):
            raise ToolFailure("The request is too long, or holds characters that cannot be sent.") from None
        except ValueError as error:
            raise ToolFailure(str(error)) from None

    def _absolute(self, url: str) -> str:
        if self._base is None or not _RELATIVE.match(url):
            return url
        if _UPWARDS.search(re.split("[?#]", url, maxsplit=1)[0]):
            raise HostNotAllowed("A path must not lead upwards, as '..' does.")
        return f"{str(self._base).rstrip('/')}/{url.lstrip('/')}" if url else str(self._base)

    async def _exchange(
        self, name: str, request: httpx2.Request, redirects: int | None
    ) -> tuple[HttpResponse, httpx2.Request | None]:
        """Send one request. Returns the answer, and the request that it redirects to."""
        try:
            response = await self._send(name, request)
        except Exception as error:
            from .http_transport import failure_of  # here, because it is heavy

            failure = failure_of(error, name, request.extensions["timeout"])
            if failure is None:
                raise
            raise failure from error
        if response.status >= 500 or response.status == 429:
            raise HttpStatusError(response, now=self._wall_clock())
        return response, None if redirects is None else self._onward(request, response, redirects)

    async def _send(self, name: str, request: httpx2.Request) -> HttpResponse:
        started = self._clock()
        left_s = expires_at() - asyncio.get_running_loop().time()  # an author's own scope cancels, and is no timeout
        connect_s, read_s = min(self._limits.connect_timeout_s, left_s), min(self._limits.read_timeout_s, left_s)
        request.extensions["timeout"] = {"connect": connect_s, "read": read_s, "write": read_s, "pool": connect_s}
        answer = await self._connected().handle_async_request(request)
        try:
            content = await read_body(name, answer, self._limits.max_body_bytes)
        finally:
            with cleanup(_CLOSE_S, what="giving a connection back"):
                await cast("httpx2.AsyncByteStream", answer.stream).aclose()
        return HttpResponse(
            dependency=name,
            status=answer.status_code,
            headers=answer.headers,
            content=content,
            url=str(request.url),
            elapsed_s=self._clock() - started,
        )

    def _connected(self) -> httpx2.AsyncBaseTransport:
        if self._is_closed:
            raise ShuttingDown
        if self._transport is None:
            from .http_transport import CheckedTransport  # here, because it is heavy

            self._transport = CheckedTransport(self._allowed_hosts, self._limits)
        return self._transport

    def _onward(self, request: httpx2.Request, response: HttpResponse, redirects: int) -> httpx2.Request | None:
        """The request that a redirect asks for; None if the answer is no redirect."""
        location = response.headers.get("location")
        if location is None or response.status not in _REDIRECTS:
            return None
        if redirects == 0:
            raise lasting_failure(response.dependency, f"redirected more than {self._limits.max_redirects} times")
        try:
            target = self._allowed_hosts.check(request.url.join(location))
        except (HostNotAllowed, httpx2.InvalidURL, ValueError):
            raise lasting_failure(response.dependency, "redirected to a URL that must not be asked") from None
        if request.url.scheme == "https" != target.scheme:
            raise lasting_failure(response.dependency, "redirected to a connection that is not encrypted")
        return _redirected(request, response.status, target)


def _base(url: str, allowed_hosts: AllowedHosts) -> httpx2.URL:
    try:
        base = allowed_hosts.check(url)
    except HostNotAllowed as error:
        raise ValueError(f"base_url: {error}") from None
    if base.query or base.fragment:
        raise ValueError("base_url: It must have neither a query nor a fragment.")
    return base


def _checked(headers: Mapping[str, str] | None) -> dict[str, str]:
    for name, value in (headers or {}).items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"The header {name!r} is not one that HTTP allows.")
        if name.lower() in _OUR_HEADERS:
            raise ValueError(f"The header {name!r} cannot be chosen.")
    return {name: value.strip() for name, value in (headers or {}).items()}


def _redirected(request: httpx2.Request, status: int, target: httpx2.URL) -> httpx2.Request:
    is_get = (status == 303 and request.method not in {"GET", "HEAD"}) or (status < 303 and request.method == "POST")
    is_foreign = target.origin != request.url.origin
    headers = {
        name: value
        for name, value in request.headers.items()
        if (name in _HARMLESS_HEADERS or not is_foreign) and not (name in _BODY_HEADERS and is_get)
    }
    method, body = ("GET", b"") if is_get else (request.method, request.content)
    return httpx2.Request(method, target, headers=headers, content=body or None)
