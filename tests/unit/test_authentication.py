"""Who is let in over HTTP, and what the others hear: rules R59 and R70."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from reliability.authentication import Authentication, InvalidToken, _RefusalLog, _Refused
from reliability.configuration import ConfigurationError
from reliability.entrance import Entrance, is_loopback
from reliability.errors import DependencyFailed
from reliability.metrics import RefusedRequests
from reliability.probes import is_open
from reliability.rate_limit import RateLimit, RateLimitConfig
from starlette.testclient import TestClient

from tests.unit.support import FakeClock

METADATA = "https://mcp.example.com/.well-known/oauth-protected-resource/mcp"
SECRET = "hunter2-very-secret"


class Verifier:
    """Knows `good` and `weak`; others are invalid, or cannot be checked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def verify_token(self, token: str) -> AccessToken:
        self.asked.append(token)
        if token in ("good", "weak"):
            return AccessToken(token="", client_id=token, scopes=["read", "write"] if token == "good" else ["read"])
        if token == "later":
            raise DependencyFailed("issuer", f"The issuer at {SECRET} is down.", retry_after_s=6.2)
        raise InvalidToken("ExpiredSignatureError")


class App:
    """Says who the SDK thinks is calling."""

    def __init__(self) -> None:
        self.served: list[str | None] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        token = get_access_token()
        self.served.append(None if token is None else token.client_id)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"served"})


class Door:
    def __init__(self, *, limit: RateLimit | None = None, oauth: bool = True) -> None:
        self.app, self.verifier = App(), Verifier()
        asked = Authentication(
            verifier=self.verifier,
            scopes=("read", "write") if oauth else (),
            metadata_url=METADATA if oauth else "",
        )
        self.refused = RefusedRequests()
        self.http = TestClient(asked.before(self.app, limit, refused=self.refused, is_open=is_open))

    def get(self, path: str = "/mcp", *shown: str) -> Any:
        return self.http.get(path, headers=[("Authorization", value) for value in shown])


@pytest.mark.parametrize("shown", ["Bearer good", "bearer good", "BEARER   good", " Bearer good "])
def test_r70_a_valid_token_lets_in_and_says_who_it_is(shown: str) -> None:
    door = Door()
    assert door.get("/mcp", shown).status_code == 200
    assert (door.app.served, door.verifier.asked) == (["good"], ["good"])
    assert get_access_token() is None


@pytest.mark.parametrize(
    ("shown", "status", "challenge"),
    [
        ([], 401, ""),
        (["Basic dXNlcjpodW50ZXIy"], 401, ""),
        (["Bearer"], 401, ""),
        (["Bearer "], 401, ""),
        (["Bearerx good"], 401, ""),
        (["good"], 401, ""),
        (["Bearer wrong"], 401, "invalid_token"),
        (["Bearer good good"], 401, "invalid_token"),
        (["Bearer good,"], 401, "invalid_token"),
        (['Bearer "good"'], 401, "invalid_token"),
        (["Bearer go\x00od"], 401, "invalid_token"),
        (["Bearer g\xf6\xf6d"], 401, "invalid_token"),
        (["Bearer\tgood"], 401, ""),
        (["Bearer weak"], 403, "insufficient_scope"),
        (["Bearer later"], 503, None),
        (["Bearer good", "Bearer good"], 400, None),
        (["Bearer good", "Basic x"], 400, None),
        (["Basic x", "Bearer good"], 400, None),
        (["Bearer " + "x" * 8192], 431, None),
        (["Bearer " + " " * 9000 + "good"], 431, None),
    ],
)
def test_r70_everybody_else_hears_what_the_standard_says_and_nothing_more(
    shown: list[str], status: int, challenge: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door()
    with caplog.at_level(logging.INFO):
        answer = door.http.get("/mcp", headers=[(b"authorization", value.encode("latin-1")) for value in shown])
    assert (answer.status_code, door.app.served) == (status, [])
    error = f'error="{challenge}", ' if challenge else ""
    expected = f'Bearer {error}scope="read write", resource_metadata="{METADATA}"'
    assert answer.headers.get("www-authenticate") == (None if challenge is None else expected)
    assert len(answer.text) < 100
    assert door.refused == RefusedRequests(unauthorized=int(status != 503))
    secrets = [part for value in shown for part in value.split()[1:]] + [SECRET, "Expired"]
    assert not [secret for secret in secrets if secret in answer.text]
    shown_parts = [part for value in shown for part in value.split()[1:] if len(part) > 4]
    assert not [part for part in shown_parts if part in caplog.text]
    assert "not let in" in caplog.text


def test_r70_who_cannot_be_checked_is_told_when_to_come_back() -> None:
    assert Door().get("/mcp", "Bearer later").headers["retry-after"] == "7"


def test_r70_without_oauth_the_challenge_is_short() -> None:
    door = Door(oauth=False)
    assert door.get("/mcp").headers["www-authenticate"] == "Bearer"
    assert door.get("/mcp", "Bearer wrong").headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert door.get("/mcp", "Bearer weak").status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/metrics", "/.well-known/x"])
def test_r9_the_probes_ask_for_nothing(path: str) -> None:
    door = Door()
    for shown in ([], ["Bearer wrong"], ["Bearer good", "Bearer good"]):
        assert door.get(path, *shown).status_code == 200
    assert (door.app.served, door.verifier.asked) == ([None] * 3, [])


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/mcp/", "//mcp", "/MCP", "/mcp/livez", "/livez/", "/livezz", "/xlivez", "//livez", "/new"),
        *("/livez;x", "/livez%2f..%2fmcp", "/.well-known", "/well-known/x", "/%6dcp", "/livez%00"),
    ],
)
def test_r70_everything_else_is_protected_also_what_is_added_later(path: str) -> None:
    door = Door()
    assert door.get(path).status_code == 401
    assert door.app.served == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "NONSENSE"])
def test_r70_for_every_method(method: str) -> None:
    door = Door()
    assert door.http.request(method, "/mcp").status_code == 401
    assert door.app.served == []


@pytest.mark.anyio
async def test_r70_a_connection_of_another_kind_is_refused_and_the_lifespan_is_not() -> None:
    app = App()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    door = Authentication(verifier=Verifier()).before(app, None, refused=RefusedRequests(), is_open=is_open)
    for path in ("/mcp", "/livez"):
        scope: dict[str, Any] = {
            "type": "websocket",
            "path": path,
            "headers": [],
            "extensions": {"websocket.http.response": {}},
        }
        await door(scope, receive, send)
    assert app.served == []
    assert [message["status"] for message in sent if "status" in message] == [401, 401]
    await door({"type": "lifespan"}, receive, send)
    assert app.served == [None]


def test_r70_a_token_is_taken_from_the_header_alone() -> None:
    door = Door()
    assert door.get("/mcp?access_token=good").status_code == 401
    assert door.http.post("/mcp", data={"access_token": "good"}).status_code == 401
    assert door.http.get("/mcp", headers={"Cookie": "Authorization=Bearer good"}).status_code == 401
    assert door.http.get("/mcp", headers={"Proxy-Authorization": "Bearer good"}).status_code == 401


def test_r59_who_is_refused_too_often_is_refused_quickly_and_harms_nobody_else() -> None:
    clock = FakeClock()
    door = Door(limit=RateLimit(RateLimitConfig(per_minute=60, burst=3), clock=clock))
    answers = [door.get("/mcp", f"Bearer wrong{n}") for n in range(5)]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
    assert answers[-1].headers["retry-after"] == "1"
    assert "www-authenticate" not in answers[-1].headers
    assert door.refused == RefusedRequests(unauthorized=3, rate_limited=2)
    assert [door.get("/mcp", "Bearer good").status_code for _ in range(5)] == [200] * 5  # from the same address
    clock.now += 1
    assert door.get("/mcp").status_code == 401


def test_r59_who_tries_tokens_does_not_fill_the_disk(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    log, scope = _RefusalLog(clock), {"client": ("10.0.0.1", 5)}
    with caplog.at_level(logging.INFO):
        for _ in range(1000):
            log.add(_Refused(401, "invalid_token", "unknown token"), scope)
            log.add(_Refused(401, reason="no token"), scope)
        clock.now += 1
        log.add(_Refused(401, reason="no token"), scope)
    told = ["levelname", "reason", "address", "status", "others"]
    assert [[getattr(record, name) for name in told] for record in caplog.records] == [
        ["WARNING", "unknown token", "10.0.0.1", 401, 0],
        ["INFO", "no token", "10.0.0.1", 401, 0],  # not hidden, nor does it hide
        ["INFO", "no token", "10.0.0.1", 401, 999],
    ]


# ---- the entrance --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.5.5.5", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.1", False),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("192.0.2.1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("*", False),
        ("", False),
        ("localhost", False),  # a name, of which nobody knows what it stands for
    ],
)
def test_r70_only_an_address_of_this_machine_is_local(host: str, local: bool) -> None:
    assert is_loopback(host) is local


ANYBODY = Authentication(verifier=Verifier())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])  # noqa: S104
def test_r70_a_server_that_asks_nobody_does_not_listen_to_others(host: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Entrance(settings_prefix="MY_").check(host, host)
    assert str(caught.value) == (
        f"MY_HTTP_HOST={host} is reached from other machines, and nobody is asked who he is: "
        "set it to 127.0.0.1, or MY_HTTP_ALLOW_UNAUTHENTICATED=true to let everybody in."
    )
    assert not caplog.text
    Entrance(allow_unauthenticated=True).check(host, host)
    assert "everybody who reaches this address may call" in caplog.text
    caplog.clear()
    Entrance(authentication=ANYBODY).check(host, host)
    assert not caplog.text


def test_r70_a_server_that_is_meant_to_ask_does_not_start_without(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigurationError, match=r"^MY_HTTP_TOKENS_PATH is not set: .*MY_HTTP_ALLOW_UNAUTHENTICATED"):
        Entrance(wanted="HTTP_TOKENS_PATH", settings_prefix="MY_").check("localhost", "127.0.0.1")
    Entrance(wanted="HTTP_TOKENS_PATH", allow_unauthenticated=True).check("localhost", "127.0.0.1")
    Entrance(wanted="HTTP_TOKENS_PATH", authentication=ANYBODY).check("localhost", "127.0.0.1")
    Entrance().check("localhost", "127.0.0.1")
    assert not caplog.text


def test_r59_r70_the_entrance_knows_who_asks_before_it_counts() -> None:
    app = App()
    entrance = Entrance(
        authentication=ANYBODY,
        rate_limit=RateLimitConfig(per_minute=1, burst=2),
        trusted_proxies=["10.0.0.0/8"],
    )
    http = TestClient(entrance.before(app, entrance.buckets()), client=("10.0.0.1", 5))

    def status(token: str, forwarded_for: str) -> int:
        return http.get(
            "/mcp", headers={"Authorization": f"Bearer {token}", "X-Forwarded-For": forwarded_for}
        ).status_code

    assert [status("good", f"192.0.2.{n}") for n in range(3)] == [200, 200, 429]  # wherever it asks from
    assert [status("weak", "192.0.2.1") for _ in range(3)] == [200, 200, 429]
    assert [status("wrong", "192.0.2.1") for _ in range(3)] == [401, 401, 429]
    assert [status("wrong", "192.0.2.2") for _ in range(3)] == [401, 401, 429]
    assert {http.get("/livez").status_code for _ in range(9)} == {200}
    assert entrance.refused == RefusedRequests(unauthorized=4, rate_limited=4)  # R62: each once, by its status


def test_r59_without_authentication_an_address_is_a_client() -> None:
    entrance = Entrance(rate_limit=RateLimitConfig(per_minute=1, burst=1), trusted_proxies=["10.0.0.1"])
    http = TestClient(entrance.before(App(), entrance.buckets()), client=("10.0.0.1", 5))
    statuses = [http.get("/mcp", headers={"X-Forwarded-For": f"192.0.2.{n % 2}"}).status_code for n in range(4)]
    assert statuses == [200, 200, 429, 429]
    assert entrance.refused == RefusedRequests(rate_limited=2)


def test_an_entrance_without_anything_is_the_application_itself() -> None:
    app = App()
    assert Entrance().before(app, None) is app


def test_the_texts_of_refusals_hold_no_figures_of_the_server() -> None:
    for token in ("wrong", "weak", "later"):
        assert not re.search(r"\d", Door().get("/mcp", f"Bearer {token}").text)
