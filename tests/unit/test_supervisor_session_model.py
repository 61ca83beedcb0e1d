"""Any order of messages, deaths and waits, in both eras, against a model of both sides: rules R20-R28, R32 and R33.

No process and no clock: the client and the servers here are a few lines each, and check whatever reaches them.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from reliability.rpc_lines import encoded
from reliability.supervisor_session import FAILED, State, SupervisorSession

QUEUE_S, START_S, SILENCE_S, DRAIN_S = 5.0, 8.0, 20.0, 4.0
VERSION = "2025-11-25"
META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientInfo": {"name": "c"}}
PARAMS = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
CAPABILITIES = {"tools": {"listChanged": True}, "resources": {"listChanged": False}, "logging": {}}
HANDSHAKE_ONLY = {"initialize", "ping", "logging/setLevel", "resources/subscribe", "notifications/initialized"}


class Server:
    """One life of a server: what has reached it, and what it has not answered."""

    def __init__(self) -> None:
        self.pipe: list[bytes] = []
        self.half_written = False
        self.has_answered = False
        self.seen: list[dict[str, Any]] = []
        self.open: dict[int | str, str] = {}
        self.asked: dict[int, bool] = {}
        """Its own requests: whether it has an answer."""


class Sent:
    """A request of the client."""

    def __init__(self, number: int, method: str, now: float, *, after_initialized: bool) -> None:
        self.number = number
        self.method = method
        self.waits_since = now
        self.after_initialized = after_initialized
        self.answers = 0
        self.cancelled = False
        self.reached: list[Server] = []


class SupervisorSessionMachine(RuleBasedStateMachine):
    """A client, its supervisor's session and one server after another."""

    era: str

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.session = SupervisorSession(
            queue_timeout_s=QUEUE_S,
            start_timeout_s=START_S,
            silence_s=SILENCE_S,
            drain_s=DRAIN_S,
            log=lambda *_, **__: None,
            token="t",
        )
        self.server: Server | None = None
        self.several_at_once = False
        """Lines come together, and none passes before the others are looked at."""
        self.lives = 0
        self.sent: dict[int | str, Sent] = {}
        self.agreed = self.initialized = self.modern_agreed = False
        self.level: str | None = None
        self.subscriptions: list[str] = []
        self.questions: dict[int | str, tuple[Server, int]] = {}
        """What the client has been asked and has not answered: by whom, and under which id of theirs."""
        self.shown: set[int | str] = set()
        self.cancelled_questions: set[int | str] = set()
        self.answers_expected = 0
        self.answered_questions = 0

    # ---- what reaches the client -----------------------------------------------------------------------------------

    def to_client(self, line: bytes) -> None:
        message = json.loads(line)
        if "method" not in message:
            self.client_is_answered(message)
        elif "id" in message:
            assert message["id"] not in self.shown, "two questions look the same"
            self.shown.add(message["id"])
            assert self.server is not None
            self.questions[message["id"]] = (self.server, message["params"]["n"])
        elif message["method"] == "notifications/cancelled":
            self.questions.pop(message["params"]["requestId"])
        elif message["method"].endswith("list_changed"):
            assert self.initialized
            assert message["method"] == "notifications/tools/list_changed"
        else:
            assert message["method"] == "notifications/message"

    def client_is_answered(self, message: dict[str, Any]) -> None:
        request = self.sent[message["id"]]  # and so no id of the supervisor's own
        request.answers += 1
        assert request.answers == 1, "answered twice"
        if "error" in message:
            assert message["error"]["code"] == FAILED
            if "data" not in message["error"]:
                assert request.cancelled, "a server that is ended answers what it was not asked to finish"
                return
            unknown = message["error"]["data"]["kind"] == "outcome_unknown"
            if request.method not in ("initialize", "server/discover"):
                assert unknown == bool(request.reached), "what no server has seen is not unknown"
        elif request.method == "initialize":
            self.agreed = True
        elif request.method == "server/discover":
            self.modern_agreed = True

    # ---- what reaches a server -------------------------------------------------------------------------------------

    def to_server(self, server: Server, line: bytes) -> None:
        message = json.loads(line)
        server.seen.append(message)
        method, request_id = message.get("method"), message.get("id")
        if method is None:
            assert server.asked[request_id] is False, "an answer to a question that it did not ask"
            server.asked[request_id] = True
            return
        if self.era == "modern":
            assert method not in HANDSHAKE_ONLY
        else:
            assert method != "server/discover"
        if request_id is None:
            return
        server.open[request_id] = method
        if request_id in self.sent:
            self.a_request_reaches(server, self.sent[request_id])
        else:
            assert str(request_id).startswith("supervisor-t-")
            assert self.lives > 1 or method in ("ping", "server/discover")

    def a_request_reaches(self, server: Server, request: Sent) -> None:
        assert request.answers == 0, "answered, and passed on as well"
        if request.method not in ("initialize", "server/discover"):
            assert not request.reached, "given to two servers"
        request.reached.append(server)
        numbers = [self.sent[m["id"]].number for m in server.seen if m.get("id") in self.sent and "method" in m]
        assert numbers == sorted(numbers), "out of order"
        assert self.introduces_itself or self.era == "handshake" or server.has_answered, "perhaps it cannot even start"
        if self.agreed and request.method != "initialize":
            self.knows_the_session(server, request)

    def knows_the_session(self, server: Server, request: Sent) -> None:
        """It was told what the client had told an earlier one, before it got any request of the client's."""
        methods = [message.get("method") for message in server.seen]
        assert methods.count("notifications/initialized") <= self.initialized
        assert "notifications/initialized" in methods or not request.after_initialized
        if self.lives not in (1, self.agreed_in_life):
            assert (methods[0], server.seen[0]["params"]) == ("initialize", PARAMS)

    # ---- the pipes ---------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        lines, self.session.to_client = self.session.to_client, []
        for line in lines:
            assert isinstance(line, bytes)
            self.to_client(line)
        if self.server is not None:
            for line in self.session.to_server:
                assert isinstance(line, bytes)
                self.server.pipe.append(line)
            self.session.to_server = []

    def client_says(self, message: dict[str, Any]) -> None:
        line = encoded(message)
        if not self.several_at_once and self.session.passes_call(line):
            assert self.server is not None
            self.server.pipe.append(line)
        else:
            self.session.client_line(line, self.now)
        self.pump()

    def server_says(self, message: dict[str, Any]) -> None:
        line = encoded(message)
        if not self.several_at_once and self.session.passes_answer(line, self.now):
            self.to_client(line)
        else:
            assert self.session.server_line(line, self.now)
        self.pump()

    def ask(self, method: str, params: dict[str, Any]) -> int | str:
        number = len(self.sent)
        request_id: int | str = number if number % 2 else f"id {number}"
        self.sent[request_id] = Sent(number, method, self.now, after_initialized=self.initialized)
        meta = {"_meta": META} if self.era == "modern" else {}
        self.client_says({"id": request_id, "method": method, "params": {**params, **meta}})
        return request_id

    @rule()
    def lines_come_otherwise(self) -> None:
        self.several_at_once = not self.several_at_once

    # ---- the client --------------------------------------------------------------------------------------------------

    @initialize(era=st.sampled_from(["handshake", "modern"]), introduces_itself=st.booleans(), is_late=st.booleans())
    def the_client_begins(self, era: str, introduces_itself: bool, is_late: bool) -> None:
        self.era = era
        self.introduces_itself = introduces_itself
        self.agreed_in_life = 0
        if is_late:  # as it is when nothing goes wrong
            self.a_server_starts()
        if era == "handshake":
            self.ask("initialize", PARAMS)
        else:
            self.ask("server/discover" if introduces_itself else "tools/list", {})

    def may_call(self) -> bool:
        return self.agreed if self.era == "handshake" else True

    @precondition(lambda self: self.may_call())
    @rule(method=st.sampled_from(["tools/call", "tools/call", "tools/list", "subscriptions/listen"]))
    def the_client_calls(self, method: str) -> None:
        self.ask(method, {"name": "x"})

    @precondition(lambda self: self.era == "handshake" and not self.initialized)
    @rule()
    def the_client_is_initialized(self) -> None:
        """Perhaps before it has the answer to `initialize`."""
        self.initialized = True
        self.client_says({"method": "notifications/initialized"})

    @precondition(lambda self: self.agreed)
    @rule(level=st.sampled_from(["debug", "error"]))
    def the_client_sets_the_level(self, level: str) -> None:
        self.ask("logging/setLevel", {"level": level})

    @precondition(lambda self: self.agreed)
    @rule(uri=st.sampled_from(["a:", "b:"]), verb=st.sampled_from(["subscribe", "unsubscribe"]))
    def the_client_subscribes(self, uri: str, verb: str) -> None:
        self.ask(f"resources/{verb}", {"uri": uri})

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def the_client_cancels(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.sent, key=str)))
        if self.sent[request_id].method in ("initialize", "server/discover"):
            return
        self.sent[request_id].cancelled = True
        self.client_says({"method": "notifications/cancelled", "params": {"requestId": request_id}})

    @rule()
    def the_client_reports_progress(self) -> None:
        self.client_says({"method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}})

    @precondition(lambda self: self.shown)
    @rule(data=st.data())
    def the_client_answers_a_question(self, data: st.DataObject) -> None:
        """Even one of a server that is dead by now."""
        shown = data.draw(st.sampled_from(sorted(self.shown, key=str)))
        if shown in self.questions or shown in self.cancelled_questions:
            asked_by = self.questions.pop(shown, None)
            self.cancelled_questions.discard(shown)
            self.answers_expected += asked_by is not None and asked_by[0] is self.server
        self.client_says({"id": shown, "result": {"n": 1}})

    # ---- the server --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.server is None and self.session.state is State.DOWN)
    @rule()
    def a_server_starts(self) -> None:
        self.server = Server()
        self.lives += 1
        self.session.server_started(self.now)
        self.pump()

    @precondition(lambda self: self.server is not None and self.server.pipe)
    @rule(lines=st.integers(1, 5))
    def the_server_reads(self, lines: int) -> None:
        assert self.server is not None
        self.server.half_written = False
        for _ in range(min(lines, len(self.server.pipe))):
            self.to_server(self.server, self.server.pipe.pop(0))

    @precondition(lambda self: self.server is not None and self.server.pipe and not self.server.half_written)
    @rule()
    def half_a_line_is_written(self) -> None:
        assert self.server is not None
        self.server.half_written = True

    @precondition(lambda self: self.server is not None and self.server.open)
    @rule(data=st.data())
    def the_server_answers(self, data: st.DataObject) -> None:
        assert self.server is not None
        request_id = data.draw(st.sampled_from(sorted(self.server.open, key=str)))
        method = self.server.open.pop(request_id)
        self.server.has_answered = True
        result = {"protocolVersion": VERSION, "capabilities": CAPABILITIES} if method == "initialize" else {}
        if method == "initialize" and not self.agreed:
            self.agreed_in_life = self.lives
        self.server_says({"id": request_id, "result": result})

    @precondition(lambda self: self.server is not None)
    @rule()
    def the_server_asks(self) -> None:
        assert self.server is not None
        its_id = len(self.server.asked)
        self.server.asked[its_id] = False
        self.server_says({"id": its_id, "method": "sampling/createMessage", "params": {"n": its_id}})

    @precondition(lambda self: self.server is not None and False in self.server.asked.values())
    @rule()
    def the_server_withdraws_a_question(self) -> None:
        assert self.server is not None
        its_id = next(i for i, answered in self.server.asked.items() if not answered)
        if any(asked == (self.server, its_id) for asked in self.questions.values()):
            self.server_says({"method": "notifications/cancelled", "params": {"requestId": its_id}})

    @precondition(lambda self: self.server is not None)
    @rule()
    def the_server_logs(self) -> None:
        self.server_says({"method": "notifications/message", "params": {"level": "info", "data": "x"}})

    @precondition(lambda self: self.server is not None)
    @rule()
    def the_server_prints(self) -> None:
        for rubbish in (b"hello\n", b'{"level": "info"}\n', b"\n"):
            assert not self.session.server_line(rubbish, self.now) or self.session.state is State.GIVEN_UP

    @precondition(lambda self: self.server is not None)
    @rule()
    def the_server_wants_to_be_restarted(self) -> None:
        self.session.drain(self.now)

    @precondition(lambda self: self.server is not None and self.session.is_drained(self.now))
    @rule(last_words=st.booleans())
    def the_server_is_restarted(self, last_words: bool) -> None:
        """Its input ends, when it has all of it."""
        assert self.server is not None
        self.the_server_reads(len(self.server.pipe))
        self.session.end_drain()
        for request_id in list(self.server.open) if last_words else ():
            self.server_says({"id": request_id, "error": {"code": FAILED, "message": "Connection closed"}})
        self.end_the_server()

    @precondition(lambda self: self.server is not None)
    @rule()
    def the_server_dies(self) -> None:
        self.end_the_server()

    def end_the_server(self) -> None:
        server, self.server = self.server, None
        assert server is not None
        begun = 1 if server.half_written else 0
        for line in server.pipe[:begun]:
            message = json.loads(line)
            if message.get("id") in self.sent and "method" in message:
                self.sent[message["id"]].reached.append(server)  # perhaps it has seen all of it
        unsent = server.pipe[begun:]
        for message in map(json.loads, unsent):
            if message.get("id") in self.sent:
                self.sent[message["id"]].waits_since = self.now
        self.session.server_ended(self.now, "SIGKILL", unsent=unsent)
        self.pump()
        assert not self.questions

    # ---- time --------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.9, 5.0, 9.0, 20.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        while (wait_s := self.session.wait_s(self.now)) is not None and self.now + wait_s <= until:
            self.now += max(wait_s, 1e-6)
            self.session.tick(self.now)
            self.pump()
            if self.session.condemned is not None and self.server is not None:
                self.end_the_server()
        self.now = until
        self.session.tick(self.now)
        self.pump()

    @rule(try_again_s=st.sampled_from([None, 3.0, 60.0]))
    def the_supervisor_gives_up(self, try_again_s: float | None) -> None:
        if self.server is not None:
            self.end_the_server()
        self.session.give_up(self.now, "no more", try_again_s=try_again_s)
        self.pump()

    @precondition(lambda self: self.server is not None)
    @rule()
    def the_supervisor_stops(self) -> None:
        """Everybody is answered; what the server says until it ends reaches nobody."""
        assert self.server is not None
        for message in map(json.loads, self.server.pipe):
            if message.get("id") in self.sent and "method" in message:
                self.sent[message["id"]].reached.append(self.server)
        self.server.pipe.clear()
        self.session.give_up(self.now, "it is being stopped", try_again_s=None)
        self.pump()

    # ---- what is always true -----------------------------------------------------------------------------------------

    @invariant()
    def nobody_waits_longer_than_agreed(self) -> None:
        for request in self.sent.values():
            if request.answers or request.cancelled or request.reached or self.is_in_a_pipe(request):
                continue
            assert self.now - request.waits_since <= START_S + 1e-3
            if request.method not in ("initialize", "server/discover"):
                assert self.now - request.waits_since <= QUEUE_S + 1e-3

    def is_in_a_pipe(self, request: Sent) -> bool:
        lines = [] if self.server is None else [json.loads(line) for line in self.server.pipe]
        return any(m.get("id") in self.sent and self.sent[m["id"]] is request for m in lines if "method" in m)

    @invariant()
    def nothing_is_passed_to_a_server_that_is_to_be_restarted(self) -> None:
        if self.server is not None and self.session.state is State.DRAINING:
            unread = {json.loads(line).get("id") for line in self.server.pipe} - {None}
            busy = {self.server.open.get(i) for i in self.server.open if i in self.sent} | (unread & self.sent.keys())
            if not busy - {"subscriptions/listen"}:
                assert self.session.is_drained(self.now)

    @invariant()
    def no_question_is_open_without_a_server(self) -> None:
        assert self.server is not None or not self.questions

    def teardown(self) -> None:
        """In the end everybody has been answered, once."""
        if self.server is not None:
            self.end_the_server()
        self.session.give_up(self.now, "the end", try_again_s=None)
        self.pump()
        for request in self.sent.values():
            assert request.answers == 1 or request.cancelled, request.method
        assert self.session.calls_in_flight == 0
        assert self.session.wait_s(self.now) is None


SupervisorSessionMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestAnyOrderOfMessagesAndDeaths = SupervisorSessionMachine.TestCase
