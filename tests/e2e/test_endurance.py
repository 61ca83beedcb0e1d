"""What takes too long for a generated project's own tests: floods, soaks, thousands of cancellations."""

from __future__ import annotations

import json
import random
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors and threads in /proc")

ERAS = ("legacy", "auto")
SEED = 20261122


@pytest.fixture(params=ERAS)
def server(request: pytest.FixtureRequest, helpers: Any) -> Iterator[Any]:
    """Start a server over stdio; in the end it must stop at once, because nothing is left that it could wait for."""
    with helpers.ServerProcess("stdio", {"MAX_INPUT_BYTES": 100_000, "LOG_LEVEL": "error"}) as server:
        server.begin(request.param)
        yield server
        assert server.stray_lines == []
        server.signal(signal.SIGTERM)
        assert server.exit_code(within_s=1) == 0


def resources(server: Any) -> tuple[int, int]:
    """Count the server's descriptors and threads."""
    process = Path(f"/proc/{server.process.pid}")
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))


def report(server: Any) -> dict[str, Any]:
    server.call("report", "health-check")
    answer: dict[str, Any] = server.answer("report")["result"]["structuredContent"]
    return answer


def garbage(numbers: random.Random) -> bytes:
    """Make one hostile line: rubbish, or a message with something wrong in it."""
    message = {"jsonrpc": "2.0", "id": numbers.randrange(10**6), "method": "tools/call", "params": {"name": "echo"}}
    number = numbers.randrange(9)
    wrong: list[Any] = [
        {**message, "id": numbers.choice([None, True, 1.5, {}, [], -1, 2**70, "x" * 1000, ""])},
        {**message, "method": numbers.choice(["no/such", "", 5, None, "initialize", "server/discover", "tools/list"])},
        {**message, "params": numbers.choice([None, [], 5, {}, {"name": 5}, {"name": "echo", "arguments": [1]}])},
        [message] * numbers.randrange(0, 50),
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number}},
        {"jsonrpc": "2.0", "id": number, numbers.choice(["result", "error"]): {}},
    ]
    if numbers.random() < 0.5:
        return json.dumps(numbers.choice(wrong)).encode()
    line = bytearray(json.dumps(message).encode())
    line[numbers.randrange(len(line))] = numbers.choice(b'\x00"{}[]:,\xff ')
    rubbish = [
        numbers.randbytes(numbers.randrange(1, 2000)).replace(b"\n", b""),
        b"[" * numbers.randrange(1, 50_000),
        b'{"a":' * numbers.randrange(1, 10_000) + b"1",
        b"x" * numbers.randrange(90_000, 300_000),
        bytes(line),
        json.dumps(message).encode()[: numbers.randrange(1, 60)],
    ]
    return numbers.choice(rubbish)


def flood(server: Any, numbers: random.Random, count: int) -> None:
    for index in range(count // 100):
        for _ in range(100):
            server.send(garbage(numbers) + b"\n")
        server.call(f"flood-{index}", "echo", text="x")
        assert "result" in server.answer(f"flood-{index}", within_s=30)


def test_ten_thousand_hostile_lines(server: Any) -> None:  # R4, R7
    numbers = random.Random(SEED)  # noqa: S311 - repeatable
    flood(server, numbers, 3_000)
    before, rss = resources(server), report(server)["rss_mb"]
    flood(server, numbers, 7_000)
    after = report(server)
    assert after["rss_mb"] < rss + 10
    assert resources(server)[0] <= before[0]
    assert resources(server)[1] <= before[1] + 1
    assert after["calls_in_flight"] == 0
    assert server.alive()


def test_thirty_thousand_calls(server: Any) -> None:  # R60
    def calls(count: int) -> None:
        for _ in range(count // 30):
            for number in range(30):
                server.call(number, "echo_in_thread" if number % 10 == 0 else "echo", text="x" * 100)
            for _ in range(30):
                assert "result" in next(iter(server.answers()))

    calls(6_000)
    before, rss = resources(server), report(server)["rss_mb"]
    calls(24_000)
    assert report(server)["rss_mb"] < rss + 5
    assert resources(server)[0] <= before[0]


def test_two_thousand_cancellations(server: Any) -> None:  # R46
    """Some reach a running call, some one that has not begun, some one that is just answered: no place may be lost."""
    numbers = random.Random(SEED)  # noqa: S311 - repeatable
    long_calls = 10
    for round_number in range(40):
        names = [f"{round_number}-{number}" for number in range(50)]
        for number, name in enumerate(names):
            if number < long_calls:
                server.call(name, "sleep", seconds=600)
            else:
                server.call(name, numbers.choice(["echo_in_thread", "echo"]), text="x")
        while round_number % 2 and report(server)["calls_in_flight"] < long_calls:
            pass  # every second time all long calls run before they are cancelled
        for name in numbers.sample(names, len(names)):
            server.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": name}})
    assert server.alive()
    after = report(server)
    assert (after["calls_in_flight"], after["calls_queued"]) == (0, 0)
    server.call("metrics", "get-metrics")
    figures = server.answer("metrics")["result"]["structuredContent"]["calls"]
    by_name = {series["name"]: series for series in figures}
    assert sum(by_name[name]["in_flight"] for name in ("sleep", "echo", "echo_in_thread")) == 0
    failed = [by_name[name][kind] for name in ("sleep", "echo", "echo_in_thread") for kind in ("error", "tool_error")]
    assert sum(failed) == 0  # but some may be refused: only 16 calls of a synchronous tool run or wait at once
    assert by_name["sleep"]["cancelled"] >= 20 * long_calls


def test_three_thousand_hostile_bodies(helpers: Any) -> None:  # R4, R7
    numbers = random.Random(SEED)  # noqa: S311 - repeatable
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    with helpers.ServerProcess("http", {"MAX_INPUT_BYTES": 100_000, "LOG_LEVEL": "info"}) as server:
        url = helpers.wait_for(server, "listening")["url"]
        health = url.replace("/mcp", "/healthz")
        with httpx2.Client(timeout=30, headers=headers) as client:

            def flood(count: int) -> None:
                for _ in range(count):
                    assert client.post(url, content=garbage(numbers)).status_code < 500

            flood(1_000)
            rss = client.get(health).json()["rss_mb"]
            flood(2_000)
            after = client.get(health).json()
        assert after["rss_mb"] < rss + 10
        assert after["calls_in_flight"] == 0
        server.signal(signal.SIGTERM)
        assert server.exit_code(within_s=1) == 0
