"""The HTTP client without a network: R7 (what is sent where), R44, R47, R51 (what is an answer), R55, R58, R59."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
import tracemalloc
import zlib
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import httpx2
import pytest
from pydantic import BaseModel
from reliability.allowed_hosts import AllowedHosts
from reliability.circuit_breaker import State
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.deadlines import deadline
from reliability.dependency import Dependency, DependencyLimits
from reliability.dependency_group import DependencyGroup
from reliability.errors import (
    CircuitOpen,
    ConnectionBroken,
    DeadlineExceeded,
    DependencyBusy,
    DependencyError,
    DependencyFailed,
    DependencyTimeout,
    HostNotAllowed,
    ShuttingDown,
    ToolFailure,
)
from reliability.http_client import HttpClient, HttpLimits
from reliability.http_response import HttpResponse, HttpStatusError
from reliability.retry import RetryConfig

from tests.unit.support import virtual_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

BASE = "https://api.test/v1"
SECRET = "s3cret"
NOW = 1_800_000_000.0


class Upstream(httpx2.AsyncBaseTransport):
    """Answers what the test tells it to, one after the other; the last answer again and again.

    An answer is a response, an exception to raise, or a function of the request.
    """

    def __init__(
        self, *answers: httpx2.Response | Exception | Callable[[httpx2.Request], Awaitable[httpx2.Response]]
    ) -> None:
        self.answers = list(answers or [httpx2.Response(200, json={})])
        self.requests: list[httpx2.Request] = []
        self.closed = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx2.Response):
            return answer
        return await answer(request)

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed += 1

    @property
    def asked(self) -> list[str]:
        return [f"{request.method} {request.url}" for request in self.requests]


class Pieces(httpx2.AsyncByteStream):
    """A body that arrives in pieces, and knows whether it was given back."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.taken = 0
        self.is_closed = False

    async def __aiter__(self) -> Any:
        for piece in self.pieces:
            self.taken += 1
            yield piece

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.is_closed = True


async def hang(_: httpx2.Request) -> httpx2.Response:
    await anyio.sleep_forever()
    raise AssertionError


def dependency(*, attempts: int = 1, **limits: Any) -> Dependency:
    retry = RetryConfig(attempts=attempts, wait_initial_s=0.1)
    return Dependency("api", DependencyLimits(retry=retry, **limits))


def client(upstream: Upstream, *, attempts: int = 1, **options: Any) -> HttpClient:
    options = {"base_url": BASE, "dependency": dependency(attempts=attempts), **options}
    return HttpClient(transport=upstream, wall_clock=lambda: NOW, **options)


def redirect(location: str, status: int = 302) -> httpx2.Response:
    return httpx2.Response(status, headers={"location": location})


# What is sent


@pytest.mark.parametrize(
    ("base", "url", "sent"),
    [
        ("https://api.test", "items", "https://api.test/items"),
        ("https://api.test", "/items?x=1", "https://api.test/items?x=1"),
        ("https://api.test/v1", "items", "https://api.test/v1/items"),
        ("https://api.test/v1/", "/items", "https://api.test/v1/items"),
        ("https://api.test/v1", "", "https://api.test/v1"),
        ("https://api.test/v1", "https://api.test/other", "https://api.test/other"),
        ("https://api.test/v1", "a..b/c...?x=../y", "https://api.test/v1/a..b/c...?x=../y"),
        *(
            ("https://api.test/v1", url, "")
            for url in (
                "..",
                "../other",
                "a/../../other",
                "/a/..",
                "%2E%2e/other",
                "a%2f..%2f..%2fb",
                "a\\..\\b",
                "..#x",
                "..?x",
            )
        ),
        ("https://api.test/v1", "a:b", ""),
        ("https://api.test/v1", "//evil.test/x", ""),
        ("https://api.test/v1", "https://evil.test/x", ""),
        ("https://api.test/v1", "http://api.test/x", ""),
        ("https://api.test/v1", "ftp://api.test/x", ""),
        ("", "items", ""),
    ],
)
async def test_a_url_without_a_host_is_appended_to_the_base(base: str, url: str, sent: str) -> None:
    upstream = Upstream()
    async with client(upstream, base_url=base, allowed_hosts=AllowedHosts("api.test")) as http:
        if not sent:
            with pytest.raises(HostNotAllowed):
                await http.get(url)
            assert upstream.asked == []
        else:
            answer = await http.get(url)
            assert (upstream.asked, answer.url) == ([f"GET {sent}"], sent)


async def test_parameters_are_added_to_those_of_the_url() -> None:
    upstream = Upstream()
    async with client(upstream) as http:
        await http.get("items?a=1", params={"q": "x y&z=1", "n": 2})
    assert str(upstream.requests[0].url) == f"{BASE}/items?a=1&q=x+y%26z%3D1&n=2"


@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete"])
async def test_every_method_has_a_name(method: str) -> None:
    upstream = Upstream()
    async with client(upstream) as http:
        await getattr(http, method)("items", params={"a": 1})
        await http.request(method, "items", params={"a": 1})
    assert upstream.asked == [f"{method.upper()} {BASE}/items?a=1"] * 2


@pytest.mark.parametrize(
    ("options", "content_type", "body"),
    [
        ({"json": {"ä": [1, None]}}, "application/json", '{"ä":[1,null]}'.encode()),
        ({"json": 0}, "application/json", b"0"),
        ({"data": {"a": "x y"}}, "application/x-www-form-urlencoded", b"a=x+y"),
        ({"content": "text"}, None, b"text"),
        ({"content": b"\x00", "headers": {"Content-Type": "application/x"}}, "application/x", b"\x00"),
        ({}, None, b""),
    ],
)
async def test_a_body_is_json_a_form_or_bytes(options: Any, content_type: str | None, body: bytes) -> None:
    upstream = Upstream()
    async with client(upstream) as http:
        await http.post("items", **options)
    sent = upstream.requests[0]
    assert (sent.headers.get("content-type"), sent.content) == (content_type, body)
    assert sent.headers["content-length"] == str(len(body))


async def test_headers_of_a_request_come_before_those_of_the_client_and_those_before_ours() -> None:
    upstream = Upstream()
    async with client(upstream, headers={"User-Agent": "ours/1", "X-Key": "k"}) as http:
        await http.get("items", headers={"x-key": "other", "Accept": "text/plain"})
    headers = upstream.requests[0].headers
    assert (headers["user-agent"], headers["x-key"], headers["accept"]) == ("ours/1", "other", "text/plain")
    assert (headers["host"], headers["accept-encoding"]) == ("api.test", "gzip")


async def test_r7_the_clients_headers_go_to_the_server_of_the_base_url_alone() -> None:
    upstream = Upstream()
    hosts = AllowedHosts("api.test", "api.test:8443", "other.test")
    async with client(upstream, headers={"Authorization": SECRET}, allowed_hosts=hosts) as http:
        await http.get("https://other.test/x")
        await http.get("https://api.test:8443/x")
        await http.get("https://API.test:443/x")
    assert ["authorization" in request.headers for request in upstream.requests] == [False, False, True]


async def test_without_a_base_url_the_clients_headers_go_to_every_server() -> None:
    upstream = Upstream()
    async with client(upstream, base_url="", headers={"X-Key": "k"}, allowed_hosts=AllowedHosts("other.test")) as http:
        await http.get("https://other.test/x")
    assert upstream.requests[0].headers["x-key"] == "k"


@pytest.mark.parametrize(
    "options",
    [
        *(
            {"headers": {name: "x"}}
            for name in ("Host", "content-length", "Transfer-Encoding", "CONNECTION", "upgrade")
        ),
        *({"headers": {name: "x"}} for name in ("accept-encoding", "expect", "te", "trailer")),
        *({"headers": {name: "x"}} for name in ("", "a b", "a:b", "ä", "a\r\n", "a\x00")),
        *({"headers": {"x": value}} for value in (f"a\r\nx: {SECRET}", "a\nb", "ä", "\x00", "\x7f", "\ud800")),
        {"json": float("nan")},
        {"json": "\ud800"},
        {"content": "\ud800"},
        {"params": {"q": "\ud800"}},
        {"params": {"q": "x" * 70_000}},
    ],
)
async def test_r4_a_request_that_cannot_be_sent_is_the_callers_mistake(options: Any) -> None:
    upstream, api = Upstream(), dependency()
    async with client(upstream, dependency=api) as http:
        with pytest.raises(ToolFailure, match=r"^The (header|request)|^Out of range") as caught:
            await http.post("items", **options)
    assert upstream.requests == []
    assert api.statistics().totals.calls == 0
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "", "GET ", "G\r\nET", "QUERY"])
async def test_r4_other_methods_are_refused(method: str) -> None:
    upstream = Upstream()
    async with client(upstream) as http:
        with pytest.raises(ToolFailure, match="must be one of DELETE, GET"):
            await http.request(method, "items")
    assert upstream.requests == []


async def test_spaces_around_a_headers_value_are_not_sent() -> None:
    upstream = Upstream()
    async with client(upstream) as http:
        await http.get("items", headers={"x-key": " k\t"})
    assert upstream.requests[0].headers["x-key"] == "k"


# What is an answer, and what is a failure


@pytest.mark.parametrize("status", [200, 201, 204, 304, 400, 401, 403, 404, 408, 409, 422])
async def test_r55_every_status_but_5xx_and_429_is_an_answer(status: int) -> None:
    upstream, api = Upstream(httpx2.Response(status, headers={"retry-after": "1"})), dependency(attempts=3)
    async with client(upstream, dependency=api) as http:
        assert (await http.get("items")).status == status
    assert len(upstream.requests) == 1
    assert api.statistics().totals.failures == 0


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(429, True), (500, True), (501, False), (502, True), (503, True), (505, False), (599, True)],
)
async def test_r55_5xx_and_429_are_failures_that_carry_the_answer(status: int, retryable: bool) -> None:
    upstream, api = Upstream(httpx2.Response(status, json={"why": SECRET}, headers={"x-key": SECRET})), dependency()
    async with client(upstream, dependency=api) as http:
        with pytest.raises(HttpStatusError, match=f"'api' answered with status {status} ") as caught:
            await http.get(f"items/{SECRET}?key={SECRET}", headers={"authorization": SECRET})
    error = caught.value
    assert (error.status, error.retryable, error.retry_after_s) == (status, retryable, None)
    assert error.response.json() == {"why": SECRET}
    assert SECRET not in f"{error} {error!r} {error.response!r}"
    assert api.statistics().totals.failures == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("7", 7), (" 7 ", 7), ("0", 0), ("3600", 3600), ("86400", 3600), ("999999999", 3600)),
        (format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True), 90),
        (format_datetime(datetime.fromtimestamp(NOW + 90, timezone(timedelta(hours=5)))), 90),
        (format_datetime(datetime.fromtimestamp(NOW + 90, UTC).replace(tzinfo=None)), 90),
        (format_datetime(datetime.fromtimestamp(NOW - 90, UTC), usegmt=True), 0),
        (format_datetime(datetime.fromtimestamp(NOW + 90_000, UTC), usegmt=True), 3600),
        *(("", None), ("-1", None), ("1.5", None), ("soon", None), ("1e3", None), ("9" * 5000, None), ("٣", None)),
        *(("Mon, 99 Foo 2027 00:00:00 GMT", None), ("Mon, 01 Jan 99999999999 00:00:00 GMT", None), ("x" * 5000, None)),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_r59_retry_after_is_seconds_or_a_date_and_has_a_limit(
    text: str, seconds: float | None, status: int
) -> None:
    headers = httpx2.Headers([(b"retry-after", text.encode())])
    async with client(Upstream(httpx2.Response(status, headers=headers))) as http:
        with pytest.raises(HttpStatusError) as caught:
            await http.get("items")
    assert caught.value.retry_after_s == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="there is no time zone to set")
async def test_r59_a_date_without_a_zone_is_in_utc_wherever_the_server_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        date = format_datetime(datetime.fromtimestamp(NOW + 90, UTC).replace(tzinfo=None))
        async with client(Upstream(httpx2.Response(503, headers={"retry-after": date}))) as http:
            with pytest.raises(HttpStatusError) as caught:
                await http.get("items")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert caught.value.retry_after_s == pytest.approx(90)


@pytest.mark.parametrize(
    ("raised", "error", "text", "retryable"),
    [
        (httpx2.ConnectTimeout(SECRET), DependencyTimeout, "within 2 s", True),
        (httpx2.ReadTimeout(SECRET), DependencyTimeout, "within 3 s", True),
        (httpx2.WriteTimeout(SECRET), DependencyTimeout, "within 3 s", True),
        (httpx2.PoolTimeout(SECRET), DependencyBusy, "came free within 2 s", True),
        (httpx2.ConnectError(SECRET), ConnectionBroken, "could not be made", True),
        (httpx2.ReadError(SECRET), ConnectionBroken, "was interrupted", True),
        (httpx2.WriteError(SECRET), ConnectionBroken, "was interrupted", True),
        (httpx2.RemoteProtocolError(SECRET), ConnectionBroken, "not HTTP, or is cut off", True),
        (httpx2.ProxyError(SECRET), ConnectionBroken, "was interrupted", True),
        (httpx2.DecodingError(SECRET), DependencyFailed, "cannot be unpacked", False),
        (ConnectionRefusedError(SECRET), ConnectionBroken, "was refused", True),
        (OSError(SECRET), ConnectionBroken, "was interrupted", True),
    ],
)
async def test_r55_transport_errors_are_failures_of_the_dependency(
    raised: Exception, error: type[DependencyError], text: str, retryable: bool
) -> None:
    api = dependency()
    async with client(Upstream(raised), dependency=api, limits=HttpLimits(read_timeout_s=3)) as http:
        with pytest.raises(error, match=text) as caught:
            await http.get("items")
    assert type(caught.value) is error
    assert (caught.value.dependency, caught.value.retryable) == ("api", retryable)
    assert SECRET not in str(caught.value)
    assert api.statistics().totals.failures == (0 if error is DependencyBusy else 1)


async def test_an_error_that_is_no_transports_passes_unchanged() -> None:
    async with client(Upstream(KeyError("bug"))) as http:
        with pytest.raises(KeyError):
            await http.get("items")


# Retries


@virtual_time
@pytest.mark.parametrize(
    ("method", "idempotent", "attempts"),
    [
        *(("GET", None, 3), ("HEAD", None, 3), ("OPTIONS", None, 3), ("PUT", None, 3), ("DELETE", None, 3)),
        *(("POST", None, 1), ("PATCH", None, 1), ("POST", True, 3), ("GET", False, 1)),
    ],
)
async def test_r59_what_may_be_sent_twice_is_retried(method: str, idempotent: bool | None, attempts: int) -> None:
    upstream = Upstream(httpx2.ReadError("x"))
    async with client(upstream, attempts=3) as http:
        with pytest.raises(ConnectionBroken):
            await http.request(method, "items", idempotent=idempotent, content=b"body")
    assert len(upstream.requests) == attempts
    assert {request.content for request in upstream.requests} == {b"body"}


@virtual_time
async def test_r59_a_retry_waits_as_long_as_the_server_asks() -> None:
    upstream = Upstream(httpx2.Response(429, headers={"retry-after": "7"}), httpx2.Response(200))
    began = anyio.current_time()
    async with client(upstream, attempts=3) as http:
        assert (await http.get("items")).status == 200
    assert 7 <= anyio.current_time() - began <= 7 * 1.51  # and a jitter


# Time


@virtual_time
async def test_r47_a_server_that_hangs_is_a_timeout_of_the_attempt() -> None:
    api = dependency(attempt_timeout_s=3)
    async with client(Upstream(hang), dependency=api) as http:
        began = anyio.current_time()
        with pytest.raises(DependencyTimeout):
            await http.get("items")
        with pytest.raises(DependencyTimeout):
            await http.get("items", timeout_s=1)
    assert anyio.current_time() - began == pytest.approx(4)
    assert api.statistics().totals.timeouts == 2


@virtual_time
async def test_r44_the_deadline_of_the_call_is_passed_on() -> None:
    upstream = Upstream()
    limits = HttpLimits(connect_timeout_s=2, read_timeout_s=4)
    async with client(upstream, dependency=dependency(attempt_timeout_s=9), limits=limits) as http:
        await http.get("items")
        with deadline(3):
            await http.get("items")
        with deadline(1):
            await http.get("items")
    sent = [request.extensions["timeout"] for request in upstream.requests]
    assert [(t["connect"], t["read"], t["write"], t["pool"]) for t in sent] == [
        (2, 4, 4, 2),
        pytest.approx((2, 2.85, 2.85, 2)),
        pytest.approx((0.95, 0.95, 0.95, 0.95)),
    ]


@virtual_time
async def test_an_authors_own_scope_is_no_limit_of_the_request() -> None:
    upstream = Upstream()
    async with client(upstream, dependency=dependency(attempt_timeout_s=9)) as http:
        with anyio.move_on_after(0.01):
            await http.get("items")
    assert upstream.requests[0].extensions["timeout"]["connect"] > 1


@virtual_time
async def test_r44_a_timeout_names_the_limit_that_was_in_force() -> None:
    async with client(Upstream(httpx2.ReadTimeout("x")), dependency=dependency(attempt_timeout_s=2)) as http:
        with pytest.raises(DependencyTimeout, match="within 2 s"):
            await http.get("items")


@virtual_time
async def test_the_time_of_an_answer_is_that_of_its_last_request() -> None:
    async def slow(_: httpx2.Request) -> httpx2.Response:
        await anyio.sleep(1)
        return httpx2.Response(200)

    upstream = Upstream(httpx2.ReadError("x"), slow)
    async with client(upstream, attempts=2, clock=anyio.current_time) as http:
        assert (await http.get("items")).elapsed_s == pytest.approx(1)


@virtual_time
async def test_r46_a_cancelled_request_is_given_back_and_counts_nothing() -> None:
    api = dependency()
    async with client(Upstream(hang), dependency=api) as http:
        with anyio.move_on_after(1):
            await http.get("items")
    assert (api.statistics().in_flight, api.statistics().totals.failures) == (0, 0)


# Redirects


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        *((301, "GET", "GET"), (302, "GET", "GET"), (303, "GET", "GET"), (307, "GET", "GET"), (308, "GET", "GET")),
        *(
            (301, "POST", "GET"),
            (302, "POST", "GET"),
            (303, "POST", "GET"),
            (307, "POST", "POST"),
            (308, "POST", "POST"),
        ),
        *((301, "PUT", "PUT"), (302, "PUT", "PUT"), (303, "PUT", "GET"), (303, "HEAD", "HEAD"), (302, "HEAD", "HEAD")),
    ],
)
async def test_a_redirect_is_followed_as_browsers_do(status: int, method: str, then: str) -> None:
    upstream = Upstream(redirect("/moved?x=1", status), httpx2.Response(200))
    async with client(upstream) as http:
        answer = await http.request(method, "items", content=b"body", headers={"content-type": "text/plain"})
    assert upstream.asked == [f"{method} {BASE}/items", f"{then} https://api.test/moved?x=1"]
    assert answer.url == "https://api.test/moved?x=1"
    second = upstream.requests[1]
    assert second.content == (b"body" if then == method else b"")
    assert ("content-type" in second.headers) is (then == method)
    assert second.headers.get("content-length") == ("4" if then == method else None)


async def test_r7_a_redirect_to_another_server_takes_no_keys_along() -> None:
    upstream = Upstream(redirect("https://other.test/x", 307), httpx2.Response(200))
    hosts = AllowedHosts("api.test", "other.test")
    keys = dict.fromkeys(("Authorization", "Cookie", "X-Api-Key", "Proxy-Authorization"), SECRET)
    async with client(upstream, allowed_hosts=hosts, headers=keys) as http:
        await http.post("items", json=1, headers={"Accept": "a/b", "Accept-Language": "de", "X-Other": SECRET})
    sent = upstream.requests[1].headers
    assert SECRET not in str(sent.raw)
    assert dict(sent) == {
        "host": "other.test",
        "accept": "a/b",
        "accept-encoding": "gzip",
        "accept-language": "de",
        "user-agent": "mcp-server",
        "content-type": "application/json",
        "content-length": "1",
    }


async def test_a_redirect_within_the_server_keeps_the_headers() -> None:
    upstream = Upstream(redirect("https://api.test:443/x"), httpx2.Response(200))
    async with client(upstream, headers={"Authorization": SECRET}) as http:
        await http.get("items")
    assert upstream.requests[1].headers["authorization"] == SECRET


@pytest.mark.parametrize(
    ("location", "text"),
    [
        *((url, "must not be asked") for url in ("https://evil.test/", "//evil.test/", "https://127.0.0.1/")),
        *((url, "must not be asked") for url in ("file:///etc/passwd", "https://user:pw@api.test/", "https://[::1/")),
        *((url, "must not be asked") for url in ("https://api.test:99999/", "https://api.test:x", "\x00")),
        ("http://api.test/", "not encrypted"),
    ],
)
async def test_r7_a_redirect_to_where_it_must_not_go_is_the_dependencys_failure(location: str, text: str) -> None:
    upstream, api = Upstream(redirect(location)), dependency(attempts=3)
    hosts = AllowedHosts("api.test", "http://api.test", "*")
    if location == "https://evil.test/" or location.startswith("//"):
        hosts = AllowedHosts("api.test")
    async with client(upstream, dependency=api, allowed_hosts=hosts) as http:
        with pytest.raises(DependencyFailed, match=text) as caught:
            await http.get("items")
    assert len(upstream.requests) == 1
    assert (caught.value.dependency, caught.value.retryable) == ("api", False)
    assert str(caught.value).startswith("The dependency 'api' redirected to ")
    assert api.statistics().totals.failures == 1


async def test_r7_redirects_have_a_limit() -> None:
    upstream = Upstream(redirect("/again"))
    async with client(upstream, limits=HttpLimits(max_redirects=3)) as http:
        with pytest.raises(DependencyFailed, match=r"^The dependency 'api' redirected more than 3 times\.$") as caught:
            await http.get("items")
    assert len(upstream.requests) == 4
    assert (caught.value.dependency, caught.value.retryable) == ("api", False)


async def test_as_many_redirects_as_the_limit_says_are_followed() -> None:
    upstream = Upstream(redirect("/1"), redirect("/2"), httpx2.Response(200))
    async with client(upstream, limits=HttpLimits(max_redirects=2)) as http:
        assert (await http.get("items")).url == "https://api.test/2"


@pytest.mark.parametrize("answer", [redirect("https://evil.test/"), httpx2.Response(302), redirect("/x", 304)])
async def test_a_redirect_that_is_not_followed_is_an_answer(answer: httpx2.Response) -> None:
    async with client(Upstream(answer)) as http:
        response = await http.get("items", follow_redirects=False)
        assert (response.status, response.headers.get("location")) == (
            answer.status_code,
            answer.headers.get("location"),
        )
        if answer.headers.get("location") != "https://evil.test/":
            assert (await http.get("items")).status == answer.status_code


# Bodies


def body(*pieces: bytes, **headers: str) -> tuple[Pieces, httpx2.Response]:
    stream = Pieces(*pieces)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return stream, httpx2.Response(200, headers=names, stream=stream)


GZIPPED = gzip.compress(b"x" * 10)


@pytest.mark.parametrize(
    ("pieces", "encoding", "content"),
    [
        ([b"12345", b"67890"], "", b"1234567890"),
        ([b"1234567890"], "identity", b"1234567890"),
        ([GZIPPED], "gzip", b"x" * 10),
        ([GZIPPED[:5], GZIPPED[5:]], " X-GZIP ", b"x" * 10),
        ([bytes([byte]) for byte in GZIPPED], "gzip", b"x" * 10),
        ([], "gzip", b""),
        ([], "br", b""),
        ([b"", b""], "", b""),
    ],
)
async def test_a_body_up_to_the_limit_is_read_and_unpacked(pieces: list[bytes], encoding: str, content: bytes) -> None:
    stream, answer = body(*pieces, content_encoding=encoding)
    async with client(Upstream(answer), limits=HttpLimits(max_body_bytes=max(10, len(GZIPPED)))) as http:
        assert (await http.get("items")).content == content
    assert stream.is_closed


@pytest.mark.parametrize(
    ("pieces", "encoding", "limit", "text", "taken"),
    [
        ([b"12345", b"67890", b"1", b"more"], "", 10, "more than 10 bytes", 3),
        ([b"x" * 11], "", 10, "more than 10 bytes", 1),
        ([gzip.compress(b"x" * 101)], "gzip", 100, "more than 100 bytes", 1),
        ([gzip.compress(bytes(10_000_000)), b"more"], "gzip", 100_000, "more than 100000 bytes", 1),
        ([GZIPPED, b"x" * 100, b"more"], "gzip", 100, "more than 100 bytes", 2),
        ([GZIPPED[:-1]], "gzip", 100, "cut off", 1),
        ([b"not packed"], "gzip", 100, "cannot be unpacked", 1),
        ([zlib.compress(b"x")], "deflate", 100, "not asked for", 1),
        ([b"x"], "gzip, gzip", 100, "not asked for", 1),
        ([b"x"], "br", 100, "not asked for", 1),
    ],
)
async def test_r7_a_body_over_the_limit_or_out_of_order_is_the_dependencys_failure(
    pieces: list[bytes], encoding: str, limit: int, text: str, taken: int
) -> None:
    stream, answer = body(*pieces, content_encoding=encoding)
    api = dependency()
    async with client(Upstream(answer), dependency=api, limits=HttpLimits(max_body_bytes=limit)) as http:
        with pytest.raises(DependencyFailed, match=text) as caught:
            await http.get("items")
    assert caught.value.dependency == "api"
    assert (stream.taken, stream.is_closed) == (taken, True)
    assert api.statistics().totals.failures == 1


async def test_r7_what_a_packed_body_would_become_is_never_held() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    _, answer = body(bomb, content_encoding="gzip")
    async with client(Upstream(answer), limits=HttpLimits(max_body_bytes=100_000)) as http:
        tracemalloc.start()
        try:
            with pytest.raises(DependencyFailed, match="more than 100000 bytes"):
                await http.get("items")
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()


def response(content: bytes = b"", status: int = 200, **headers: str) -> HttpResponse:
    listed = httpx2.Headers({name.replace("_", "-"): value for name, value in headers.items()})
    return HttpResponse(dependency="api", status=status, headers=listed, content=content, url=BASE, elapsed_s=0)


@pytest.mark.parametrize(
    ("content", "content_type", "text"),
    [
        ("ä€".encode(), "", "ä€"),
        ("ä".encode("latin-1"), "text/plain; charset=ISO-8859-1", "ä"),
        ("ä".encode("utf-16"), 'text/plain; Charset="utf-16"', "ä"),
        (b"a\xff", "text/plain; charset=utf-8", "a\ufffd"),
        *((b"a\xff", f"text/plain; charset={name}", "a\ufffd") for name in ("no-such", "zlib", "hex", "rot13", "idna")),
    ],
)
def test_the_text_of_a_body_follows_its_declared_characters(content: bytes, content_type: str, text: str) -> None:
    assert response(content, content_type=content_type).text == text


@pytest.mark.parametrize("content", [b"", b"{", b"<html>", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, rb'"\ud800"'])
def test_r51_a_body_that_is_not_json_is_the_dependencys_failure(content: bytes) -> None:
    with pytest.raises(DependencyFailed, match="'api' answered with a body that is not JSON") as caught:
        response(content).json()
    assert not caught.value.retryable


def test_a_json_body_may_begin_with_a_byte_order_mark() -> None:
    assert response(b'\xef\xbb\xbf{"a": [1.5, null]}').json() == {"a": [1.5, None]}


class Item(BaseModel):
    name: str
    prices: list[int]


def test_r51_a_body_is_decoded_as_a_type() -> None:
    answer = response(b'{"name": "a", "prices": ["1"]}')
    assert answer.decode(Item) == Item(name="a", prices=[1])
    assert response(b"[1, 2]").decode(list[int]) == [1, 2]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (response(b'{"name": "s3cret", "prices": [1, "s3cret"]}'), r"not as expected \(prices\.1: int_parsing\)"),
        (response(b'{"name": "s3cret"}'), r"not as expected \(prices: missing\)"),
        (response(b"s3cret"), r"not as expected \(as a whole: json_invalid\)"),
        (response(b'{"name": "a", "prices": []}', 404), r"status 404 \(Not Found\)"),
        (response(b"{}", 300), r"status 300 \(Multiple Choices\)"),
        (response(b"{}", 199), r"status 199 \(unknown\)"),
        (response(b"", 302), r"status 302 \(Found\)"),
        (response(b"", 700), r"status 700 \(unknown\)"),
    ],
)
def test_r51_what_is_not_of_the_type_is_the_dependencys_failure(answer: HttpResponse, text: str) -> None:
    with pytest.raises(DependencyFailed, match=f"'api' answered with .*{text}") as caught:
        answer.decode(Item)
    assert not caught.value.retryable
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None  # it would hold the body


# Breakers


async def test_r58_each_server_of_a_group_has_a_breaker_of_its_own() -> None:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(500 if request.url.host == "broken.test" else 200)

    limits = DependencyLimits(
        retry=RetryConfig(attempts=1), circuit_breaker=CircuitBreakerConfig(minimum_number_of_calls=2)
    )
    group = DependencyGroup("apis", limits)
    async with client(Upstream(answer), base_url="", dependency=group, allowed_hosts=AllowedHosts("*:*")) as http:
        for _ in range(2):
            with pytest.raises(HttpStatusError, match=r"'apis/broken\.test'"):
                await http.get("https://broken.test/x")
        with pytest.raises(CircuitOpen, match=r"'apis/broken\.test'"):
            await http.get("https://BROKEN.test:443/y")
        assert (await http.get("https://well.test/x")).status == 200
    assert {s.name: s.state for s in group.statistics()} == {
        "apis/broken.test": State.OPEN,
        "apis/well.test": State.CLOSED,
    }


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("api.test", ["https://api.test", "https://API.test:443/x", "https://api.test."]),
        ("api.test:8443", ["https://api.test:8443", "https://api.test.:8443/x"]),
        ("127.0.0.1:80", ["https://127.0.0.1:80", "https://[::ffff:127.0.0.1]:80", "https://[::ffff:7f00:1]:80"]),
        ("[::1]:80", ["https://[::1]:80", "https://[0:0:0:0:0:0:0:1]:80"]),
    ],
)
async def test_r58_a_server_has_one_breaker_however_its_name_is_spelt(name: str, spellings: list[str]) -> None:
    group, hosts = DependencyGroup("apis"), AllowedHosts("*:*", "127.0.0.1:*", "[::1]:*")
    async with client(Upstream(), base_url="", dependency=group, allowed_hosts=hosts) as http:
        for url in spellings:
            await http.get(url)
    assert {s.name: s.totals.calls for s in group.statistics()} == {f"apis/{name}": len(spellings)}


async def test_r58_a_redirect_is_counted_for_the_server_that_it_leads_to() -> None:
    upstream = Upstream(redirect("https://cdn.test:8443/x"), httpx2.Response(503))
    group = DependencyGroup("apis", DependencyLimits(retry=RetryConfig(attempts=1)))
    async with client(upstream, base_url="", dependency=group, allowed_hosts=AllowedHosts("*:*")) as http:
        with pytest.raises(HttpStatusError, match=r"'apis/cdn\.test:8443'"):
            await http.get("https://api.test/x")
    assert {s.name: (s.totals.calls, s.totals.failures) for s in group.statistics()} == {
        "apis/api.test": (1, 0),
        "apis/cdn.test:8443": (1, 1),
    }


async def test_r55_a_url_that_must_not_be_asked_is_counted_nowhere() -> None:
    api = dependency()
    async with client(Upstream(), dependency=api) as http:
        for _ in range(10):
            with pytest.raises(HostNotAllowed):
                await http.get("https://127.0.0.1/")
    assert (api.statistics().state, api.statistics().totals.calls) == (State.CLOSED, 0)


# Beginning and end


async def test_nothing_is_kept_from_one_request_for_the_next() -> None:
    upstream = Upstream(httpx2.Response(200, headers={"set-cookie": "session=1; Path=/"}), httpx2.Response(200))
    async with client(upstream) as http:
        await http.get("items")
        await http.get("items")
    assert "cookie" not in upstream.requests[1].headers


async def test_the_transport_is_closed_with_the_client_although_it_was_cancelled() -> None:
    upstream = Upstream()
    with anyio.CancelScope() as scope:
        async with client(upstream) as http:
            scope.cancel()
    assert upstream.closed == 1
    with pytest.raises(ShuttingDown):
        await http.get("items")
    assert upstream.requests == []


async def test_a_client_that_asked_nothing_has_nothing_to_close() -> None:
    async with HttpClient(dependency(), base_url=BASE) as http:
        assert (http.statistics().name, http.statistics().connections, http.statistics().idle_connections) == (
            "api",
            0,
            0,
        )


async def test_r7_without_a_list_only_the_server_of_the_base_url_is_asked() -> None:
    upstream = Upstream()
    async with client(upstream, base_url="http://localhost:8000/v1") as http:
        await http.get("http://localhost:8000/other")
        for url in ("http://localhost:8001/", "https://localhost:8000/", "https://example.com/"):
            with pytest.raises(HostNotAllowed):
                await http.get(url)
    assert upstream.asked == ["GET http://localhost:8000/other"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "must begin with"),
        ({"base_url": "api.test"}, "must begin with"),
        ({"base_url": f"https://user:{SECRET}@api.test"}, "must not hold a user name"),
        ({"base_url": "https://api.test:x"}, "not a valid URL"),
        ({"base_url": f"https://api.test?key={SECRET}"}, "neither a query"),
        ({"base_url": "https://api.test#x"}, "neither a query"),
        ({"base_url": "https://api.test", "allowed_hosts": AllowedHosts("other.test")}, "base_url: .* not an allowed"),
        ({"base_url": "https://api.test", "headers": {"Host": SECRET}}, "cannot be chosen"),
        ({"base_url": "https://api.test", "headers": {"X": f"{SECRET}\n"}}, "not one that HTTP allows"),
    ],
)
def test_a_client_that_could_not_work_is_refused_at_once(options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        HttpClient(dependency(), **options)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"connect_timeout_s": 0}, {"read_timeout_s": float("nan")}, {"max_body_bytes": 0}),
        *({"max_redirects": -1}, {"max_connections": 0}, {"idle_connection_s": float("inf")}),
    ],
)
def test_limits_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HttpLimits(**wrong)


def test_the_parts_that_are_slow_to_load_wait_for_the_first_request(root: Path) -> None:
    source = root / "template" / "src" / "{{package_name}}"
    code = (
        "import sys; from reliability.http_client import HttpClient; from reliability.dependency import Dependency\n"
        "HttpClient(Dependency('api'), base_url='https://api.test')\n"
        "print(*sorted({'httpcore2', 'h11', 'truststore'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_an_answer_shows_no_secrets_by_itself() -> None:
    answer = HttpResponse(
        dependency="api",
        status=200,
        headers={"x": SECRET},
        content=SECRET.encode(),
        url=f"{BASE}?key={SECRET}",
        elapsed_s=0.1,
    )
    assert SECRET not in repr(answer)
    assert json.dumps(answer.reason) == '"OK"'


@virtual_time
async def test_r44_a_call_ends_with_its_own_deadline() -> None:
    async with client(Upstream(hang), dependency=dependency(attempt_timeout_s=60)) as http:
        began = anyio.current_time()
        with pytest.raises((DependencyTimeout, DeadlineExceeded)), deadline(8):
            await http.get("items")
    assert anyio.current_time() - began <= 8
