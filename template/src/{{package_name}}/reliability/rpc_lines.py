"""Tells a JSON-RPC message by the beginning of its line, without reading the rest (R17, R18).

A supervisor needs the id and the method of a line and nothing else, and a line may be megabytes long. What looks as
the SDKs write it is told by its first bytes (and, where a client puts the id at the end, by its last); anything else
is parsed. A line that begins and ends as a message is taken for one: whether all between is JSON is the reader's
business. This module imports next to nothing.
"""

from __future__ import annotations

import json
import re
from enum import Enum

TYPE_CHECKING = False  # of `typing`, which is not imported: the supervisor is small
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    RequestId: TypeAlias = int | str
    Line: TypeAlias = "bytes | LongLine"
    Glance: TypeAlias = "tuple[Kind, RequestId | None, str | None]"
    """What a line is, its id and its method, where it has them."""

_ID = rb'(-?(?:0|[1-9]\d{0,17})|"[\x20\x21\x23-\x5b\x5d-\x7e]{0,200}")'
_NAME = rb'"([\x20\x21\x23-\x5b\x5d-\x7e]{1,200})"'
_HEAD = re.compile(
    rb'\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*'
    rb'(?:"id"\s*:\s*' + _ID + rb'\s*,\s*(?:"method"\s*:\s*' + _NAME + rb'\s*[,}]|"(?:result|error)"\s*:\s*\{)'
    rb'|"method"\s*:\s*"(notifications/[\x20\x21\x23-\x5b\x5d-\x7e]{1,200})"\s*[,}])'
)
"""Groups: the id, the method of a request, the method of a notification."""
is_call = re.compile(rb'\{(?:"method":|"jsonrpc":"2\.0","id":' + _ID + rb',"method":)"tools/call",').match
"""Whether a line begins as the SDKs write a call of a tool. What has no id may begin so, too."""
is_answer = re.compile(rb'\{"jsonrpc":"2\.0","id":' + _ID + rb',"(?:result|error)":\{.*\}\r?\n\Z', re.DOTALL).match
"""Whether a line begins and ends as the SDKs write an answer."""
_METHOD_FIRST = re.compile(rb'\{"method":' + _NAME + rb",")
_ID_LAST = re.compile(rb',"jsonrpc":"2\.0"(?:,"id":' + _ID + rb")?\}\s*\Z")
_TAIL_BYTES = 300
_END_BYTES = 2_048
_LONG_BYTES = 131_072


class Kind(Enum):
    """What a line is."""

    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"
    NONE = "no message"


_REQUEST, _NOTIFICATION, _RESPONSE = Kind.REQUEST, Kind.NOTIFICATION, Kind.RESPONSE  # a member's name costs a call


class LongLine:
    """A line in the pieces in which it came: joining megabytes would cost time, and memory twice over.

    Args:
        pieces: At least two; the first one holds some thousand bytes.
    """

    __slots__ = ("pieces", "size")

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.size = sum(map(len, pieces))

    def __len__(self) -> int:
        return self.size

    def ends(self) -> bytes:
        """Its first and its last bytes: enough to tell it from its ends."""
        return self.pieces[0][:_END_BYTES] + b"".join(self.pieces[-2:])[-_END_BYTES:]


def glance(line: Line) -> Glance:
    """What kind of message a line holds, its id and its method. Never raises."""
    ends = line if isinstance(line, bytes) else line.ends()
    if ends.endswith((b"}\n", b"}\r\n")):
        if head := _HEAD.match(ends):
            request_id, method, notification = head.groups()
            if notification is not None:
                return _NOTIFICATION, None, notification.decode()
            return (_REQUEST, _id(request_id), method.decode()) if method else (_RESPONSE, _id(request_id), None)
        if (head := _METHOD_FIRST.match(ends)) and (tail := _ID_LAST.search(ends, len(ends) - _TAIL_BYTES)):
            method = head[1].decode()
            if tail[1] is not None:
                return _REQUEST, _id(tail[1]), method
            if method.startswith("notifications/"):  # of any other one the id may stand before the version
                return _NOTIFICATION, None, method
    return _from_value(parsed(line))


def glance_at_beginning(part: bytes) -> Glance | None:
    """What a line is whose end is not there yet: a request, or certainly no message. None: its end must be seen."""
    if (head := _HEAD.match(part)) and head[2]:
        return _REQUEST, _id(head[1]), head[2].decode()
    return (Kind.NONE, None, None) if is_no_message(part) else None


def is_no_message(part: bytes) -> bool:
    """Whether the beginning of a line tells that it is no message, whatever follows."""
    return part.lstrip()[:1] != b"{"


def parsed(line: Line) -> dict[str, Any]:
    """The JSON object in a line; an empty one where there is none."""
    whole = line if isinstance(line, bytes) else b"".join(line.pieces)
    try:
        value = json.loads(whole.decode())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def encoded(message: dict[str, Any]) -> bytes:
    """The line of a message."""
    return json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")).encode() + b"\n"


def with_id(line: Line, request_id: RequestId) -> Line:
    """The same message under another id; where the id stands in its usual place, no other byte is touched."""
    first, *rest = [line] if isinstance(line, bytes) else line.pieces
    head = _HEAD.match(first)
    if head is None or head[1] is None:
        return encoded({**parsed(line), "id": request_id})
    first = first[: head.start(1)] + json.dumps(request_id).encode() + first[head.end(1) :]
    return LongLine([first, *rest]) if rest else first


def _from_value(value: dict[str, Any]) -> Glance:
    if value.get("jsonrpc") != "2.0":
        return Kind.NONE, None, None
    request_id, method = value.get("id"), value.get("method")
    if not isinstance(request_id, int | str) or isinstance(request_id, bool):
        request_id = None
    if isinstance(method, str):
        return Kind.NOTIFICATION if request_id is None else Kind.REQUEST, request_id, method
    return (Kind.RESPONSE if "result" in value or "error" in value else Kind.NONE), request_id, None


def _id(token: bytes) -> RequestId:
    return token[1:-1].decode() if token[:1] == b'"' else int(token)


class LineCutter:
    """Collects what is read from a pipe into lines, with their line breaks, of any length."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes of the line that has not ended."""
        self._parts: list[bytes] = []
        self._is_dropping = False

    def is_line(self, chunk: bytes) -> bool:
        """Whether `chunk` is a whole line, as nearly always."""
        return not self._parts and not self._is_dropping and chunk.find(b"\n") == len(chunk) - 1

    def feed(self, chunk: bytes) -> list[Line]:
        """The lines that `chunk` completes, in order."""
        if self._is_dropping:
            _, separator, chunk = chunk.partition(b"\n")
            self._is_dropping = not separator
            if not chunk:
                return []
        if self.is_line(chunk):
            return [chunk]
        first, separator, rest = chunk.partition(b"\n")
        if not separator:
            self._keep(chunk)
            return []
        self._keep(first + separator)
        lines: list[Line] = [self._line()]
        *others, last = rest.split(b"\n")
        lines += [line + separator for line in others]
        self._keep(last)
        return lines

    def long_beginning(self) -> bytes | None:
        """The first bytes of a line that is long already and has not ended."""
        return self._parts[0] if self.size > _LONG_BYTES else None

    def take(self) -> list[bytes]:
        """The pieces of the line that has not ended; they are forgotten."""
        parts, self._parts, self.size = self._parts, [], 0
        return parts

    def drop(self) -> None:
        """Forget the line that has not ended, and what is still to come of it."""
        self.take()
        self._is_dropping = True

    def rest(self) -> bytes:
        """What came after the last line break; it is forgotten."""
        return b"".join(self.take())

    def _keep(self, part: bytes) -> None:
        self.size += len(part)
        if self._parts and len(self._parts[-1]) < _END_BYTES:  # so that no piece but the last is tiny
            self._parts[-1] += part
        elif part:
            self._parts.append(part)

    def _line(self) -> Line:
        is_long = self.size > _LONG_BYTES
        parts = self.take()
        return LongLine(parts) if is_long and len(parts) > 1 else b"".join(parts)
