"""Lines of the protocol: rules R4 (bad input gives an error, never a crash) and R7 (input is bounded)."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, PARSE_ERROR, JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse
from reliability.json_lines import LineSplitter, OversizeLine, oversize_error, parse_line

MAX_BYTES = 20
_byte_streams = st.lists(
    st.one_of(st.sampled_from([b"\n", b"\r\n", b" ", b"\t", b"ab", b"x" * MAX_BYTES, b"\xff"]), st.binary(max_size=30)),
    max_size=40,
).map(b"".join)


def split(stream: bytes, cuts: list[int], *, max_bytes: int = MAX_BYTES) -> list[bytes | OversizeLine]:
    splitter = LineSplitter(max_bytes)
    found: list[bytes | OversizeLine] = []
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for begin, end in itertools.pairwise(edges):
        found += splitter.feed(stream[begin:end])
        assert len(splitter._partial) <= max_bytes
    return found


def lines_of(stream: bytes) -> list[bytes | OversizeLine]:
    """Say what the splitter must find, in the plainest words: `stream` ends in a line break."""
    pieces = stream.split(b"\n")[:-1]
    found = [OversizeLine(p[:4096]) if len(p) > MAX_BYTES else p.strip() for p in pieces]
    return [line for line in found if line != b""]


def kinds(lines: list[bytes | OversizeLine]) -> list[bytes | None]:
    return [None if isinstance(line, OversizeLine) else line for line in lines]


@given(stream=_byte_streams, cuts=st.lists(st.integers(min_value=0), max_size=30))
def test_r7_however_a_stream_is_cut_into_chunks_the_lines_are_the_same(stream: bytes, cuts: list[int]) -> None:
    stream += b"\n"
    assert kinds(split(stream, cuts)) == kinds(lines_of(stream))


@given(stream=_byte_streams)
def test_r7_byte_by_byte_gives_the_same_lines_too(stream: bytes) -> None:
    stream += b"\n"
    assert kinds(split(stream, list(range(len(stream))))) == kinds(lines_of(stream))


@given(lines=st.lists(st.integers(min_value=0, max_value=4 * MAX_BYTES), max_size=20), chunk=st.integers(1, 7))
def test_r7_each_oversize_line_is_reported_once_and_the_next_line_is_not_harmed(lines: list[int], chunk: int) -> None:
    stream = b"".join(b"x" * size + b"\n" for size in lines)
    found = split(stream, list(range(0, len(stream), chunk)))
    assert sum(isinstance(line, OversizeLine) for line in found) == sum(size > MAX_BYTES for size in lines)
    assert len(found) == sum(size > 0 for size in lines)


def test_r7_a_line_without_an_end_does_not_fill_the_memory() -> None:
    splitter = LineSplitter(1000)
    for _ in range(1000):
        assert list(splitter.feed(b"x" * 65_536)) == []
        assert len(splitter._partial) <= 1000
    (found,) = splitter.feed(b"\nrest")
    assert isinstance(found, OversizeLine)
    assert len(found.prefix) == 4096
    assert list(splitter.feed(b"\n")) == [b"rest"]


def test_r7_a_line_of_exactly_the_limit_passes() -> None:
    assert list(LineSplitter(5).feed(b"12345\n")) == [b"12345"]
    (found,) = LineSplitter(5).feed(b"123456\n")
    assert found == OversizeLine(b"123456")


def test_r4_line_breaks_of_windows_and_blank_lines_are_understood() -> None:
    assert list(LineSplitter(100).feed(b"\r\n  \n\na\r\n b \n")) == [b"a", b"b"]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=10), children, max_size=4),
    max_leaves=10,
)
_almost_messages = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | _json,
        "id": st.integers() | st.text(max_size=5) | _json,
        "method": st.just("tools/call") | _json,
        "params": st.just({}) | _json,
        "result": st.just({}) | _json,
        "error": st.just({"code": 1, "message": "x"}) | _json,
    },
)


def assert_is_an_answer(found: SessionMessage | JSONRPCError | None) -> None:
    assert found is None or isinstance(found, SessionMessage | JSONRPCError)
    if isinstance(found, JSONRPCError):
        answer = json.loads(found.model_dump_json(by_alias=True, exclude_unset=True))
        assert answer["jsonrpc"] == "2.0"
        assert "id" in answer
        assert answer["error"]["code"] in (PARSE_ERROR, INVALID_REQUEST)


@given(line=st.binary(max_size=200))
@example(line=b"\xff\xfe{\x00}\x00")
@example(line=b'{"jsonrpc":"2.0","id":"\\ud800","method":"x"}')
@example(line=b"1" * 5000)
@example(line=b"[" * 100_000)
@example(line=b'{"a":' * 100_000)
@example(line=b'{"jsonrpc":"2.0","id":1,"method":"x","params":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
@example(line=b'{"jsonrpc":"2.0","id":' + b"9" * 4000 + b"}")
@example(line=b'{"jsonrpc":"2.0","id":1e999,"method":"x"}')
@example(line=b'{"jsonrpc":"2.0","id":NaN,"method":"x"}')
@example(line=b"\xef\xbb\xbf{}")
def test_r4_no_bytes_make_the_parser_raise(line: bytes) -> None:
    assert_is_an_answer(parse_line(line))


@given(value=_json | _almost_messages)
def test_r4_no_json_makes_the_parser_raise(value: Any) -> None:
    assert_is_an_answer(parse_line(json.dumps(value).encode()))


@given(value=_almost_messages, junk=st.binary(max_size=5), at=st.integers(0, 100))
def test_r4_no_damaged_message_makes_the_parser_raise(value: Any, junk: bytes, at: int) -> None:
    line = json.dumps(value).encode()
    assert_is_an_answer(parse_line(line[:at] + junk + line[at:]))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}', JSONRPCRequest),
        (b'{"jsonrpc":"2.0","id":"a","method":"tools/list","params":{}}', JSONRPCRequest),
        (b'{"jsonrpc":"2.0","method":"notifications/initialized"}', JSONRPCNotification),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', JSONRPCResponse),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"no"}}', JSONRPCError),
    ],
)
def test_r4_every_kind_of_message_is_passed_on(line: bytes, kind: type) -> None:
    found = parse_line(line)
    assert isinstance(found, SessionMessage)
    assert isinstance(found.message, kind)


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"hello", PARSE_ERROR, None),
        (b"{", PARSE_ERROR, None),
        (b"\xff", PARSE_ERROR, None),
        (b"[]", INVALID_REQUEST, None),
        (b'[{"jsonrpc":"2.0","id":1,"method":"x"}]', INVALID_REQUEST, None),
        (b"42", INVALID_REQUEST, None),
        (b"null", INVALID_REQUEST, None),
        (b"{}", INVALID_REQUEST, None),
        (b'{"id":7,"method":"x"}', INVALID_REQUEST, 7),
        (b'{"jsonrpc":"1.0","id":"seven","method":"x"}', INVALID_REQUEST, "seven"),
        (b'{"jsonrpc":"2.0","id":7,"method":5}', INVALID_REQUEST, 7),
        (b'{"jsonrpc":"2.0","id":7,"method":"x","params":[]}', INVALID_REQUEST, 7),
        (b'{"jsonrpc":"2.0","id":true,"method":"x"}', INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"x"}', INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","id":null,"method":"x"}', INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","id":{},"method":"x"}', INVALID_REQUEST, None),
    ],
)
def test_r4_a_line_that_is_no_message_is_answered_with_its_id_where_it_has_one(
    line: bytes, code: int, request_id: object
) -> None:
    found = parse_line(line)
    assert isinstance(found, JSONRPCError)
    assert (found.error.code, found.id) == (code, request_id)


@pytest.mark.parametrize(
    "line", [b'{"jsonrpc":"2.0","method":5}', b'{"jsonrpc":"2.0","id":1}', b'{"jsonrpc":"1.0","id":1,"result":{}}']
)
def test_r4_a_malformed_notification_or_response_is_not_answered(line: bytes) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize(
    ("prefix", "request_id"),
    [
        (b'{"jsonrpc":"2.0","id":7,"method":"tools/call",', 7),
        (b'{"jsonrpc": "2.0", "id": "a-1", "method": "tools/call",', "a-1"),
        (b'{"jsonrpc":"2.0","method":"tools/call","id":-7,', -7),
        (b'{"jsonrpc":"2.0","id":7}', 7),
        (b'{"method":"tools/call","params":{"id":7}', None),
        (b'{"jsonrpc":"2.0","params":{"id":7}', None),
        (b"xxxx", None),
        (b"", None),
    ],
)
def test_r7_an_oversize_request_is_answered_with_its_id_where_that_comes_first(
    prefix: bytes, request_id: object
) -> None:
    answer = oversize_error(OversizeLine(prefix), 1000)
    assert (answer.id, answer.error.code) == (request_id, INVALID_REQUEST)
    assert "1000" in answer.error.message


@pytest.mark.parametrize(
    "written",
    [b'"\xff"', b'"\t"', b'"\x00a"', b"007", b"1.5", b"1e3", b"-", b"1" * 30, b'"' + b"x" * 500 + b'"', b'"\\u0041"'],
)
def test_r4_an_id_that_cannot_be_read_for_sure_is_not_guessed(written: bytes) -> None:
    answer = oversize_error(OversizeLine(b'{"jsonrpc":"2.0","id":' + written + b',"method":"x",'), 1000)
    assert answer.id is None


@given(prefix=st.binary(max_size=100), written=st.binary(max_size=20))
def test_r4_no_oversize_line_makes_its_answer_fail(prefix: bytes, written: bytes) -> None:
    assert_is_an_answer(oversize_error(OversizeLine(prefix), 1000))
    assert_is_an_answer(oversize_error(OversizeLine(b'{"jsonrpc":"2.0","id":' + written + b","), 1000))
    assert_is_an_answer(oversize_error(OversizeLine(b'{"jsonrpc":"2.0","id":"' + written + b'",'), 1000))


@given(request_id=st.integers(-(10**17), 10**17) | st.text(alphabet="abc-_ äß0129", min_size=1, max_size=30))
def test_r7_an_id_that_a_real_client_writes_is_found(request_id: int | str) -> None:
    line = json.dumps({"jsonrpc": "2.0", "id": request_id, "method": "x"}, ensure_ascii=False).encode()
    assert oversize_error(OversizeLine(line[:4096]), 1000).id == request_id
