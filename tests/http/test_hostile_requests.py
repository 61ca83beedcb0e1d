"""Everything that can arrive at the port of a server that asks for a token: rules R4, R7 and R70.

Hypothesis makes requests that are nearly right: methods, targets, versions, headers, bodies and framing, in pieces and
several on one connection. Whatever they are, the server answers in HTTP or hangs up, calls no tool for anybody without
the token, gives nothing away, and is as well afterwards as before.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from reliability.static_tokens import make_token

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN, LINE = make_token("alice")
PATIENCE_S = 10
SILENCE_S = 0.1
"""After that the server waits for the rest of a request, and the next one may come."""
LAST = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""Ends the connection where the server has understood what came before."""
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
GIVEN_AWAY = re.compile(rb'Traceback|File "|site-packages|uvicorn|starlette|pydantic', re.IGNORECASE)


class Guarded:
    """The process, and connections to it."""

    def __init__(self, directory: Path, source: Path) -> None:
        (directory / "tokens").write_text(f"{LINE}\n")
        self.log = directory / "log"
        self.was_answered: list[bool] = []
        """Of each hurried request."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("guarded_server.py")), str(directory / "tokens")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(source)},
            )
        give_up = time.monotonic() + 30
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/mcp", self.log.read_text())):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < give_up
            time.sleep(0.01)
        self.port = int(found[1])

    def send(self, *pieces: bytes, wait_s: float = PATIENCE_S) -> bytes:
        """Send the pieces, and read until the server hangs up, or waits for more, for so many seconds."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait_s) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answer = b""
            with suppress(ConnectionError):  # refused before its end
                for piece in pieces:
                    connection.sendall(piece)
            with suppress(ConnectionError, TimeoutError):
                while data := connection.recv(65536):
                    answer += data
            return answer

    def hurry(self, *pieces: bytes) -> bytes:
        """Send the pieces, and read no longer than a server that has understood them needs."""
        answer = self.send(*pieces, wait_s=SILENCE_S)
        self.was_answered.append(bool(answer))
        return answer

    def ask(self, body: bytes, *headers: bytes) -> bytes:
        """Send a request that is right but for its body and these headers, and read the answer."""
        return self.send(request(self.port, body, *headers, b"Connection: close"))

    def calls(self) -> int:
        """How often the tool was called; asking does not count."""
        answer = json.loads(self.ask(call("get-metrics"), SHOWN).partition(b"\r\n\r\n")[2])
        (said,) = [one for one in answer["result"]["structuredContent"]["calls"] if one["name"] == "say"]
        return int(sum(said["outcomes"].values()) if "outcomes" in said else said["calls"])


def call(name: str, **arguments: object) -> bytes:
    params = {"name": name, "arguments": arguments}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()


def request(port: int, body: bytes, *headers: bytes) -> bytes:
    head = [b"POST /mcp HTTP/1.1", b"Host: 127.0.0.1:%d" % port, b"Content-Length: %d" % len(body), *USUAL]
    return b"\r\n".join([*head, *headers, b"", body])


SAY = call("say", words="said")
SHOWN = b"Authorization: Bearer " + TOKEN.encode()
USUAL = [
    b"Content-Type: application/json",
    b"Accept: application/json, text/event-stream",
    b"MCP-Protocol-Version: 2025-11-25",
]


@pytest.fixture(scope="module")
def guarded(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    made = Guarded(tmp_path_factory.mktemp("guarded"), root / "template" / "src" / "{{package_name}}")
    yield made
    made.process.kill()
    output, _ = made.process.communicate()
    assert output == b""  # R5
    log = made.log.read_text()
    assert "Traceback" not in log
    assert TOKEN not in log


@pytest.fixture(autouse=True)
def well(guarded: Guarded) -> Iterator[None]:
    """After each test the server does what it is there for, and has said something to be judged by."""
    guarded.was_answered.clear()
    yield
    assert b'"said"' in guarded.ask(SAY, SHOWN)
    assert guarded.process.poll() is None
    assert 2 * sum(guarded.was_answered) >= len(guarded.was_answered), "most requests had no answer in time"


FEW = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

tokens = st.one_of(
    st.sampled_from([b"", b"x", TOKEN[:-1].encode(), TOKEN.swapcase().encode(), TOKEN.encode() + b"x", b"." * 3]),
    st.binary(max_size=60),
    st.integers(8_000, 70_000).map(lambda size: b"x" * size),
)
authorization = st.one_of(
    tokens.map(lambda token: b"Authorization: Bearer " + token),
    st.binary(max_size=40).map(lambda value: b"Authorization: " + value),
    st.sampled_from(
        [
            b"Authorization: Basic " + TOKEN.encode(),
            b"Authorization : Bearer " + TOKEN.encode(),  # a space that other servers strip
            b" Authorization: Bearer " + TOKEN.encode(),
            b"Authorization:\r\n Bearer x" + TOKEN.encode(),  # a line that is folded
            b"X-Authorization: Bearer " + TOKEN.encode(),
            b"Proxy-Authorization: Bearer " + TOKEN.encode(),
            b"Cookie: Authorization=Bearer " + TOKEN.encode(),
            b"Authorization_: Bearer " + TOKEN.encode(),
            b"X-Forwarded-For: 127.0.0.1",
            b"X-Original-URL: /livez",
            b"X-Rewrite-URL: /livez",
            b"X-Forwarded-Prefix: /livez",
            b"X-HTTP-Method-Override: GET",
            b"Forwarded: for=127.0.0.1",
        ]
    ),
)
framing = st.sampled_from(
    [
        b"Content-Length: %d" % len(SAY),
        b"Content-Length: %d" % (len(SAY) + 1),
        b"Content-Length: 0",
        b"Content-Length: -1",
        b"Content-Length: +5",
        b"Content-Length: 1e3",
        b"Content-Length: 99999999999999999999",
        b"Content-Length: 5, 5",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding: gzip",
        b"Expect: 100-continue",
        b"Connection: close",
        b"Connection: Authorization",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13",
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x",
        b"Host: evil.example",
        b"Host: ",
    ]
)
others = st.tuples(st.binary(max_size=12), st.binary(max_size=30)).map(b": ".join)
headers = st.lists(st.one_of(framing, authorization, others, st.sampled_from(USUAL)), max_size=8)
methods = st.one_of(
    st.sampled_from([b"GET", b"POST", b"DELETE", b"OPTIONS", b"HEAD", b"TRACE", b"CONNECT", b"PRI", b"post"]),
    st.binary(max_size=8),
)
targets = st.one_of(
    st.sampled_from(
        [
            *(b"/mcp", b"/mcp/", b"//mcp", b"/%6dcp", b"/mcp?x=1", b"/mcp#x", b"/livez/../mcp", b"/./mcp", b"/mcp%00"),
            *(
                b"http://127.0.0.1/mcp",
                b"*",
                b"/livez",
                b"/.well-known/../mcp",
                b"/.well-known/oauth-protected-resource",
            ),
            *(b"/metrics", b"/healthz", b"/readyz;/mcp", b"/MCP", b"127.0.0.1:80", b"", b"/" + b"x" * 9_000),
        ]
    ),
    st.binary(max_size=20).map(lambda tail: b"/" + tail),
)
versions = st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.1 ", b"XTTP/1.1", b""])
bodies = st.one_of(
    st.just(SAY),
    st.just(b"%x\r\n%s\r\n0\r\n\r\n" % (len(SAY), SAY)),
    st.just(b"0\r\n\r\n"),
    st.just(b"ffffffffffffffff\r\nx"),
    st.binary(max_size=80),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that is right but for one thing or two, and that shows no token in the right way."""
    strange = draw(st.sets(st.sampled_from(["method", "target", "version", "headers", "framing", "end"]), max_size=2))
    parts = [
        draw(methods) if "method" in strange else b"POST",
        draw(targets) if "target" in strange else b"/mcp",
        draw(versions) if "version" in strange else b"HTTP/1.1",
    ]
    usual = [b"Host: 127.0.0.1", *USUAL, draw(authorization)]
    more = draw(headers) if "headers" in strange else []
    body = draw(bodies) if "framing" in strange else SAY
    length = draw(framing) if "framing" in strange else b"Content-Length: %d" % len(body)
    end = draw(st.sampled_from([b"\n", b"\r"])) if "end" in strange else b"\r\n"
    return end.join([b" ".join(parts), *usual, length, *more, b"", body])


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted({place % (len(data) + 1) for place in at}), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


@FEW
@given(st.lists(requests(), min_size=1, max_size=3), st.lists(st.integers(0, 5_000), max_size=4))
def test_r70_without_the_token_nothing_is_called_and_nothing_is_given_away(
    guarded: Guarded, several: list[bytes], at: list[int]
) -> None:
    before = guarded.calls()
    answer = guarded.hurry(*cut(b"".join([*several, LAST]), at))
    statuses = [int(status) for status in STATUS.findall(answer)]
    event(f"statuses {statuses}")
    assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:200]
    assert all(status < 500 or status in (501, 505) for status in statuses), answer[:500]
    assert not GIVEN_AWAY.search(answer.replace(b"python_info", b"")), answer[:2000]
    assert b'"said"' not in answer
    assert TOKEN.encode() not in answer
    assert guarded.calls() == before


@FEW
@given(st.binary(max_size=400))
def test_r4_bytes_of_any_kind_are_answered_in_http_or_not_at_all(guarded: Guarded, data: bytes) -> None:
    answer = guarded.hurry(data, LAST)
    assert not answer or STATUS.match(answer), answer[:200]
    assert all(int(status) < 500 for status in STATUS.findall(answer))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message that is nearly one of the protocol."""
    message: dict[str, Any] = json.loads(SAY)
    for place in draw(st.lists(st.sampled_from(["jsonrpc", "id", "method", "params", "name", "arguments", "_meta"]))):
        holder = message if place in ("jsonrpc", "id", "method", "params") else message.get("params")
        if not isinstance(holder, dict):
            continue
        if draw(st.booleans()):
            holder.pop(place, None)
        else:
            holder[place] = draw(json_values)
    methods = st.sampled_from(["tools/list", "initialize", "ping", "resources/read", "server/discover", "x/y"])
    if draw(st.booleans()):
        message["method"] = draw(methods)
    text = json.dumps(message, ensure_ascii=draw(st.booleans()))
    return text.encode(errors="surrogatepass")


@FEW
@given(messages(), st.lists(others, max_size=2))
def test_r4_with_the_token_nothing_makes_the_server_fail(guarded: Guarded, body: bytes, more: list[bytes]) -> None:
    strange = [header for header in more if re.fullmatch(rb"[A-Za-z-]+: [ -~]*", header)]
    answer = guarded.ask(body, SHOWN, *strange)
    found = STATUS.match(answer)
    assert found, answer[:200]
    assert int(found[1]) in (200, 202, 400, 404, 406, 415), answer[:500]
    assert not GIVEN_AWAY.search(answer.partition(b"\r\n\r\n")[2].replace(b"pydantic.dev", b"")), answer[:2000]


def test_r70_two_requests_on_one_connection_are_each_asked_for_the_token(guarded: Guarded) -> None:
    """The token of one is not that of the next."""
    before = guarded.calls()
    good, bare = request(guarded.port, SAY, SHOWN), request(guarded.port, SAY)
    for several, statuses in (
        ([good, bare, good], [b"200", b"401", b"200"]),
        ([bare, good, bare], [b"401", b"200", b"401"]),
    ):
        answer = guarded.send(*several, LAST)
        assert STATUS.findall(answer) == [*statuses, b"200"]
    assert guarded.calls() == before + 3


@pytest.mark.parametrize(
    "framing",
    [
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding : chunked",
        b"Content-Length: 5",
    ],
)
def test_r70_a_body_is_not_taken_for_a_request_that_shows_a_token(guarded: Guarded, framing: bytes) -> None:
    """Two lengths are how a proxy and a server are made to disagree about where a request ends."""
    inner = request(guarded.port, SAY, SHOWN)
    before = guarded.calls()
    answer = guarded.send(request(guarded.port, b"0\r\n\r\n" + inner, framing), LAST)
    assert STATUS.findall(answer)[:1] in ([b"400"], [b"401"])
    assert b'"said"' not in answer
    assert guarded.calls() == before
