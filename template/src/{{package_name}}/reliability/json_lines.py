"""Cuts a byte stream into lines of bounded size, and tells what is wrong with a line that is no message (R4, R7)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from mcp.shared.message import SessionMessage
from mcp_types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

_PREFIX_BYTES = 4096
_ID = re.compile(
    rb"""\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,
    (?:\s*"method"\s*:\s*"[^"\\]{1,200}"\s*,)?
    \s*"id"\s*:\s*(-?\d{1,18}|"[^"\\]{1,200}")\s*[,}]""",
    re.VERBOSE,
)
"""The id of a request whose beginning looks as the SDKs write it."""


@dataclass(frozen=True, slots=True)
class OversizeLine:
    """A line that was dropped because it is too long; only its first bytes were kept."""

    prefix: bytes


class LineSplitter:
    """Collects chunks into lines. Holds `max_bytes` at the most, however long a line is.

    Args:
        max_bytes: Longest line, without its line break, that is passed on.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._partial = bytearray()
        self._dropping: OversizeLine | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes | OversizeLine]:
        """The lines that `chunk` completes, in order; blank ones are left out."""
        *complete, rest = chunk.split(b"\n")
        for piece in complete:
            yield from self._end_line(piece)
        self._append(rest)

    def end(self) -> Iterator[bytes | OversizeLine]:
        """The last line, when the stream ends without a line break."""
        yield from self._end_line(b"")

    def _append(self, piece: bytes) -> None:
        if self._dropping is not None:
            return
        self._partial += piece
        if len(self._partial) > self.max_bytes:
            self._dropping = OversizeLine(bytes(self._partial[:_PREFIX_BYTES]))
            self._partial = bytearray()

    def _end_line(self, piece: bytes) -> Iterator[bytes | OversizeLine]:
        self._append(piece)
        if self._dropping is not None:
            yield self._dropping
            self._dropping = None
        elif self._partial:
            line = bytes(self._partial).strip()
            self._partial = bytearray()
            if line:
                yield line


def parse_line(line: bytes) -> SessionMessage | JSONRPCError | None:
    """A message for the server, or the error to answer with, or None for a line that must not be answered."""
    try:
        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        if not (isinstance(message, JSONRPCNotification) and b'"id"' in line):
            return SessionMessage(message)
        if "id" not in json.loads(line):  # it stood in the parameters
            return SessionMessage(message)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
            return _error(None, PARSE_ERROR, "Parse error: the line is not valid JSON, or is nested too deeply.")
    return _invalid_request(line)


def oversize_error(line: OversizeLine, max_bytes: int) -> JSONRPCError:
    """The answer to a line that was too long; it carries the request's id where that stood at the line's beginning."""
    found = _ID.match(line.prefix)
    request_id: int | str | None = None
    if found:
        with suppress(ValueError):  # an id in broken UTF-8, or a number that JSON does not allow
            request_id = json.loads(found[1])
    return _error(request_id, INVALID_REQUEST, f"The message is longer than the limit of {max_bytes} bytes.")


def _invalid_request(line: bytes) -> JSONRPCError | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return _error(None, PARSE_ERROR, "Parse error: the line is not valid JSON, or is nested too deeply.")
    if isinstance(value, list):
        return _error(None, INVALID_REQUEST, "Batches are not supported: send one message per line.")
    if isinstance(value, dict) and ("id" in value) != ("method" in value):
        return None  # a malformed notification or response: JSON-RPC forbids an answer to either
    request_id = value.get("id") if isinstance(value, dict) else None
    valid_id = request_id if isinstance(request_id, int | str) and not isinstance(request_id, bool) else None
    return _error(valid_id, INVALID_REQUEST, "Invalid request: not a JSON-RPC 2.0 message.")


def _error(request_id: int | str | None, code: int, text: str) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=code, message=text))
