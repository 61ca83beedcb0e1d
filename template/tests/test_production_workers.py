"""Several real server processes on one port, under load, while they are stopped, killed and stuck.

The template's: replaced as a whole by every update. Each test names the rules it holds the server to.
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from production_helpers.process import ANSWER_S, BUSY_MACHINE_S, ERAS, START_S, ServerProcess, text_of, wait_for

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="a socket cannot be inherited"),
]

WORKERS = 2
CLIENTS = 8
EXIT_S = 1.0
"""How long idle workers may take to end."""
LEAVE_S = 4.0
"""How long a worker may take that leaves alone."""
DELAY_S = 4
"""How long clients are given to notice a stop: time enough on a busy machine."""
HANG_S = 1
HEADERS = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2025-11-25",
}


def call(tool: str, **arguments: object) -> bytes:
    params = {"name": tool, "arguments": arguments}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()


class Service:
    """All the workers behind one address."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.url = str(wait_for(server, "listening")["url"])
        wait_for(server, "ready", workers=WORKERS)

    def call(self, tool: str, **arguments: object) -> httpx2.Response:
        """A call over a connection of its own, which any worker may get."""
        return httpx2.post(self.url, content=call(tool, **arguments), headers=HEADERS, timeout=ANSWER_S)

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(self.url.replace("/mcp", path), timeout=ANSWER_S)

    def workers(self) -> dict[int, dict[str, Any]]:
        """What the health report says about each worker."""
        return {worker["number"]: worker for worker in self.get("/healthz").json()["workers"]}

    def recovers(self) -> dict[int, dict[str, Any]]:
        """Wait until all of them serve."""
        until = time.monotonic() + START_S
        found = self.workers()
        while any(worker["status"] != "ok" for worker in found.values()):
            assert time.monotonic() < until, found
            found = self.workers()
        return found


class Load:
    """Clients that call again and again, each over its own connection, and how their calls ended."""

    def __init__(self, url: str) -> None:
        self.ended: Counter[str] = Counter()
        self.is_over = False
        self._url = url

    async def client(self, name: str) -> None:
        async with httpx2.AsyncClient(timeout=ANSWER_S) as http:
            number = 0
            while not self.is_over:
                number += 1
                self.ended[await self._call(http, f"{name}-{number}")] += 1

    async def _call(self, http: httpx2.AsyncClient, text: str) -> str:
        try:
            answer = await http.post(self._url, content=call("echo", text=text), headers=HEADERS)
        except httpx2.HTTPError as error:
            return type(error).__name__
        if answer.status_code != 200:
            return f"status {answer.status_code}"
        content = answer.json()["result"]["content"]
        return "ok" if content == [{"type": "text", "text": text}] else str(content)

    @property
    def lost(self) -> dict[str, int]:
        """The calls that were not answered as they should be."""
        return {how: count for how, count in self.ended.items() if how != "ok"}


@asynccontextmanager
async def load(url: str) -> AsyncIterator[Load]:
    """Clients that call while the body runs."""
    load = Load(url)
    async with anyio.create_task_group() as tasks:
        for number in range(CLIENTS):
            tasks.start_soon(load.client, str(number))
        await goes_on(load)
        yield load
        load.is_over = True


async def goes_on(load: Load, calls: int = 5 * CLIENTS) -> None:
    """Wait until so many more calls have been answered."""
    target = load.ended["ok"] + calls
    with anyio.fail_after(ANSWER_S):
        while load.ended["ok"] < target:
            await anyio.sleep(0.01)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that most tests share, and that must survive them."""
    path = tmp_path_factory.mktemp("shared") / "beat"
    settings = {"HTTP_WORKERS": WORKERS, "HANG_TIMEOUT_S": HANG_S, "HEARTBEAT_PATH": path}
    with ServerProcess("http", settings) as server:
        yield Service(server)
        server.signal(signal.SIGTERM)
        assert server.exit_code(within_s=EXIT_S) == 0


# ---- R63: one service ----------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_all_workers(shared: Service) -> None:  # R14, R63
    for _ in range(20):
        assert shared.call("produce", size=1).status_code == 200
    figures = shared.call("get-metrics").json()["result"]["structuredContent"]
    (produced,) = (one for one in figures["calls"] if one["name"] == "produce")
    assert produced["calls"] == 20
    assert (figures["workers"], figures["missing_workers"]) == ([1, 2], [])


def test_the_health_report_names_every_worker(shared: Service) -> None:  # R14
    workers = shared.workers()
    assert set(workers) == {1, 2}
    pids = {worker["pid"] for worker in workers.values()}
    assert len(pids) == WORKERS
    assert shared.server.process.pid not in pids


@pytest.mark.parametrize("era", ERAS)
async def test_clients_do_not_notice_how_many_there_are(shared: Service, era: str) -> None:  # R70
    async with shared.server.connected(era) as client:
        for number in range(10):
            assert text_of(await client.call_tool("echo", {"text": str(number)})) == str(number)


def test_a_question_of_one_worker_may_be_answered_to_another(shared: Service) -> None:  # R70
    """What a call has to remember travels with its client, sealed with a key that all workers have."""
    asked = ask_a_person(shared)
    until = time.monotonic() + ANSWER_S
    while len(processes_of(shared, "ask_a_person")) < WORKERS:
        answers = {"day": {"action": "accept", "content": {"day": "Monday"}}}
        (content,) = ask_a_person(shared, requestState=asked["requestState"], inputResponses=answers)["content"]
        assert content["text"].startswith("remembered ")
        assert time.monotonic() < until


def ask_a_person(shared: Service, **answers: object) -> dict[str, Any]:
    """A call of the modern era, over a connection of its own."""
    prefix = "io.modelcontextprotocol/"
    meta = {
        f"{prefix}protocolVersion": "2026-07-28",
        f"{prefix}clientInfo": {"name": "production-tests", "version": "1"},
        f"{prefix}clientCapabilities": {"elicitation": {"form": {}}},
    }
    params = {"name": "ask_a_person", "arguments": {}, "_meta": meta, **answers}
    answer = httpx2.post(
        shared.url,
        json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params},
        headers={
            **HEADERS,
            "mcp-protocol-version": "2026-07-28",
            "mcp-method": "tools/call",
            "mcp-name": "ask_a_person",
        },
    )
    found: dict[str, Any] = answer.json()["result"]
    return found


def processes_of(shared: Service, tool: str) -> set[str]:
    """The processes that have served calls of a tool, as the references of the calls name them."""
    return {line["reference"].partition("-")[0] for line in shared.server.logs() if line.get("tool") == tool}


def test_the_probe_asks_for_all_of_them(shared: Service) -> None:  # R66
    assert shared.server.probe() == (0, "ready")


# ---- R30: workers that end -----------------------------------------------------------------------------------------


async def test_a_worker_that_is_told_to_stop_loses_no_call(shared: Service) -> None:  # R30, R68
    before = shared.recovers()
    async with load(shared.url) as clients:
        os.kill(before[1]["pid"], signal.SIGTERM)
        await shared.server.logged("a worker has ended and is started again", worker=1, exit_code=0)
        await goes_on(clients)
    assert clients.lost == {}
    assert shared.recovers()[1]["pid"] != before[1]["pid"]


async def test_a_worker_that_is_killed_takes_no_more_than_its_own_calls_along(shared: Service) -> None:  # R30
    before = shared.recovers()
    async with load(shared.url) as clients:
        os.kill(before[2]["pid"], signal.SIGKILL)
        await shared.server.logged("a worker has ended and is started again", worker=2, exit_code=-signal.SIGKILL)
        await goes_on(clients)
    assert clients.lost.keys() <= {"RemoteProtocolError", "ReadError", "WriteError"}
    assert sum(clients.lost.values()) <= CLIENTS
    after = shared.recovers()
    assert (after[1]["pid"], after[2]["restarts"]) == (before[1]["pid"], before[2]["restarts"] + 1)


async def test_a_worker_that_is_stuck_is_replaced_while_the_others_serve(shared: Service) -> None:  # R30
    before = shared.recovers()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, hang_up_on, shared, "block_the_loop")
        await shared.server.logged("block_the_loop begins")  # what it has taken before, it takes along
        for _ in range(20):
            answer = await anyio.to_thread.run_sync(lambda: shared.call("echo", text="x"))
            assert answer.status_code == 200  # a connection that the stuck one had taken would not be answered
    after = shared.recovers()
    assert len({before[number]["pid"] for number in before} & {after[number]["pid"] for number in after}) == 1


def hang_up_on(shared: Service, tool: str) -> None:
    with pytest.raises(httpx2.HTTPError):
        shared.call(tool)


def test_settings_that_become_wrong_stop_no_worker_that_serves(tmp_path: Path) -> None:  # R30
    path = tmp_path / "keys"
    path.write_text("k" * 32, encoding="utf-8")
    with ServerProcess("http", {"HTTP_WORKERS": WORKERS, "REQUEST_STATE_KEYS_FILE": path}) as server:
        service = Service(server)
        path.unlink()
        os.kill(service.workers()[1]["pid"], signal.SIGTERM)
        wait_for(server, "a worker cannot start again: a setting, or what it names, is wrong by now", worker=1)
        assert service.call("echo", text="x").status_code == 200
        assert service.get("/readyz").status_code == 200
        server.signal(signal.SIGTERM)
        assert server.exit_code(within_s=EXIT_S) == 0


# ---- R68: the end --------------------------------------------------------------------------------------------------


async def test_a_service_that_stops_loses_no_call(tmp_path: Path) -> None:  # R68
    """Its clients look at `/readyz`, as a load balancer does, and the service gives them the time."""
    settings = {"HTTP_WORKERS": WORKERS, "SHUTDOWN_DELAY_S": DELAY_S, "HEARTBEAT_PATH": tmp_path / "beat"}
    with ServerProcess("http", settings) as server:
        service = await anyio.to_thread.run_sync(Service, server)
        slow: list[httpx2.Response] = []

        async def call_slowly() -> None:
            slow.append(await anyio.to_thread.run_sync(lambda: service.call("sleep", seconds=DELAY_S + 2, mark="x")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call_slowly)
            await server.logged("sleep begins")
            async with load(service.url) as clients:
                server.signal(signal.SIGTERM)
                await server.logged("stopping")
                await goes_on(clients, CLIENTS)
                ready = await anyio.to_thread.run_sync(service.get, "/readyz")
                assert (ready.status_code, ready.json()["reason"]) == (503, "the server is stopping")
            assert clients.lost == {}
            assert (await anyio.to_thread.run_sync(server.probe))[0] == 1
        assert slow[0].json()["result"]["content"][0]["text"] == "slept x"
        assert await server.ends(within_s=EXIT_S) == 0
        assert [line["event"] for line in server.logs()].count("cleanup is complete") == WORKERS


def test_workers_end_with_their_parent_and_finish_their_calls() -> None:  # R68
    with ServerProcess("http", {"HTTP_WORKERS": WORKERS}) as server:
        service = Service(server)
        pids = [worker["pid"] for worker in service.workers().values()]
        answers: list[httpx2.Response] = []
        with anyio.from_thread.start_blocking_portal() as portal:
            calling = portal.start_task_soon(
                lambda: anyio.to_thread.run_sync(lambda: answers.append(service.call("sleep", seconds=0.7)))
            )
            wait_for(server, "sleep begins")
            server.process.kill()
            calling.result(ANSWER_S)
        assert answers[0].status_code == 200
        until = time.monotonic() + LEAVE_S + BUSY_MACHINE_S
        while [line["event"] for line in server.logs()].count("cleanup is complete") < WORKERS:
            assert time.monotonic() < until, pids
            time.sleep(0.01)


# ---- start-up ------------------------------------------------------------------------------------------------------


def test_sessions_need_one_process() -> None:
    with ServerProcess("http", {"HTTP_WORKERS": WORKERS, "HTTP_STATELESS": "false"}) as server:
        assert server.exit_code(within_s=START_S) == 2
        assert "HTTP_STATELESS must be true" in server.stderr()


def test_a_worker_that_cannot_start_is_the_end_of_it_all() -> None:
    settings = {"HTTP_WORKERS": WORKERS, "HTTP_HOST": "0.0.0.0", "HTTP_ALLOW_UNAUTHENTICATED": "false"}
    with ServerProcess("http", settings) as server:
        assert server.exit_code(within_s=START_S) == 2
        assert len([line for line in server.logs() if line["level"] == "error"]) == 1
