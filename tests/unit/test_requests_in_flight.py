"""Which requests are in flight, where lines are only noted as they pass: rule R26."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reliability.requests_in_flight import RequestsInFlight
from reliability.rpc_lines import encoded, is_answer, is_call

IDS = st.one_of(st.integers(0, 5), st.sampled_from(["a", "0"]))
STEPS = st.lists(st.tuples(st.sampled_from(["call", "call", "answer", "look", "forget"]), IDS), max_size=60)


def call(request_id: int | str) -> bytes:
    return encoded({"id": request_id, "method": "tools/call"})


def answer(request_id: int | str) -> bytes:
    return encoded({"id": request_id, "result": {}})


@given(STEPS)
def test_what_was_only_noted_counts_like_what_was_read(steps: list[tuple[str, int | str]]) -> None:
    found, expected = RequestsInFlight(), dict[int | str, str]()
    for step, request_id in steps:
        if step == "call":
            found.note(call(request_id))
            expected[request_id] = "tools/call"
        elif step == "answer":
            found.note(answer(request_id))
            expected.pop(request_id, None)
        elif step == "look":
            assert found.methods == expected
        else:
            found.methods.pop(request_id, None)
            expected.pop(request_id, None)
    assert found.methods == expected


def test_what_is_no_request_and_no_answer_is_not_in_flight() -> None:
    found = RequestsInFlight()
    for line in (
        b'{"method":"tools/call","params":{},"jsonrpc":"2.0"}\n',
        b'{"method":"tools/call"\n',
        b'{"jsonrpc":"2.0","id":null,"result":{}}\n',
        b"\n",
    ):
        found.note(line)
    assert found.methods == {}


def test_few_lines_are_kept() -> None:
    found = RequestsInFlight()
    for request_id in range(1000):
        found.note(call(request_id))
        found.note(answer(request_id))
        assert len(found._noted) < 16
    assert found.methods == {}


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        (b'{"method":"tools/call","params":{},"jsonrpc":"2.0","id":1}\n', True),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}\n', True),
        (b'{"jsonrpc":"2.0","id":"a-1","method":"tools/call","params":{}}\n', True),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/calls","params":{}}\n', False),
        (b'{"jsonrpc":"2.0","id":1,"result":{"method":"tools/call"}}\n', False),
        (b'{"jsonrpc":"2.0","id":"\\",\\"method\\":\\"tools/call\\"","result":{}}\n', False),
        (b'{"method":"initialize","params":{"method":"tools/call"},"jsonrpc":"2.0","id":1}\n', False),
        (b' {"method":"tools/call"}\n', False),
    ],
)
def test_a_call_is_told_by_its_beginning(line: bytes, is_one: bool) -> None:
    assert bool(is_call(line)) == is_one


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ('{"jsonrpc":"2.0","id":1,"result":{}}', True),
        ('{"jsonrpc":"2.0","id":-1,"result":{"text":"\\u2028\u2028\x0b"}}', True),
        ('{"jsonrpc":"2.0","id":"a","error":{"code":1,"message":""}}', True),
        ('{"jsonrpc":"2.0","id":1,"result":{"text":"', False),
        ('{"jsonrpc":"2.0","id":1,"result":{}} and more', False),
        ('{"jsonrpc":"2.0","id":1,"result":{}}\n', False),
        ('{"jsonrpc":"2.0","id":1,"result":[]}', False),
        ('{"jsonrpc":"2.0","id":null,"error":{}}', False),
        ('{"jsonrpc":"2.0","id":1.5,"result":{}}', False),
        ('{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{"result":{}}}', False),
        ('printed {"jsonrpc":"2.0","id":1,"result":{}}', False),
    ],
)
def test_an_answer_is_told_by_its_ends(line: str, is_one: bool, end: str) -> None:
    assert bool(is_answer((line + end).encode())) == is_one
