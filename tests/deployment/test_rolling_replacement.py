"""Two replicas behind HAProxy are replaced one after the other under the load of real clients: no call is lost."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.deployment.callers import HARDENED, TOKENS, Caller, free_port, give_token
from tests.deployment.stand_ins import HAPROXY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.deployment.docker_engine import Engine

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]
"""The first test waits for the engine and the images, for minutes on a busy machine."""

CALLERS = 12
CALL_S = 0.1
"""What a call takes: many of them are under way at any moment."""
DELAY_S = 2.0
"""How long a replica that was told to stop goes on taking calls; the proxy looks several times in it."""
BETWEEN_S = 1.0

CONFIGURATION = """
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s

frontend public
    bind 127.0.0.1:{port}
    default_backend replicas

backend replicas
    balance leastconn
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter 300ms fall 1 rise 1
    server first 127.0.0.1:{first}
    server second 127.0.0.1:{second}
"""


class Replicas:
    """Two places, in each of which a server runs that can be replaced."""

    def __init__(self, engine: Engine, image: str, tokens: Path, proxy_port: int, stack: ExitStack) -> None:
        self.ports = (free_port(), free_port())
        self._engine = engine
        self._image = image
        self._tokens = tokens
        self._hosts = f"127.0.0.1:{proxy_port}"
        self._stack = stack
        self._running = {port: self._start(port) for port in self.ports}

    def _start(self, port: int) -> str:
        settings = {
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": port,
            "HTTP_ALLOWED_HOSTS": self._hosts,
            "HTTP_TOKENS_PATH": TOKENS,
            "HTTP_RATE_LIMIT_PER_MINUTE": 0,
            "SHUTDOWN_DELAY_S": DELAY_S,
        }
        variables = [part for name, value in settings.items() for part in ("--env", f"MY_SERVER_{name}={value}")]
        volume = ("--volume", f"{self._tokens}:{TOKENS}:ro")
        arguments = (*HARDENED, "--network", "host", *volume, *variables, self._image)
        container = self._stack.enter_context(self._engine.container(*arguments))
        Caller(port).wait()
        return container

    def replace(self, port: int) -> tuple[float, str]:
        """Stop the server in a place and start another one; the seconds that the stop took, and its exit code."""
        begin, old = time.monotonic(), self._running[port]
        self._engine("stop", "--time", "20", old)
        stop_s = time.monotonic() - begin
        code = self._engine("inspect", "--format", "{{.State.ExitCode}}", old)
        self._running[port] = self._start(port)
        return stop_s, code


async def test_a_rolling_replacement_loses_no_call(  # R68
    services: Engine, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes: Counter[str] = Counter()
    with ExitStack() as stack:
        caller = Caller(free_port(), give_token(services, image, tmp_path / "tokens"))
        replicas = Replicas(services, image, tmp_path / "tokens", caller.port, stack)
        first, second = replicas.ports
        (tmp_path / "haproxy.cfg").write_text(CONFIGURATION.format(port=caller.port, first=first, second=second))
        (tmp_path / "haproxy.cfg").chmod(0o644)
        mount = f"{tmp_path}/haproxy.cfg:/usr/local/etc/haproxy/haproxy.cfg:ro"
        stack.enter_context(services.container("--network", "host", "--volume", mount, HAPROXY))
        caller.wait()

        stops = []
        begin = time.monotonic()
        async with anyio.create_task_group() as load:
            for number in range(CALLERS):
                load.start_soon(keep_calling, caller, ("auto", "legacy")[number % 2], outcomes)
            await until(lambda: outcomes["ok"] > 5 * CALLERS)
            for port in replicas.ports:
                stops.append(await anyio.to_thread.run_sync(replicas.replace, port))
                so_far = outcomes["ok"]
                await anyio.sleep(BETWEEN_S)
                assert outcomes["ok"] > so_far
            load.cancel_scope.cancel()
    with capsys.disabled():
        seconds = ", ".join(f"{stop_s:.1f} s" for stop_s, _ in stops)
        print(f"\n{outcomes.total()} calls in {time.monotonic() - begin:.1f} s, stops of {seconds}: {dict(outcomes)}")
    assert set(outcomes) == {"ok"}
    assert [code for _, code in stops] == ["0", "0"]
    assert all(stop_s > DELAY_S for stop_s, _ in stops)


async def keep_calling(caller: Caller, mode: str, outcomes: Counter[str]) -> None:
    """Call again and again over the connections of one client, and count how it ended."""
    async with httpx2.AsyncClient(headers=caller.headers, timeout=30) as http:
        transport = streamable_http_client(caller.url, http_client=http)
        async with Client(transport, mode=mode) as client:
            while True:
                try:
                    result = await client.call_tool("sleep", {"seconds": CALL_S})
                except Exception as error:  # noqa: BLE001 - any of them is a lost call
                    outcomes[f"{type(error).__name__}: {error}"] += 1
                else:
                    outcomes["error" if result.is_error else "ok"] += 1


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the other tasks do."""
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - it has no event
            await anyio.sleep(0.02)
