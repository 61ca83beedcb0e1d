"""Which servers may be asked, by name and by address: rule R7."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reliability.allowed_hosts import AllowedHosts
from reliability.errors import HostNotAllowed, ToolFailure

if TYPE_CHECKING:
    from collections.abc import Callable

PUBLIC = "93.184.216.34"
FORBIDDEN = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254"),  # noqa: S104
    *("169.254.1.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.168.0.1"),
    *("192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("100.100.100.200", "168.63.129.16"),
    *("::", "::1", "::2", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "ff02::1"),
    *("100::1", "2001:db8::1", "2001::1", "::127.0.0.1", "64:ff9b:1::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),  # IPv4, mapped
    *("fc00::5db8:d822", "fe80::5db8:d822"),  # no gateway reads the public address at their end
    *("64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b::10.0.0.1"),  # through NAT64
    *("2002:7f00:1::", "2002:a9fe:a9fe::", "2002:c0a8:1::1"),  # through 6to4
]
INTERNAL = [
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254"),
    *("::1", "fc00::1", "fd12:3456::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1"),
]
NEVER = [address for address in FORBIDDEN if address not in INTERNAL and not address.startswith("fc00:")]


def allows(hosts: AllowedHosts, url: str) -> bool:
    try:
        hosts.check(url)
    except HostNotAllowed:
        return False
    return True


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


# Patterns


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        (
            "api.example.com",
            ["https://api.example.com", "https://api.example.com/v1?q=1#x", "HTTPS://API.Example.COM:443/"],
            [
                *("http://api.example.com", "https://api.example.com:8443", "https://example.com"),
                *("https://x.api.example.com", "https://api.example.com.evil.com", "https://evilapi.example.com"),
            ],
        ),
        ("http://api.example.com", ["http://api.example.com:80/"], ["https://api.example.com"]),
        ("http://localhost:8000", ["http://localhost:8000/x"], ["http://localhost", "https://localhost:8000"]),
        ("api.example.com:8443", ["https://api.example.com:8443"], ["https://api.example.com"]),
        (
            "api.example.com:*",
            ["https://api.example.com", "https://api.example.com:1", "https://api.example.com:65535"],
            ["http://api.example.com", "https://api.example.com:0", "https://api.example.com:65536"],
        ),
        (
            "*.example.com",
            ["https://a.example.com", "https://a.b.example.com"],
            ["https://example.com", "https://aexample.com", "https://a.example.com:444", "http://a.example.com"],
        ),
        (
            "*",
            ["https://example.com", "https://localhost", f"https://{PUBLIC}"],
            ["http://example.com", "https://example.com:8443", "https://127.0.0.1", "https://[::1]"],
        ),
        ("http://*:*", ["http://example.com:1234"], ["https://example.com"]),
        ("127.0.0.1", ["https://127.0.0.1", "https://[::ffff:127.0.0.1]"], ["https://127.0.0.2", "https://127.1"]),
        ("http://[::1]:8000", ["http://[::1]:8000", "http://[0:0:0:0:0:0:0:1]:8000"], ["http://[::2]:8000"]),
        ("https://169.254.169.254", ["https://169.254.169.254"], []),
        ("bücher.example", ["https://bücher.example", "https://xn--bcher-kva.example"], ["https://bucher.example"]),
        ("  API.Example.com. ", ["https://api.example.com", "https://api.example.com."], []),
        ("my_service", ["https://my_service"], []),
    ],
)
def test_r7_a_pattern_allows_what_it_names_and_nothing_else(
    pattern: str, allowed: list[str], refused: list[str]
) -> None:
    hosts = AllowedHosts(pattern)
    assert [url for url in allowed if not allows(hosts, url)] == []
    assert [url for url in refused if allows(hosts, url)] == []


@pytest.mark.parametrize(
    "pattern",
    [
        *("", " ", "://", "https://", "ftp://x", "a b", "x/y", "x?y", "x#y", "u@x", "**", "a*", "*a", "*.", "a.*.b"),
        *("*.*", "x:", "x:y", "x:0", "x:65536", "x:1:2", "::1", "[::1", "[x]", "[fe80::1%eth0]", "*.127.0.0.1", "*.1"),
        *("-:x", "a..b", "x" * 64, ".".join(["x" * 60] * 5), "1.2.3", "0x7f.1", "2130706433", "x%41", "\x00", "é" * 70),
    ],
)
def test_a_pattern_that_is_none_is_refused_at_once(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"is not of the form|has no port"):
        AllowedHosts("example.com", pattern)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^List at least one allowed host, such as 'api\.example\.com'\.$"):
        AllowedHosts()


def test_the_longest_name_is_a_name() -> None:
    longest = ".".join(["x" * 63] * 3 + ["y" * 61])
    assert len(longest) == 253
    assert allows(AllowedHosts(longest), f"https://{longest}")
    assert not allows(AllowedHosts("*"), f"https://{longest}y")


def test_the_server_of_a_url_and_more() -> None:
    hosts = AllowedHosts.of("http://Localhost:8000/v1?x#y", "*.example.com")
    assert str(hosts) == "http://localhost:8000, *.example.com"
    assert str(AllowedHosts.of("https://b\u00fccher.example:443")) == "https://xn--bcher-kva.example"


@pytest.mark.parametrize("url", ["", "api.example.com", "https://user:secret@api.example.com", "https://"])
def test_a_url_without_a_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|is not of the form") as caught:
        AllowedHosts.of(url)
    assert "secret" not in str(caught.value)


def test_every_pattern_of_a_list_counts() -> None:
    hosts = AllowedHosts("a.example", "http://b.example")
    assert allows(hosts, "https://a.example")
    assert allows(hosts, "http://b.example")
    assert str(hosts) == "a.example, http://b.example"


# URLs


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "must begin"),
        ("good.example", "must begin"),
        ("//good.example", "must begin"),
        ("/path", "must begin"),
        ("ftp://good.example", "must begin"),
        ("file:///etc/passwd", "must begin"),
        ("javascript:alert(1)", "must begin"),
        ("https:///path", "usual way"),
        ("https://", "usual way"),
        ("https://good.example:0", "usual way"),
        ("https://good.example:65536", "usual way"),
        ("https://good.example:-1", "usual way"),
        ("https://good.example:x", "not a valid URL"),
        ("https://user@good.example", "user name or a password"),
        ("https://user:secret@good.example", "user name or a password"),
        ("https://good.example:secret@evil.example", "user name or a password"),
        ("https://evil.example#@good.example", "not an allowed host"),
        ("https://evil.example?@good.example", "not an allowed host"),
        ("https://evil.example/@good.example", "not an allowed host"),
        ("https://good.example\\@evil.example", "user name or a password"),
        ("https://evil.example\\.good.example", "usual way"),
        ("https://good.example%00.evil.example", "usual way"),
        ("https://good.example%2eevil", "usual way"),
        ("https://good%2eexample", "usual way"),
        ("https://good.example\n", "not a valid URL"),
        ("https://good.example\t.evil", "not a valid URL"),
        ("https://good.example ", "usual way"),
        (" https://good.example", "must begin"),
        ("https://good.example,evil.example", "usual way"),
        ("https://[fe80::1%25eth0]", "valid URL|usual way"),
        ("https://[fe80::1%eth0]", "usual way"),
        ("https://good.example..", "usual way"),
        ("https://.good.example", "usual way"),
        ("https://good.example/\ud800", "not a valid URL"),
        ("https://" + "x" * 100_000, "not a valid URL"),
    ],
)
def test_r7_a_url_that_could_be_read_in_two_ways_is_refused(url: str, why: str) -> None:
    with pytest.raises(HostNotAllowed, match=why) as caught:
        AllowedHosts("good.example").check(url)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, ToolFailure)  # the caller's mistake: no fallback, and no breaker counts it
    assert not caught.value.retryable
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "host",
    [
        *("2130706433", "017700000001", "0x7f000001", "0x7f.1", "0x7f.0.0.1", "127.1", "127.0.1", "0177.0.0.1"),
        *(
            "127.0.0.01",
            "127.0.0.1.",
            "127.0.0.256",
            "1.1.1.1.1",
            "127.0.0.0x1",
            "0x",
            "x.0x",
            "\uff11\uff12\uff17.0.0.1",
        ),
        *("127。0。0。1", "①27.0.0.1", "[::127.1]", "[::ffff:7f00:1]", "[::ffff:127.0.0.1]", "[::1]", "localhost%00"),
    ],
)
def test_r7_no_spelling_of_an_internal_address_is_public(host: str) -> None:
    assert not allows(AllowedHosts("*", "http://*:*", "*:*"), f"https://{host}")
    assert not allows(AllowedHosts("*", "http://*:*", "*:*"), f"http://{host}:8080")


@pytest.mark.parametrize("address", FORBIDDEN)
def test_r7_an_address_that_is_not_public_is_refused_unless_it_is_named(address: str) -> None:
    url = f"https://{bracketed(address)}"
    assert not allows(AllowedHosts("*"), url)
    assert allows(AllowedHosts("*", url), url)


def test_the_url_that_was_checked_is_given_back_parsed() -> None:
    url = AllowedHosts("bücher.example:*").check("https://Bücher.example:8443/x?y=1")
    assert (url.raw_host, url.port, url.raw_path) == (b"xn--bcher-kva.example", 8443, b"/x?y=1")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://x.example:x", "This is not a valid URL."),
        ("x.example", "A URL must begin with 'https://' or 'http://'."),
        ("https://u:p@x.example", "A URL must not hold a user name or a password; send them in a header."),
        ("https://x.example:8443/p?q", "'https://x.example:8443' is not an allowed host. Allowed: a.example, *:444."),
        ("https://127.0.0.1:444/p?q", "'https://127.0.0.1:444' is not a public address."),
        ("https://127.1:444/p?q", "'https://127.1:444' does not name a host and a port in the usual way."),
    ],
)
def test_a_refusal_says_what_and_why_but_nothing_after_the_host(url: str, text: str) -> None:
    with pytest.raises(HostNotAllowed) as caught:
        AllowedHosts("a.example", "*:444").check(url)
    assert str(caught.value) == text


# Addresses of names


@pytest.mark.parametrize("address", FORBIDDEN)
@pytest.mark.parametrize("pattern", ["*", "*.example.com", "http://api.example.com:81", "other.example.com"])
def test_r7_a_name_that_is_not_named_leads_to_public_addresses_only(pattern: str, address: str) -> None:
    hosts = AllowedHosts(pattern)
    assert not hosts.permits_address("api.example.com", 443, address)
    assert hosts.permits_address("api.example.com", 443, PUBLIC)
    assert hosts.permits_address("api.example.com", 443, "2606:2800:220:1:248:1893:25c8:1946")


@pytest.mark.parametrize(
    "address", ["64:ff9b::5db8:d822", "2002:5db8:d822::1", "::ffff:93.184.216.34", "2606:2800::a00:1"]
)
def test_a_public_address_of_ipv6_is_public_whatever_it_looks_like(address: str) -> None:
    assert AllowedHosts("*").permits_address("api.example.com", 443, address)


@pytest.mark.parametrize("address", INTERNAL)
def test_a_name_that_is_named_may_be_internal(address: str) -> None:
    hosts = AllowedHosts("http://backend:8080", "*:*")
    assert hosts.permits_address("backend", 8080, address)
    assert hosts.permits_address("Backend.", 8080, address)
    assert not hosts.permits_address("backend", 22, address)
    assert not hosts.permits_address("frontend", 8080, address)


@pytest.mark.parametrize("address", NEVER)
def test_r7_even_a_name_that_is_named_never_leads_to_metadata_or_nowhere(address: str) -> None:
    assert not AllowedHosts("http://backend:8080").permits_address("backend", 8080, address)


@pytest.mark.parametrize("address", ["", "backend", "127.1", "1.2.3.4.5", "fe80::1%eth0"])
def test_what_is_no_plain_address_is_not_permitted(address: str) -> None:
    assert not AllowedHosts("http://backend:8080", "*:*").permits_address("backend", 8080, address)


def test_a_named_address_is_permitted_as_itself_alone() -> None:
    hosts = AllowedHosts("169.254.169.254")
    assert hosts.permits_address("169.254.169.254", 443, "169.254.169.254")
    assert hosts.permits_address("169.254.169.254", 443, "::ffff:169.254.169.254")
    assert not hosts.permits_address("169.254.169.254", 443, "169.254.169.253")


# Any spelling at all

numbers: st.SearchStrategy[Callable[[int], str]] = st.sampled_from(
    [str, hex, lambda n: f"0{n:o}", lambda n: f"0X{n:X}", lambda n: f"0x00{n:x}"]
)


@st.composite
def ipv4_spellings(draw: st.DrawFn) -> str:
    """An IPv4 address as `inet_aton` reads it: 1 to 4 parts, each in any base, the last one holding the rest."""
    parts = draw(st.integers(1, 4))
    address = draw(st.integers(0, 2**32 - 1) | st.sampled_from([int(ipaddress.ip_address("127.0.0.1")), 0xA9FEA9FE]))
    head = [(address >> (24 - 8 * n)) & 0xFF for n in range(parts - 1)]
    rest = address & ((1 << (8 * (5 - parts))) - 1)
    spelled = ".".join(draw(numbers)(number) for number in (*head, rest))
    return spelled + draw(st.sampled_from(["", ".", "。"]))


@given(ipv4_spellings())
@example("0x7f.1")
@example("127.0.0.1")
def test_r7_whatever_a_resolver_makes_of_a_spelling_stays_public(host: str) -> None:
    hosts = AllowedHosts("*")
    try:
        raw_host = hosts.check(f"https://{host}/").raw_host.decode()
    except HostNotAllowed:
        return
    for info in socket.getaddrinfo(raw_host, 443, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST):
        if hosts.permits_address(raw_host, 443, str(info[4][0])):
            assert ipaddress.ip_address(str(info[4][0])).is_global


@given(
    st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address), st.sampled_from(["::ffff:0:0", "64:ff9b::", "::", "2002::"])
)
def test_r7_ipv6_hides_no_address(address: ipaddress.IPv4Address, network: str) -> None:
    shift = 80 if network == "2002::" else 0
    hidden = ipaddress.IPv6Address(int(ipaddress.IPv6Address(network)) | int(address) << shift)
    if AllowedHosts("*").permits_address("api.example.com", 443, str(hidden)):
        assert address.is_global
        assert not address.is_multicast


@given(st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address))
def test_r7_what_is_permitted_by_wildcard_is_permitted_by_name(address: ipaddress.IPv6Address) -> None:
    if AllowedHosts("*").permits_address("backend", 443, str(address)):
        assert AllowedHosts("backend").permits_address("backend", 443, str(address))


@given(st.text() | st.from_regex(r"https?://[^\s]*\Z"))
def test_any_text_is_allowed_or_refused_and_nothing_else(text: str) -> None:
    hosts = AllowedHosts("*", "http://*:*", "*:*")
    try:
        url = hosts.check(text)
    except HostNotAllowed:
        return
    assert url.scheme in {"http", "https"}
    assert not url.userinfo
    assert url.raw_host
    assert hosts.check(str(url)) == url  # what is sent is what was checked


@given(st.text())
def test_any_pattern_is_taken_or_refused_and_nothing_else(text: str) -> None:
    try:
        hosts = AllowedHosts(text)
    except ValueError:
        return
    assert not allows(hosts, "https://evil.example") or text.strip() in {"*", "https://*", "*:*"}
