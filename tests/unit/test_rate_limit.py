"""How often one client may ask over HTTP: rule R59."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from reliability import rate_limit
from reliability.metrics import RefusedRequests
from reliability.rate_limit import RateLimit, RateLimitConfig, RateLimited, client_of
from starlette.testclient import TestClient

from tests.unit.support import FakeClock


def limit(clock: FakeClock, *, per_minute: float = 60, burst: int = 3) -> RateLimit:
    return RateLimit(RateLimitConfig(per_minute=per_minute, burst=burst), clock=clock)


def test_r59_a_burst_is_let_through_and_then_one_request_each_interval() -> None:
    clock = FakeClock()
    bucket = limit(clock)
    assert [bucket.spend("a") for _ in range(5)] == pytest.approx([0, 0, 0, 1, 1])
    clock.now += 0.4
    assert bucket.spend("a") == pytest.approx(0.6)
    clock.now += 0.6
    assert [bucket.spend("a"), bucket.spend("a")] == pytest.approx([0, 1])
    clock.now += 1000
    assert [bucket.spend("a") for _ in range(4)] == pytest.approx([0, 0, 0, 1])


def test_r59_one_client_takes_nothing_from_another() -> None:
    bucket = limit(FakeClock(), burst=1)
    assert bucket.spend("a") == 0
    assert bucket.spend("a") > 0
    assert bucket.spend("b") == 0


def test_r59_what_is_remembered_is_bounded_and_those_who_ask_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "_MAX_CLIENTS", 10)
    bucket = limit(FakeClock(), burst=1000)
    for number in range(1000):
        assert bucket.spend(number) == 0
        assert bucket.spend("asks all the time") == 0
    assert bucket.spend("asks all the time") > 0
    for _ in range(1000):
        assert bucket.spend("new") == 0
    assert bucket.spend("new") > 0
    assert len(bucket._full_at) == 10


def test_r59_who_is_refused_again_and_again_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "_MAX_CLIENTS", 10)
    bucket = limit(FakeClock(), burst=1)
    assert bucket.spend("asks all the time") == 0
    for number in range(1000):
        assert bucket.spend(number) == 0
        assert bucket.spend("asks all the time") > 0
    assert len(bucket._full_at) == 10


@settings(max_examples=200, deadline=None)
@given(
    st.floats(1, 10_000),
    st.integers(1, 50),
    st.lists(st.floats(0, 30), min_size=1, max_size=200),
)
def test_r59_never_more_than_the_bucket_holds_and_never_a_wait_that_is_too_short(
    per_minute: float, burst: int, pauses: list[float]
) -> None:
    """Beside a bucket that is counted in the plain way."""
    clock, level = FakeClock(0), float(burst)
    bucket = limit(clock, per_minute=per_minute, burst=burst)
    for pause in pauses:
        clock.now += pause
        level = min(burst, level + pause * per_minute / 60)
        wait_s = bucket.spend("a")
        if wait_s:
            assert level < 1 + 1e-6
            clock.now += wait_s
            level = min(burst, level + wait_s * per_minute / 60)
            assert bucket.spend("a") == 0
        else:
            assert level > 1 - 1e-3
        level -= 1


@pytest.mark.parametrize("wrong", [{"per_minute": 0}, {"burst": 0}, {"per_minute": float("nan")}])
def test_a_limit_beyond_its_bounds_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RateLimitConfig(**wrong)


def test_zero_is_no_limit() -> None:
    assert RateLimitConfig.of(0, burst=5) is None
    assert RateLimitConfig.of(30, burst=5) == RateLimitConfig(per_minute=30, burst=5)


def scope(address: str | None, user: object = None) -> dict[str, Any]:
    return {"type": "http", "client": address and (address, 1), **({"user": user} if user else {})}


def holder(client: str, subject: str | None = None, issuer: str | None = None) -> AuthenticatedUser:
    claims = {"iss": issuer} if issuer else None
    return AuthenticatedUser(AccessToken(token="", client_id=client, scopes=[], subject=subject, claims=claims))


def test_r59_a_client_is_whoever_its_token_names_wherever_it_asks_from() -> None:
    assert client_of(scope("10.0.0.1", holder("a"))) == client_of(scope("10.0.0.2", holder("a")))
    everybody = [holder("a"), holder("b"), holder("a", "s"), holder("a", "s", "i"), holder("a", None, "i")]
    assert len({client_of(scope("10.0.0.1", one)) for one in everybody}) == len(everybody)
    assert client_of(scope("a")) != client_of(scope("1.1.1.1", holder("a")))


def test_r59_who_has_a_whole_network_of_ipv6_is_one_client() -> None:
    ours = {client_of(scope(f"2001:db8:1:2::{n:x}")) for n in range(100)}
    assert ours == {client_of(scope("2001:db8:1:2:ffff::1"))}
    assert client_of(scope("2001:db8:1:3::1")) not in ours
    assert client_of(scope("::ffff:10.0.0.1")) == client_of(scope("10.0.0.1"))
    assert client_of(scope("10.0.0.2")) != client_of(scope("10.0.0.1"))
    assert client_of(scope(None)) == client_of(scope(""))


async def fine(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fine"})


def test_r59_a_refusal_says_when_to_come_back_and_open_paths_have_no_limit() -> None:
    clock = FakeClock()
    refusals, bucket = RefusedRequests(), limit(clock, per_minute=10, burst=2)
    app = RateLimited(fine, bucket, refused=refusals, is_open=lambda path: path == "/livez")
    http = TestClient(app)
    assert [http.get("/mcp").status_code for _ in range(3)] == [200, 200, 429]
    refused = http.get("/mcp")
    assert (refused.text, refused.headers["retry-after"]) == ("Too many requests.", "6")
    assert {http.get("/livez").status_code for _ in range(10)} == {200}
    assert refusals == RefusedRequests(rate_limited=2)
    clock.now += 6
    assert [http.get("/mcp").status_code for _ in range(2)] == [200, 429]
