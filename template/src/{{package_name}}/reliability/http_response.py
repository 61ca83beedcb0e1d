"""An answer over HTTP, whole and in memory but never too long, and the failures that an answer can be (R51, R55)."""

from __future__ import annotations

import codecs
import email.utils
import functools
import re
import zlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx2

from .errors import ConnectionBroken, DependencyFailed

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

_NEVER_BETTER = {501, 505}
"""Statuses that say that the server cannot do such a thing at all."""
_NOT_PACKED = {"", "identity"}
_GZIP = {"gzip", "x-gzip"}
_CHARSET = re.compile(r"charset=\s*\"?([\w-]+)", re.ASCII | re.IGNORECASE)
_SHOWN_CHARACTERS = 100
_LONGEST_RETRY_AFTER_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class HttpResponse:
    """An answer. What may hold secrets is not in its `repr`.

    Args:
        dependency: Who gave it.
        status: The status.
        headers: By name, in any case.
        content: The body, unpacked.
        url: What was asked in the end, after redirects.
        elapsed_s: Seconds from sending the last request to the end of the body, without any wait for a place.
    """

    dependency: str
    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)
    url: str = field(repr=False)
    elapsed_s: float

    @property
    def reason(self) -> str:
        """The status in words: the standard's, not the server's."""
        return httpx2.codes.get_reason_phrase(self.status) or "unknown"

    @property
    def text(self) -> str:
        """The body as text. Bytes that are none in the declared character set are replaced."""
        declared = _CHARSET.search(self.headers.get("content-type", ""))
        try:
            return self.content.decode(declared[1] if declared else "utf-8", errors="replace")
        except (LookupError, UnicodeError):  # there is no such character set
            return self.content.decode(errors="replace")

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            DependencyFailed: It is something else.
        """
        from pydantic_core import from_json

        try:
            return from_json(
                self.content.removeprefix(codecs.BOM_UTF8)
            )  # stricter than `json`: no halves of characters
        except ValueError:
            raise self._unexpected("a body that is not JSON") from None

    def decode(self, model: type[T]) -> T:
        """The JSON body of a success as `model`, which is any type that pydantic knows.

        Raises:
            DependencyFailed: The status is not one of success, or the body is not as `model` says.
        """
        from pydantic import ValidationError

        if not 200 <= self.status < 300:
            raise self._unexpected(f"status {self.status} ({self.reason})")
        try:
            return cast("T", _adapter(cast("Any", model)).validate_json(self.content))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part) for part in problem["loc"])[:_SHOWN_CHARACTERS]
            raise self._unexpected(
                f"a body that is not as expected ({place or 'as a whole'}: {problem['type']})"
            ) from None

    def _unexpected(self, what: str) -> DependencyFailed:
        return lasting_failure(self.dependency, f"answered with {what}")


class HttpStatusError(DependencyFailed):
    """The answer says that the server could not: a status of 5xx, or 429 for too many requests (R55).

    Args:
        response: The whole answer, for tools that show it.
        now: Seconds since the epoch, for a Retry-After that is a date. One beyond an hour is taken for an hour.
    """

    def __init__(self, response: HttpResponse, *, now: float) -> None:
        super().__init__(
            response.dependency,
            f"The dependency {response.dependency!r} answered with status {response.status} ({response.reason}).",
            retryable=response.status not in _NEVER_BETTER,
            retry_after_s=_retry_after_s(response.headers.get("retry-after", ""), now),
        )
        self.status = response.status
        self.response = response


async def read_body(dependency: str, answer: httpx2.Response, limit: int) -> bytes:
    """The whole body, unpacked; no more than about `limit` bytes are held at any time.

    Raises:
        DependencyFailed: It is longer, as it is sent or unpacked, or packed in another way than with gzip.
        ConnectionBroken: It is cut off.
        zlib.error: It cannot be unpacked.
    """
    encoding = answer.headers.get("content-encoding", "").strip().lower()
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16) if encoding in _GZIP else None
    body, received = bytearray(), 0
    stream = cast("httpx2.AsyncByteStream", answer.stream)
    async with aclosing(cast("AsyncGenerator[bytes]", aiter(stream))) as pieces:
        async for piece in pieces:
            received += len(piece)
            body += piece if unpacker is None else unpacker.decompress(piece, limit - len(body) + 1)
            if max(received, len(body)) > limit:
                raise lasting_failure(dependency, f"answered with more than {limit} bytes")
    if received and encoding not in _GZIP | _NOT_PACKED:
        raise lasting_failure(dependency, "answered in an encoding that was not asked for")
    if received and unpacker is not None and not unpacker.eof:
        raise ConnectionBroken(dependency, "the body is cut off")
    return bytes(body)


def lasting_failure(dependency: str, what: str) -> DependencyFailed:
    """A failure that asking again would not cure."""
    return DependencyFailed(dependency, f"The dependency {dependency!r} {what}.", retryable=False)


def _retry_after_s(text: str, now: float) -> float | None:
    """Seconds, from a number of seconds or from a date."""
    if re.fullmatch("[0-9]{1,9}", text.strip()):
        seconds = float(text)
    else:
        try:
            date = email.utils.parsedate_to_datetime(text)
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER_S)


@functools.lru_cache(maxsize=64)
def _adapter(model: Any) -> TypeAdapter[Any]:
    """It takes a thousand times as long to make as to use."""
    from pydantic import TypeAdapter

    return TypeAdapter(model)
