"""What a request over HTTP passes before it is looked at: who sends it, may that one, and how often (R59, R70)."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import ASGIApp

from .configuration import ConfigurationError
from .metrics import RefusedRequests
from .probes import is_open
from .rate_limit import RateLimit, RateLimitConfig, RateLimited
from .trusted_proxies import TrustedProxies

logger = logging.getLogger(__name__)


class Asking(Protocol):
    """`Authentication`; projects without it do not have that module."""

    def before(
        self, app: ASGIApp, limit: RateLimit | None, *, refused: RefusedRequests, is_open: Callable[[str], bool]
    ) -> ASGIApp:
        """The application in front of `app`."""


@dataclass(frozen=True, kw_only=True)
class Entrance:
    """How the server is entered.

    Args:
        authentication: What a client has to show; None lets everybody in.
        wanted: The setting that would have made it, where the server is meant to have one.
        allow_unauthenticated: Whether to serve without it beyond this machine, or where it is `wanted`.
        rate_limit: How often a client may ask; None for as often as it likes.
        trusted_proxies: Addresses and ranges whose word on who asks is taken.
        refused: Counts who is not let in; `ReliableServer.refused_requests` shows it.
        settings_prefix: What the variables of settings begin with, for texts.
    """

    authentication: Asking | None = None
    wanted: str = ""
    allow_unauthenticated: bool = False
    rate_limit: RateLimitConfig | None = None
    trusted_proxies: Sequence[str] = ()
    refused: RefusedRequests = field(default_factory=RefusedRequests)
    settings_prefix: str = ""

    def check(self, host: str, address: str) -> None:
        """Refuse to let everybody in where nobody has said so.

        Args:
            host: The setting, for texts.
            address: What is really listened on: a name may stand for one thing now and for another a moment later.

        Raises:
            ConfigurationError: The server would ask nobody who he is; names the settings.
        """
        if self.authentication is not None:
            return
        is_local = is_loopback(address)
        if not self.allow_unauthenticated and (self.wanted or not is_local):
            raise ConfigurationError(self._refusal(host))
        if not is_local:
            logger.warning(
                "everybody who reaches this address may call: there is no authentication", extra={"host": host}
            )

    def _refusal(self, host: str) -> str:
        instead = f"{self.settings_prefix}HTTP_ALLOW_UNAUTHENTICATED=true"
        if self.wanted:
            return f"{self.settings_prefix}{self.wanted} is not set: set it, or {instead} to let everybody in."
        return (
            f"{self.settings_prefix}HTTP_HOST={host} is reached from other machines, and nobody is asked who he is: "
            f"set it to 127.0.0.1, or {instead} to let everybody in."
        )

    def buckets(self) -> RateLimit | None:
        """What counts how often each client asks; None where nobody counts."""
        return None if self.rate_limit is None else RateLimit(self.rate_limit)

    def before(self, app: ASGIApp, limit: RateLimit | None) -> ASGIApp:
        """The application in front of `app`; `limit` is what `buckets` gave."""
        if limit is not None:
            app = RateLimited(app, limit, refused=self.refused, is_open=is_open)
        if self.authentication is not None:
            app = self.authentication.before(app, limit, refused=self.refused, is_open=is_open)
        return TrustedProxies(app, self.trusted_proxies) if self.trusted_proxies else app


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches it; never so for what is no address."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback
