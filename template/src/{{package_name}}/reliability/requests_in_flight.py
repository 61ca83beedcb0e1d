"""Which of the client's requests the present server has not answered (R26)."""

from __future__ import annotations

from .rpc_lines import Kind, glance

TYPE_CHECKING = False  # of `typing`, which is not imported: the supervisor is small
if TYPE_CHECKING:
    from .rpc_lines import RequestId

_MAX_NOTED = 16


class RequestsInFlight:
    """Their methods, by their ids.

    Nearly every line is a call of a tool or its answer, and reading its id takes longer than passing it on. So such a
    line is only noted, and read when somebody wants to know what is in flight: hardly ever.
    """

    def __init__(self) -> None:
        self._methods: dict[RequestId, str] = {}
        self._noted: list[bytes] = []

    def note(self, line: bytes) -> None:
        """A request or an answer has passed, and it is not said which."""
        self._noted.append(line)
        if len(self._noted) == _MAX_NOTED:
            self._read()

    @property
    def methods(self) -> dict[RequestId, str]:
        """The method of each request in flight, by its id; it may be changed."""
        self._read()
        return self._methods

    def _read(self) -> None:
        for line in self._noted:
            kind, request_id, method = glance(line)
            if request_id is None:
                continue
            if kind is Kind.REQUEST and method is not None:
                self._methods[request_id] = method
            elif kind is Kind.RESPONSE:
                self._methods.pop(request_id, None)
        self._noted.clear()
