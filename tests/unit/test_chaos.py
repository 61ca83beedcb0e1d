"""Injected faults: the setting's syntax, and that breaker, retry and limits cannot tell them from real ones."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import re
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reliability.chaos import Chaos, Faults
from reliability.circuit_breaker import State
from reliability.circuit_breaker_config import CircuitBreakerConfig
from reliability.dependency import Dependency, DependencyLimits
from reliability.dependency_statistics import DependencyTotals
from reliability.errors import ConnectionBroken, DependencyTimeout
from reliability.retry import RetryConfig

from tests.unit.support import virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable


def parsed(text: str, *, draw: Callable[[], float] = random.random) -> Chaos:
    chaos = Chaos.parse(text, draw=draw)
    assert chaos is not None
    return chaos


def now() -> float:
    return asyncio.get_running_loop().time()


async def answer() -> str:
    await anyio.lowlevel.checkpoint()
    return "answer"


def dependency(chaos: Chaos, name: str = "api", **breaker: Any) -> Dependency:
    limits = DependencyLimits(circuit_breaker=CircuitBreakerConfig(**breaker), retry=RetryConfig(wait_initial_s=0))
    return Dependency(name, limits, chaos=chaos, clock=now)


# The syntax.


def test_the_setting_names_faults_and_shares_for_each_dependency() -> None:
    text = (
        " api: latency=2s@0.3 , error@0.1,hang@0.05 ;database:error@0.5; slow: latency=150ms; * : latency=1.5s, hang ;"
    )
    assert parsed(text).faults == {
        "api": Faults(latency_s=2, latency=0.3, error=0.1, hang=0.05),
        "database": Faults(error=0.5),
        "slow": Faults(latency_s=0.15, latency=1),
        "*": Faults(latency_s=1.5, latency=1, hang=1),
    }


@pytest.mark.parametrize("text", ["", "  ", ";", " ; ; "])
def test_nothing_is_no_chaos(text: str) -> None:
    assert Chaos.parse(text) is None


def test_a_share_may_be_all() -> None:
    assert parsed("api: error@1, hang@1.0").faults == {"api": Faults(error=1, hang=1)}


def test_a_member_of_a_group_may_be_named_with_a_colon() -> None:
    assert parsed("apis/example.com:8080: error").faults == {"apis/example.com:8080": Faults(error=1)}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("error@0.5", "'error@0.5' does not begin with the name of a dependency and a colon"),
        (": error", "': error' does not begin with the name of a dependency and a colon"),
        ("api:", "the fault '' is not understood"),
        ("api: error,", "the fault '' is not understood"),
        ("api: explode", "the fault 'explode' is not understood"),
        ("api: error@-1", "the fault 'error@-1' is not understood"),
        ("api: error@1e3", "the fault 'error@1e3' is not understood"),
        ("api: error@0.5x", "the fault 'error@0.5x' is not understood"),
        ("api: latency=2", "the fault 'latency=2' is not understood"),
        ("api: error@1.1", "'error@1.1': the share after '@' is more than 1"),
        ("api: latency@0.5", "the fault 'latency@0.5' is not understood"),
        ("api: error=2s", "the fault 'error=2s' is not understood"),
        ("api: error, error@0.5", "'error' is there twice for one dependency"),
        ("api: latency=1s, latency=2s", "'latency' is there twice for one dependency"),
        ("api: error; api: hang", "the dependency 'api' is named twice"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_sentence(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(why)}[^\n]*\.$"):
        Chaos.parse(text)


def test_the_sentence_shows_how_to_write_it() -> None:
    with pytest.raises(ValueError, match=r"write e\.g\. '.*'") as caught:
        Chaos.parse("api: explode")
    example = str(caught.value).partition("write e.g. '")[2].removesuffix("'.")
    assert parsed(example).faults == {
        "api": Faults(latency_s=2, latency=0.3, error=0.1, hang=0.05),
        "database": Faults(error=1),
    }


@given(st.text(alphabet="api:;*, =@.0123456789smlatencyerrorhang/", max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        chaos = Chaos.parse(text)
    except ValueError:
        return
    for faults in {} if chaos is None else chaos.faults.values():
        assert all(0 <= share <= 1 for share in (faults.latency, faults.error, faults.hang))
        assert faults.latency_s >= 0


def test_it_is_announced_loudly(caplog: pytest.LogCaptureFixture) -> None:
    parsed("api: error@0.5; *: hang").announce(["api"])
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert {record.message for record in caplog.records} == {"CHAOS IS ON: calls fail on purpose"}
    assert [vars(record)["dependency"] for record in caplog.records] == ["api", "*"]
    assert "error=0.5" in vars(caplog.records[0])["faults"]


def test_a_name_that_no_dependency_has_is_told(caplog: pytest.LogCaptureFixture) -> None:
    parsed("api: error; hosts/a.example.com: hang; apo: error").announce(["hosts", "api"])
    (told,) = [vars(record) for record in caplog.records if "no dependency" in record.message]
    assert (told["dependency"], told["known"]) == ("apo", "api, hosts")


# To whom it happens.


@pytest.mark.parametrize(
    ("dependency_name", "kind"),
    [
        ("api", "api"),
        ("apis/a", "apis"),
        ("apis/b", "apis/b"),
        ("apis", "apis"),
        ("apix", "*"),
        ("other/api", "*"),
        ("apis/a/b", "apis"),
    ],
)
def test_the_nearest_name_decides(dependency_name: str, kind: str) -> None:
    chaos = parsed("api: error@0.1; apis: error@0.2; apis/b: error@0.3; *: error@0.4")
    strike: Any = chaos.of(dependency_name)
    assert strike.args == (dependency_name, chaos.faults[kind])


def test_without_a_star_the_others_are_left_alone() -> None:
    chaos = parsed("api: error")
    assert chaos.of("database") is None
    assert not Dependency("database", chaos=chaos).statistics().chaos
    assert Dependency("api", chaos=chaos).statistics().chaos
    assert not Dependency("api").statistics().chaos


# What happens to a call.


@pytest.mark.anyio
@virtual_time
async def test_an_error_looks_like_a_broken_connection_and_opens_the_breaker() -> None:
    api = dependency(parsed("api: error"))
    for _ in range(5):
        with pytest.raises(ConnectionBroken, match=r"'api' broke \(the chaos setting asked for it\)\.$"):
            await api.call(answer)
    assert api.breaker.state is State.OPEN
    assert api.statistics().totals == DependencyTotals(calls=5, failures=5, opened=1)


@pytest.mark.anyio
@virtual_time
async def test_a_hang_ends_at_the_limit_of_the_attempt_as_a_timeout() -> None:
    api, begun = dependency(parsed("api: hang")), now()
    with pytest.raises(DependencyTimeout):
        await api.call(answer)
    with pytest.raises(DependencyTimeout):
        async with api.guard():
            raise AssertionError("not reached")
    assert now() - begun == pytest.approx(10)
    assert api.statistics().totals == DependencyTotals(calls=2, failures=2, timeouts=2)


@pytest.mark.anyio
@virtual_time
async def test_a_latency_comes_before_the_answer_and_makes_the_call_slow() -> None:
    api, begun = dependency(parsed("api: latency=2s"), slow_call_duration_threshold_s=2), now()
    assert await api.call(answer) == "answer"
    assert now() - begun == pytest.approx(2)
    assert api.breaker.statistics().slow == 1


@pytest.mark.anyio
@virtual_time
async def test_a_retry_throws_the_dice_again() -> None:
    dice = itertools.chain([0.9, 0.9, 0.1], itertools.repeat(0.9))  # the first attempt fails, no other
    api = dependency(parsed("api: error@0.5", draw=lambda: next(dice)))
    assert await api.call(answer, idempotent=True) == "answer"
    assert api.statistics().totals == DependencyTotals(calls=2, failures=1, retries=1)


@pytest.mark.anyio
@virtual_time
@pytest.mark.parametrize(("drawn", "waits"), [(0.29, True), (0.3, False)])
async def test_a_share_is_what_the_dice_stay_below(drawn: float, *, waits: bool) -> None:
    api, begun = dependency(parsed("api: latency=2s@0.3", draw=lambda: drawn)), now()
    await api.call(answer)
    assert (now() > begun) == waits


@pytest.mark.anyio
@virtual_time
async def test_what_is_not_named_does_not_happen_however_the_dice_fall() -> None:
    api = dependency(parsed("api: latency=0s", draw=lambda: 0.0))
    assert await api.call(answer) == "answer"


@pytest.mark.anyio
@virtual_time
async def test_the_shares_are_kept_in_the_long_run_and_can_be_seeded() -> None:
    async def rehearsal() -> tuple[int, int, float]:
        api = dependency(parsed("api: latency=1s@0.3, error@0.1, hang@0.05", draw=random.Random(7).random))  # noqa: S311 - dice
        api.breaker.force_close()
        begun = now()
        for _ in range(2000):
            try:
                await api.call(answer)
            except (ConnectionBroken, DependencyTimeout):
                continue
        totals = api.statistics().totals
        return totals.failures - totals.timeouts, totals.timeouts, now() - begun - 5 * totals.timeouts

    errors, hangs, waited_s = await rehearsal()
    assert errors == pytest.approx(2000 * 0.1 * 0.95, rel=0.15)
    assert hangs == pytest.approx(2000 * 0.05, rel=0.2)
    assert waited_s == pytest.approx(2000 * 0.3, rel=0.1)
    assert (errors, hangs) == (await rehearsal())[:2]
