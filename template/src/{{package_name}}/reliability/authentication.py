"""Who may call over HTTP: whoever shows a token that a verifier knows (R70).

Everything asks for one but what is open on purpose, the probes; so a route that is added later is protected, too. It is
asked for before a byte of the body is read. A refusal says what RFC 6750 wants it to say and nothing more: why a token
is not valid is for the log, and the token itself is for nobody.

A client that is let in is who the SDK says it is, `get_access_token()`: sessions, the state of a conversation and
cached answers are kept apart by that.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.authentication import AuthCredentials
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import ReliabilityError
from .metrics import RefusedRequests
from .rate_limit import RateLimit, site_of, too_many_requests

logger = logging.getLogger(__name__)

_MAX_HEADER_BYTES = 8_192
_BEARER = re.compile(rb"bearer +([\w.~+/-]+=*)", re.IGNORECASE | re.ASCII)
_SCHEME = re.compile(rb"bearer(?: |$)", re.IGNORECASE)
_LOG_INTERVAL_S = 1.0
_UNAVAILABLE_S = 5.0
_NOTHING_SHOWN = "no token"


class InvalidToken(Exception):
    """A token is not one to let in; the text says why, and holds nothing of it."""


class Verifier(Protocol):
    """Knows which tokens are valid."""

    async def verify_token(self, token: str) -> AccessToken:
        """Whose token it is.

        Raises:
            InvalidToken: It is not valid.
            ReliabilityError: That cannot be told at the moment.
        """


@dataclass(frozen=True, kw_only=True)
class Authentication:
    """What a client has to show.

    Args:
        verifier: Knows which tokens are valid.
        scopes: What a token must be good for, all of it.
        metadata_url: Where clients are told whose tokens these are (RFC 9728); for OAuth.
    """

    verifier: Verifier
    scopes: Sequence[str] = ()
    metadata_url: str = ""

    def before(
        self, app: ASGIApp, limit: RateLimit | None, *, refused: RefusedRequests, is_open: Callable[[str], bool]
    ) -> ASGIApp:
        """The application in front of `app` that asks for it.

        Args:
            app: What is protected.
            limit: How often an address may be refused.
            refused: Counts whom it refuses.
            is_open: Tells which paths ask for nothing.
        """
        return _Doorkeeper(app, self, limit, refused, is_open)


@dataclass
class _Refused(Exception):
    """An answer of RFC 6750, section 3."""

    status: int
    error: str = ""
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class _Doorkeeper:
    def __init__(
        self,
        app: ASGIApp,
        asked: Authentication,
        limit: RateLimit | None,
        refused: RefusedRequests,
        is_open: Callable[[str], bool],
    ) -> None:
        self._app = AuthContextMiddleware(app)
        self._asked = asked
        self._limit = limit
        self._refused = refused
        self._is_open = is_open
        self._log = _RefusalLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._is_open(scope["path"])):
            await self._app(scope, receive, send)
            return
        try:
            token = await self._admit(scope)
        except _Refused as refused:
            await self._answer(refused, scope)(scope, receive, send)
            return
        scope["auth"], scope["user"] = AuthCredentials(token.scopes), AuthenticatedUser(token)
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope) -> AccessToken:
        try:
            token = await self._asked.verifier.verify_token(_bearer_token(scope))
        except InvalidToken as error:
            raise _Refused(401, "invalid_token", str(error)) from None
        except ReliabilityError as error:
            wait_s = math.ceil(error.retry_after_s or _UNAVAILABLE_S)
            raise _Refused(503, reason=error.text, headers={"Retry-After": str(wait_s)}) from None
        if missing := [scope for scope in self._asked.scopes if scope not in token.scopes]:
            raise _Refused(403, "insufficient_scope", f"without {' '.join(missing)}")
        return token

    def _answer(self, refused: _Refused, scope: Scope) -> Response:
        self._log.add(refused, scope)
        if self._limit is not None and (wait_s := self._limit.spend(site_of(scope))):
            return too_many_requests(wait_s, self._refused)
        self._refused.unauthorized += refused.status < 500  # else it cannot be told: the issuer's figures say so
        if refused.status in (401, 403):
            refused.headers["WWW-Authenticate"] = self._challenge(refused)
        return PlainTextResponse(_TEXTS[refused.status], refused.status, refused.headers)

    def _challenge(self, refused: _Refused) -> str:
        told = {
            "error": refused.error,
            "scope": " ".join(self._asked.scopes),
            "resource_metadata": self._asked.metadata_url,
        }
        return " ".join(["Bearer", ", ".join(f'{name}="{value}"' for name, value in told.items() if value)]).strip()


_TEXTS = {
    400: "The request must have one Authorization header.",
    401: "A valid bearer token is needed.",
    403: "The token is not good for this server.",
    431: "The Authorization header is too long.",
    503: "The token cannot be checked at the moment.",
}


def _bearer_token(scope: Scope) -> str:
    """The token that a request shows.

    Raises:
        _Refused: It shows none, more than one, or what cannot be one.
    """
    shown = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(shown) > 1:
        raise _Refused(400, reason="several Authorization headers")
    value: bytes = shown[0].strip() if shown else b""
    if len(value) > _MAX_HEADER_BYTES:
        raise _Refused(431, reason="an Authorization header that is too long")
    if not _SCHEME.match(value) or value.lower() == b"bearer":
        raise _Refused(401, reason=_NOTHING_SHOWN)  # without an error code, because nothing was shown
    found = _BEARER.fullmatch(value)
    if found is None:
        raise _Refused(401, "invalid_token", "not of the form of a token")
    return found[1].decode()


class _RefusalLog:
    """One line a second and level: whoever tries tokens must not fill the disk, nor hide behind those who have none."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_at = {logging.INFO: -math.inf, logging.WARNING: -math.inf}
        self._left_out = dict.fromkeys(self._next_at, 0)

    def add(self, refused: _Refused, scope: Scope) -> None:
        # Every client of OAuth begins without a token.
        level = logging.INFO if refused.reason == _NOTHING_SHOWN else logging.WARNING
        if self._clock() < self._next_at[level]:
            self._left_out[level] += 1
            return
        fields = {"status": refused.status, "reason": refused.reason, "address": (scope.get("client") or [""])[0]}
        logger.log(level, "not let in", extra={**fields, "others": self._left_out[level]})
        self._left_out[level], self._next_at[level] = 0, self._clock() + _LOG_INTERVAL_S
