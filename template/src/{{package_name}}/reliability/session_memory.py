"""What the client told its first server once, so that every later one can be told (R20-R25).

era         it is known when                               a new server is told
handshake   `initialize` has been answered                 initialize, initialized, log level, subscriptions
modern      a request carries its protocol version         nothing: every request says everything
"""

from __future__ import annotations

from .rpc_lines import parsed

TYPE_CHECKING = False  # of `typing`, which is not imported: the supervisor is small
if TYPE_CHECKING:
    from typing import Any

    from .rpc_lines import Line

_MAX_SUBSCRIPTIONS = 10_000
_MODERN_META = "io.modelcontextprotocol/"
_REMEMBERED = frozenset({"logging/setLevel", "resources/subscribe", "resources/unsubscribe"})
NOTED = _REMEMBERED | {"initialize", "server/discover"}
"""Requests that are looked at; any other one is only passed on, once the era is known."""


class SessionMemory:
    """One client's session, as far as a new server must know of it."""

    def __init__(self) -> None:
        self.era_is_known = False
        self.agreed: dict[str, Any] | None = None
        """The answer to `initialize` that the client has; None in the modern era."""
        self.initialized = False
        """The client has sent `notifications/initialized`."""
        self._is_pipelined = False
        """It has done so since its last `initialize`."""
        self._initialize: dict[str, Any] = {}
        self._meta: dict[str, Any] | None = None
        self._level: dict[str, Any] | None = None
        self._subscriptions: dict[str, dict[str, Any]] = {}

    def learn_era(self, line: Line, method: str) -> bool:
        """The client sends a request. Whether that has made the era known."""
        was_known = self.era_is_known
        if method == "initialize":
            self._is_pipelined = False
            self._meta = None  # the client has found out that the modern era is not spoken here
        elif not was_known:
            self._meta = _modern_meta(line)
        self.era_is_known = self._meta is not None or self.agreed is not None
        return self.era_is_known and not was_known

    def note_request(self, line: Line, method: str) -> None:
        """A request goes to the server."""
        if method in _REMEMBERED:
            self._remember(method, parsed(line).get("params"))

    def note_agreement(self, request: Line, answer: Line) -> None:
        """The client gets its answer to `initialize`: from now on this is a session of the handshake era."""
        result = parsed(answer).get("result")
        if isinstance(result, dict):
            self._initialize = parsed(request)
            self.agreed = result
            self.era_is_known = True
            self.initialized = self._is_pipelined

    def note_initialized(self) -> None:
        """The client sends `notifications/initialized`, perhaps without waiting for the answer to `initialize`."""
        self.initialized = self._is_pipelined = True

    def first_question(self) -> dict[str, Any] | None:
        """What a new server must answer before it gets the client's requests; None while no era is known."""
        if self.agreed is not None:
            return self._initialize
        return self.sign_of_life() if self.era_is_known else None  # what crashes in its start-up gets no request

    def sign_of_life(self) -> dict[str, Any]:
        """What a silent server is asked, in the known era."""
        if self.agreed is not None:
            return {"method": "ping"}
        return {"method": "server/discover", "params": {"_meta": self._meta}}

    def requests_to_repeat(self) -> list[dict[str, Any]]:
        """The log level and the subscriptions, without ids."""
        level = [] if self._level is None else [{"method": "logging/setLevel", "params": self._level}]
        return level + [{"method": "resources/subscribe", "params": params} for params in self._subscriptions.values()]

    def _remember(self, method: str, params: object) -> None:
        if not isinstance(params, dict):
            return
        if method == "logging/setLevel":
            self._level = params
        elif method == "resources/unsubscribe":
            self._subscriptions.pop(str(params.get("uri")), None)
        elif len(self._subscriptions) < _MAX_SUBSCRIPTIONS:
            self._subscriptions[str(params.get("uri"))] = params


def _modern_meta(line: Line) -> dict[str, Any] | None:
    """What a request of the modern era says of its sender; None for one of the handshake era."""
    params = parsed(line).get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    if not isinstance(meta, dict) or f"{_MODERN_META}protocolVersion" not in meta:
        return None
    return {key: value for key, value in meta.items() if key.startswith(_MODERN_META)}
