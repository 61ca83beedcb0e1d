"""What a supervisor must know of the protocol so that one client can talk to one server after another (R20-R28, R32).

It sees every line in both directions and says which lines go where; it reads no pipe, starts no process and reads no
clock. Lines pass as they are. What the client told the first server once (`initialize`, the log level, subscriptions)
is told to every later one under ids of the supervisor's own, whose answers the client never sees. A request is
answered exactly once: by the server that got it, or here, and it is never given to two servers.

    state       a server is there         a request of the client
    DOWN        no                        waits, for a limited time
    REPLAYING   yes, it is being told     waits, for a limited time
    LIVE        yes                       is passed on
    DRAINING    yes, for what it has      waits, for a limited time
    GIVEN_UP    no, nor will there be     is refused
"""

from __future__ import annotations

import os
from enum import Enum

from .requests_in_flight import RequestsInFlight
from .rpc_lines import Kind, encoded, glance, glance_at_beginning, is_answer, is_call, parsed
from .server_questions import ServerQuestions, referred
from .session_memory import NOTED, SessionMemory
from .waiting_lines import Waiting, WaitingLines

TYPE_CHECKING = False  # of `typing`, which is not imported: the supervisor is small
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .rpc_lines import Line, RequestId

FAILED = -32000
"""The code of every error that a supervisor answers with."""
_PROBES = 2
"""Questions in a row without an answer after which a server is hung: after one alone the machine may have slept."""

_OPENING = frozenset({"initialize", "server/discover"})
"""They only introduce the two sides to each other: after a crash they are asked again (R33)."""
_ABOUT_REQUESTS = frozenset({"notifications/cancelled", "notifications/progress"})
"""They are of no use to a later server."""
_ENDLESS = "subscriptions/listen"


class State(Enum):
    """Whether there is a server, and whether it knows what it must."""

    DOWN = "down"
    REPLAYING = "replaying"
    LIVE = "live"
    DRAINING = "draining"
    GIVEN_UP = "given up"


_LIVE = State.LIVE  # what every line passes looks up as little as possible
_REQUEST, _RESPONSE = Kind.REQUEST, Kind.RESPONSE


class SupervisorSession:
    """One client's session, over the lives of several servers. Every `now` is a time of one monotonic clock.

    Args:
        queue_timeout_s: How long a request waits for a server.
        start_timeout_s: How long a server may take to answer its first request, and the client waits for that.
        silence_s: A server that says nothing for so long is asked whether it lives; 0: never.
        drain_s: How long a server that is to be restarted is waited for: the longest time of a call.
        log: Called with a level, an event and its fields.
        token: Makes the supervisor's ids different from every id of the client and the server.
    """

    def __init__(
        self,
        *,
        queue_timeout_s: float,
        start_timeout_s: float,
        silence_s: float,
        drain_s: float,
        log: Callable[..., None],
        token: str = "",
    ) -> None:
        self.state = State.DOWN
        self.to_client: list[Line] = []
        """Lines for the client; who takes them empties it."""
        self.to_server: list[Line] = []
        """Lines for the present server; who takes them empties it."""
        self.condemned: str | None = None
        """Why the present server must be ended."""
        self.fatal: str | None = None
        """Why no server can serve this client any more."""
        self.due_changed = True
        """Whether `wait_s` may be shorter than it was; who asks for that resets it."""
        self._queue_timeout_s = queue_timeout_s
        self._start_timeout_s = start_timeout_s
        self._silence_s = silence_s
        self._drain_s = drain_s
        self._log = log
        self._token = token or os.urandom(12).hex()
        self._issued = 0
        self._memory = SessionMemory()
        self._questions = ServerQuestions(self._new_id)
        self._queue = WaitingLines()
        self._in_flight = RequestsInFlight()
        self._opening: dict[RequestId, Waiting] = {}
        """Those of them that can be asked again."""
        self._private: set[RequestId] = set()
        """The supervisor's own requests that it has not answered."""
        self._abandoned: set[RequestId] = set()
        """Requests that it has not answered, and need not any more."""
        self._replay_id: str | None = None
        self._replay_until = 0.0
        self._drain_until = 0.0
        self._heard_at = self._asked_at = 0.0
        self._probes = 0
        self._is_told = False
        """The present server has got `notifications/initialized`."""
        self._has_answered = False
        """Some server has answered something."""
        self._refusal = ""
        self._try_again_at: float | None = None

    @property
    def calls_in_flight(self) -> int:
        """Requests that the present server has not answered."""
        return len(self._in_flight.methods)

    @property
    def awaits_first_answer(self) -> bool:
        """Whether the client has asked something of a server that has not said anything yet, the first one to do so."""
        waits = self._in_flight.methods or self._queue
        return bool(waits) and not self._has_answered and self.state in (State.REPLAYING, State.LIVE)

    # ---- lines of the client ---------------------------------------------------------------------------------------

    def client_line(self, line: Line, now: float) -> None:
        """The client has sent a line."""
        kind, request_id, method = glance(line)
        if kind is _REQUEST and request_id is not None and method is not None:
            if self.state is _LIVE and self._memory.era_is_known and method not in NOTED:
                self._in_flight.methods[request_id] = method
                self.to_server.append(line)
            else:
                self._client_asks(line, request_id, method, now)
        elif kind is _RESPONSE:
            if (answer := self._questions.answer(line, request_id)) is not None:
                self.to_server.append(answer)
        elif method == "notifications/cancelled":
            self._client_cancels(line)
        else:
            self._client_notifies(line, method, now)

    def passes_call(self, line: bytes) -> bool:
        """Whether a line of the client is a call that goes to the server as it is. It counts as passed on."""
        if self.state is not _LIVE or not self._memory.era_is_known or not is_call(line):
            return False
        self._in_flight.note(line)
        return True

    def passes_beginning(self, beginning: bytes) -> bool:
        """Whether a long line of the client may go to the server in pieces, as they come. It counts as passed on."""
        begun = glance_at_beginning(beginning)
        if begun is None or self.state is not State.LIVE or not self._memory.era_is_known:
            return False
        _, request_id, method = begun
        if request_id is not None and method is not None:
            if method in NOTED:
                return False
            self._in_flight.methods[request_id] = method
        return True

    def _client_asks(self, line: Line, request_id: RequestId, method: str, now: float) -> None:
        timeout_s = self._start_timeout_s if method in _OPENING else self._queue_timeout_s
        request = Waiting(line, request_id, method, now + timeout_s)
        is_unprepared = self._memory.learn_era(line, method) and method not in _OPENING
        if is_unprepared and self.state is State.LIVE:  # what crashes in its start-up gets no request
            self._prepare(now)
        if self.state is State.LIVE:
            self._pass_on(request)
        elif self.state is not State.GIVEN_UP:
            self._enqueue(request)
        elif self._try_again_at is not None and now >= self._try_again_at:
            self.state = State.DOWN
            self._enqueue(request)
        else:
            self._refuse(request, self._refusal, retryable=self._try_again_at is not None)

    def _client_notifies(self, line: Line, method: str | None, now: float) -> None:
        is_told_anyway = method == "notifications/initialized"
        if is_told_anyway:
            self._memory.note_initialized()
            self._is_told = self.state is State.LIVE
        if self.state is State.LIVE or (self.state is State.DRAINING and method in _ABOUT_REQUESTS):
            self.to_server.append(line)
        elif self.state is not State.GIVEN_UP and not is_told_anyway and method not in _ABOUT_REQUESTS:
            self._enqueue(Waiting(line, None, method, now + self._queue_timeout_s))

    def _client_cancels(self, line: Line) -> None:
        request_id = referred(line)
        if request_id is not None and self._queue.cancel(request_id):
            return
        if self.state in (State.LIVE, State.DRAINING):
            self._settle(request_id)
            self.to_server.append(line)

    def _pass_on(self, entry: Waiting) -> None:
        self.to_server.append(entry.line)
        if entry.request_id is None or entry.method is None:
            return
        self._in_flight.methods[entry.request_id] = entry.method
        if entry.method in _OPENING:
            self._opening[entry.request_id] = entry
        self.due_changed = True
        self._memory.note_request(entry.line, entry.method)

    # ---- lines of the server ---------------------------------------------------------------------------------------

    def server_line(self, line: Line, now: float) -> bool:
        """The present server has sent a line. False: it is no message and must not reach the client (R18)."""
        if self.state is State.GIVEN_UP:
            return True  # everybody has been answered
        self._heard_at = now
        self._probes = 0
        kind, request_id, method = glance(line)
        if kind is _RESPONSE:
            self._server_answers(line, request_id, now)
        elif kind is Kind.NONE:
            return False
        elif kind is _REQUEST and request_id is not None:
            self.to_client.append(self._questions.ask(line, request_id))
        elif method == "notifications/cancelled":
            self.to_client.append(self._questions.withdraw(line))
        else:
            self.to_client.append(line)
        return True

    def passes_answer(self, line: bytes, now: float) -> bool:
        """Whether a line of the server is an answer that goes to the client as it is. It counts as passed on."""
        if self.state is not _LIVE or not self._has_answered or self._opening or self._private or not is_answer(line):
            return False
        self._heard_at = now
        self._probes = 0
        self._in_flight.note(line)
        return True

    def _server_answers(self, line: Line, request_id: RequestId | None, now: float) -> None:
        if not self._has_answered:
            self._has_answered = self.due_changed = True
        if request_id in self._private:
            self._private.discard(request_id)
            if request_id == self._replay_id:
                self._replayed(parsed(line), now)
            return
        if request_id in self._abandoned:
            return
        opening = self._settle(request_id)
        if opening is not None and opening.method == "initialize":
            self._memory.note_agreement(opening.line, line)
            if self._memory.initialized and not self._is_told:  # the client has told a server that did not answer
                self._tell_initialized()
        self.to_client.append(line)

    def _settle(self, request_id: RequestId | None) -> Waiting | None:
        """The request is answered or given up; returns it if it could have been asked again."""
        if request_id is None:
            return None
        self._in_flight.methods.pop(request_id, None)
        opening = self._opening.pop(request_id, None)
        self.due_changed = self.due_changed or opening is not None or self.state is State.DRAINING
        return opening

    # ---- the life of a server --------------------------------------------------------------------------------------

    def server_started(self, now: float) -> None:
        """A new server reads what is written to it."""
        self._heard_at = now
        self._probes = 0
        self.condemned = None
        self._is_told = False
        self._prepare(now)

    def _prepare(self, now: float) -> None:
        """Tell the server what it must know, before it gets the client's requests."""
        question = self._memory.first_question()
        if question is None:
            self._go_live(now)
            return
        self.state = State.REPLAYING
        self.due_changed = True
        self._replay_until = now + self._start_timeout_s
        self._replay_id = self._tell(question)

    def _replayed(self, answer: dict[str, Any], now: float) -> None:
        """The new server has answered its first question."""
        result, agreed = answer.get("result"), self._memory.agreed
        if agreed is None:
            self._go_live(now)  # any answer shows that it lives
        elif not isinstance(result, dict):
            self.condemn(f"it refused its first request: {str(answer.get('error'))[:200]}")
        elif (version := result.get("protocolVersion")) != agreed.get("protocolVersion"):
            self.fatal = f"it speaks protocol version {version} now, and the client {agreed.get('protocolVersion')}"
            self.condemn(self.fatal)
        else:
            self._restore(result.get("capabilities"), agreed.get("capabilities"))
            self._go_live(now)

    def _restore(self, capabilities: object, known: object) -> None:
        """It may be another program by now: what it lists is to be read again, where it may say so (R22-R24)."""
        if capabilities != known:
            self._log("warning", "the capabilities are not those that the client knows", capabilities=capabilities)
        if self._memory.initialized:
            self._tell_initialized()
        for request in self._memory.requests_to_repeat():
            self._tell(request)
        if not self._memory.initialized or not isinstance(known, dict):
            return
        for kind in ("tools", "resources", "prompts"):
            capability = known.get(kind)
            if isinstance(capability, dict) and capability.get("listChanged") is True:
                self.to_client.append(encoded({"method": f"notifications/{kind}/list_changed"}))

    def _go_live(self, now: float) -> None:
        self.state = State.LIVE
        self.due_changed = True
        self._replay_id = None
        for entry in self._queue.take_all():
            if entry.expires_at <= now:
                self._expire(entry)
            else:
                self._pass_on(entry)

    def drain(self, now: float) -> None:
        """The present server wants to be restarted: it gets no request any more, and time for those it has."""
        if self.state is State.LIVE:
            self.state = State.DRAINING
            self.due_changed = True
            self._drain_until = now + self._drain_s

    def is_drained(self, now: float) -> bool:
        """Whether the present server is to be ended, because it wants to be and nobody waits for it."""
        busy = any(method != _ENDLESS for method in self._in_flight.methods.values())
        return self.state is State.DRAINING and (not busy or now >= self._drain_until)

    def end_drain(self) -> None:
        """The present server is drained and about to be ended: what it has not answered is not answered by it."""
        for request_id, method in self._in_flight.methods.items():
            if method == _ENDLESS:
                continue
            self._abandoned.add(request_id)
            if request_id not in self._opening:  # which the next server answers
                self._answer_unknown(request_id, method, "it had to be restarted")
        for request_id in self._abandoned:
            self._in_flight.methods.pop(request_id, None)

    def condemn(self, why: str) -> None:
        """The present server is of no use any more: it must be ended."""
        self.condemned = why
        self.due_changed = True

    def server_ended(self, now: float, why: str, *, unsent: Iterable[Line] = ()) -> None:
        """The present server has ended, and everything that it had written has been seen.

        Args:
            now: The time.
            why: What is known of its end, for those who wait.
            unsent: Lines for it that it cannot have seen: they wait for the next one.
        """
        if self.state in (State.DOWN, State.GIVEN_UP):
            return
        self.state = State.DOWN
        saved = [entry for line in [*unsent, *self.to_server] if (entry := self._saved(line, now)) is not None]
        saved[:0] = self._opening.values()
        for request_id, method in self._in_flight.methods.items():
            if request_id not in self._opening:
                self._answer_unknown(request_id, method, why)
        self.to_client += self._questions.cancel_all(f"The server ended: {why}.")
        for of_the_dead in (self.to_server, self._private, self._in_flight.methods, self._opening, self._abandoned):
            of_the_dead.clear()
        self._replay_id = None
        for entry in [*saved, *self._queue.take_all()]:
            self._enqueue(entry)

    def _saved(self, line: Line, now: float) -> Waiting | None:
        """What must not be answered for the dead: an unsent request, which the next server can have."""
        kind, request_id, method = glance(line)
        if kind is not _REQUEST or request_id not in self._in_flight.methods or request_id in self._opening:
            return None  # an answer may have the number of a request
        self._settle(request_id)
        return Waiting(line, request_id, method, now + self._queue_timeout_s)

    def give_up(self, now: float, why: str, *, try_again_s: float | None) -> None:
        """No server will be started: everybody who waits is told, and everybody who asks from now on.

        Args:
            now: The time.
            why: A sentence for those who ask.
            try_again_s: Seconds after which the next request has a server started all the same; None: never.
        """
        self.server_ended(now, why)
        self.state = State.GIVEN_UP
        self._refusal = why
        self._try_again_at = None if try_again_s is None else now + try_again_s
        for entry in self._queue.take_all():
            self._refuse(entry, why, retryable=try_again_s is not None)

    # ---- time ------------------------------------------------------------------------------------------------------

    def wait_s(self, now: float) -> float | None:
        """Seconds until `tick` has something to do; None: never, unless something else happens before."""
        due = self._queue.expires_at()
        if self.condemned is not None:
            pass
        elif self.state is State.REPLAYING:
            due.append(self._replay_until)
        elif self.state is State.DRAINING:
            due += [self._drain_until] if now < self._drain_until else []
        elif self.state is State.LIVE:
            due += [opening.expires_at for opening in self._opening.values()]
            due += [self._silent_until()] if self._may_be_asked() else []
        return max(0.0, min(due) - now) if due else None

    def tick(self, now: float, *, may_ask: bool = True) -> None:
        """Time has passed.

        Args:
            now: The time.
            may_ask: False while a silent server cannot be asked or cannot answer: half a line is on its way to it, or
                the client does not read.
        """
        for entry in self._queue.expired(now):
            self._expire(entry)
        if self.condemned is not None:
            return
        if self._is_unresponsive(now):
            self.condemn(f"it did not answer its first request within {self._start_timeout_s:g} s")
        elif self.state is State.LIVE and self._may_be_asked():
            self._look_for_silence(now, may_ask=may_ask)

    def _is_unresponsive(self, now: float) -> bool:
        if self.state is State.REPLAYING:
            return now >= self._replay_until
        return any(opening.expires_at <= now for opening in self._opening.values())

    def _look_for_silence(self, now: float, *, may_ask: bool) -> None:
        if not may_ask:
            self._heard_at = now
            self._probes = 0
        elif now < self._silent_until():
            return
        elif self._probes < _PROBES:
            self._probes += 1
            self._asked_at = now
            self._tell(self._memory.sign_of_life())
        else:
            self.condemn(f"hung: it has been silent for {now - self._heard_at:.0f} s")

    def _silent_until(self) -> float:
        """When the next question is due, or the verdict: each gives half as long for an answer, from its own time on.

        Who was stopped (SIGSTOP, a machine that sleeps) asks late, and must not judge at once.
        """
        return self._asked_at + self._silence_s / 2 if self._probes else self._heard_at + self._silence_s

    def _may_be_asked(self) -> bool:
        """Whether the era is known: no message of the other one may be sent (R20)."""
        return self._silence_s > 0 and self._memory.era_is_known and not self._opening

    # ---- helpers ---------------------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        self._issued += 1
        return f"supervisor-{self._token}-{self._issued}"

    def _tell(self, request: dict[str, Any]) -> str:
        request_id = self._new_id()
        self._private.add(request_id)
        self.to_server.append(encoded({**request, "id": request_id}))
        return request_id

    def _tell_initialized(self) -> None:
        self._is_told = True
        self.to_server.append(encoded({"method": "notifications/initialized"}))

    def _enqueue(self, entry: Waiting) -> None:
        self.due_changed = True
        if not self._queue.add(entry):
            self._refuse(entry, "The server is being restarted, and too many requests wait for it.", retryable=True)

    def _expire(self, entry: Waiting) -> None:
        self._refuse(entry, "The server is being restarted, and was not back in time.", retryable=True)

    def _refuse(self, entry: Waiting, why: str, *, retryable: bool) -> None:
        if entry.request_id is not None:
            self._answer(entry.request_id, why, kind="unavailable", retryable=retryable)

    def _answer_unknown(self, request_id: RequestId, method: str, why: str) -> None:
        text = f"The server ended while it worked on this ({why}): outcome unknown."
        if method == "tools/call":
            text += " Find out what it has done before you call it again."
        self._answer(request_id, text, kind="outcome_unknown", retryable=method != "tools/call")

    def _answer(self, request_id: RequestId, text: str, *, kind: str, retryable: bool) -> None:
        error = {"code": FAILED, "message": text, "data": {"kind": kind, "retryable": retryable}}
        self.to_client.append(encoded({"id": request_id, "error": error}))
