"""What a line is, told by its ends as by a parser, and lines of any length in any pieces (R17, R18)."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reliability.rpc_lines import (
    Kind,
    LineCutter,
    LongLine,
    encoded,
    glance,
    glance_at_beginning,
    parsed,
    with_id,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
IDS = (
    st.integers()
    | st.text(max_size=12)
    | st.sampled_from([-0, 2**53, 10**18, -(10**17), "a b", 'say "no"', "\\u0041", "ü"])
)
METHODS = st.sampled_from(["tools/call", "notifications/progress", "ping", 'a"b', "ü", ""]) | st.text(max_size=8)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0"),
        "id": IDS | st.sampled_from([None, 1.5, True]),
        "method": METHODS,
        "params": JSON,
        "result": st.dictionaries(st.text(max_size=8), JSON, max_size=3),
        "error": st.just({"code": 1, "message": "no"}),
    },
)
SIZES = st.lists(st.integers(1, 5), max_size=400)


def kind_of(message: dict[str, Any]) -> tuple[Kind, int | str | None, str | None]:
    """The rules, read from a message as a whole."""
    if message.get("jsonrpc") != "2.0":
        return Kind.NONE, None, None
    request_id = message.get("id")
    if isinstance(request_id, bool) or not isinstance(request_id, int | str):
        request_id = None
    method = message.get("method")
    if method is not None:
        return (Kind.NOTIFICATION if request_id is None else Kind.REQUEST), request_id, method
    return (Kind.RESPONSE if {"result", "error"} & message.keys() else Kind.NONE), request_id, None


def line_of(message: dict[str, Any], order: list[str], **style: Any) -> bytes:
    keys = [key for key in order if key in message]
    return json.dumps({key: message[key] for key in keys}, **style).encode() + b"\n"


def is_of_one_kind(message: dict[str, Any]) -> bool:
    """Whether the protocol knows such a message: what is called a notification has no id."""
    ends = {"result", "error"} & message.keys()
    is_note = str(message.get("method")).startswith("notifications/")
    return not (len(ends) > 1 or ("method" in message and ends) or (is_note and "id" in message))


@given(
    MESSAGES.filter(is_of_one_kind),
    st.permutations(["jsonrpc", "id", "method", "params", "result", "error"]),
    st.sampled_from([(", ", ": "), (",", ":")]),
    st.booleans(),
)
def test_a_glance_sees_what_a_parser_sees(
    message: dict[str, Any], order: list[str], separators: tuple[str, str], ascii_only: bool
) -> None:
    for keys in (
        order,
        ["jsonrpc", "id", "method", "params", "result", "error"],
        ["method", "params", "jsonrpc", "id"],
    ):
        present = {key: message[key] for key in keys if key in message}
        line = line_of(message, keys, separators=separators, ensure_ascii=ascii_only)
        assert glance(line) == kind_of(present)
        assert glance(line[:-1] + b"\r\n") == kind_of(present)
        if len(line) > 1:
            assert glance(LongLine([line[:-1] + b" " * 5000, b"\n"])) == kind_of(present)


@given(st.binary(max_size=200))
def test_no_bytes_make_a_glance_fail(data: bytes) -> None:
    glance(data)
    glance(data + b"}\n")
    glance_at_beginning(data)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"hello\n",
        b"[1]\n",
        b"{}\n",
        b'{"jsonrpc":"2.0"}\n',
        b'{"jsonrpc":"1.0","id":1,"result":{}}\n',
        b'{"jsonrpc":"2.0","id":1,"result":{"a":\n',
        b'{"jsonrpc":"2.0","id":1,"result":{}',
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
    ],
    ids=range(11),
)
def test_what_is_no_message_is_told(line: bytes) -> None:
    whole = line == b'{"jsonrpc":"2.0","id":1,"result":{}'  # which lacks nothing but its bracket
    assert glance(line)[0] is Kind.NONE or whole


def test_a_line_of_megabytes_is_told_by_its_head_without_being_read() -> None:
    line = b'{"jsonrpc":"2.0","id":7,"result":{"not json' + b"x" * 5_000_000 + b"}\n"
    assert glance(line) == (Kind.RESPONSE, 7, None)
    assert glance(line[:-1] + b"\r\n") == (Kind.RESPONSE, 7, None)


def test_a_line_of_megabytes_is_told_by_its_tail_where_the_id_stands_there() -> None:
    line = b'{"method":"tools/call","params":{not json' + b"x" * 5_000_000 + b'},"jsonrpc":"2.0","id":"a"}\n'
    assert glance(line) == (Kind.REQUEST, "a", "tools/call")
    note = line.replace(b',"id":"a"', b"").replace(b"tools/call", b"notifications/progress")
    assert glance(note) == (Kind.NOTIFICATION, None, "notifications/progress")


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["compact", "spaced"])
@pytest.mark.parametrize(
    "message",
    [
        {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"id": 8, "jsonrpc": "2.0"}},
        {"jsonrpc": "2.0", "id": "a", "method": "ping"},
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}},
        {"jsonrpc": "2.0", "method": "no/request", "params": {}},
        {"jsonrpc": "2.0", "id": 7, "result": {"id": 8, "method": "x"}},
        {"jsonrpc": "2.0", "id": 7, "error": {"code": 1, "message": "no"}},
    ],
    ids="-".join,
)
def test_the_order_of_the_keys_changes_nothing(message: dict[str, Any], separators: tuple[str, str]) -> None:
    for order in itertools.permutations(message):
        assert glance(line_of(message, list(order), separators=separators)) == kind_of(message), order


def test_the_beginning_of_a_request_is_enough() -> None:
    begun = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"a":"xxx'
    assert glance_at_beginning(begun) == (Kind.REQUEST, 7, "tools/call")
    assert glance_at_beginning(b'  {"method":"tools/call"') is None
    assert glance_at_beginning(b'{"jsonrpc":"2.0","id":7,"result":{') is None
    assert glance_at_beginning(b"rubbish") == (Kind.NONE, None, None)


@given(
    st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"")), max_size=12),
    st.binary(max_size=5),
    SIZES,
)
def test_lines_are_the_same_in_whatever_pieces_they_come(lines: list[bytes], rest: bytes, sizes: list[int]) -> None:
    rest = rest.replace(b"\n", b"")
    stream = b"\n".join([*lines, rest])
    cutter, found = LineCutter(), []
    for size in [*sizes, len(stream)]:
        if stream[:size]:
            found += cutter.feed(stream[:size])
        stream = stream[size:]
    assert found == [line + b"\n" for line in lines]
    assert cutter.rest() == rest
    assert cutter.rest() == b""


TEXT = b"".join(b"%d," % number for number in range(60_000))


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 300_000), min_size=1, max_size=3),
    st.lists(st.integers(500, 70_000), min_size=1, max_size=20),
)
def test_long_lines_hold_what_came_and_show_their_ends(lengths: list[int], sizes: list[int]) -> None:
    *lines, rest = [TEXT[:length] for length in lengths]
    stream = b"\n".join([*lines, rest])
    cutter, found = LineCutter(), []
    turns = itertools.cycle(sizes)
    while stream:
        size = next(turns)
        found += cutter.feed(stream[:size])
        stream = stream[size:]
    assert cutter.size == len(rest)
    assert cutter.rest() == rest
    assert cutter.size == 0
    for line, wanted in zip(found, lines, strict=True):
        if isinstance(line, LongLine):
            assert b"".join(line.pieces) == wanted + b"\n"
            assert line.ends() == wanted[:2_048] + wanted[-2_047:] + b"\n"
        assert len(line) == len(wanted) + 1
        assert isinstance(line, LongLine) == (len(line) > 131_072)


def test_a_long_line_is_not_joined() -> None:
    cutter = LineCutter()
    assert cutter.feed(b"short\n" + b"a" * 100_000) == [b"short\n"]
    assert cutter.long_beginning() is None
    assert cutter.feed(b"b" * 100_000) == []
    assert cutter.long_beginning() == b"a" * 100_000
    long, short = cutter.feed(b"c\nshort\n")
    assert isinstance(long, LongLine)
    assert long.pieces == [b"a" * 100_000, b"b" * 100_000, b"c\n"]
    assert len(long) == 200_002
    assert short == b"short\n"
    assert cutter.long_beginning() is None


def test_the_pieces_of_a_long_line_begin_with_enough_to_tell_it() -> None:
    cutter = LineCutter()
    head = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{'
    for byte in head:
        cutter.feed(bytes([byte]))
    cutter.feed(b"x" * 200_000)
    assert (cutter.long_beginning() or b"").startswith(head)
    [line] = cutter.feed(b"}}\n")
    assert glance(line) == (Kind.REQUEST, 7, "tools/call")


def test_what_is_taken_of_a_line_is_forgotten() -> None:
    cutter = LineCutter()
    cutter.feed(b"a" * 200_000)
    cutter.feed(b"b" * 200_000)
    assert b"".join(cutter.take()) == b"a" * 200_000 + b"b" * 200_000
    assert cutter.long_beginning() is None
    assert cutter.feed(b"next\n") == [b"next\n"]


@pytest.mark.parametrize("end", [b"c\nnext\nlast\n", b"\nnext\nlast\n"])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_line_that_is_dropped_ends_where_it_ends(end: bytes, size: int) -> None:
    cutter = LineCutter()
    assert cutter.feed(b"first\n" + b"a" * 200_000) == [b"first\n"]
    cutter.drop()
    for _ in range(3):
        assert cutter.feed(b"b" * 200_000) == []
        assert cutter.long_beginning() is None
    pieces = [end[at : at + size] for at in range(0, len(end), size)]
    assert [line for piece in pieces for line in cutter.feed(piece)] == [b"next\n", b"last\n"]
    assert cutter.rest() == b""


def test_only_what_begins_and_ends_a_line_is_one() -> None:
    cutter = LineCutter()
    assert cutter.is_line(b"{}\n")
    assert [cutter.is_line(chunk) for chunk in (b"{}", b"{}\n{}\n", b"{}\n{", b"\n\n")] == [False] * 4
    cutter.feed(b"{")
    assert not cutter.is_line(b"}\n")
    cutter.drop()
    assert not cutter.is_line(b"}\n")
    cutter.feed(b"}\n")
    assert cutter.is_line(b"{}\n")


@given(IDS, IDS, st.sampled_from([["jsonrpc", "id", "result"], ["result", "id", "jsonrpc"]]), JSON)
def test_another_id_changes_nothing_else(old: int | str, new: int | str, order: list[str], value: Any) -> None:
    message = {"jsonrpc": "2.0", "id": old, "result": {"value": value}}
    for line in (line_of(message, order), LongLine([line_of(message, order)[:-1] + b" " * 5000, b"\n"])):
        changed = with_id(line, new)
        assert parsed(changed) == {**message, "id": new}


def test_another_id_touches_no_other_byte() -> None:
    assert with_id(b'{"jsonrpc":"2.0", "id": 1,"result":{"a": 1.50}}\n', "x") == (
        b'{"jsonrpc":"2.0", "id": "x","result":{"a": 1.50}}\n'
    )
    pieces = [b'{"jsonrpc":"2.0","id":1,"result":{"a":"', b"x" * 200_000, b'"}}\n']
    changed = with_id(LongLine(pieces), 22)
    assert isinstance(changed, LongLine)
    assert changed.pieces[0] == b'{"jsonrpc":"2.0","id":22,"result":{"a":"'
    assert changed.pieces[1:] == pieces[1:]


def test_a_message_becomes_one_line() -> None:
    assert encoded({"id": 1, "result": {"text": "a\nb"}}) == b'{"jsonrpc":"2.0","id":1,"result":{"text":"a\\nb"}}\n'
