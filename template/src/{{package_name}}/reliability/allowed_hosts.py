"""Which servers may be asked over HTTP, by name and by address (R7).

A URL is held against the list before anything is sent, and so is every redirect. A name says little, because whoever
owns it decides where it points: so the addresses that it resolves to are held against the list as well, and only one
that passed is connected to. That keeps a model, or a page that it has read, away from the machine itself, from its
neighbours, and from the metadata service of the cloud that it runs in.

A URL is parsed once, by the parser that the connection is made with: two parsers that do not agree about where a host
ends are how such lists are got around.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self

import httpx2

from .errors import HostNotAllowed

Address = IPv4Address | IPv6Address

_PATTERN = re.compile(
    r"(?:(?P<scheme>https?)://)?(?:\*|(?P<below>\*\.)?(?P<name>\[[^\]]+\]|[^*:/?#@\[\]\s]+))(?::(?P<port>[0-9]{1,5}|\*))?"
)
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""A name that ends like this is an IPv4 address to some resolvers: `0x7f.1`, `2130706433`."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PORTS = range(1, 65536)
_SHOWN_CHARACTERS = 100

_INTERNAL = [
    *map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8")),
    *map(ip_network, ("fc00::/7", "::1/128")),
]
_METADATA = [
    *map(ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254")),
]
"""They hand out credentials. The best known of them, 169.254.169.254, is link-local and refused as such."""
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


class AllowedHosts:
    """The servers that may be asked; all others are refused.

    A pattern is `[scheme://]host[:port]`. The scheme is `https` unless `http://` is written; the port is the scheme's
    own unless one is given, and `:*` is any. The host is one of these:

    - `api.example.com`, `http://localhost:8000`, `http://[::1]:8000`: one name or address. Somebody has written it
      down, so it may be internal (private or loopback); but a name never leads to a link-local address or to a
      metadata service.
    - `*.example.com`: every name below it, at public addresses.
    - `*`: everything that is public.

    Args:
        patterns: At least one.

    Raises:
        ValueError: There is none, or one of them is not a pattern.
    """

    def __init__(self, *patterns: str) -> None:
        if not patterns:
            raise ValueError("List at least one allowed host, such as 'api.example.com'.")
        self._patterns = [_pattern(text.strip().lower()) for text in patterns]

    @classmethod
    def of(cls, url: str, *patterns: str) -> Self:
        """The server of `url`, and `patterns`.

        Raises:
            ValueError: As above, or `url` is none.
        """
        try:
            server = _parsed(url)
        except HostNotAllowed as error:
            raise ValueError(str(error)) from None
        return cls(f"{server.scheme}://{server.netloc.decode()}", *patterns)

    def __str__(self) -> str:
        """The list, for people."""
        return ", ".join(pattern.text for pattern in self._patterns)

    def check(self, url: httpx2.URL | str) -> httpx2.URL:
        """Return `url`, parsed, if it may be asked.

        Raises:
            HostNotAllowed: It is no URL of HTTP, it holds a user name or a password, or its host is not on the list.
        """
        url = _parsed(url)
        host = _canonical(url.raw_host.decode())
        port = _DEFAULT_PORTS[url.scheme] if url.port is None else url.port
        shown = f"{url.scheme}://{url.netloc.decode()}"[:_SHOWN_CHARACTERS]
        if not host or port not in _PORTS:
            raise HostNotAllowed(f"'{shown}' does not name a host and a port in the usual way.")
        if not any(pattern.matches(url.scheme, host, port) for pattern in self._patterns):
            raise HostNotAllowed(f"'{shown}' is not an allowed host. Allowed: {self}.")
        if address_of(host) and not self.permits_address(host, port, host):
            raise HostNotAllowed(f"'{shown}' is not a public address.")
        return url

    def permits_address(self, host: str, port: int, address: str) -> bool:
        """Whether a server that `check` has let pass may be asked at `address`, which its host resolved to."""
        host, target = _canonical(host), address_of(address)
        if target is None:
            return False
        if any(pattern.names(host, port) for pattern in self._patterns):
            return str(target) == host or _is_public(target) or _is_internal(target)
        return _is_public(target)


@dataclass(frozen=True)
class _Pattern:
    """One entry of the list; `host` is `.example.com` for every name below, and empty for any host."""

    text: str
    scheme: str
    host: str
    ports: range

    def matches(self, scheme: str, host: str, port: int) -> bool:
        is_one_of_many = not self.host or (self.host.startswith(".") and host.endswith(self.host))
        return scheme == self.scheme and port in self.ports and (is_one_of_many or host == self.host)

    def names(self, host: str, port: int) -> bool:
        """Whether it is about this host alone."""
        return host == self.host and port in self.ports


def _pattern(text: str) -> _Pattern:
    found = _PATTERN.fullmatch(text)
    host = _pattern_host(found["name"], is_below=bool(found["below"])) if found else None
    if found is None or host is None:
        raise ValueError(f"{text!r} is not of the form '[scheme://]host[:port]', such as 'api.example.com'.")
    scheme = found["scheme"] or "https"
    port = found["port"] or str(_DEFAULT_PORTS[scheme])
    if port != "*" and int(port) not in _PORTS:
        raise ValueError(f"{text!r} has no port from 1 to 65535.")
    return _Pattern(text, scheme, host, _PORTS if port == "*" else range(int(port), int(port) + 1))


def _pattern_host(name: str | None, *, is_below: bool) -> str | None:
    """What `_Pattern.host` says; None if the name is neither a name nor an address."""
    if name is None:
        return ""
    try:
        host = _canonical(_parsed(f"http://{name}").raw_host.decode())
    except HostNotAllowed:
        return None
    if not is_below:
        return host or None
    return f".{host}" if host and not address_of(host) else None


def _parsed(url: httpx2.URL | str) -> httpx2.URL:
    try:
        url = httpx2.URL(url)
    except (httpx2.InvalidURL, UnicodeError):
        raise HostNotAllowed("This is not a valid URL.") from None
    if url.scheme not in _DEFAULT_PORTS:
        raise HostNotAllowed("A URL must begin with 'https://' or 'http://'.")
    if url.userinfo:
        raise HostNotAllowed("A URL must not hold a user name or a password; send them in a header.")
    return url


def _canonical(host: str) -> str:
    """The one spelling of a name or an address that all others of it are brought to; empty for anything else."""
    address = address_of(host)
    if address is not None:
        return "" if "%" in host else str(address)  # a zone, as in `fe80::1%eth0`, means something on one machine only
    host = host.lower().removesuffix(".")
    return host if _NAME.fullmatch(host) and not _NUMBER.fullmatch(host) else ""


def server_name(url: httpx2.URL) -> str:
    """`host[:port]` of a URL that `check` has let pass: the same for every spelling of the host."""
    host = _canonical(url.raw_host.decode())
    host = f"[{host}]" if ":" in host else host
    return host if url.port is None else f"{host}:{url.port}"


def address_of(text: str) -> Address | None:
    """The address that `text` spells, out of its IPv6 disguise; None for anything else."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and address not in _METADATA
    carried = address.sixtofour or (IPv4Address(int(address) % 2**32) if address in _NAT64 else None)
    if carried is not None:  # a gateway unpacks it and asks that one
        return _is_public(carried)
    return address.is_global and address in _GLOBAL_UNICAST and address not in _METADATA


def _is_internal(address: Address) -> bool:
    return any(address in network for network in _INTERNAL) and address not in _METADATA
