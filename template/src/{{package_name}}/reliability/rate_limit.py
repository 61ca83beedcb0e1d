"""How often one client may ask over HTTP (R59).

A client is whoever its token names, else its address. Each has a bucket that fills evenly and holds a burst; who asks
with an empty one gets status 429 and is told when to come back. One number for each client is all that is kept, and of
no more than 10,000 of them: beyond that the one that was not heard of for the longest time is forgotten.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Self

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import principal_components
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .bounds import bounded, check_bounds
from .configuration import LEAST_PER_MINUTE
from .metrics import RefusedRequests

_MAX_CLIENTS = 10_000
_ONE_SITE = 64
"""Bits of an IPv6 address that one customer of a provider has for itself: what follows is free to choose."""


@dataclass(frozen=True, kw_only=True)
class RateLimitConfig:
    """What one client may do.

    Raises:
        ValueError: A value is beyond its limits.
    """

    per_minute: float = bounded(6000, LEAST_PER_MINUTE, 100_000_000)
    burst: int = bounded(200, 1, 1_000_000)
    """Requests at once, after a rest."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @classmethod
    def of(cls, per_minute: float, *, burst: int) -> Self | None:
        """As the settings say it, where 0 is no limit."""
        return cls(per_minute=per_minute, burst=burst) if per_minute else None


class RateLimit:
    """The buckets of all clients.

    A bucket is kept as the time at which it will be full again: the "generic cell rate algorithm".

    Args:
        config: See `RateLimitConfig`.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        config: RateLimitConfig = RateLimitConfig(),  # noqa: B008 - frozen
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval_s = 60 / config.per_minute
        self._burst_s = self._interval_s * config.burst
        self._clock = clock
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()
        self._spent: Counter[Hashable] | None = None

    def spend(self, client: Hashable) -> float:
        """Take one request from the client's bucket: 0, or the seconds after which there is one. That takes none."""
        now = self._clock()
        full_at = max(now, self._full_at.get(client, now)) + self._interval_s
        wait_s = full_at - now - self._burst_s
        if wait_s > self._interval_s * _ROUNDING:
            if client in self._full_at:  # heard of: no other client's arrival gives it a full bucket
                self._full_at.move_to_end(client)
            return wait_s
        self._keep(client, full_at)
        if self._spent is not None:
            self._spent[client] += 1
        return 0

    def charge(self, client: Hashable, requests: int) -> None:
        """Take what the client has got from another process that serves the same clients, if need be on credit."""
        now = self._clock()
        self._keep(client, max(now, self._full_at.get(client, now)) + requests * self._interval_s)

    def spent(self) -> list[tuple[Hashable, int]]:
        """What each client has got here since this was asked the last time; nothing the first time."""
        spent, self._spent = self._spent, Counter()
        return list((spent or {}).items())

    def _keep(self, client: Hashable, full_at: float) -> None:
        self._full_at[client] = full_at
        self._full_at.move_to_end(client)
        if len(self._full_at) > _MAX_CLIENTS:
            self._full_at.popitem(last=False)


_ROUNDING = 1e-6
"""Share of a request that a sum of floats may be off by."""


class RateLimited:
    """The ASGI application that limits the clients of another one.

    Args:
        app: What is limited.
        limit: The buckets.
        refused: Counts whom it refuses.
        is_open: Tells which paths are never limited.
    """

    def __init__(
        self, app: ASGIApp, limit: RateLimit, *, refused: RefusedRequests, is_open: Callable[[str], bool]
    ) -> None:
        self._app = app
        self._limit = limit
        self._refused = refused
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it."""
        if scope["type"] != "http" or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        wait_s = self._limit.spend(client_of(scope))
        await (too_many_requests(wait_s, self._refused) if wait_s else self._app)(scope, receive, send)


def client_of(scope: Scope) -> Hashable:
    """Who asks: the principal of its token, or else where it asks from."""
    user = scope.get("user")
    return principal_components(user.access_token) if isinstance(user, AuthenticatedUser) else site_of(scope)


def site_of(scope: Scope) -> str:
    """The address that a request comes from; of IPv6 the part that a client cannot choose."""
    text: str = (scope.get("client") or [""])[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    if address.version == 4:
        return text
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address), _ONE_SITE), strict=False))


def too_many_requests(wait_s: float, refused: RefusedRequests) -> Response:
    """The refusal, which is counted."""
    refused.rate_limited += 1
    return PlainTextResponse("Too many requests.", 429, {"Retry-After": str(math.ceil(wait_s))})
