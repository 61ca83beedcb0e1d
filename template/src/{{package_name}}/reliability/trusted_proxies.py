"""Who really asks, when proxies of ours stand in between (R70).

A proxy says in `X-Forwarded-For` for whom it asks, and in `X-Forwarded-Proto` over what. Anybody can send the same: so
both are believed of the addresses alone that are listed, and of each hop only while the one after it is. `Forwarded`
and `X-Real-IP` are not looked at.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_SCHEMES = ("http", "https")
_MAPPED_BITS = 96
"""In front of an IPv4 address that is written as one of IPv6."""


class TrustedProxies:
    """The ASGI application that tells another one who its client is.

    Args:
        app: The other one.
        proxies: Addresses and ranges of addresses, such as `10.0.0.0/8`.

    Raises:
        ValueError: One of them is neither.
    """

    def __init__(self, app: ASGIApp, proxies: Iterable[str]) -> None:
        self._app = app
        self._networks = [network_in(proxy) for proxy in proxies]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, with its real client in its scope."""
        peer = scope.get("client")
        if scope["type"] == "http" and peer and self._trusts(address_in(peer[0])):
            headers = Headers(scope=scope)
            client = self.client_of(peer[0], headers.getlist("x-forwarded-for"))
            scheme = ",".join(headers.getlist("x-forwarded-proto")).rpartition(",")[2].strip().lower()
            scope["client"] = (client, 0)  # in place: the connection looks into this very scope
            if scheme in _SCHEMES:
                scope["scheme"] = scheme
        await self._app(scope, receive, send)

    def client_of(self, peer: str, forwarded_for: Iterable[str]) -> str:
        """The last address of the chain that is not one of ours: what stands before it may be invented.

        Args:
            peer: Whom the connection is from.
            forwarded_for: Every value of `X-Forwarded-For`, in order.
        """
        client = peer
        hops = [hop.strip() for value in forwarded_for for hop in value.split(",")]
        while hops and self._trusts(address_in(client)):
            address = address_in(hops.pop())
            if address is None:  # nobody can say where that is: the one who sent it is the last that is known
                break
            client = str(address)
        return client

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def network_in(proxy: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """The addresses that are meant, out of their IPv6 disguise, as those of hops are.

    Raises:
        ValueError: It is neither an address nor a range.
    """
    network = ipaddress.ip_network(proxy)
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - _MAPPED_BITS))


def address_in(hop: str) -> Address | None:
    """The address that a hop names, with a port or without, out of its IPv6 disguise; None for anything else."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        address = ipaddress.ip_address(hop)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address
