"""Tokens of an OAuth server, and its keys: rule R70."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from reliability import oauth_tokens
from reliability.authentication import InvalidToken
from reliability.dependency import Dependency
from reliability.errors import DependencyError, DependencyFailed, ReliabilityError
from reliability.http_client import HttpClient
from reliability.oauth_tokens import (
    ALGORITHMS,
    ISSUER_LIMITS,
    OAuthConfig,
    OAuthTokens,
    SigningKeys,
    metadata_url,
)

from tests.unit import issuer
from tests.unit.issuer import AUDIENCE, ISSUER, forgeries, public_key, token
from tests.unit.support import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

FORGERIES = forgeries()


class Keys:
    """What the issuer publishes, and how often it was asked."""

    def __init__(self, *keys: Any) -> None:
        self.keys: list[Any] = list(keys) or [public_key()]
        self.asked = 0
        self.is_down = False
        self.may_answer = anyio.Event()
        self.may_answer.set()
        self.clock = FakeClock()

    async def fetch(self) -> list[Any]:
        self.asked += 1
        await self.may_answer.wait()
        if self.is_down:
            raise DependencyFailed("issuer", "The issuer is down.")
        return self.keys

    def ring(self, **options: Any) -> SigningKeys:
        chosen: dict[str, Any] = {"algorithms": ALGORITHMS, "max_age_s": 3600, **options}
        return SigningKeys(self.fetch, clock=self.clock, **chosen)


def verifier(keys: Keys | None = None, **options: Any) -> OAuthTokens:
    keys = keys or Keys()
    made = OAuthTokens(
        OAuthConfig(**{"issuer": ISSUER, "audience": AUDIENCE, **options}), Dependency("issuer"), clock=keys.clock
    )
    made._keys._fetch = keys.fetch
    return made


# ---- tokens --------------------------------------------------------------------------------------------------------


async def test_r70_a_good_token_lets_its_holder_in_and_is_then_forgotten() -> None:
    good = token()
    access = await verifier().verify_token(good)
    assert (access.client_id, access.subject, access.scopes) == ("client-1", "user-1", ["read", "write"])
    assert access.claims is not None
    assert access.claims["iss"] == ISSUER
    assert good not in repr(access)


@pytest.mark.parametrize("what", FORGERIES)
async def test_r70_no_other_token_does(what: str) -> None:
    with pytest.raises(InvalidToken) as caught:
        await verifier().verify_token(FORGERIES[what])
    assert not [part for part in FORGERIES[what].split(".") if len(part) > 5 and part in str(caught.value)]
    assert "example" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abcdefABCDEF0123456789-_.~+/=", max_size=300))
def test_r4_no_token_is_too_strange(text: str) -> None:
    async def refused() -> None:
        with pytest.raises(InvalidToken):
            await verifier().verify_token(text)

    anyio.run(refused)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_every_signature_with_a_public_key_is_known(algorithm: str) -> None:
    kind = "ES256" if algorithm.startswith("ES2") else algorithm
    for alg in (kind, None):  # an issuer need not say what its key is for
        keys = Keys(public_key(algorithm=algorithm, alg=alg))
        access = await verifier(keys, algorithms=(algorithm,)).verify_token(token(algorithm=algorithm))
        assert access.client_id == "client-1"
        with pytest.raises(InvalidToken):
            others = tuple({*ALGORITHMS} - {algorithm})
            await verifier(keys, algorithms=others).verify_token(token(algorithm=algorithm))


@pytest.mark.parametrize("algorithm", ["none", "HS256", "", "rs256"])
def test_r70_a_shared_secret_is_no_choice(algorithm: str) -> None:
    with pytest.raises(ValueError, match="public key"):
        OAuthConfig(issuer=ISSUER, audience=AUDIENCE, algorithms=("RS256", algorithm))


@pytest.mark.parametrize(
    ("claim", "named"),
    [
        ({"scope": "a b"}, ["a", "b"]),
        ({"scope": None, "scp": ["a", "b", 5]}, ["a", "b"]),
        ({"scope": None, "scp": "a b"}, ["a", "b"]),
        ({"scope": None}, []),
        ({"scope": ""}, []),
        ({"scope": {"a": 1}}, []),
    ],
)
async def test_scopes_are_read_as_issuers_write_them(claim: dict[str, Any], named: list[str]) -> None:
    assert (await verifier().verify_token(token(**claim))).scopes == named


@pytest.mark.parametrize(
    ("claim", "client"),
    [
        ({"client_id": "c", "azp": "z"}, "c"),
        ({"client_id": None, "azp": "z"}, "z"),
        ({"client_id": None}, "user-1"),
        ({"client_id": 5, "azp": "z"}, "z"),
    ],
)
async def test_the_client_is_read_as_issuers_write_it(claim: dict[str, Any], client: str) -> None:
    assert (await verifier().verify_token(token(**claim))).client_id == client


@pytest.mark.parametrize("audience", [AUDIENCE, f"{AUDIENCE}/", ["https://x.example", AUDIENCE]])
async def test_a_slash_at_the_end_of_the_audience_is_no_difference(audience: Any) -> None:
    for ours in (AUDIENCE, f"{AUDIENCE}/"):
        await verifier(audience=ours).verify_token(token(aud=audience))


@pytest.mark.parametrize("kind", ["JWT", "at+jwt", "AT+JWT", "application/at+jwt"])
async def test_a_token_may_say_that_it_is_for_access(kind: str) -> None:
    await verifier().verify_token(token(header={"typ": kind}))


async def test_clocks_may_differ_a_little() -> None:
    now = int(time.time())
    await verifier(leeway_s=30).verify_token(token(exp=now - 20, nbf=now + 20))
    with pytest.raises(InvalidToken, match="ExpiredSignatureError"):
        await verifier(leeway_s=0).verify_token(token(exp=now - 20))


# ---- keys ----------------------------------------------------------------------------------------------------------


async def test_r70_keys_that_are_weak_or_for_something_else_are_not_used() -> None:
    other = public_key("k1", number=1)
    assert await Keys(public_key(bits=1024), other).ring().get("k0", "RS256") is None
    assert await Keys(public_key(use="enc"), other).ring().get("k0", "RS256") is None
    assert await Keys(public_key(use=None, key_ops=["encrypt"]), other).ring().get("k0", "RS256") is None
    assert await Keys(public_key(use=None, key_ops=["verify"])).ring().get("k0", "RS256") is not None
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "k0", "alg": "HS256"}
    assert await Keys(secret, other).ring().get("k0", "HS256") is None


@pytest.mark.parametrize("name", ["use", "key_ops", "alg", "x5u"])
async def test_r4_what_an_issuer_writes_as_null_is_absent(name: str) -> None:
    ring = Keys({**public_key(), name: None}).ring()
    assert await ring.get("k0", "RS256") is not None
    assert (await ring.get("k0", "RS512") is not None) == (name == "alg")


OPERATIONS: list[Any] = [5, True, {}, "verify", [[]], [None]]
STRANGE: list[Any] = [
    *(None, 5, "key", [], {}, {"kty": "RSA"}, {"kty": "RSA", "kid": 5}, {"kty": []}),
    *(public_key("k1", number=1, key_ops=operations) for operations in OPERATIONS),
    {**public_key("k1", number=1), "key_ops": None},
    *({**public_key("k1", number=1), name: []} for name in ("use", "alg", "n", "e", "kid")),
]


@pytest.mark.parametrize("strange", STRANGE)
async def test_r4_a_strange_key_does_not_hide_the_others(strange: Any) -> None:
    assert await Keys(strange, public_key(), strange).ring().get("k0", "RS256") is not None


async def test_a_token_without_the_name_of_a_key_needs_an_issuer_with_one_key() -> None:
    for only in (public_key(kid=None), public_key()):
        await verifier(Keys(only, public_key("e", "ES256"))).verify_token(token(kid=None))
    with pytest.raises(InvalidToken):
        await verifier(Keys(public_key(), public_key("k1", number=1))).verify_token(token(kid=None))


async def test_r70_keys_are_fetched_when_the_first_token_comes_and_then_kept() -> None:
    keys = Keys()
    checks = verifier(keys)
    assert keys.asked == 0  # nothing is asked at the start
    for _ in range(5):
        await checks.verify_token(token())
    keys.clock.now += 299
    await checks.verify_token(token())
    assert keys.asked == 1


async def test_r70_keys_that_are_no_longer_fresh_do_while_they_are_fetched_again() -> None:
    keys = Keys()
    ring = keys.ring()
    await ring.get("k0", "RS256")
    keys.may_answer = anyio.Event()
    keys.clock.now += 301
    assert await ring.get("k0", "RS256") is not None  # at once
    await anyio.wait_all_tasks_blocked()
    assert keys.asked == 2
    keys.keys = [public_key("k1", number=1)]
    keys.may_answer.set()
    await anyio.wait_all_tasks_blocked()
    assert await ring.get("k1", "RS256") is not None
    assert keys.asked == 2
    assert ring._known("k0", "RS256") is None  # a key that the issuer has taken back


async def test_r70_a_new_key_is_noticed_when_the_first_token_comes_that_it_signed() -> None:
    keys = Keys()
    checks = verifier(keys)
    await checks.verify_token(token())
    keys.keys.append(public_key("k1", number=1))
    keys.clock.now += 10
    await checks.verify_token(token("k1", number=1))
    assert keys.asked == 2


async def test_r70_tokens_of_unknown_keys_do_not_become_requests_to_the_issuer() -> None:
    keys = Keys()
    checks = verifier(keys)
    for _ in range(1000):
        with pytest.raises(InvalidToken):
            await checks.verify_token(FORGERIES["an unknown key"])
    assert keys.asked == 1
    keys.clock.now += 10
    with pytest.raises(InvalidToken):
        await checks.verify_token(FORGERIES["an unknown key"])
    assert keys.asked == 2
    await checks.verify_token(token())


async def test_r70_a_token_of_an_algorithm_that_is_not_ours_is_refused_before_anybody_is_asked() -> None:
    keys = Keys()
    for what in ("alg none", "HS256 with the public key", "another algorithm than the key's"):
        with pytest.raises(InvalidToken):
            await verifier(keys).verify_token(FORGERIES[what])
    assert keys.asked == 0


async def test_r70_all_who_wait_for_the_keys_wait_for_the_same_request() -> None:
    keys = Keys()
    keys.may_answer = anyio.Event()
    checks, let_in = verifier(keys), []

    async def call() -> None:
        let_in.append(await checks.verify_token(token()))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        keys.may_answer.set()
    assert (len(let_in), keys.asked) == (20, 1)


async def test_r70_the_request_goes_on_when_who_caused_it_leaves() -> None:
    keys = Keys()
    keys.may_answer = anyio.Event()
    ring = keys.ring()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ring.get, "k0", "RS256")
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    keys.may_answer.set()
    await anyio.wait_all_tasks_blocked()
    assert await ring.get("k0", "RS256") is not None
    assert keys.asked == 1


async def test_r70_while_the_issuer_is_down_known_keys_do_for_a_day(caplog: pytest.LogCaptureFixture) -> None:
    keys = Keys()
    checks = verifier(keys, keys_max_age_s=86_400)
    good = token()
    await checks.verify_token(good)
    keys.is_down = True
    for _ in range(86_400 // 60):
        keys.clock.now += 60
        await checks.verify_token(good)
        while checks._keys._flights.in_flight:  # until the task in the background has ended
            await checkpoint()
    assert keys.asked > 1000  # it is asked again and again
    assert "failed in the background" in caplog.text
    keys.clock.now += 60
    with pytest.raises(DependencyFailed):  # "later", and not "no"
        await checks.verify_token(token())
    keys.is_down = False
    keys.clock.now += 10
    await checks.verify_token(token())


async def test_r70_while_the_issuer_is_down_an_unknown_key_is_answered_with_later() -> None:
    keys = Keys()
    checks = verifier(keys)
    await checks.verify_token(token())
    keys.is_down = True
    keys.clock.now += 10
    for _ in range(3):
        with pytest.raises(DependencyFailed):
            await checks.verify_token(token("k1", number=1))
    assert keys.asked == 2
    await checks.verify_token(token())
    with pytest.raises(DependencyFailed) as caught:
        await checks.verify_token(token("k1", number=1))
    assert caught.value.retry_after_s == 10


async def test_r70_an_issuer_that_hangs_holds_a_call_for_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oauth_tokens, "_PATIENCE_S", 0.02)
    keys = Keys()
    keys.may_answer = anyio.Event()
    with pytest.raises(ReliabilityError, match="Asking the issuer"):
        await verifier(keys).verify_token(token())
    keys.may_answer.set()
    await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize("published", [[], [{"kty": "oct", "k": "c2VjcmV0"}], [None]])
async def test_r70_an_issuer_without_a_key_of_use_has_failed_and_known_keys_do(published: list[Any]) -> None:
    keys = Keys()
    checks = verifier(keys)
    good, keys.keys = keys.keys, published
    for _ in range(3):  # "later", and not "no"
        with pytest.raises(DependencyFailed):
            await checks.verify_token(token())
    assert keys.asked == 1
    keys.keys = good
    keys.clock.now += 10
    await checks.verify_token(token())
    keys.keys = published
    keys.clock.now += 301
    for _ in range(3):
        await checks.verify_token(token())
        await anyio.wait_all_tasks_blocked()
    assert keys.asked == 3


# ---- where the keys are --------------------------------------------------------------------------------------------


class Site:
    """An issuer's pages."""

    def __init__(self, pages: dict[str, Any]) -> None:
        self.pages = pages
        self.asked: list[str] = []

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(str(request.url))
        page = self.pages.get(str(request.url), 404)
        if isinstance(page, int):
            return httpx2.Response(page, stream=httpx2.ByteStream(b"secret"))
        data = page if isinstance(page, bytes) else json.dumps(page).encode()
        return httpx2.Response(200, stream=httpx2.ByteStream(data))


def serve(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    """Let every request go to the site."""
    real: Callable[..., Any] = HttpClient
    monkeypatch.setattr(
        oauth_tokens,
        "HttpClient",
        lambda *arguments, **named: real(*arguments, **named, transport=httpx2.MockTransport(site)),
    )


async def found_by(
    monkeypatch: pytest.MonkeyPatch, pages: dict[str, Any], **options: Any
) -> tuple[list[Any] | str, list[str]]:
    """What is found, or what is said instead, and what was asked for."""
    site = Site(pages)
    serve(monkeypatch, site)
    config = OAuthConfig(**{"issuer": ISSUER, "audience": AUDIENCE, **options})
    source = oauth_tokens._Source(config, Dependency("issuer", ISSUER_LIMITS))
    try:
        return await source.fetch(), site.asked
    except DependencyError as error:
        return error.text, site.asked


KEYS = {"keys": [{"kid": "k"}]}
RFC8414, OPENID = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("https://a.example", f"https://a.example{RFC8414}"),
        ("https://a.example", f"https://a.example{OPENID}"),
        ("https://a.example/", f"https://a.example{OPENID}"),
        ("https://a.example/realms/x", f"https://a.example{RFC8414}/realms/x"),
        ("https://a.example/realms/x", f"https://a.example/realms/x{OPENID}"),
        ("https://a.example/realms/x", f"https://a.example{OPENID}/realms/x"),
        ("http://127.0.0.1:9000", f"http://127.0.0.1:9000{RFC8414}"),
    ],
)
async def test_r70_the_issuer_says_where_its_keys_are(monkeypatch: pytest.MonkeyPatch, name: str, where: str) -> None:
    keys_at = f"{name.rstrip('/')}/keys"
    pages = {where: {"issuer": name, "jwks_uri": keys_at}, keys_at: KEYS}
    found, asked = await found_by(monkeypatch, pages, issuer=name)
    assert found == KEYS["keys"]
    assert len(asked) <= 4


async def test_a_page_for_people_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {
        f"{ISSUER}{RFC8414}": b"<html>Not found</html>",
        f"{ISSUER}{OPENID}": {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/k"},
        f"{ISSUER}/k": KEYS,
    }
    assert (await found_by(monkeypatch, pages))[0] == KEYS["keys"]


async def test_the_address_of_the_keys_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = await found_by(monkeypatch, {"https://keys.example/k": KEYS}, jwks_url="https://keys.example/k")
    assert (found, asked) == (KEYS["keys"], ["https://keys.example/k"])


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"issuer": "https://evil.example", "jwks_uri": f"{ISSUER}/k"}, "under its own name"),
        ({"issuer": f"{ISSUER}/", "jwks_uri": f"{ISSUER}/k"}, "under its own name"),
        ({"jwks_uri": f"{ISSUER}/k"}, "under its own name"),
        ({"issuer": ISSUER, "jwks_uri": "https://keys.example/k"}, "OAUTH_JWKS_URL"),
        ({"issuer": ISSUER, "jwks_uri": "http://login.example.com/k"}, "OAUTH_JWKS_URL"),
        ({"issuer": ISSUER, "jwks_uri": "http://169.254.169.254/"}, "OAUTH_JWKS_URL"),
        ({"issuer": ISSUER, "jwks_uri": "file:///etc/passwd"}, "OAUTH_JWKS_URL"),
        ({"issuer": ISSUER, "jwks_uri": 5}, "OAUTH_JWKS_URL"),
        ({"issuer": ISSUER}, "OAUTH_JWKS_URL"),
        ({"issuer": ISSUER, "jwks_uri": f"{ISSUER}/gone"}, "not where they should be"),
        ({"issuer": ISSUER, "jwks_uri": f"{ISSUER}/odd"}, "not where they should be"),
        ([], "under its own name"),
    ],
)
async def test_r70_what_the_issuer_says_is_not_believed_of_others(
    monkeypatch: pytest.MonkeyPatch, document: Any, told: str
) -> None:
    pages = {f"{ISSUER}{RFC8414}": document, f"{ISSUER}/odd": {"keys": 5}, "https://keys.example/k": KEYS}
    found, asked = await found_by(monkeypatch, pages)
    assert told in found
    assert all(url.startswith(ISSUER) for url in asked)


async def test_r70_an_issuer_that_fails_is_a_dependency_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = await found_by(monkeypatch, {f"{ISSUER}{RFC8414}": 500})
    assert found == "The dependency 'issuer' answered with status 500 (Internal Server Error)."


@pytest.mark.parametrize("failed", range(6))
async def test_r70_an_issuer_that_comes_back_is_noticed_by_the_next_request(
    monkeypatch: pytest.MonkeyPatch, failed: int
) -> None:
    site, clock = Site({}), FakeClock()
    serve(monkeypatch, site)
    issuer = Dependency("issuer", ISSUER_LIMITS, clock=clock)
    checks = OAuthTokens(OAuthConfig(issuer=ISSUER, audience=AUDIENCE), issuer, clock=clock)
    site.pages = {f"{ISSUER}{RFC8414}": 503}
    for _ in range(failed):
        with pytest.raises(DependencyError):
            await checks.verify_token(token())
        await anyio.wait_all_tasks_blocked()
        clock.now += 10
    site.pages = {
        f"{ISSUER}{RFC8414}": {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/k"},
        f"{ISSUER}/k": {"keys": [public_key()]},
    }
    await checks.verify_token(token())


async def test_r7_a_document_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = await found_by(monkeypatch, {f"{ISSUER}{RFC8414}": b" " * 300_000})
    assert "more than 250000 bytes" in found


@pytest.mark.parametrize(
    ("audience", "url"),
    [
        ("https://a.example/mcp", "https://a.example/.well-known/oauth-protected-resource/mcp"),
        ("https://a.example:8443/x/mcp/", "https://a.example:8443/.well-known/oauth-protected-resource/x/mcp"),
        ("https://a.example", "https://a.example/.well-known/oauth-protected-resource"),
    ],
)
def test_clients_are_told_where_the_standard_says(audience: str, url: str) -> None:
    assert metadata_url(audience) == url


def test_the_helpers_tokens_are_good_or_bad_for_the_reason_they_say() -> None:
    assert len(set(FORGERIES.values())) == len(FORGERIES)
    assert issuer.token().count(".") == 2
