"""The real server process while the HTTP API that it needs is dead, slow, resetting, trickling or sending rubbish.

The template's: replaced as a whole by every update. Each test names the rules it holds the server to.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import pytest
from mcp import Client
from mcp_types import CallToolResult

from production_helpers.process import BUSY_MACHINE_S, ERAS, MODERN, ServerProcess, failure_of, text_of
from production_helpers.project import TRANSPORTS
from production_helpers.upstream import FAULTS, SECRET, Upstream

pytestmark = pytest.mark.anyio

CONNECTIONS = [pytest.param((t, era), id=f"{t}-{era}") for t in TRANSPORTS for era in ERAS]
ATTEMPT_S = 0.4
ATTEMPTS = 2
OPEN_S = 0.5
LONGEST_RECOVERY_S = 10.0
"""An open breaker waits longer each time that its probe failed, up to three times `OPEN_S`."""
SETTINGS = {
    "API_TIMEOUT_S": ATTEMPT_S,
    "API_CONNECT_TIMEOUT_S": ATTEMPT_S,
    "BREAKER_WINDOW_CALLS": 4,
    "BREAKER_MIN_CALLS": 2,
    "BREAKER_OPEN_S": OPEN_S,
    "BREAKER_PROBES": 1,
    "RETRY_ATTEMPTS": ATTEMPTS,
}
LONGEST_CALL_S = ATTEMPTS * ATTEMPT_S + 0.5
"""The attempts, and the pause between them."""
FAILED = {"dependency_failed", "dependency_timeout", "circuit_open"}


class Running(NamedTuple):
    """A server, its client, and the API that it asks."""

    server: ServerProcess
    client: Client
    upstream: Upstream

    async def ask(self, tool: str = "ask_api_anew") -> CallToolResult:
        """Call the tool, which must answer within its attempts."""
        started = time.monotonic()
        result = await self.client.call_tool(tool)
        assert time.monotonic() - started < LONGEST_CALL_S + BUSY_MACHINE_S
        assert SECRET not in result.model_dump_json()
        return result

    async def heal(self) -> CallToolResult:
        """Let the API answer, and wait until the server has noticed."""
        self.upstream.recover()
        with anyio.fail_after(LONGEST_RECOVERY_S):
            while (result := await self.ask()).is_error:
                await anyio.sleep(0.05)
        return result

    async def break_until_open(self, fault: str) -> None:
        """Let the API fail until the breaker opens: each call is answered with the error that fits."""
        self.upstream.fail(fault)
        for _ in range(10):
            if failure_of(await self.ask())["kind"] == "circuit_open":
                return
        raise AssertionError("The breaker did not open.")


@asynccontextmanager
async def run(connection: tuple[str, str], **settings: object) -> AsyncIterator[Running]:
    transport, era = connection
    with Upstream() as upstream, ServerProcess(transport, {**SETTINGS, "API_URL": upstream.url, **settings}) as server:
        async with server.connected(era) as client:
            yield Running(server, client, upstream)
        assert server.stray_lines == []


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Running]:
    """A server that the tests share."""
    async with run((TRANSPORTS[0], MODERN)) as running:
        yield running


def provenance_of(result: CallToolResult) -> dict[str, Any]:
    """Where an answer comes from that was not made for its call."""
    assert not result.is_error, result
    assert result.meta is not None
    assert result.structured_content is not None
    found = dict(result.meta)["reliability/provenance"]
    assert result.structured_content["provenance"] == found
    return dict(found)


async def state_of_the_api(running: Running, tool: str) -> str:
    """What `health-check` or `get-metrics` says of the breaker."""
    content = (await running.client.call_tool(tool)).structured_content
    assert content is not None
    return next(str(one["state"]) for one in content["dependencies"] if one["name"] == "api")


@pytest.mark.parametrize("fault", ["dead", *FAULTS])
async def test_the_api_fails_and_recovers(running: Running, fault: str) -> None:  # R43, R47, R48, R55, R56, R58
    await running.heal()
    remembered = await running.ask("ask_api_or_remember")
    assert not remembered.is_error

    await running.break_until_open(fault)
    asked = running.upstream.requests
    failure = failure_of(await running.ask())
    assert (failure["kind"], failure["retryable"]) == ("circuit_open", True)
    assert failure["retry_after_s"] > 0
    stale = await running.ask("ask_api_or_remember")
    assert provenance_of(stale)["stale"]
    assert running.upstream.requests == asked  # it is left alone

    await running.heal()  # R56: one probe
    assert not (await running.ask()).is_error


@pytest.mark.parametrize("connection", CONNECTIONS)
async def test_a_stale_answer_says_so_in_both_eras(connection: tuple[str, str]) -> None:  # R48, R50
    async with run(connection) as running:
        fresh = await running.ask("ask_api_or_remember")
        assert fresh.structured_content == {"number": 1}
        running.upstream.fail("dead")
        stale = await running.ask("ask_api_or_remember")
        found = provenance_of(stale)
        assert (found["source"], found["stale"]) == ("cache", True)
        assert 0 <= found["age_s"] < 60
        assert "stale" in text_of(stale).lower()
        assert stale.structured_content is not None
        assert stale.structured_content["number"] == 1
        assert failure_of(await running.ask())["kind"] in FAILED  # no fallback, no disguise
        assert (await running.heal()).structured_content is not None


async def test_an_open_breaker_shows_in_the_report_and_in_the_metrics(running: Running) -> None:  # R13, R14, R58
    await running.heal()
    await running.break_until_open("failing")
    assert await state_of_the_api(running, "health-check") == "open"
    assert await state_of_the_api(running, "get-metrics") == "open"
    report = (await running.client.call_tool("health-check")).structured_content
    assert report is not None
    assert report["live"]
    assert report["ready"]
    await running.server.logged("circuit breaker", dependency="api", to="open")
    await running.heal()
    assert await state_of_the_api(running, "health-check") == "closed"


async def test_no_call_outlasts_its_deadline_while_the_api_hangs() -> None:  # R43, R44, R59
    """Fifty at once, of which a few are admitted, some wait for a place, and the others are refused."""
    deadline_s = 1.5
    async with run((TRANSPORTS[0], MODERN), TOOL_TIMEOUT_S=deadline_s, MAX_CONCURRENT_CALLS=50) as running:
        running.upstream.fail("silent")
        kinds: list[str] = []

        async def ask() -> None:
            started = time.monotonic()
            kinds.append(failure_of(await running.client.call_tool("ask_api_anew"))["kind"])
            assert time.monotonic() - started < deadline_s + 3 * BUSY_MACHINE_S  # fifty at once on a busy machine

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(ask)
        assert len(kinds) == 50
        assert set(kinds) <= {*FAILED, "dependency_busy"}
        assert "circuit_open" in kinds
        assert running.upstream.requests < 50
        await running.heal()


async def test_faults_can_be_rehearsed() -> None:
    async with run((TRANSPORTS[0], MODERN), CHAOS="api: error", ENVIRONMENT="development") as running:
        assert failure_of(await running.ask())["kind"] in FAILED
        assert running.upstream.requests == 0


@pytest.mark.parametrize(
    ("name", "value"), [("API_URL", "http://a.example.com:99999"), ("API_URL", "http://0x7f.1"), ("API_TOKEN", "a b")]
)
def test_what_cannot_be_asked_is_refused_at_the_start(name: str, value: str) -> None:
    with ServerProcess(TRANSPORTS[0], {name: value}, hostile=False) as server:
        assert server.exit_code(within_s=30) == 2
        (line,) = server.stderr().splitlines()
        assert f"_{name}=" in line


def test_a_rehearsal_is_refused_in_production() -> None:
    with ServerProcess(TRANSPORTS[0], {"CHAOS": "api: error"}, hostile=False) as server:
        assert server.exit_code(within_s=30) == 2
        assert "ENVIRONMENT" in server.stderr().upper()
        assert len(server.stderr().splitlines()) == 1
