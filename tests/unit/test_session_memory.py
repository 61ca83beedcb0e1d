"""What a later server is told, an example each (R20-R25); `test_supervisor_session` has when it is told."""

from __future__ import annotations

import json
from typing import Any

from reliability import session_memory
from reliability.session_memory import SessionMemory

META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientInfo": {"name": "c"}}
AGREED = {"protocolVersion": "2025-11-25"}


def line(method: str = "tools/call", **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n"


def after_handshake() -> SessionMemory:
    memory = SessionMemory()
    assert not memory.learn_era(line("initialize"), "initialize")
    memory.note_agreement(line("initialize", a=1), json.dumps({"id": 1, "result": AGREED}).encode() + b"\n")
    return memory


def test_r20_nothing_is_known_before_the_first_request() -> None:
    memory = SessionMemory()
    assert memory.era_is_known is memory.initialized is False
    assert memory.first_question() is None
    assert memory.requests_to_repeat() == []


def test_r21_the_handshake_is_repeated_as_it_was() -> None:
    memory = after_handshake()
    assert memory.era_is_known
    assert (memory.first_question() or {})["params"] == {"a": 1}
    assert memory.sign_of_life() == {"method": "ping"}


def test_r21_who_has_not_said_initialized_has_not() -> None:
    memory = after_handshake()
    assert not memory.initialized
    memory.note_initialized()
    assert memory.initialized


def test_r21_what_was_said_before_an_initialize_says_nothing_after_it() -> None:
    memory = SessionMemory()
    memory.note_initialized()
    memory.learn_era(line("initialize"), "initialize")
    memory.note_agreement(line("initialize"), json.dumps({"id": 1, "result": AGREED}).encode() + b"\n")
    assert not memory.initialized


def test_r25_a_request_of_the_modern_era_tells_how_to_ask_for_a_sign_of_life() -> None:
    memory = SessionMemory()
    assert memory.learn_era(line(_meta={**META, "progressToken": 7}), "tools/call")
    assert not memory.learn_era(line(_meta=META), "tools/call")
    asked = {"method": "server/discover", "params": {"_meta": META}}
    assert memory.sign_of_life() == memory.first_question() == asked


def test_r20_an_initialize_after_an_attempt_in_the_modern_era_begins_anew() -> None:
    memory = SessionMemory()
    assert memory.learn_era(line("server/discover", _meta=META), "server/discover")
    memory.learn_era(line("initialize"), "initialize")
    assert not memory.era_is_known
    assert memory.first_question() is None


def test_r20_rubbish_belongs_to_no_era() -> None:
    memory = SessionMemory()
    for rubbish in (b'{"params":[1]}\n', b'{"params":{"_meta":[]}}\n', b'{"params":{"_meta":{"a":1}}}\n', b"{\n"):
        assert not memory.learn_era(rubbish, "tools/call")
    memory.note_request(b'{"params":[1]}\n', "resources/subscribe")
    assert memory.requests_to_repeat() == []


def test_r23_the_last_level_and_every_subscription_are_repeated() -> None:
    memory = SessionMemory()
    for level in ("info", "debug"):
        memory.note_request(line(level=level), "logging/setLevel")
    for uri in ("a:1", "a:2", "a:3", "a:2"):
        memory.note_request(line(uri=uri), "resources/subscribe")
    for uri in ("a:1", "a:4"):
        memory.note_request(line(uri=uri), "resources/unsubscribe")
    assert memory.requests_to_repeat() == [
        {"method": "logging/setLevel", "params": {"level": "debug"}},
        {"method": "resources/subscribe", "params": {"uri": "a:2"}},
        {"method": "resources/subscribe", "params": {"uri": "a:3"}},
    ]


def test_r23_subscriptions_have_a_limit() -> None:
    memory = SessionMemory()
    limit = session_memory._MAX_SUBSCRIPTIONS
    for number in range(limit + 1):
        memory.note_request(line(uri=str(number)), "resources/subscribe")
    assert [request["params"]["uri"] for request in memory.requests_to_repeat()] == [str(n) for n in range(limit)]
