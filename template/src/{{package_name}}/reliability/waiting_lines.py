"""Lines of the client that wait for a server: in order, bounded, and none of them forever (R27)."""

from __future__ import annotations

TYPE_CHECKING = False  # of `typing`, which is not imported: the supervisor is small
if TYPE_CHECKING:
    from .rpc_lines import Line, RequestId

MAX_LINES = 256
"""Lines that may wait."""
MAX_BYTES = 8_000_000
"""What they may hold together; a single one may be longer."""


class Waiting:
    """A line that waits.

    Args:
        line: As the client sent it.
        request_id: None for a notification.
        method: Of the message.
        expires_at: When it has waited long enough.
    """

    __slots__ = ("expires_at", "line", "method", "request_id")

    def __init__(self, line: Line, request_id: RequestId | None, method: str | None, expires_at: float) -> None:
        self.line = line
        self.request_id = request_id
        self.method = method
        self.expires_at = expires_at


class WaitingLines:
    """The queue. It answers nobody: what it gives back must be passed on or refused."""

    def __init__(self) -> None:
        self._lines: list[Waiting] = []
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, entry: Waiting) -> bool:
        """Let a line wait. False: there is no room for it."""
        size = len(entry.line)
        if len(self._lines) >= MAX_LINES or (self._lines and self._bytes + size > MAX_BYTES):
            return False
        self._lines.append(entry)
        self._bytes += size
        return True

    def cancel(self, request_id: RequestId) -> bool:
        """Forget the request with this id. False: it does not wait here."""
        return bool(self._take([entry for entry in self._lines if entry.request_id == request_id]))

    def expired(self, now: float) -> list[Waiting]:
        """Take those that have waited long enough."""
        return self._take([entry for entry in self._lines if entry.expires_at <= now])

    def take_all(self) -> list[Waiting]:
        """Take every line."""
        lines, self._lines = self._lines, []
        self._bytes = 0
        return lines

    def expires_at(self) -> list[float]:
        """When each of them has waited long enough."""
        return [entry.expires_at for entry in self._lines]

    def _take(self, entries: list[Waiting]) -> list[Waiting]:
        for entry in entries:
            self._lines.remove(entry)
            self._bytes -= len(entry.line)
        return entries
