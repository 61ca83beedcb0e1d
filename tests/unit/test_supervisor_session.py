"""Single rules of the supervisor's session, an example each: R21-R27, R32 and R33. The model has their combinations."""

from __future__ import annotations

import json
from typing import Any

import pytest
from reliability import waiting_lines
from reliability.rpc_lines import LongLine, encoded
from reliability.supervisor_session import FAILED, State, SupervisorSession

VERSION = "2025-11-25"
META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
CAPABILITIES = {"tools": {"listChanged": True}, "prompts": {"listChanged": False}}


class World:
    """A session with a client and servers that say what a test lets them say."""

    def __init__(self, *, silence_s: float = 30.0) -> None:
        self.log: list[tuple[str, str]] = []
        self.session = SupervisorSession(
            queue_timeout_s=30,
            start_timeout_s=60,
            silence_s=silence_s,
            drain_s=25,
            log=lambda level, event, **_: self.log.append((level, event)),
        )

    def client(self, method: str, request_id: int | None = None, **params: Any) -> None:
        numbered = {} if request_id is None else {"id": request_id}
        message = {"jsonrpc": "2.0", **numbered, "method": method, "params": params}
        self.session.client_line(json.dumps(message).encode() + b"\n", 0.0)

    def server(self, request_id: object, now: float = 0.0, **answer: Any) -> None:
        message = {"jsonrpc": "2.0", "id": request_id, **(answer or {"result": {}})}
        assert self.session.server_line(json.dumps(message).encode() + b"\n", now)

    def to_server(self) -> list[dict[str, Any]]:
        lines, self.session.to_server = self.session.to_server, []
        return [json.loads(line) for line in lines if isinstance(line, bytes)]

    def to_client(self) -> list[dict[str, Any]]:
        lines, self.session.to_client = self.session.to_client, []
        return [json.loads(line) for line in lines if isinstance(line, bytes)]

    def handshake(self, *, initialized: bool = True) -> None:
        self.session.server_started(0.0)
        self.client("initialize", 0, protocolVersion=VERSION)
        self.server(0, result={"protocolVersion": VERSION, "capabilities": CAPABILITIES})
        if initialized:
            self.client("notifications/initialized")
        self.to_server()
        self.to_client()

    def replay(self, **result: Any) -> None:
        """The server dies, and the next one answers its first question."""
        self.session.server_ended(0.0, "SIGKILL")
        self.session.server_started(0.0)
        (question,) = self.to_server()
        assert question["method"] == "initialize"
        self.server(question["id"], result={"protocolVersion": VERSION, "capabilities": CAPABILITIES, **result})


def methods(messages: list[dict[str, Any]]) -> list[str]:
    return [message["method"] for message in messages]


def test_r20_a_first_server_gets_no_request_before_it_has_shown_that_it_lives() -> None:
    world = World()
    world.session.server_started(0.0)
    world.client("tools/call", 1, _meta=META)
    (question,) = world.to_server()
    assert question["method"] == "server/discover"
    world.session.server_ended(0.0, "exit code 1")
    assert world.to_client() == []  # it waits for the next one
    world.session.server_started(0.0)
    (question,) = world.to_server()
    world.server(question["id"], error={"code": -32601, "message": "what is that?"})
    assert methods(world.to_server()) == ["tools/call"]
    assert world.to_client() == []


def test_r22_a_server_of_another_protocol_version_is_the_end() -> None:
    world = World()
    world.handshake()
    world.replay(protocolVersion="2024-11-05")
    assert "2024-11-05" in (world.session.fatal or "")
    assert world.session.condemned
    assert world.session.state is State.REPLAYING


def test_r22_other_capabilities_are_logged() -> None:
    world = World()
    world.handshake()
    world.replay()
    assert world.log == []
    world.replay(capabilities={})
    assert world.log == [("warning", "the capabilities are not those that the client knows")]


@pytest.mark.parametrize("initialized", [True, False])
def test_r24_lists_have_changed_for_a_client_that_is_initialized(initialized: bool) -> None:
    world = World()
    world.handshake(initialized=initialized)
    world.replay()
    assert methods(world.to_client()) == (["notifications/tools/list_changed"] if initialized else [])
    assert methods(world.to_server()) == (["notifications/initialized"] if initialized else [])


def test_r23_a_level_and_subscriptions_are_set_again() -> None:
    world = World()
    world.handshake()
    world.client("logging/setLevel", 1, level="debug")
    for number, uri in enumerate(("a:", "b:"), 2):
        world.client("resources/subscribe", number, uri=uri)
    world.client("resources/unsubscribe", 4, uri="a:")
    world.to_server()
    world.replay()
    _, level, subscription = world.to_server()
    assert (level["method"], level["params"]) == ("logging/setLevel", {"level": "debug"})
    assert (subscription["method"], subscription["params"]) == ("resources/subscribe", {"uri": "b:"})


def test_r21_a_refused_second_handshake_replaces_no_good_one() -> None:
    world = World()
    world.handshake()
    world.client("initialize", 1, nonsense=True)
    world.server(1, error={"code": -32602, "message": "no"})
    world.to_server()
    world.replay()
    assert world.session.state is State.LIVE


def test_r24_a_client_may_say_that_it_is_initialized_before_it_has_the_answer() -> None:
    world = World()
    world.session.server_started(0.0)
    world.client("initialize", 0, protocolVersion=VERSION)
    world.client("notifications/initialized")
    assert methods(world.to_server()) == ["initialize", "notifications/initialized"]
    world.server(0, result={"protocolVersion": VERSION, "capabilities": CAPABILITIES})
    assert world.to_server() == []
    world.to_client()
    world.replay()
    assert methods(world.to_server()) == ["notifications/initialized"]
    assert methods(world.to_client()) == ["notifications/tools/list_changed"]


@pytest.mark.parametrize("is_started", [True, False])
def test_r24_what_a_client_said_early_is_told_to_the_server_that_answers_it(is_started: bool) -> None:
    world = World()
    if is_started:
        world.session.server_started(0.0)
    world.client("initialize", 0, protocolVersion=VERSION)
    world.client("notifications/initialized")
    world.session.server_ended(0.0, "SIGKILL")
    world.to_server()
    world.session.server_started(0.0)
    assert methods(world.to_server()) == ["initialize"]
    world.server(0, result={"protocolVersion": VERSION, "capabilities": CAPABILITIES})
    assert methods(world.to_server()) == ["notifications/initialized"]


@pytest.mark.parametrize("meta", [{"_meta": META}, {}])
def test_r31_what_the_first_server_is_asked_is_awaited(meta: dict[str, Any]) -> None:
    world = World()
    world.session.server_started(0.0)
    assert not world.session.awaits_first_answer
    world.client("tools/call", 1, **meta)
    assert world.session.awaits_first_answer
    world.session.due_changed = False
    world.server(world.to_server()[0]["id"])
    assert world.session.due_changed
    assert not world.session.awaits_first_answer
    world.session.server_ended(0.0, "SIGKILL")
    world.session.server_started(0.0)
    world.client("tools/call", 2, **meta)
    assert not world.session.awaits_first_answer


def test_r31_no_further_start_is_awaited() -> None:
    world = World()
    world.session.server_started(0.0)
    world.client("initialize", 1)
    world.session.server_ended(0.0, "exit code 1")
    assert not world.session.awaits_first_answer


@pytest.mark.parametrize(("method", "retryable"), [("tools/call", False), ("tools/list", True)])
def test_r26_all_but_a_tool_call_may_be_sent_again(method: str, retryable: bool) -> None:
    world = World()
    world.handshake()
    world.client(method, 1)
    world.to_server()
    world.session.server_ended(0.0, "SIGKILL")
    (answer,) = world.to_client()
    assert answer["error"]["code"] == FAILED
    assert "outcome unknown" in answer["error"]["message"]
    assert answer["error"]["data"] == {"kind": "outcome_unknown", "retryable": retryable}


def test_r27_a_queue_has_an_end() -> None:
    world = World()
    for number in range(waiting_lines.MAX_LINES + 1):
        world.client("tools/list", number)
    (answer,) = world.to_client()
    assert answer["id"] == waiting_lines.MAX_LINES
    assert answer["error"]["data"] == {"kind": "unavailable", "retryable": True}


def test_r27_a_queue_holds_one_line_of_any_size_and_others_up_to_its_limit() -> None:
    world = World()
    world.client("tools/call", 1, text="x" * waiting_lines.MAX_BYTES)
    assert world.to_client() == []
    world.client("tools/call", 2)
    assert [answer["id"] for answer in world.to_client()] == [2]
    world.client("notifications/cancelled", requestId=1)
    world.client("tools/call", 3)
    assert world.to_client() == []


def test_r32_a_silent_server_is_asked_twice_and_then_hung() -> None:
    world = World(silence_s=30)
    world.handshake()
    for now, asked in ((29.9, []), (30.0, ["ping"]), (44.9, []), (45.0, ["ping"]), (59.9, [])):
        world.session.tick(now)
        assert methods(world.to_server()) == asked
        assert world.session.condemned is None
    world.session.tick(60.0)
    assert (world.session.condemned or "").startswith("hung")


def test_r32_a_supervisor_that_was_stopped_itself_judges_by_its_own_questions() -> None:
    world = World(silence_s=30)
    world.handshake()
    for now, asked in ((1000.0, ["ping"]), (1000.001, []), (1014.9, []), (2000.0, ["ping"]), (2014.9, [])):
        world.session.tick(now)
        assert methods(world.to_server()) == asked
        assert world.session.condemned is None
    world.session.tick(2015.0)
    assert world.session.condemned


def test_r32_a_busy_server_that_answers_is_not_hung() -> None:
    world = World(silence_s=30)
    world.handshake()
    world.client("tools/call", 1)
    for now in (30.0, 60.0, 90.0, 120.0):
        world.to_server()
        world.session.tick(now)
        (question,) = world.to_server()
        world.server(question["id"], now)
    assert world.session.condemned is None
    assert world.to_client() == []


def test_r32_who_cannot_be_asked_is_not_judged() -> None:
    world = World(silence_s=30)
    world.handshake()
    for now in (30.0, 60.0, 90.0):
        world.session.tick(now, may_ask=False)
    assert world.to_server() == []
    assert world.session.wait_s(90.0) == 30.0


def test_r32_a_silent_server_is_never_asked_where_that_is_switched_off() -> None:
    world = World(silence_s=0)
    world.handshake()
    world.session.tick(1e6)
    assert world.to_server() == []
    assert world.session.wait_s(0.0) is None


def test_r33_a_server_that_never_answers_is_replaced_and_the_client_told_in_time() -> None:
    world = World()
    world.session.server_started(0.0)
    world.client("initialize", 0)
    world.session.tick(59.9)
    assert world.session.condemned is None
    world.session.tick(60.0)
    assert world.session.condemned
    world.session.server_ended(60.0, "SIGKILL")
    world.session.tick(60.0)
    (answer,) = world.to_client()
    assert answer["error"]["data"] == {"kind": "unavailable", "retryable": True}


def test_a_server_that_is_to_be_restarted_finishes_what_it_has() -> None:
    world = World()
    world.handshake()
    world.client("tools/call", 1)
    world.session.drain(0.0)
    world.client("tools/call", 2)
    world.client("notifications/cancelled", requestId=3)
    assert [message.get("id") for message in world.to_server()] == [1, None]
    assert not world.session.is_drained(24.9)
    assert world.session.wait_s(0.0) == 25.0
    assert world.session.is_drained(25.0)
    world.server(1)
    assert world.session.is_drained(0.0)
    world.replay()
    assert [message.get("id") for message in world.to_client()] == [1, None]
    assert world.to_server()[-1]["id"] == 2


def test_a_call_that_outlasts_the_wait_for_a_restart_is_answered_once() -> None:
    world = World()
    world.handshake()
    for number, method in ((1, "tools/call"), (2, "subscriptions/listen")):
        world.client(method, number)
    world.session.drain(0.0)
    world.session.end_drain()
    (answer,) = world.to_client()
    assert (answer["id"], answer["error"]["data"]) == (1, {"kind": "outcome_unknown", "retryable": False})
    world.server(1, error={"code": 0, "message": "Connection closed"})
    world.server(2)
    world.replay()
    assert [message.get("id") for message in world.to_client()] == [2, None]


def test_r33_an_introduction_that_a_restart_comes_before_is_asked_again() -> None:
    world = World()
    world.session.server_started(0.0)
    world.client("initialize", 0, protocolVersion=VERSION)
    world.session.drain(0.0)
    world.session.end_drain()
    world.server(0, error={"code": FAILED, "message": "Connection closed"})
    assert world.to_client() == []
    world.to_server()
    world.session.server_ended(0.0, "it had become too large")
    world.session.server_started(0.0)
    assert methods(world.to_server()) == ["initialize"]


def test_r26_an_unsent_answer_that_has_the_number_of_a_call_is_no_unsent_call() -> None:
    world = World()
    world.handshake()
    world.client("tools/call", 1)
    world.to_server()
    world.server(1, method="elicitation/create", params={})
    (question,) = world.to_client()
    answer = json.dumps({"jsonrpc": "2.0", "id": question["id"], "result": {}}).encode() + b"\n"
    world.session.client_line(answer, 0.0)
    unsent, world.session.to_server = world.session.to_server, []
    assert unsent == [answer]
    world.session.server_ended(0.0, "SIGKILL", unsent=unsent)
    (answered,) = [message for message in world.to_client() if message.get("id") == 1]
    assert answered["error"]["data"]["kind"] == "outcome_unknown"


def test_a_stream_that_never_ends_does_not_delay_a_restart() -> None:
    world = World()
    world.session.server_started(0.0)
    world.client("server/discover", 0, _meta=META)
    world.server(0)
    world.client("subscriptions/listen", 1, _meta=META)
    world.session.drain(0.0)
    assert world.session.is_drained(0.0)


def test_a_long_request_may_pass_before_it_has_ended() -> None:
    world = World()
    begun = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"text":"' + b"x" * 5000
    assert not world.session.passes_beginning(begun)
    world.handshake()
    assert world.session.passes_beginning(begun)
    assert world.session.calls_in_flight == 1
    assert not world.session.passes_beginning(begun.replace(b"tools/call", b"initialize"))
    assert world.session.passes_beginning(b"rubbish")
    assert world.session.calls_in_flight == 1


def test_a_long_answer_passes_in_its_pieces() -> None:
    world = World()
    world.handshake()
    world.client("tools/call", 1)
    line = LongLine([b'{"jsonrpc":"2.0","id":1,"result":{"text":"' + b"x" * 200_000, b'"}}\n'])
    assert world.session.server_line(line, 0.0)
    assert world.session.to_client == [line]
    assert world.session.calls_in_flight == 0


def call(request_id: int, method: str = "tools/call") -> bytes:
    return encoded({"id": request_id, "method": method, "params": {}})


def answer(request_id: int | str) -> bytes:
    return encoded({"id": request_id, "result": {}})


def refusals(world: World) -> list[tuple[Any, str, bool]]:
    found = [(answer["id"], answer["error"]) for answer in world.to_client()]
    return [(request_id, error["message"], error["data"]["retryable"]) for request_id, error in found]


def test_r29_who_waits_is_told_why_the_server_is_given_up_and_whether_to_ask_again() -> None:
    world = World()
    world.handshake()
    world.session.server_ended(0.0, "SIGSEGV")
    world.client("tools/call", 1)
    world.session.give_up(10.0, "It ends again and again.", try_again_s=60.0)
    world.session.client_line(call(2), 69.9)
    assert refusals(world) == [(1, "It ends again and again.", True), (2, "It ends again and again.", True)]
    world.session.client_line(call(3), 70.0)
    assert world.session.state is State.DOWN
    assert refusals(world) == []


def test_r30_after_a_deliberate_stop_nobody_is_told_to_ask_again() -> None:
    world = World()
    world.handshake()
    world.session.server_ended(0.0, "SIGKILL")
    world.client("tools/call", 1)
    world.session.give_up(0.0, "It is being stopped.", try_again_s=None)
    world.session.client_line(call(2), 1e9)
    assert refusals(world) == [(1, "It is being stopped.", False), (2, "It is being stopped.", False)]


def test_r26_who_had_asked_a_server_that_is_given_up_is_told_of_its_end() -> None:
    world = World()
    world.handshake()
    world.client("tools/call", 1)
    world.to_server()
    world.server(5, method="elicitation/create", params={})
    world.to_client()
    world.session.give_up(0.0, "exit code 3", try_again_s=None)
    answer, withdrawn = world.to_client()
    assert "exit code 3" in answer["error"]["message"]
    assert withdrawn["params"] == {"requestId": 5, "reason": "The server ended: exit code 3."}


def test_r27_an_unsent_call_waits_for_the_next_server_and_can_be_cancelled() -> None:
    world = World()
    world.handshake()
    for number in (1, 2):
        world.client("tools/call", number)
    unsent, world.session.to_server = world.session.to_server, []
    world.session.server_ended(100.0, "SIGKILL", unsent=unsent)
    assert world.to_client() == []
    world.client("notifications/cancelled", requestId=1)
    world.session.tick(129.9)
    assert world.session.wait_s(129.9) == pytest.approx(0.1)
    world.session.server_started(129.9)
    (question,) = world.to_server()
    world.server(question["id"], now=129.9, result={"protocolVersion": VERSION, "capabilities": CAPABILITIES})
    assert [message.get("id") for message in world.to_server()] == [None, 2]
    world.session.server_ended(129.9, "SIGKILL")
    assert [message["id"] for message in world.to_client() if "id" in message] == [2]  # it has been given to one


def test_r27_what_has_waited_too_long_for_a_server_does_not_reach_it() -> None:
    world = World()
    world.handshake()
    world.session.server_ended(0.0, "SIGKILL")
    world.session.client_line(call(1), 0.0)
    world.session.client_line(call(2), 0.1)
    world.session.server_started(30.0)
    (question,) = world.to_server()
    world.server(question["id"], now=30.0, result={"protocolVersion": VERSION, "capabilities": CAPABILITIES})
    assert [message.get("id") for message in world.to_server()] == [None, 2]
    assert [answer["id"] for answer in world.to_client() if "id" in answer] == [1]


def test_what_a_client_tells_a_server_that_is_being_drained_waits_unless_it_is_about_its_calls() -> None:
    world = World()
    world.handshake()
    world.client("tools/call", 1)
    world.to_server()
    world.session.drain(0.0)
    for method in ("notifications/progress", "notifications/roots/list_changed", "notifications/cancelled"):
        world.client(method, requestId=7)
    assert methods(world.to_server()) == ["notifications/progress", "notifications/cancelled"]
    world.server(1)
    world.replay()
    assert methods(world.to_server()) == ["notifications/initialized", "notifications/roots/list_changed"]


def test_a_notification_waits_for_a_server_no_longer_than_a_call() -> None:
    world = World()
    world.handshake()
    world.session.server_ended(0.0, "SIGKILL")
    world.client("notifications/roots/list_changed")
    assert world.session.wait_s(0.0) == 30.0
    world.session.tick(30.0)
    assert world.session.wait_s(30.0) is None
    world.session.server_started(30.0)
    assert methods(world.to_server()) == ["initialize"]


def test_a_call_that_is_cancelled_while_its_server_dies_is_not_answered() -> None:
    world = World()
    world.handshake()
    world.client("tools/call", 1)
    world.client("notifications/cancelled", requestId=1)
    world.session.server_ended(0.0, "SIGKILL")
    assert world.to_client() == []


STATES = ["unknown era", "down", "draining", "live"]


def world_in(state: str) -> World:
    world = World()
    if state == "unknown era":
        world.session.server_started(0.0)
    else:
        world.handshake()
    if state == "down":
        world.session.server_ended(0.0, "SIGKILL")
    if state == "draining":
        world.client("tools/call", 9)
        world.to_server()
        world.session.drain(0.0)
    return world


@pytest.mark.parametrize("state", STATES)
def test_r17_a_call_and_its_answer_pass_at_once_in_the_middle_of_a_session(state: str) -> None:
    world = world_in(state)
    before = world.session.calls_in_flight
    assert world.session.passes_call(call(1)) == (state == "live")
    assert world.session.calls_in_flight == before + (state == "live")
    assert world.session.passes_answer(answer(1), 0.0) == (state == "live")
    assert world.session.calls_in_flight == before


@pytest.mark.parametrize("method", ["initialize", "resources/subscribe", "notifications/cancelled"])
def test_what_must_be_looked_at_does_not_pass_at_once(method: str) -> None:
    assert not world_in("live").session.passes_call(call(1, method))


def test_r26_a_call_that_passed_at_once_is_answered_when_its_server_dies() -> None:
    world = world_in("live")
    assert world.session.passes_call(call(1))
    assert world.session.passes_call(call(2))
    assert world.session.passes_answer(answer(1), 0.0)
    world.session.server_ended(0.0, "SIGKILL")
    (told,) = world.to_client()
    assert (told["id"], told["error"]["data"]["kind"]) == (2, "outcome_unknown")


def test_a_call_that_passed_at_once_can_be_cancelled() -> None:
    world = world_in("live")
    assert world.session.passes_call(call(1))
    world.client("notifications/cancelled", requestId=1)
    assert world.session.calls_in_flight == 0


def test_answers_that_the_supervisor_waits_for_do_not_pass_at_once() -> None:
    world = World()
    world.session.server_started(0.0)
    assert not world.session.passes_answer(answer(0), 0.0)  # somebody's first
    world.handshake()
    assert world.session.passes_answer(answer(1), 0.0)
    world.client("initialize", 5, protocolVersion=VERSION)
    assert not world.session.passes_answer(answer(5), 0.0)
    world.server(5)
    assert world.session.passes_answer(answer(6), 0.0)
    world.to_server()
    world.session.tick(30.0)  # it is asked whether it lives
    (question,) = world.to_server()
    assert not world.session.passes_answer(answer(question["id"]), 31.0)
    world.server(question["id"], now=31.0)
    assert world.session.passes_answer(answer(7), 31.0)


def test_r32_an_answer_that_passed_at_once_is_a_sign_of_life() -> None:
    world = world_in("live")
    assert world.session.passes_answer(answer(1), 20.0)
    assert world.session.wait_s(20.0) == 30.0


@pytest.mark.parametrize("state", STATES)
def test_r17_a_long_line_passes_in_pieces_where_its_end_changes_nothing(state: str) -> None:
    world = world_in(state)
    begun = call(1)[:-5] + b"x" * 1000
    assert world.session.passes_beginning(begun) == (state == "live")
    assert world.session.passes_beginning(call(2, "resources/subscribe")[:-5]) is False
    assert world.session.passes_beginning(b"rubbish") == (state == "live")
    world.session.server_ended(0.0, "SIGKILL")
    told = [answer["id"] for answer in world.to_client() if "id" in answer]
    assert told == {"live": [1], "draining": [9]}.get(state, [])


def test_a_drain_ends_when_its_time_is_over() -> None:
    world = World()
    world.handshake()
    world.client("tools/call", 1)
    world.session.drain(100.0)
    assert world.session.wait_s(110.0) == 15.0
    assert not world.session.is_drained(124.9)
    assert world.session.is_drained(125.0)
    assert world.session.wait_s(125.0) is None


def test_r33_a_server_that_is_told_of_its_clients_has_the_time_of_a_start() -> None:
    world = World()
    world.handshake()
    world.session.server_ended(100.0, "SIGKILL")
    world.session.server_started(100.0)
    assert world.session.wait_s(130.0) == 30.0
    world.session.tick(159.9)
    assert world.session.condemned is None
    world.session.tick(160.0)
    assert world.session.condemned == "it did not answer its first request within 60 s"
    assert world.session.wait_s(160.0) is None


def test_r22_what_is_wrong_with_a_later_server_is_said() -> None:
    world = World()
    world.handshake()
    world.session.server_ended(0.0, "SIGKILL")
    world.session.server_started(0.0)
    world.server(world.to_server()[0]["id"], error={"code": -1, "message": "not today"})
    assert "not today" in (world.session.condemned or "")
    world.replay(protocolVersion="2099-01-01")
    assert world.session.fatal == f"it speaks protocol version 2099-01-01 now, and the client {VERSION}"
