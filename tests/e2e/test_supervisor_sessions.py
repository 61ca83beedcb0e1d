"""The official client over stdio in one session, while the server is killed about once a second (R17-R27, R29)."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import psutil
import pytest
from mcp import Client, MCPError, StdioServerParameters

from tests.e2e.supervised import BUSY_MACHINE_S, ERAS, FAILED, HANDSHAKE, child_of

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.platform == "win32":
    pytest.skip("the supervisor is for POSIX", allow_module_level=True)

CALLS = 1_000
CALLERS = 8
LAST_CALLS = 100
"""During which nobody kills any more."""
WORK_S = 0.03
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.14
BETWEEN_KILLS_S = 1.0
LONGEST_BACKOFF_S = 0.3
MEMORY_MB = 20
SETTINGS = {
    "MY_SERVER_WATCHDOG_MAX_RESTARTS": "1000",
    "MY_SERVER_WATCHDOG_STABLE_S": "0.5",
    "MY_SERVER_LOG_LEVEL": "error",
}
OK, UNKNOWN_OUTCOME = "ok", "outcome unknown"
INITIALIZE = (
    b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    b'"clientInfo":{"name":"tests","version":"1"}}}\n'
)


class Killer:
    """Kills the server a second after it was seen to work, and measures how long the next good answer takes."""

    def __init__(self, supervisor: int) -> None:
        self._supervisor = supervisor
        self._killed_at: float | None = None
        self.downtimes_s: list[float] = []
        self._answered = anyio.Event()

    async def run(self, *, while_true: Callable[[], bool]) -> None:
        while while_true():
            await anyio.sleep(BETWEEN_KILLS_S)
            server = child_of(self._supervisor)
            assert server is not None
            self._answered = anyio.Event()
            os.kill(server, signal.SIGKILL)
            self._killed_at = time.monotonic()
            await self._answered.wait()

    def good_answer(self, asked_at: float) -> None:
        """A call has been answered by a server: by the next one, if it was asked after the kill or waited for it."""
        now = time.monotonic()
        if self._killed_at is not None and (asked_at > self._killed_at or now - self._killed_at > LONGEST_BACKOFF_S):
            self.downtimes_s.append(now - self._killed_at)
            self._killed_at = None
            self._answered.set()


@pytest.mark.anyio
@pytest.mark.parametrize("era", ERAS)
async def test_no_crash_ends_the_session(
    faulty_script: Path, tmp_path: Path, report: Callable[[str], None], era: str
) -> None:
    """R17, R20, R21, R25-R27: every call is answered once, and none is executed twice."""
    start_s = statistics.median([start_time_s(faulty_script) for _ in range(3)])
    record, done = tmp_path / "record", tmp_path / "done"
    recorder = str(Path(__file__).with_name("recorder.py"))
    outcomes: dict[str, str] = {}
    dice = random.Random(era)  # noqa: S311 - no secret, only pauses that do not fall into step
    waiting = iter([f"call-{number}" for number in range(CALLS)])
    target = StdioServerParameters(
        command=sys.executable, args=[recorder, str(record), str(faulty_script), "supervise"], env=SETTINGS
    )
    async with Client(target, mode=era, read_timeout_seconds=60) as client:
        assert (client.protocol_version >= "2026") == (era != HANDSHAKE)
        supervisor = child_of(own_child("recorder.py"))
        assert supervisor is not None
        before = resources(supervisor)
        killer = Killer(supervisor)

        async def keep_calling() -> None:
            for text in waiting:
                asked_at = time.monotonic()
                outcomes[text] = await outcome(client, {"path": str(done), "text": text, "pause_s": WORK_S})
                if outcomes[text] == OK:
                    killer.good_answer(asked_at)
                await anyio.sleep(dice.uniform(SHORTEST_PAUSE_S, LONGEST_PAUSE_S))

        began_at = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(killer.run, while_true=lambda: len(outcomes) < CALLS - LAST_CALLS))
            for _ in range(CALLERS):
                tasks.start_soon(keep_calling)
        took_s = time.monotonic() - began_at
        after = resources(supervisor)
        assert (await client.list_tools()).tools

    how = Counter(outcomes.values())
    median_s, worst_s = statistics.median(killer.downtimes_s), max(killer.downtimes_s)
    report(
        f"{era}: {CALLS} calls in {took_s:.0f} s, {len(killer.downtimes_s)} kills: {how[OK]} results,"
        f" {how[UNKNOWN_OUTCOME]} errors 'outcome unknown'; next good answer after {median_s:.2f} s (median),"
        f" {worst_s:.2f} s (worst); the server's own start-up {start_s:.2f} s; the supervisor holds"
        f" {after['rss_mb']:.1f} MB and {after['descriptors']} descriptors"
    )
    assert set(how) == {OK, UNKNOWN_OUTCOME}
    assert len(killer.downtimes_s) >= 5
    executed = Counter(done.read_text().split())
    assert max(executed.values()) == 1  # R26
    assert {text for text, one in outcomes.items() if one == OK} <= set(executed)
    assert median_s < start_s + LONGEST_BACKOFF_S + BUSY_MACHINE_S
    assert after["descriptors"] <= before["descriptors"]
    assert after["rss_mb"] < MEMORY_MB
    look_at_every_line(record, era)


def look_at_every_line(record: Path, era: str) -> None:
    """Each request has one answer, the client began once, and nothing else came over the pipe."""
    asked: Counter[Any] = Counter()
    answered: Counter[Any] = Counter()
    methods: Counter[str] = Counter()
    for line in record.read_bytes().splitlines():
        message = json.loads(line[1:])
        assert message["jsonrpc"] == "2.0"
        if line[:1] == b"<":
            methods[message["method"]] += 1
            if "id" in message:
                asked[message["id"]] += 1
        else:
            assert "method" not in message, message  # nobody has asked for a notification
            answered[message["id"]] += 1
    assert methods["initialize" if era == HANDSHAKE else "server/discover"] == 1
    assert methods["tools/call"] == CALLS
    assert asked == answered
    assert set(asked.values()) == {1}


async def outcome(client: Client, arguments: dict[str, Any]) -> str:
    """How a call ends."""
    try:
        result = await client.call_tool("append", arguments)
    except MCPError as error:
        return UNKNOWN_OUTCOME if error.code == FAILED and UNKNOWN_OUTCOME in error.message else repr(error)
    return OK if not result.is_error else str(result.content)


def start_time_s(script: Path) -> float:
    """From the start of the server alone to its first answer."""
    began_at = time.monotonic()
    with subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(INITIALIZE)
        server.stdin.flush()
        assert b'"result"' in server.stdout.readline()
        took_s = time.monotonic() - began_at
        server.stdin.close()
        assert server.wait(10) == 0
    return took_s


def own_child(name: str) -> int:
    """The child of this process that runs a script of that name."""
    (pid,) = [child.pid for child in psutil.Process().children() if any(name in part for part in child.cmdline())]
    return pid


def resources(pid: int) -> dict[str, float]:
    process = psutil.Process(pid)
    return {"rss_mb": process.memory_info().rss / 1e6, "descriptors": process.num_fds()}
