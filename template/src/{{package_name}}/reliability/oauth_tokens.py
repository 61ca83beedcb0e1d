"""Tokens of an OAuth 2.1 server: JWTs that it signed for this server alone (R70).

Checked are the signature, by the keys that the issuer publishes, the issuer, the audience, the times and the scopes.
Algorithms come from a list of ours and from the key, never from the token's word: neither `none` nor a signature with a
shared secret can be on it.

The keys are fetched when the first token comes, and again every five minutes; meanwhile, and while the issuer cannot be
reached, those that are known do. A token that names another key has them fetched once more, but not more often than
every ten seconds, however many such tokens come. While nothing is known the answer is "later" and not "no". An issuer
that publishes nothing that can be used has failed like one that cannot be reached: what was known stays valid.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import jwt
from mcp.server.auth.provider import AccessToken
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .allowed_hosts import AllowedHosts
from .authentication import Authentication, InvalidToken
from .circuit_breaker_config import CircuitBreakerConfig
from .deadlines import deadline
from .dependency import Dependency, DependencyLimits
from .errors import DependencyFailed
from .http_client import HttpClient, HttpLimits
from .probes import WELL_KNOWN
from .retry import RetryConfig
from .server import ReliableServer
from .single_flight import SingleFlight

logger = logging.getLogger(__name__)

ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""All that are signed with a private key."""
_OF_RSA = ALGORITHMS[:6]
_SHORTEST_RSA_BITS = 2048
_MAX_KEYS = 100
_TYPES = ("at+jwt", "application/at+jwt", "jwt")
"""What an access token may say it is; one for another purpose, such as `logout+jwt`, says that."""

_FRESH_S = 300.0
_RETRY_S = 10.0
_FETCH_S = 5.0
_OPEN_S = 4.0
"""What is left between a fetch that took its time and the next one, less a second."""
_PATIENCE_S = 4.0
"""Of a call that waits for the keys; less than that of whoever fetches them."""
_KEYS = "the issuer's keys"
_HTTP = HttpLimits(connect_timeout_s=2, read_timeout_s=3, max_body_bytes=250_000, max_redirects=2)
_RESOURCE = f"{WELL_KNOWN}oauth-protected-resource"

ISSUER_LIMITS = DependencyLimits(
    attempt_timeout_s=3,
    max_concurrent=2,
    circuit_breaker=CircuitBreakerConfig(
        sliding_window_type="consecutive",
        minimum_number_of_calls=3,
        wait_duration_in_open_state_s=_OPEN_S,
        max_wait_duration_in_open_state_s=_OPEN_S,
        permitted_number_of_calls_in_half_open_state=1,
    ),
    retry=RetryConfig(attempts=2),
)
"""For the issuer: it is asked so seldom that one good answer means more than all before it, and once its keys are due
again the breaker is no longer open: what shields the issuer then is the time between two requests for its keys."""


@dataclass(frozen=True, kw_only=True)
class OAuthConfig:
    """Whose tokens are valid, and for what.

    Args:
        issuer: The OAuth server, exactly as it names itself.
        audience: This server, as its clients name it: the URL of its MCP endpoint.
        scopes: What a token must be good for, all of it.
        jwks_url: Where the issuer's keys are; by default it is asked. They may then be on its own host alone.
        algorithms: Some of `ALGORITHMS`.
        leeway_s: How far the clocks may be apart, in seconds.
        keys_max_age_s: How long keys stay valid while the issuer cannot be reached, in seconds.
    """

    issuer: str
    audience: str
    scopes: tuple[str, ...] = ()
    jwks_url: str = ""
    algorithms: tuple[str, ...] = ("RS256", "PS256", "ES256", "EdDSA")
    leeway_s: float = 30
    keys_max_age_s: float = 86_400

    def __post_init__(self) -> None:
        if unknown := sorted({*self.algorithms} - {*ALGORITHMS}):
            raise ValueError(f"Not an algorithm with a public key: {', '.join(unknown)}.")


class OAuthTokens:
    """The tokens of an issuer.

    Args:
        config: See `OAuthConfig`.
        issuer: The issuer as a dependency: its breaker, limits and figures are around each request to it.
        clock: Monotonic seconds.
    """

    def __init__(self, config: OAuthConfig, issuer: Dependency, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._audiences = {config.audience, config.audience.rstrip("/"), config.audience.rstrip("/") + "/"}
        source = _Source(config, issuer)
        self._keys = SigningKeys(
            source.fetch, algorithms=config.algorithms, max_age_s=config.keys_max_age_s, clock=clock
        )

    async def verify_token(self, token: str) -> AccessToken:
        """Whose token it is.

        Raises:
            InvalidToken: It is not valid here and now.
            DependencyError: The issuer cannot be asked for the key, and it is not known.
            DeadlineExceeded: The same.
        """
        kid, algorithm = _header_of(token)
        key = await self._keys.get(kid, algorithm) if algorithm in self._config.algorithms else None
        if key is None:
            raise InvalidToken("unknown key or algorithm")
        return _access_token(self._claims(token, key))

    def _claims(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._audiences,
                issuer=self._config.issuer,
                leeway=self._config.leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
        except Exception as error:  # a signed token may hold anything
            raise InvalidToken(type(error).__name__) from None


def _header_of(token: str) -> tuple[str | None, str]:
    """The key and the algorithm that it names, before anything of it is believed."""
    try:
        header = jwt.get_unverified_header(token)
    except Exception as error:  # as above
        raise InvalidToken(type(error).__name__) from None
    kid, algorithm, kind = header.get("kid"), header.get("alg"), header.get("typ", _TYPES[0])
    if not isinstance(algorithm, str) or not isinstance(kid, str | None) or "crit" in header:
        raise InvalidToken("a header that is not understood")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise InvalidToken("a token for another purpose")
    return kid, algorithm


def _access_token(claims: dict[str, Any]) -> AccessToken:
    """Who it is, as the SDK says it; nobody needs the token itself any more."""
    subject = claims.get("sub")
    client = next((claims[name] for name in ("client_id", "azp", "sub") if isinstance(claims.get(name), str)), None)
    if client is None:
        raise InvalidToken("it names no client")
    return AccessToken(
        token="",
        client_id=client,
        scopes=_scopes(claims),
        expires_at=int(claims["exp"]),
        subject=subject if isinstance(subject, str) else None,
        claims=claims,
    )


def _scopes(claims: dict[str, Any]) -> list[str]:
    """`scope` as the standard has it, or `scp` as some issuers do, which may be a list."""
    given = claims.get("scope", claims.get("scp", ""))
    named = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
    return [scope for scope in named if isinstance(scope, str)]


class SigningKeys:
    """The issuer's keys, as far as they are known.

    Args:
        fetch: Gets them, as JSON web keys.
        algorithms: Those that they may be for.
        max_age_s: How old they may become, in seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[list[Any]]],
        *,
        algorithms: Iterable[str],
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._algorithms = frozenset(algorithms)
        self._max_age_s = max_age_s
        self._clock = clock
        self._keys: dict[tuple[str | None, str], list[jwt.PyJWK]] = {}
        self._fetched_at = self._retry_at = -math.inf
        self._has_failed = self._is_fetching = False
        self._flights: SingleFlight[None] = SingleFlight(_KEYS, max_background=1, background_timeout_s=_FETCH_S)

    async def get(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of that name, or the only one there is for the algorithm; None if the issuer has none.

        Raises:
            DependencyError: It is not known, and the issuer cannot be asked.
            DeadlineExceeded: The same.
        """
        if found := self._known(kid, algorithm):
            if self._age_s() > _FRESH_S and self._is_due():
                self._flights.run_in_background(_KEYS, self._refresh)
            return found
        if self._is_due() or self._is_fetching:
            self._flights.run_in_background(_KEYS, self._refresh)  # so that it goes on when this caller leaves
            with deadline(_PATIENCE_S, what="Asking the issuer for its keys"):
                await self._flights.run(_KEYS, self._refresh)
        elif self._has_failed:
            raise DependencyFailed("issuer", "The issuer's keys are not known.", retry_after_s=self._left_s())
        return self._known(kid, algorithm)

    def _known(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        found = self._keys.get((kid, algorithm), []) if self._age_s() <= self._max_age_s else []
        return found[0] if len(found) == 1 else None  # of several without a name nobody knows which

    def _age_s(self) -> float:
        return self._clock() - self._fetched_at

    def _left_s(self) -> float:
        return max(0.0, self._retry_at - self._clock())

    def _is_due(self) -> bool:
        return self._left_s() == 0

    async def _refresh(self) -> None:
        self._retry_at = self._clock() + _RETRY_S
        self._has_failed = self._is_fetching = True
        try:
            found = await self._fetch()
        finally:
            self._is_fetching = False
        keys = _usable(found, self._algorithms)
        if not keys:
            raise DependencyFailed("issuer", "The issuer has no key that can be used.", retry_after_s=self._left_s())
        self._keys, self._fetched_at, self._has_failed = keys, self._clock(), False


def _usable(found: list[Any], algorithms: frozenset[str]) -> dict[tuple[str | None, str], list[jwt.PyJWK]]:
    """Keys by name and algorithm, and by algorithm alone."""
    keys: dict[tuple[str | None, str], list[jwt.PyJWK]] = {}
    for data in found[:_MAX_KEYS]:
        for key in _keys_in(data, algorithms):
            for name in {key.key_id, None}:
                keys.setdefault((name, key.algorithm_name), []).append(key)
    return keys


def _keys_in(data: Any, algorithms: frozenset[str]) -> Iterable[jwt.PyJWK]:
    """What a JSON web key is good for: one algorithm, or for RSA several if it does not say which."""
    if not isinstance(data, dict) or not isinstance(data.get("kid"), str | None):
        return
    data = {name: value for name, value in data.items() if value is not None}  # some issuers write null for "none"
    operations = data.get("key_ops", ["verify"])
    if data.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return
    for name in _OF_RSA if data.get("kty") == "RSA" and "alg" not in data else [None]:
        try:
            key = jwt.PyJWK(data, name)
        except Exception:  # noqa: S112 - one for something else, or broken: the others are as good as ever
            continue
        if key.algorithm_name in algorithms and getattr(key.key, "key_size", 0) >= _shortest(key):
            yield key


def _shortest(key: jwt.PyJWK) -> int:
    return _SHORTEST_RSA_BITS if key.key_type == "RSA" else 0


class _Source:
    """Where the keys are."""

    def __init__(self, config: OAuthConfig, issuer: Dependency) -> None:
        self._config = config
        self._issuer = issuer
        self._hosts = AllowedHosts.of(config.jwks_url or config.issuer)
        self._jwks_url = ""

    async def fetch(self) -> list[Any]:
        """The issuer's keys.

        Raises:
            DependencyError: It cannot be asked, or answers with something else.
        """
        async with HttpClient(self._issuer, allowed_hosts=self._hosts, limits=_HTTP) as client:
            url = self._config.jwks_url or self._jwks_url or await self._discover(client)
            self._jwks_url = ""  # where it moves while its keys cannot be had it is asked anew
            found = await _document(client, url)
        keys = {} if found is None else found.get("keys")
        if not isinstance(keys, list):
            raise DependencyFailed(self._issuer.name, "The issuer's keys are not where they should be.")
        self._jwks_url = url
        return keys

    async def _discover(self, client: HttpClient) -> str:
        for url in _metadata_urls(self._config.issuer):
            document = await _document(client, url)
            if document is not None and document.get("issuer") == self._config.issuer:
                return self._checked(document.get("jwks_uri"))
        raise DependencyFailed(self._issuer.name, "The issuer does not describe itself under its own name.")

    def _checked(self, url: object) -> str:
        try:
            return str(self._hosts.check(str(url)))
        except Exception as error:
            raise DependencyFailed(
                self._issuer.name, "The issuer's keys are on another host: name it in the setting OAUTH_JWKS_URL."
            ) from error


async def _document(client: HttpClient, url: str) -> dict[str, Any] | None:
    """The JSON object at `url`; None if there is none."""
    response = await client.get(url, headers={"accept": "application/json"})
    if response.status != 200:
        return None
    try:
        found = response.json()
    except DependencyFailed:  # a page for people
        return None
    return found if isinstance(found, dict) else None


def _metadata_urls(issuer: str) -> list[str]:
    """Where an issuer describes itself: by RFC 8414, and by OpenID Connect."""
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    return list(
        dict.fromkeys(
            [
                f"{origin}{WELL_KNOWN}oauth-authorization-server{path}",
                f"{origin}{path}{WELL_KNOWN}openid-configuration",
                f"{origin}{WELL_KNOWN}openid-configuration{path}",
            ]
        )
    )


def authentication(server: ReliableServer[Any], config: OAuthConfig) -> Authentication:
    """What a client has to show; the issuer becomes a dependency of the server, and clients are told of it."""
    add_metadata(server, config)
    return Authentication(
        verifier=OAuthTokens(config, server.dependency("issuer", ISSUER_LIMITS)),
        scopes=config.scopes,
        metadata_url=metadata_url(config.audience),
    )


def metadata_url(audience: str) -> str:
    """Where clients are told whose tokens they need (RFC 9728)."""
    parts = urlsplit(audience)
    return f"{parts.scheme}://{parts.netloc}{_RESOURCE}{parts.path.rstrip('/')}"


def add_metadata(server: ReliableServer[Any], config: OAuthConfig) -> None:
    """Tell clients whose tokens they need, under the address that RFC 9728 makes of ours, and under the root."""
    described = {
        "resource": config.audience,
        "authorization_servers": [config.issuer],
        "bearer_methods_supported": ["header"],
        "resource_name": server.name,
        **({"scopes_supported": list(config.scopes)} if config.scopes else {}),
    }

    async def metadata(request: Request) -> Response:
        return JSONResponse(described, headers={"Access-Control-Allow-Origin": "*", "Cache-Control": "max-age=3600"})

    for path in {urlsplit(metadata_url(config.audience)).path, _RESOURCE}:
        server.custom_route(path, methods=["GET"])(metadata)
