"""Requests from a server to the client, whose answers must not reach a later server (R28).

A later server counts its requests from the beginning again, and an answer to the first one's may still be on its way:
so the client sees the later ones' under other ids.
"""

from __future__ import annotations

from .rpc_lines import encoded, parsed, with_id

TYPE_CHECKING = False  # of `typing`, which is not imported: the supervisor is small
if TYPE_CHECKING:
    from collections.abc import Callable

    from .rpc_lines import Line, RequestId


class ServerQuestions:
    """The requests of the present server that the client has not answered.

    Args:
        new_id: Gives ids that nobody else uses.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._is_first = True
        self._open: dict[RequestId, RequestId] = {}
        """The server's ids by those that the client sees."""

    def ask(self, line: Line, its_id: RequestId) -> Line:
        """The server asks: the line for the client."""
        shown = its_id if self._is_first else self._new_id()
        self._open[shown] = its_id
        return line if self._is_first else with_id(line, shown)

    def answer(self, line: Line, shown: RequestId | None) -> Line | None:
        """The client answers: the line for the server; None if nobody waits for it any more."""
        if shown is None or shown not in self._open:
            return None
        its_id = self._open.pop(shown)
        return line if its_id == shown else with_id(line, its_id)

    def withdraw(self, line: Line) -> Line:
        """The server cancels one of its requests: the line for the client."""
        its_id = referred(line)
        shown = next((shown for shown, own in self._open.items() if own == its_id), None)
        if shown is None:
            return line
        del self._open[shown]
        message = parsed(line)
        return line if shown == its_id else encoded({**message, "params": {**message["params"], "requestId": shown}})

    def cancel_all(self, why: str) -> list[Line]:
        """The server has ended: what the client is to be told."""
        given_up, self._open = self._open, {}
        self._is_first = False
        return [
            encoded({"method": "notifications/cancelled", "params": {"requestId": shown, "reason": why}})
            for shown in given_up
        ]


def referred(line: Line) -> RequestId | None:
    """The id of the request that a cancellation is about."""
    params = parsed(line).get("params")
    request_id = params.get("requestId") if isinstance(params, dict) else None
    return request_id if isinstance(request_id, int | str) and not isinstance(request_id, bool) else None
