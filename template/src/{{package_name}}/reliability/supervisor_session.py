"""What a supervisor must know of the protocol so that one client can talk to one server after another (R20-R28, R32).

It sees every line in both directions and says which lines go where; it reads no pipe, starts no process and reads no
clock. Lines pass as they are. What the client told the first server once (`initialize`, the log level, subscriptions)
is told to every later one under ids of the supervisor's own, whose answers the client never sees. A request is
answered exactly once: by the server that got it, or here, and it is never given to two servers.

    state       a server is there         a request of the client
    DOWN        no                        waits, for a limited time
    REPLAYING   yes, it is being told     waits, for a limited time
    LIVE        yes                       is passed on
    GIVEN_UP    no, nor will there be     is refused
"""

from __future__ import annotations

import os
from enum import Enum

from .rpc_lines import Kind, encoded, glance, glance_at_beginning, parsed

TYPE_CHECKING = False  # of `typing`, which is not imported: the supervisor is small
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .rpc_lines import Line, RequestId

FAILED = -32000
"""The code of every error that a supervisor answers with."""
MAX_QUEUED = 256
"""Lines that may wait for a server."""
MAX_QUEUED_BYTES = 8_000_000
"""What they may hold together; a single one may be longer."""
_MAX_SUBSCRIPTIONS = 10_000
_PROBES = 2
"""Questions in a row without an answer after which a server is hung: after one alone the machine may have slept."""

# Requests that only introduce the two sides to each other: after a crash they are asked again.
_OPENING = frozenset({"initialize", "server/discover"})
_REMEMBERED = frozenset({"logging/setLevel", "resources/subscribe", "resources/unsubscribe"})
_NOTED = _OPENING | _REMEMBERED
_ABOUT_THE_DEAD = frozenset({"notifications/cancelled", "notifications/progress"})
_MODERN_META = "io.modelcontextprotocol/"


class State(Enum):
    """Whether there is a server, and whether it knows what it must."""

    DOWN = "down"
    REPLAYING = "replaying"
    LIVE = "live"
    GIVEN_UP = "given up"


_LIVE = State.LIVE  # what every line passes looks up as little as possible
_REQUEST, _RESPONSE = Kind.REQUEST, Kind.RESPONSE


class _Waiting:
    """A line that waits for a server; of a notification, `request_id` is None."""

    __slots__ = ("expires_at", "line", "method", "request_id")

    def __init__(self, line: Line, request_id: RequestId | None, method: str | None, expires_at: float) -> None:
        self.line = line
        self.request_id = request_id
        self.method = method
        self.expires_at = expires_at


class SupervisorSession:
    """One client's session, over the lives of several servers. Every `now` is a time of one monotonic clock.

    Args:
        queue_timeout_s: How long a request waits for a server.
        start_timeout_s: How long a server may take to answer its first request, and the client waits for that.
        silence_s: A server that says nothing for so long is asked whether it lives; 0: never.
        log: Called with a level, an event and its fields.
        token: Makes the supervisor's ids different from every id of the client and the server.
    """

    def __init__(
        self,
        *,
        queue_timeout_s: float,
        start_timeout_s: float,
        silence_s: float,
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
        self.due_changed = True
        """Whether `wait_s` may be shorter than it was; who asks for that resets it."""
        self.fatal: str | None = None
        """Why no server can serve this client any more."""
        self._queue_timeout_s = queue_timeout_s
        self._start_timeout_s = start_timeout_s
        self._silence_s = silence_s
        self._log = log
        self._token = token or os.urandom(12).hex()
        self._issued = 0
        # What the client waits for.
        self._in_flight: dict[RequestId, str] = {}
        self._opening: dict[RequestId, _Waiting] = {}
        self._queue: list[_Waiting] = []
        self._queued_bytes = 0
        # What every later server must be told.
        self._initialize: dict[str, Any] | None = None
        self._agreed: dict[str, Any] | None = None
        self._initialized = False
        self._meta: dict[str, Any] | None = None
        self._era_is_known = False
        self._level: dict[str, Any] | None = None
        self._subscriptions: dict[str, dict[str, Any]] = {}
        # The present server.
        self._generation = 0
        self._replay_id: str | None = None
        self._replay_until = 0.0
        self._private: set[RequestId] = set()
        self._asked: dict[RequestId, RequestId] = {}
        self._heard_at = 0.0
        self._probes = 0
        self._refusal = ""
        self._try_again_at: float | None = None

    @property
    def calls_in_flight(self) -> int:
        """Requests that the present server has not answered."""
        return len(self._in_flight)

    @property
    def queued(self) -> int:
        """Lines that wait for a server."""
        return len(self._queue)

    # ---- lines -----------------------------------------------------------------------------------------------------

    def client_line(self, line: Line, now: float) -> None:
        """The client has sent a line."""
        kind, request_id, method = glance(line)
        if kind is _REQUEST and request_id is not None and method is not None:
            if self.state is _LIVE and self._era_is_known and method not in _NOTED:
                self._in_flight[request_id] = method
                self.to_server.append(line)
            else:
                self._client_request(line, request_id, method, now)
        elif kind is _RESPONSE:
            self._client_response(line, request_id)
        elif method == "notifications/cancelled":
            self._client_cancels(line)
        else:
            self._client_notifies(line, method, now)

    def _client_notifies(self, line: Line, method: str | None, now: float) -> None:
        is_told_anyway = method == "notifications/initialized"
        self._initialized = self._initialized or is_told_anyway
        if self.state is State.LIVE:
            self.to_server.append(line)
        elif not is_told_anyway and method not in _ABOUT_THE_DEAD:
            self._enqueue(_Waiting(line, None, method, now + self._queue_timeout_s))

    def lets_pass(self, beginning: bytes) -> bool:
        """Whether a long line of the client may go to the server in pieces, as they come. It counts as passed on."""
        begun = glance_at_beginning(beginning)
        if begun is None or self.state is not State.LIVE or not self._era_is_known:
            return False
        _, request_id, method = begun
        if request_id is not None and method is not None:
            if method in _NOTED:
                return False
            self._in_flight[request_id] = method
        return True

    def server_line(self, line: Line, now: float) -> bool:
        """The present server has sent a line. False: it is no message and must not reach the client (R18)."""
        self._heard_at = now
        self._probes = 0
        kind, request_id, method = glance(line)
        if self.state is State.GIVEN_UP:
            return True
        if kind is _RESPONSE:
            self._server_response(line, request_id, now)
        elif kind is Kind.NONE:
            return False
        elif kind is _REQUEST and request_id is not None:
            self.to_client.append(self._asking(line, request_id))
        elif method == "notifications/cancelled" and self._asked:
            self.to_client.append(self._no_longer_asking(line))
        else:
            self.to_client.append(line)
        return True

    def _client_request(self, line: Line, request_id: RequestId, method: str, now: float) -> None:
        timeout_s = self._start_timeout_s if method in _OPENING else self._queue_timeout_s
        request = _Waiting(line, request_id, method, now + timeout_s)
        if self.state is State.LIVE:
            self._pass_on(request)
        elif self.state is not State.GIVEN_UP:
            self._enqueue(request)
        elif self._try_again_at is not None and now >= self._try_again_at:
            self.state = State.DOWN
            self._enqueue(request)
        else:
            self._refuse(request, self._refusal, retryable=self._try_again_at is not None)

    def _pass_on(self, request: _Waiting) -> None:
        method = request.method
        if request.request_id is not None and method is not None:
            self._in_flight[request.request_id] = method
            if method in _OPENING:
                self._opening[request.request_id] = request
                self.due_changed = True
            if method in _REMEMBERED:
                self._remember(method, parsed(request.line).get("params"))
            if method == "initialize":
                self._meta = None  # the client has found out that the modern era is not spoken here
            elif not self._era_is_known:
                self._learn_era(request.line)
            self._era_is_known = self._meta is not None or self._agreed is not None
        self.to_server.append(request.line)

    def _client_response(self, line: Line, request_id: RequestId | None) -> None:
        """An answer to a server that is dead is dropped (R28)."""
        if request_id is None or request_id not in self._asked:
            return
        its_id = self._asked.pop(request_id)
        self.to_server.append(line if its_id == request_id else encoded({**parsed(line), "id": its_id}))

    def _client_cancels(self, line: Line) -> None:
        request_id = _referred(line)
        waiting = next((w for w in self._queue if w.request_id == request_id and request_id is not None), None)
        if waiting is not None:
            self._take_from_queue(waiting)
        elif self.state is State.LIVE:
            self._settle(request_id)
            self.to_server.append(line)

    def _server_response(self, line: Line, request_id: RequestId | None, now: float) -> None:
        if request_id in self._private:
            self._private.discard(request_id)
            if request_id == self._replay_id:
                self._replayed(parsed(line), now)
            return
        if self._settle(request_id) == "initialize":
            self._agree(parsed(line).get("result"))
        self.to_client.append(line)

    def _settle(self, request_id: RequestId | None) -> str | None:
        """The request is answered or given up; returns its method."""
        if request_id is None:
            return None
        if self._opening and (opening := self._opening.pop(request_id, None)) and opening.method == "initialize":
            self._initialize = parsed(opening.line)
        return self._in_flight.pop(request_id, None)

    def _asking(self, line: Line, its_id: RequestId) -> Line:
        """A later server counts its requests from the beginning again: an old answer must not reach a new question."""
        shown = its_id if self._generation == 1 else self._new_id()
        self._asked[shown] = its_id
        return line if shown == its_id else encoded({**parsed(line), "id": shown})

    def _no_longer_asking(self, line: Line) -> Line:
        its_id = _referred(line)
        shown = next((s for s, own in self._asked.items() if own == its_id), its_id)
        self._asked.pop(shown, None) if shown is not None else None
        if shown == its_id:
            return line
        message = parsed(line)
        return encoded({**message, "params": {**message["params"], "requestId": shown}})

    # ---- what later servers are told -------------------------------------------------------------------------------

    def _learn_era(self, line: Line) -> None:
        params = parsed(line).get("params")
        meta = params.get("_meta") if isinstance(params, dict) else None
        if isinstance(meta, dict):
            own = {key: value for key, value in meta.items() if key.startswith(_MODERN_META)}
            self._meta = own if f"{_MODERN_META}protocolVersion" in own else None

    def _agree(self, result: object) -> None:
        """The client has its answer to `initialize`: from now on this is a session of the handshake era."""
        if isinstance(result, dict):
            self._agreed = result
            self._era_is_known = self.due_changed = True
            self._initialized = False

    def _remember(self, method: str, params: object) -> None:
        if not isinstance(params, dict):
            return
        if method == "logging/setLevel":
            self._level = params
        elif method == "resources/unsubscribe":
            self._subscriptions.pop(str(params.get("uri")), None)
        elif len(self._subscriptions) < _MAX_SUBSCRIPTIONS:
            self._subscriptions[str(params.get("uri"))] = params

    # ---- the life of a server --------------------------------------------------------------------------------------

    def server_started(self, now: float) -> None:
        """A new server reads what is written to it."""
        self._generation += 1
        self._heard_at = now
        self.due_changed = True
        self._probes = 0
        self.condemned = None
        question = self._first_question()
        if question is None:
            self._go_live(now)
            return
        self.state = State.REPLAYING
        self._replay_id = self._new_id()
        self._replay_until = now + self._start_timeout_s
        self._tell({**question, "id": self._replay_id})

    def _first_question(self) -> dict[str, Any] | None:
        """What a new server must answer before it gets the client's requests; None while no era is known."""
        if self._agreed is not None:
            return self._initialize
        if self._meta is not None:  # there is nothing to tell it, but what crashes in its start-up gets no request
            return {"method": "server/discover", "params": {"_meta": self._meta}}
        return None

    def _replayed(self, answer: dict[str, Any], now: float) -> None:
        result = answer.get("result")
        if not isinstance(result, dict):
            self._condemn(f"it refused its first request: {str(answer.get('error'))[:200]}")
        elif self._agreed is None:
            self._go_live(now)
        else:
            self._agreed_again(result, self._agreed, now)

    def _agreed_again(self, result: dict[str, Any], agreed: dict[str, Any], now: float) -> None:
        versions = result.get("protocolVersion"), agreed.get("protocolVersion")
        if versions[0] != versions[1]:
            self.fatal = f"it speaks protocol version {versions[0]} now, and the client {versions[1]}"
            self._condemn(self.fatal)
            return
        if result.get("capabilities") != agreed.get("capabilities"):
            self._log("warning", "the capabilities are not those that the client knows", now=result.get("capabilities"))
        self._restore()
        self._go_live(now)
        self._announce_changes(result.get("capabilities"))

    def _restore(self) -> None:
        if self._initialized:
            self.to_server.append(encoded({"method": "notifications/initialized"}))
        if self._level is not None:
            self._tell({"id": self._new_id(), "method": "logging/setLevel", "params": self._level})
        for params in self._subscriptions.values():
            self._tell({"id": self._new_id(), "method": "resources/subscribe", "params": params})

    def _announce_changes(self, capabilities: object) -> None:
        """It may be another program by now: what it lists is to be read again, where it may say so (R24)."""
        if not self._initialized or not isinstance(capabilities, dict):
            return
        for kind in ("tools", "resources", "prompts"):
            capability = capabilities.get(kind)
            if isinstance(capability, dict) and capability.get("listChanged") is True:
                self.to_client.append(encoded({"method": f"notifications/{kind}/list_changed"}))

    def _go_live(self, now: float) -> None:
        self.state = State.LIVE
        self.due_changed = True
        self._replay_id = None
        waiting, self._queue = self._queue, []
        self._queued_bytes = 0
        for entry in waiting:
            if entry.expires_at <= now:
                self._expire(entry)
            else:
                self._pass_on(entry)

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
        self.to_server.clear()
        for shown in self._asked:
            params = {"requestId": shown, "reason": f"The server ended: {why}."}
            self.to_client.append(encoded({"method": "notifications/cancelled", "params": params}))
        again = [self._opening[i] for i in self._opening if i in self._in_flight]
        for request_id, method in self._in_flight.items():
            if request_id not in self._opening:
                self._answer_unknown(request_id, method, why)
        for unanswered in (self._asked, self._private, self._in_flight, self._opening):
            unanswered.clear()
        self._replay_id = None
        waiting, self._queue = self._queue, []
        for entry in [*again, *saved, *waiting]:
            self._enqueue(entry)

    def _saved(self, line: Line, now: float) -> _Waiting | None:
        """What must not be answered for the dead: an unsent request, which the next server can have."""
        _, request_id, method = glance(line)
        if request_id in self._in_flight and request_id not in self._opening:
            self._settle(request_id)
            return _Waiting(line, request_id, method, now + self._queue_timeout_s)
        return None

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
        for entry in self._queue:
            self._refuse(entry, why, retryable=try_again_s is not None)
        self._queue.clear()
        self._queued_bytes = 0

    # ---- time ------------------------------------------------------------------------------------------------------

    def wait_s(self, now: float) -> float | None:
        """Seconds until `tick` has something to do; None: never, unless something else happens before."""
        due = [entry.expires_at for entry in self._queue]
        if self.state is State.REPLAYING:
            due.append(self._replay_until)
        elif self.state is State.LIVE:
            due += [opening.expires_at for opening in self._opening.values()]
            if self._silence_s and self._may_be_asked():
                due.append(self._silent_until())
        return max(0.0, min(due) - now) if due else None

    def tick(self, now: float, *, may_ask: bool = True) -> None:
        """Time has passed.

        Args:
            now: The time.
            may_ask: False while a silent server cannot be asked or cannot answer: half a line is on its way to it, or
                the client does not read.
        """
        for entry in [entry for entry in self._queue if entry.expires_at <= now]:
            self._take_from_queue(entry)
            self._expire(entry)
        if self.state is State.REPLAYING and now >= self._replay_until:
            self._condemn(f"it did not answer its first request within {self._start_timeout_s:g} s")
        if self.state is State.LIVE:
            self._look_for_silence(now, may_ask=may_ask)

    def _look_for_silence(self, now: float, *, may_ask: bool) -> None:
        if any(opening.expires_at <= now for opening in self._opening.values()):
            self._condemn(f"it did not answer its first request within {self._start_timeout_s:g} s")
        if not self._silence_s or not self._may_be_asked():
            return
        if not may_ask:
            self._heard_at = now
        if now < self._silent_until():
            return
        if self._probes >= _PROBES:
            self._condemn(f"hung: it has been silent for {now - self._heard_at:.0f} s")
            return
        self._probes += 1
        if self._agreed is not None:
            self._tell({"id": self._new_id(), "method": "ping"})
        else:
            self._tell({"id": self._new_id(), "method": "server/discover", "params": {"_meta": self._meta}})

    def _silent_until(self) -> float:
        """When the next question is due, or the verdict: after the first one they wait half as long."""
        return self._heard_at + self._silence_s * (1 + self._probes / 2)

    def _may_be_asked(self) -> bool:
        """Whether the era is known: no message of the other one may be sent (R20)."""
        return self._era_is_known and not self._opening

    # ---- helpers ---------------------------------------------------------------------------------------------------

    def _condemn(self, why: str) -> None:
        self.condemned = why
        self.due_changed = True

    def _new_id(self) -> str:
        self._issued += 1
        return f"supervisor-{self._token}-{self._issued}"

    def _tell(self, message: dict[str, Any]) -> None:
        self._private.add(message["id"])
        self.to_server.append(encoded(message))

    def _enqueue(self, entry: _Waiting) -> None:
        size = len(entry.line)
        if self.state is State.GIVEN_UP:
            return
        if len(self._queue) >= MAX_QUEUED or (self._queue and self._queued_bytes + size > MAX_QUEUED_BYTES):
            self._refuse(entry, "The server is being restarted, and too many requests wait for it.", retryable=True)
            return
        self._queue.append(entry)
        self._queued_bytes += size
        self.due_changed = True

    def _take_from_queue(self, entry: _Waiting) -> None:
        self._queue.remove(entry)
        self._queued_bytes -= len(entry.line)

    def _expire(self, entry: _Waiting) -> None:
        self._refuse(entry, "The server is being restarted, and was not back in time.", retryable=True)

    def _refuse(self, entry: _Waiting, why: str, *, retryable: bool) -> None:
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


def _referred(line: Line) -> RequestId | None:
    """The id of the request that a cancellation is about."""
    params = parsed(line).get("params")
    request_id = params.get("requestId") if isinstance(params, dict) else None
    return request_id if isinstance(request_id, int | str) and not isinstance(request_id, bool) else None
