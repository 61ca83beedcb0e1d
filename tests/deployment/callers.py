"""A caller of a server that runs in a container."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.deployment.docker_engine import Engine

HARDENED = [
    *("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--init"),
    *("--memory", "640m", "--pids-limit", "256"),
]
"""How a container should be run: nothing of it can be written but a volume, if it has one."""
TOKENS = "/run/secrets/http_tokens"
_ANSWER_S = 30
_HEADERS = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2025-11-25",
}


class Caller(NamedTuple):
    """Calls the tools of the server on a port of this machine."""

    port: int
    token: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    def post(self, tool: str, **arguments: object) -> httpx2.Response:
        """Send a call, in a connection of its own."""
        params = {"name": tool, "arguments": arguments}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
        return httpx2.post(self.url, content=body, headers={**_HEADERS, **self.headers}, timeout=_ANSWER_S)

    def call(self, tool: str, **arguments: object) -> Any:
        """Return the text of a call's result."""
        response = self.post(tool, **arguments)
        assert response.status_code == 200, response.text
        result = response.json()["result"]
        assert not result.get("isError"), result
        return result["content"][0]["text"]

    def status(self, path: str) -> int:
        """Return the status of a probe; 0 while nothing answers."""
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}/{path}", timeout=5).status_code
        except httpx2.HTTPError:
            return 0

    def wait(self, *, within_s: float = 30) -> float:
        """Wait until the server is ready; the seconds that it took."""
        begin = time.monotonic()
        until(lambda: self.status("readyz") == 200, within_s=within_s, every_s=0.02)
        return time.monotonic() - begin

    def is_calling(self, tool: str) -> bool:
        """Whether a call of this tool runs in the server."""
        figures = httpx2.get(f"http://127.0.0.1:{self.port}/metrics", timeout=5).text
        return bool(re.search(rf'^mcp_server_calls_in_flight\{{.*"{tool}".*\}} [1-9]', figures, re.MULTILINE))


def until(look: Callable[[], Any], *, within_s: float = 60, every_s: float = 0.1) -> Any:
    """Look again and again until there is something, and return it."""
    due = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < due, f"{found!r} after {within_s} s"
        time.sleep(every_s)
    return found


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def give_token(engine: Engine, image: str, file: Path) -> str:
    """Let the image make a token, append its line to a file that the container may read, and return it."""
    made = engine.attempt("run", "--rm", image, "token", "trial")
    assert made.returncode == 0, made.stderr
    with file.open("a") as tokens:
        tokens.write(made.stdout)
    file.chmod(0o644)
    return made.stderr.split()[-1]


def published(port: int, tokens: Path) -> list[str]:
    """Return the arguments with which a container serves on that port those who have a token."""
    return [
        *("--publish", f"127.0.0.1:{port}:8000", "--env", f"MY_SERVER_HTTP_ALLOWED_HOSTS=127.0.0.1:{port}"),
        *("--volume", f"{tokens}:{TOKENS}:ro", "--env", f"MY_SERVER_HTTP_TOKENS_PATH={TOKENS}"),
    ]
