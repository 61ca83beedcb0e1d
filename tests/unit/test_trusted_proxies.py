"""Who is believed for whom it asks: rule R70."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reliability.trusted_proxies import TrustedProxies, address_in

OURS = ["10.0.0.0/8", "192.0.2.1", "fd00::/8"]


class Seen:
    scope: dict[str, Any]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope


def chain(peer: str, *values: str, proxies: list[str] = OURS) -> str:
    return TrustedProxies(Seen(), proxies).client_of(peer, values)


@pytest.mark.parametrize(
    ("peer", "values", "client"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # nobody of ours: anybody could say that
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),  # what the client itself invented stands before it
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),  # several headers are one
        ("10.0.0.1", ["198.51.100.1, 10.0.0.7,192.0.2.1"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.9, 10.0.0.8"], "10.0.0.9"),  # all of them are ours: the first
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("fd00::1", ["2001:DB8:0::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, , 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.1, _hidden, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["<script>"], "10.0.0.1"),
    ],
)
def test_r70_the_client_is_the_last_hop_that_is_not_ours(peer: str, values: list[str], client: str) -> None:
    assert chain(peer, *values) == client


@pytest.mark.parametrize("ours", ["::ffff:10.0.0.0/104", "::ffff:10.0.0.1"])
def test_r70_ours_may_be_written_as_ipv6(ours: str) -> None:
    assert chain("10.0.0.1", "198.51.100.1", proxies=[ours]) == "198.51.100.1"
    assert chain("::ffff:10.0.0.1", "198.51.100.1", proxies=[ours]) == "198.51.100.1"
    assert chain("11.0.0.1", "198.51.100.1", proxies=[ours, "::/0"]) == "11.0.0.1"


@given(st.lists(st.text(max_size=20), max_size=5))
def test_r70_what_a_client_invents_never_changes_who_it_is(invented: list[str]) -> None:
    assert chain("10.0.0.1", *invented, "198.51.100.7") == "198.51.100.7"
    assert chain("198.51.100.7", *invented) == "198.51.100.7"


@given(st.text(max_size=60))
def test_r4_no_hop_is_too_strange(text: str) -> None:
    address = address_in(text)
    assert address is None or ipaddress.ip_address(str(address)) == address


@pytest.mark.parametrize("wrong", ["*", "proxy.example.com", "10.0.0.1/8", "10.0.0.0/40", ""])
def test_a_proxy_is_an_address_or_a_range(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        TrustedProxies(Seen(), [wrong])


async def pass_on(peer: tuple[str, int] | None, **headers: str) -> dict[str, Any]:
    seen = Seen()
    listed = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "client": peer, "scheme": "http", "headers": listed}
    await TrustedProxies(seen, OURS)(scope, None, None)  # type: ignore[arg-type]
    assert seen.scope is scope  # the connection looks into this very scope
    return scope


@pytest.mark.anyio
async def test_r70_address_and_scheme_are_taken_from_ours_alone() -> None:
    told = {"x_forwarded_for": "198.51.100.1", "x_forwarded_proto": "HTTPS"}
    scope = await pass_on(("10.0.0.1", 5), **told)
    assert (scope["client"], scope["scheme"]) == (("198.51.100.1", 0), "https")
    scope = await pass_on(("203.0.113.1", 5), **told)
    assert (scope["client"], scope["scheme"]) == (("203.0.113.1", 5), "http")
    assert (await pass_on(None, **told))["client"] is None


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("told", "scheme"), [("http, https", "https"), ("https, http", "http"), ("javascript", "http"), ("", "http")]
)
async def test_r70_the_scheme_is_what_the_last_proxy_says_if_it_is_one(told: str, scheme: str) -> None:
    assert (await pass_on(("10.0.0.1", 5), x_forwarded_proto=told))["scheme"] == scheme


@pytest.mark.anyio
async def test_what_is_no_request_is_passed_on() -> None:
    seen = Seen()
    await TrustedProxies(seen, OURS)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen.scope == {"type": "lifespan"}
