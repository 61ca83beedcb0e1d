"""What the supervisor costs: the same generated server with it and without it, side by side.

    python benchmarks/supervisor_cost.py

Both servers run for the whole time and take turns, so that a busy machine slows each of them alike; a ratio is the
median of the ratios of the turns. The tool gives its text back, so that long lines go both ways. The client of the
first tables costs next to nothing, which shows the supervisor's share at its largest; the official client's own time is
several times the server's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from mcp import Client, StdioServerParameters
from protocol import StdioSession, stdio_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parent.parent
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000, 5_000_000)
TURNS = 15
BYTES_A_TURN = 20_000_000
OFFICIAL_TURNS = 200
OFFICIAL_BYTES_A_TURN = 2_000_000
TOOL = '''"""The tool that is measured."""

from ..reliability import tool


@tool(read_only=True)
async def echo(text: str) -> str:
    """Give the text back."""
    return text
'''
SETTINGS = {
    "BENCH_SERVER_MAX_INPUT_BYTES": "50000000",
    "BENCH_SERVER_MAX_OUTPUT_BYTES": "50000000",
    "BENCH_SERVER_MEMORY_SOFT_LIMIT_MB": "100000",
    "BENCH_SERVER_MEMORY_HARD_LIMIT_MB": "100000",
}


def render(directory: Path) -> tuple[list[list[str]], dict[str, str]]:
    """Make a server; return how to start it without and with the supervisor, and its environment."""
    import copier

    source, project = directory / "template", directory / "bench-server"
    source.mkdir()
    for name in ("copier.yml", "template"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    answers = {"preset": "minimal", "project_name": "bench-server", "watchdog": True}
    copier.run_copy(str(source), project, data=answers, defaults=True, quiet=True, settings=copier.Settings())
    (project / "src" / "bench_server" / "tools" / "echo.py").write_text(TOOL, encoding="utf-8")
    command = [sys.executable, "-m", "bench_server"]
    return [command, [*command, "supervise"]], {**os.environ, **SETTINGS, "PYTHONPATH": str(project / "src")}


def call(request_id: int, size: int) -> bytes:
    """A call whose line has about `size` bytes."""
    message = {"jsonrpc": "2.0", "id": request_id, "method": "tools/call"}
    empty = json.dumps({**message, "params": {"name": "echo", "arguments": {"text": ""}}}, separators=(",", ":"))
    text = "x" * max(0, size - len(empty))
    return json.dumps(
        {**message, "params": {"name": "echo", "arguments": {"text": text}}}, separators=(",", ":")
    ).encode()


class Turn:
    """Counts the ids of one session."""

    def __init__(self, session: StdioSession) -> None:
        self._session = session
        self._last = 0

    def calls_per_second(self, size: int, calls: int, in_flight: int) -> float:
        first = self._last + 1
        self._last += calls
        lines = [call(number, size) for number in range(first, first + calls)]
        started = time.perf_counter()
        for index in range(calls + in_flight):
            if index < calls:
                self._session.send(lines[index])
            if index >= in_flight and b'"isError":true' in self._session.receive():
                raise RuntimeError("not a result")
        return calls / (time.perf_counter() - started)


def compare(title: str, measures: Sequence[Callable[[], float]], calls: int, supervisor: StdioSession) -> None:
    """Print the figures of the two servers, their ratio, and the processor's time that the supervisor took."""
    for measure in measures:
        measure()
    before_s = supervisor.processor_s()
    turns = [[measure() for measure in measures] for _ in range(TURNS)]
    cost_us = (supervisor.processor_s() - before_s) / (TURNS * calls) * 1e6
    without, with_it = (statistics.median(turn[i] for turn in turns) for i in (0, 1))
    ratio = statistics.median(turn[1] / turn[0] for turn in turns)
    print(f"| {title} | {without:,.0f} /s | {with_it:,.0f} /s | {ratio:.2f} | {cost_us:,.0f} us |", flush=True)


def official_client(commands: list[list[str]], environment: dict[str, str], sizes: Sequence[int]) -> None:
    """Compare with the client that people use: many short turns, because what is looked for is small."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the servers' logs

    async def main() -> None:
        for era in ("legacy", "auto"):
            servers = [
                StdioServerParameters(command=command[0], args=command[1:], env=environment) for command in commands
            ]
            async with Client(servers[0], mode=era) as without, Client(servers[1], mode=era) as with_it:
                for size in sizes:
                    await compare_clients(f"{era}, {size:,} bytes", (without, with_it), size)

    anyio.run(main)


async def compare_clients(title: str, clients: Sequence[Client], size: int) -> None:
    """Print the calls in a second, the ratio of these, and how exact it is."""
    calls = max(1, min(50, OFFICIAL_BYTES_A_TURN // size))
    text = "x" * size

    async def measure(client: Client) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            await client.call_tool("echo", {"text": text})
        return time.perf_counter() - started

    for client in clients:
        await measure(client)
    turns: list[list[float]] = []
    for number in range(OFFICIAL_TURNS):
        order = (0, 1) if number % 2 else (1, 0)
        taken = {index: await measure(clients[index]) for index in order}
        turns.append([taken[0], taken[1]])
    ratios = [without / with_it for without, with_it in turns]
    middle, error = statistics.median(ratios), statistics.stdev(ratios) / len(ratios) ** 0.5
    per_s = [calls / statistics.median(turn[index] for turn in turns) for index in (0, 1)]
    print(f"| {title} | {per_s[0]:,.0f} /s | {per_s[1]:,.0f} /s | {middle:.3f} +- {error:.3f} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="bytes of a line")
    sizes = parser.parse_args().sizes
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        commands, environment = render(Path(directory))
        sessions = [stack.enter_context(stdio_session(command, environment)) for command in commands]
        print(f"start to first answer: {' / '.join(f'{s.seconds_to_first_answer:.3f} s' for s in sessions)}")
        print(f"memory of the supervisor: {sessions[1].resident_mb():.1f} MB")
        for in_flight in (1, 8):
            turns = [Turn(session) for session in sessions]
            for size in sizes:
                calls = max(in_flight, min(400, BYTES_A_TURN // size))
                measures = [partial(turn.calls_per_second, size, calls, in_flight) for turn in turns]
                compare(f"{size:,} bytes, {in_flight} at a time", measures, calls, sessions[1])
        print(f"memory of the supervisor: {sessions[1].resident_mb():.1f} MB")
        official_client(commands, environment, sizes)


if __name__ == "__main__":
    main()
