"""Clients of other people list and call the tools of an installed server, over stdio and over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support_npm import Node

TOOLS = (
    {"health-check", "get-metrics", "save_note", "ask_api"}
    | {"test-api", "load_openapi", "ingest_logs", "explain_failure", "make_repro"}
    | {"audit-project", "file-metrics", "git-churn", "test-mapping"}
)


@pytest.fixture(scope="module")
def url(console_script: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve over HTTP."""
    log = tmp_path_factory.mktemp("http") / "stderr"
    environment = {**os.environ, "MY_SERVER_HTTP_PORT": "0", "MY_SERVER_HTTP_ALLOW_UNAUTHENTICATED": "true"}
    with log.open("wb") as stderr, subprocess.Popen([console_script, "http"], env=environment, stderr=stderr) as server:
        try:
            yield wait_for_url(log, server)
        finally:
            server.terminate()
        assert server.wait(5) == 0


@pytest.fixture(params=["stdio", "http"])
def target(request: pytest.FixtureRequest, console_script: Path) -> str:
    """Return what a client connects to: a command or an address."""
    return str(console_script) if request.param == "stdio" else str(request.getfixturevalue("url"))


@pytest.mark.parametrize("era", ["legacy", "auto"])
def test_the_official_python_client(target: str, era: str) -> None:
    async def main() -> None:
        server = target if target.startswith("http") else StdioServerParameters(command=target)
        async with Client(server, mode=era, read_timeout_seconds=30) as client:
            assert (client.protocol_version >= "2026") == (era == "auto")
            assert client.server_info is not None
            assert (client.server_info.name, client.server_info.version) == ("my-server", "0.1.0")
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
            result = await client.call_tool("save_note", {"title": "a", "text": "b"})
            assert result.structured_content == {"title": "a", "text": "b"}

    anyio.run(main)


@pytest.mark.parametrize("client", [["sdk1.mjs"], ["client2.mjs", "legacy"], ["client2.mjs", "auto"]], ids=" ".join)
def test_the_official_npm_clients(npm_clients: Node, target: str, client: list[str]) -> None:
    done = npm_clients.run(*client, target)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    assert seen["server"]["name"] == "my-server"
    assert seen["server"]["version"] == "0.1.0"
    assert {tool["name"] for tool in seen["tools"]} == TOOLS
    assert seen["saved"]["structuredContent"] == {"title": "a", "text": "b"}
    assert seen["wrong"]["isError"]
    assert seen["contents"][0]["text"] == "b"


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_inspector_finds_nothing_to_complain_about(npm_clients: Node, target: str, era: str) -> None:
    def inspect(*arguments: str) -> Any:
        inspector = npm_clients.directory / "node_modules" / ".bin" / "mcp-inspector"
        options = ("--protocol-era", era, "--format", "json", "--method")
        done = npm_clients.run(inspector.resolve(), "--cli", target, *options, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    tools = inspect("tools/list", "--strict")
    assert {tool["name"] for tool in tools.get("result", tools)["tools"]} == TOOLS
    called = inspect("tools/call", "--tool-name", "save_note", "--tool-arg", "title=a", "text=b")
    assert called.get("result", called)["structuredContent"] == {"title": "a", "text": "b"}


def wait_for_url(log: Path, server: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + 30
    while True:
        for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n") and (event := json.loads(line))["event"] == "listening":
                return str(event["url"])
        assert server.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < until, log.read_text(encoding="utf-8")
        time.sleep(0.01)
