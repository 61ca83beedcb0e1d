"""Compare a generated server with the bare SDK and with FastMCP, and `mcp-scaffold new` with `copier copy`.

    python benchmarks/run.py              # everything but the million calls, about three minutes
    python benchmarks/run.py --soak 1000000

All figures of a table come from the same run, taken in turns, so that a busy machine slows every contestant alike.
The ratio is the median of the ratios of each turn.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import rendering
from contestants import Contestant, contestants
from protocol import http_calls_per_second, stdio_session, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_PORT = 21_000


def start_up(contestant: Contestant) -> float:
    """Seconds from the start of the process to its first answer."""
    with stdio_session(contestant.stdio, contestant.environment) as session:
        return session.seconds_to_first_answer


def stdio_throughput(contestant: Contestant) -> float:
    """Calls a second over stdio, one at a time."""
    with stdio_session(contestant.stdio, contestant.environment) as session:
        session.calls_per_second(300, in_flight=1)
        return session.calls_per_second(2_000, in_flight=1)


def stdio_throughput_concurrent(contestant: Contestant) -> float:
    """Calls a second over stdio, eight at a time."""
    with stdio_session(contestant.stdio, contestant.environment) as session:
        session.calls_per_second(300, in_flight=8)
        return session.calls_per_second(3_000, in_flight=8)


def http_throughput(contestant: Contestant) -> float:
    """Calls a second over HTTP, eight connections."""
    global FIRST_PORT  # noqa: PLW0603 - a port is not free again at once
    FIRST_PORT += 1
    command, environment = contestant.http_command(FIRST_PORT)
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            asyncio.run(wait_for_port(FIRST_PORT))
            asyncio.run(http_calls_per_second(FIRST_PORT, 400, connections=8))
            return asyncio.run(http_calls_per_second(FIRST_PORT, 2_000, connections=8))
        finally:
            process.kill()  # how they stop is another subject: some do not, while a session is open


def resident_mb(contestant: Contestant) -> float:
    """Resident memory after 2,000 calls, in MB (10^6 bytes)."""
    with stdio_session(contestant.stdio, contestant.environment) as session:
        session.calls_per_second(2_000, in_flight=8)
        return session.resident_mb()


MEASURES: dict[str, tuple[Callable[[Contestant], float], str, int]] = {
    "start to first answer": (start_up, "s", 9),
    "calls over stdio, one at a time": (stdio_throughput, "/s", 7),
    "calls over stdio, eight at a time": (stdio_throughput_concurrent, "/s", 7),
    "calls over HTTP, eight connections": (http_throughput, "/s", 7),
    "resident memory after 2,000 calls": (resident_mb, "MB", 3),
}


def compare(servers: list[Contestant], only: str) -> None:
    """Print a table row per measure."""
    names = [server.name for server in servers]
    print(f"| measure | {' | '.join(names)} | {' | '.join(f'{names[0]} : {n}' for n in names[1:])} |")
    print("|---" * (2 * len(names)) + "|")
    for title, (measure, unit, rounds) in MEASURES.items():
        if only not in title:
            continue
        taken = [[measure(server) for server in servers] for _ in range(rounds)]
        medians = [statistics.median(column) for column in zip(*taken, strict=True)]
        ratios = [statistics.median(turn[0] / turn[i] for turn in taken) for i in range(1, len(servers))]
        digits = 2 if unit == "s" else 0
        cells = [f"{value:,.{digits}f} {unit}" for value in medians] + [f"{ratio:.2f}" for ratio in ratios]
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


def compare_rendering(directory: Path) -> None:
    """Print the command line's wall times."""
    seconds = {name: statistics.median(values) for name, values in rendering.measure(directory, 9).items()}
    print("\n| command | wall | : copier copy |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.3f} s | {value / seconds['copier copy']:.2f} |", flush=True)
    print(f"\nFiles in a default project: {rendering.files_of_default_project(directory)}")


def pipeline_cost(server: Contestant) -> None:
    """Print what everything around one call costs."""
    script = str(Path(__file__).parent / "pipeline_cost.py")
    output = subprocess.run(
        [sys.executable, script, "bench_server"], env=server.environment, check=True, capture_output=True, text=True
    )
    print(f"\nPipeline around one call (metrics, log context, deadline, load shedding): {output.stdout.strip()}")


def soak(server: Contestant, calls: int) -> None:
    """Print memory, descriptors and threads over many calls."""
    print("\n| calls | resident | descriptors | threads |\n|---|---|---|---|")
    with stdio_session(server.stdio, server.environment) as session:
        process = Path(f"/proc/{session.process.pid}")
        for tenth in range(11):
            if tenth:
                session.calls_per_second(calls // 10, in_flight=8)
            counts = " | ".join(str(len(list((process / kind).iterdir()))) for kind in ("fd", "task"))
            print(f"| {tenth * calls // 10:,} | {session.resident_mb():.1f} MB | {counts} |", flush=True)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description="Compare generated servers with their competitors.")
    parser.add_argument("--soak", type=int, metavar="CALLS", help="only watch memory over this many calls")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the measures whose title contains TEXT")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contestants(Path(name)) as servers:
        if arguments.soak:
            soak(servers[0], arguments.soak)
            return
        compare(servers, arguments.only)
        if not arguments.only:
            pipeline_cost(servers[0])
            compare_rendering(Path(name))


if __name__ == "__main__":
    main()
