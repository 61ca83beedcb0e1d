"""Connections to allowed addresses and to no others, and what their errors mean (R7, R55).

Names are resolved here and now, and the address that was checked is the one that is connected to: a name that points
elsewhere a moment later (DNS rebinding) gains nothing. The name is still what goes into the Host header and what the
certificate is checked against.

No proxy is taken from the environment, because a proxy resolves names by itself, where nobody can check. Whoever needs
one gives `HttpClient` an `httpx2.AsyncHTTPTransport(proxy=...)`; then names alone are checked.
"""

from __future__ import annotations

import math
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, cast

import anyio
import httpcore2
import httpx2

from .allowed_hosts import AllowedHosts, address_of
from .errors import ConnectionBroken, DependencyBusy, DependencyError, DependencyTimeout, Overloaded
from .http_response import lasting_failure
from .worker_threads import WorkerThreads

if TYPE_CHECKING:
    from .http_client import HttpLimits

Resolver = Callable[[str, int], Awaitable[list[str]]]
"""The addresses of a name, for a port; raises OSError when there are none."""

_RESOLVING_THREADS = 32
"""A look-up cannot be cancelled: a name server that hangs holds as many, and then look-ups are refused."""
_QUEUE_TIMEOUT_S = 60.0
_ADDRESSES_TRIED = 4


class AddressNotAllowed(httpcore2.ConnectError):
    """A name resolves to addresses that must not be connected to, and to no others."""


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Keeps a pool of connections, each of them to an address that is permitted.

    Args:
        allowed_hosts: Says which are.
        limits: The pool's size, and how long an idle connection stays in it.
        ssl_context: Says which certificates are trusted; by default those of the system, or of SSL_CERT_FILE.
        resolve: Looks names up; by default as the system does.
    """

    def __init__(
        self,
        allowed_hosts: AllowedHosts,
        limits: HttpLimits,
        *,
        ssl_context: ssl.SSLContext | None = None,
        resolve: Resolver | None = None,
    ) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context or httpx2.create_ssl_context(),
            max_connections=limits.max_connections,
            keepalive_expiry=limits.idle_connection_s,
            network_backend=_CheckedNetwork(allowed_hosts, resolve or system_resolver()),
        )

    def connections(self) -> tuple[int, int]:
        """How many are open, and how many of them wait for a request."""
        connections = self._pool.connections
        return len(connections), sum(connection.is_idle() for connection in connections)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; its errors are those of `httpcore2`."""
        url = request.url
        answer = await self._pool.handle_async_request(
            httpcore2.Request(
                method=request.method,
                url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx2.Response(
            answer.status, headers=answer.headers, stream=cast("httpx2.AsyncByteStream", answer.stream)
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()


class _CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Opens connections by address."""

    def __init__(self, allowed_hosts: AllowedHosts, resolve: Resolver) -> None:
        self._allowed_hosts = allowed_hosts
        self._resolve = resolve
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore2's
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to one of the host's addresses, all within `timeout` seconds."""
        ends_at = anyio.current_time() + (math.inf if timeout is None else timeout)
        addresses = await self._addresses(host, port, ends_at)
        while True:
            address = addresses.pop(0)
            share_s = (ends_at - anyio.current_time()) / (len(addresses) + 1)
            try:
                return await self._network.connect_tcp(address, port, share_s, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if not addresses:
                    raise

    async def _addresses(self, host: str, port: int, ends_at: float) -> list[str]:
        try:
            with anyio.fail_after(ends_at - anyio.current_time()):
                found = [host] if address_of(host) else await self._resolve(host, port)
        except (TimeoutError, Overloaded) as error:
            raise httpcore2.ConnectTimeout(error) from error
        except OSError as error:
            raise httpcore2.ConnectError(error) from error
        allowed = [address for address in found if self._allowed_hosts.permits_address(host, port, address)]
        if not allowed:
            raise AddressNotAllowed
        return allowed[:_ADDRESSES_TRIED]


def system_resolver() -> Resolver:
    """Look names up as the system does, in threads."""
    threads = WorkerThreads(_RESOLVING_THREADS, queue_timeout_s=_QUEUE_TIMEOUT_S, what="Name resolution")

    async def resolve(host: str, port: int) -> list[str]:
        found = await threads.run(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        return [str(info[4][0]) for info in found]

    return resolve


_LASTING: dict[type | tuple[type, ...], str] = {
    AddressNotAllowed: "has an address that must not be asked",
    ssl.SSLCertVerificationError: "has a certificate that is not trusted",
    (zlib.error, httpx2.DecodingError): "answered with a body that cannot be unpacked",
}
_PASSING: dict[type | tuple[type, ...], str] = {
    socket.gaierror: "its name could not be looked up",
    ssl.SSLError: "no encryption could be agreed upon",
    ConnectionRefusedError: "it was refused",
    (httpcore2.ConnectError, httpx2.ConnectError): "it could not be made",
    (httpcore2.ProtocolError, httpx2.ProtocolError): "what came is not HTTP, or is cut off",
    (httpcore2.NetworkError, httpx2.TransportError, OSError): "it was interrupted",
}
"""What happened, from the particular to the general: the first that fits is said."""


def failure_of(error: Exception, dependency: str, timeouts: Mapping[str, float]) -> DependencyError | None:
    """What an error of a transport means to whoever asked; None when it is not one.

    Args:
        error: Ours, or any transport's of httpx2.
        dependency: The dependency's name.
        timeouts: The limits of the request, in seconds, as httpx2 takes them.
    """
    if isinstance(error, (httpcore2.PoolTimeout, httpx2.PoolTimeout)):
        return DependencyBusy(dependency, f"No connection to {dependency!r} came free within {timeouts['pool']:g} s.")
    if isinstance(error, (httpcore2.ConnectTimeout, httpx2.ConnectTimeout)):
        return DependencyTimeout(dependency, timeouts["connect"])
    if isinstance(error, (httpcore2.TimeoutException, httpx2.TimeoutException)):
        return DependencyTimeout(dependency, timeouts["read"])
    causes = list(_causes(error))
    for kinds, what in _LASTING.items():
        if any(isinstance(cause, kinds) for cause in causes):
            return lasting_failure(dependency, what)
    for kinds, why in _PASSING.items():
        if any(isinstance(cause, kinds) for cause in causes):
            return ConnectionBroken(dependency, why)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what is behind it: httpcore2 keeps the original as argument."""
    while error is not None:
        yield error
        inner = error.args[0] if error.args else None
        error = inner if isinstance(inner, BaseException) else error.__cause__
