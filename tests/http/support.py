"""What the tests against real servers share: a client with short limits, and whether anything was lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.dependency import Dependency, DependencyLimits
from reliability.http_client import HttpClient, HttpLimits
from reliability.retry import RetryConfig

from tests.unit.support import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support_proxy import FaultProxy

SHORT = HttpLimits(connect_timeout_s=0.5, read_timeout_s=0.3)
"""Long enough for a busy machine, short enough for a test."""


def api(
    *,
    attempts: int = 1,
    breaker: CircuitBreakerConfig | None = None,
    clock: Callable[[], float] = time.monotonic,
    **limits: Any,
) -> Dependency:
    """A dependency that does not retry, and whose breaker stays closed, unless the test says otherwise."""
    return Dependency(
        "api",
        DependencyLimits(
            retry=RetryConfig(attempts=attempts, wait_initial_s=0.001),
            circuit_breaker=breaker or CircuitBreakerConfig(minimum_number_of_calls=1000, sliding_window_size=1000),
            **limits,
        ),
        clock=clock,
    )


def client_of(port: int, *, dependency: Dependency | None = None, **options: Any) -> HttpClient:
    return HttpClient(dependency or api(), base_url=f"http://127.0.0.1:{port}", **options)


async def flat(client: HttpClient, proxy: FaultProxy | None = None, *, connections: int) -> None:
    """Nothing is in use, and just as many connections are left, here and at the other end."""
    statistics = client.statistics()
    assert (statistics.connections, statistics.idle_connections) == (connections, connections)
    transport: Any = client._transport
    assert transport is None or transport._pool._requests == []
    if proxy is not None:
        await until(lambda: proxy.open == connections)
