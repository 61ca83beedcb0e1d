"""What several worker processes carry: the same generated server with one process and with several, side by side.

    python benchmarks/workers.py [--workers 2]

All servers run for the whole time and take turns, so that a busy machine slows each of them alike; a ratio is the
median of the ratios of the turns. The client costs a few percent of what the server does, but it needs a processor,
too: calls for a second of processor time say what a worker carries where it has one for itself.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from protocol import call, post_request, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
TURNS = 15
SECONDS_A_TURN = 1.0
CONNECTIONS = 16
TICKS = os.sysconf("SC_CLK_TCK")


def render(directory: Path) -> dict[str, str]:
    """Make a server; return the environment that it needs."""
    import copier

    source, project = directory / "template", directory / "bench-server"
    source.mkdir()
    for name in ("copier.yml", "template"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    answers = {"preset": "minimal", "project_name": "bench-server", "transports": ["http"]}
    copier.run_copy(str(source), project, data=answers, defaults=True, quiet=True, settings=copier.Settings())
    return {**os.environ, "PYTHONPATH": str(project / "src"), "BENCH_SERVER_LOG_LEVEL": "warning"}


class Server:
    """One service, of one process or of several."""

    def __init__(self, workers: int, environment: dict[str, str]) -> None:
        self.workers = workers
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        settings = {"BENCH_SERVER_HTTP_PORT": str(self.port), "BENCH_SERVER_HTTP_WORKERS": str(workers)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench_server"], env={**environment, **settings}, stderr=subprocess.DEVNULL
        )

    def pids(self) -> list[int]:
        """The processes that serve."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        return [int(pid) for pid in children.split()] if self.workers > 1 else [self.process.pid]

    def processor_s(self) -> list[float]:
        """Seconds of processor time that each of them has used."""
        return [_ticks(pid) / TICKS for pid in self.pids()]

    def resident_mb(self) -> float:
        """Memory of all its processes in MB (10^6 bytes); what they share is counted once for each."""
        pids = {self.process.pid, *self.pids()}
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) for pid in pids)
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@contextmanager
def serving(workers: int, environment: dict[str, str]) -> Iterator[Server]:
    """A server that is stopped at the end."""
    server = Server(workers, environment)
    try:
        asyncio.run(wait_for_port(server.port))
        while len(server.pids()) < workers:
            time.sleep(0.05)
        time.sleep(2)  # the last one imports its modules
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


class Connection(asyncio.Protocol):
    """Calls again and again, one call at a time."""

    def __init__(self, request: bytes, until: float, done: asyncio.Event) -> None:
        self.calls = 0
        self._request = request
        self._until = until
        self._done = done
        self._answer = b""
        self._length = -1
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if self._length < 0:
            head, found, _ = self._answer.partition(b"\r\n\r\n")
            if not found:
                return
            self._length = len(head) + 4 + int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(self._answer) < self._length:
            return
        if b'"result"' not in self._answer or b'"isError":true' in self._answer:
            raise RuntimeError(f"not a result: {self._answer[:300]!r}")
        self.calls += 1
        self._answer, self._length = b"", -1
        if time.perf_counter() < self._until:
            self._transport.write(self._request)
        else:
            self._done.set()
            self._transport.close()


async def load(port: int) -> float:
    """Calls per second over `CONNECTIONS` connections."""
    request = post_request(port, call(1))
    started = time.perf_counter()
    ends = [asyncio.Event() for _ in range(CONNECTIONS)]
    loop = asyncio.get_running_loop()
    made = []
    for end in ends:
        connect = partial(Connection, request, started + SECONDS_A_TURN, end)
        made.append(await loop.create_connection(connect, "127.0.0.1", port))
    for end in ends:
        await end.wait()
    return sum(connection.calls for _, connection in made) / (time.perf_counter() - started)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[2], help="numbers of workers beside one")
    parser.add_argument("--turns", type=int, default=TURNS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        environment = render(Path(directory))
        servers = [stack.enter_context(serving(workers, environment)) for workers in [1, *arguments.workers]]
        for server in servers:
            asyncio.run(load(server.port))
        before = [server.processor_s() for server in servers]
        turns = [[asyncio.run(load(server.port)) for server in servers] for _ in range(arguments.turns)]
        print(
            f"{os.cpu_count()} processors, {CONNECTIONS} connections, {arguments.turns} turns of {SECONDS_A_TURN:g} s\n"
        )
        print(
            "| workers | calls | : one worker | calls for a second of processor time | share of the busiest | memory |"
        )
        print("|---|---|---|---|---|---|")
        for index, server in enumerate(servers):
            rate = statistics.median(turn[index] for turn in turns)
            ratio = statistics.median(turn[index] / turn[0] for turn in turns)
            used_s = [now - then for now, then in zip(server.processor_s(), before[index], strict=True)]
            share = max(used_s) / sum(used_s)
            calls = sum(turn[index] for turn in turns) * SECONDS_A_TURN
            memory = server.resident_mb()
            carried = calls / sum(used_s)
            print(
                f"| {server.workers} | {rate:,.0f} /s | {ratio:.2f} | {carried:,.0f} | {share:.0%} | {memory:.0f} MB |"
            )


if __name__ == "__main__":
    main()
