"""`docker compose up --wait` of a project with everything: server, PostgreSQL and Prometheus work together.

Grafana has no stand-in: what it reads is compared with what Prometheus knows.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx2
import pytest
import yaml
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.deployment.callers import Caller, free_port, until
from tests.deployment.readme import commands, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.deployment.docker_engine import Engine

pytestmark = pytest.mark.timeout(900)
"""Whichever test is the first waits for the engine and the images, for minutes on a busy machine."""

UP_S = 180

OVERRIDE = """
services:
  server:
    build: {network: host}
  grafana:
    profiles: [never]
"""
"""What the tests change: the builder uses the network of this machine, and there may be no image of Grafana."""


class Stack(NamedTuple):
    """Everything that the compose file starts."""

    engine: Engine
    directory: Path
    variables: dict[str, str]
    caller: Caller
    prometheus: str
    up_s: float

    def compose(self, *arguments: object) -> str:
        return self.engine("compose", *arguments, directory=self.directory, variables=self.variables, timeout_s=UP_S)

    def ask(self, path: str, **parameters: str) -> Any:
        """Ask Prometheus."""
        response = httpx2.get(f"{self.prometheus}/api/v1/{path}", params=parameters, timeout=10)
        assert response.status_code == 200, response.text
        return response.json()["data"]


@pytest.fixture(scope="module")
def stack(services: Engine, image: str, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run the commands of the README; they find the layers of `image`."""
    directory = tmp_path_factory.mktemp("stack") / "my-server"
    shutil.copytree(project, directory)
    (directory / "override.yaml").write_text(OVERRIDE)
    port, prometheus = free_port(), free_port()
    variables = {
        "COMPOSE_FILE": "compose.yaml:override.yaml",
        "PUBLISHED_PORT": str(port),
        "PROMETHEUS_PORT": str(prometheus),
    }
    (script,) = commands(directory, "Docker Compose")
    begin = time.monotonic()
    try:
        said = run(script, directory, {**services.environment, **variables}, timeout_s=UP_S)
        (token,) = re.findall(r"^mcp_\S+$", said, re.MULTILINE)
        up_s = time.monotonic() - begin
        yield Stack(services, directory, variables, Caller(port, token), f"http://127.0.0.1:{prometheus}", up_s)
    finally:
        down = Stack(services, directory, variables, Caller(port), "", 0)
        print(down.compose("logs", "--no-color"))  # beside a failure
        down.compose("down", "--volumes", "--timeout", "5")


@pytest.mark.anyio
async def test_a_client_saves_a_note_in_the_database(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nup and healthy after {stack.up_s:.1f} s")
    async with httpx2.AsyncClient(headers=stack.caller.headers) as http:
        transport = streamable_http_client(stack.caller.url, http_client=http)
        async with Client(transport, mode="auto") as client:
            saved = await client.call_tool("save_note", {"title": "first", "text": "kept"})
            assert not saved.is_error, saved
            (found,) = (await client.read_resource("notes://first")).contents
            assert found.text == "kept"  # type: ignore[union-attr]
    rows = stack.compose("exec", "database", "psql", "-U", "my_server", "-At", "-c", "SELECT text FROM notes")
    assert rows == "kept"


def test_nobody_is_served_without_a_token(stack: Stack) -> None:
    assert Caller(stack.caller.port).post("echo", text="hello").status_code == 401


def test_prometheus_reads_the_figures_of_the_server(stack: Stack) -> None:  # R63
    stack.caller.call("echo", text="hello")
    (target,) = until(lambda: [one for one in stack.ask("targets")["activeTargets"] if one["lastScrape"] > "0002"])
    assert (target["health"], target["lastError"]) == ("up", "")
    assert target["labels"]["job"] == "my-server"
    seen = until(
        lambda: stack.ask("query", query='mcp_server_calls_total{gen_ai_tool_name="echo",outcome="ok"}')["result"]
    )
    assert float(seen[0]["value"][1]) >= 1


def test_every_alert_can_be_judged(stack: Stack) -> None:
    (group,) = until(lambda: [one for one in stack.ask("rules")["groups"] if one["lastEvaluation"] > "0002"])
    rules = group["rules"]
    assert len(rules) == 8
    assert {(rule["health"], rule["state"]) for rule in rules} == {("ok", "inactive")}
    for rule in rules:
        assert metrics_of(rule["query"]) <= known(stack), rule["query"]


def test_every_panel_of_the_dashboard_shows_something(stack: Stack) -> None:
    """A query is answered, and its metrics are there; some are of things that have not happened yet."""
    dashboard = json.loads((stack.directory / "deploy/grafana/dashboards/my-server.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) > 25
    until(lambda: stack.ask("query", query="mcp_server_ready")["result"])
    for query in queries:
        stack.ask("query", query=query.replace("$job", "my-server").replace("$__rate_interval", "1m"))
        assert metrics_of(query) <= known(stack), query
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_grafana_finds_prometheus_and_the_dashboards(stack: Stack) -> None:
    services = yaml.safe_load((stack.directory / "compose.yaml").read_text())["services"]
    provisioning = stack.directory / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "files.yaml").read_text())["providers"]
    mounts = dict(volume.split(":")[1::-1] for volume in services["grafana"]["volumes"])
    assert mounts[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    dashboard = json.loads((stack.directory / "deploy/grafana/dashboards/my-server.json").read_text())
    variable = dashboard["templating"]["list"][0]
    assert (variable["type"], variable["current"]["value"]) == ("datasource", source["uid"])


def test_secrets_are_in_no_environment_and_each_in_one_place(stack: Stack) -> None:
    values = {path.read_text().strip() for path in (stack.directory / "secrets").iterdir()}
    assert len(values) == 4
    services = {"server": {"database_url", "http_tokens"}, "database": {"database_password"}, "prometheus": set()}
    for service, secrets in services.items():
        identity = stack.compose("ps", "--quiet", service)
        (found,) = json.loads(stack.engine("inspect", identity))
        assert not [secret for secret in values if secret in json.dumps(found)]
        mounts = {
            one["Destination"].removeprefix("/run/secrets/")
            for one in found["Mounts"]
            if "secrets" in one["Destination"]
        }
        assert mounts == secrets


def test_every_container_is_hardened_and_bounded(stack: Stack) -> None:  # R65, R69
    for identity in stack.compose("ps", "--quiet").split():
        (found,) = json.loads(stack.engine("inspect", identity))
        host, name = found["HostConfig"], found["Name"]
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert host["SecurityOpt"] == ["no-new-privileges:true"], name
        assert host["Memory"] > 0, name
        assert host["NanoCpus"] > 0, name
        assert host["PidsLimit"] > 0, name
        assert all("size=" in options for options in host.get("Tmpfs", {}).values()), name
        assert host["RestartPolicy"]["Name"] == "unless-stopped", name
        assert found["State"]["Health"]["Status"] == "healthy", name
        assert {one["HostIp"] for ports in host["PortBindings"].values() for one in ports} <= {"127.0.0.1"}, name
    (server,) = json.loads(stack.engine("inspect", stack.compose("ps", "--quiet", "server")))
    assert (
        server["Config"]["Healthcheck"]["Interval"] == 0
        or server["Config"]["Healthcheck"]["Interval"] == 30_000_000_000
    )
    assert server["Config"]["Healthcheck"]["StartInterval"] == 1_000_000_000


def test_another_version_and_the_way_back_replace_the_server_alone(stack: Stack) -> None:
    """Prometheus goes on meanwhile, because it is the one who tells that a version does not serve."""
    before = started(stack, "database", "prometheus")
    stack.engine("tag", "my-server:0.1.0", "my-server:0.2.0")
    assert (stack.directory / ".env").read_text() == "IMAGE_TAG=0.1.0\n"
    for tag in ("0.2.0", "0.1.0"):
        (stack.directory / ".env").write_text(f"IMAGE_TAG={tag}\n")
        stack.compose("up", "--detach", "--wait")
        assert stack.compose("ps", "--format", "{{.Image}}", "server") == f"my-server:{tag}"
        assert stack.caller.call("echo", text=tag) == tag
    assert started(stack, "database", "prometheus") == before


def test_the_database_may_go_and_come_back(stack: Stack) -> None:  # R40
    stack.compose("kill", "database")
    assert until(lambda: is_error(stack.caller, "b"))
    stack.compose("up", "--wait", "--no-build", "--no-recreate", "database")
    assert until(lambda: not is_error(stack.caller, "c"), within_s=150)


def started(stack: Stack, *services: str) -> list[str]:
    """Return when each of them was started."""
    return [
        stack.engine("inspect", "--format", "{{.State.StartedAt}}", stack.compose("ps", "--quiet", one))
        for one in services
    ]


def is_error(caller: Caller, title: str) -> bool:
    response = caller.post("save_note", title=title, text="x")
    return bool(response.json()["result"].get("isError"))


def known(stack: Stack) -> set[str]:
    """Return the names of all metrics that Prometheus has seen."""
    return set(stack.ask("label/__name__/values"))


def metrics_of(query: str) -> set[str]:
    """Return the names of the metrics in a query."""
    without_labels = re.sub(r"\bby \([^)]*\)|\{[^}]*\}", "", query)
    return set(re.findall(r"\b(?:mcp_server|db_client|process)_\w+|\bup\b", without_labels))
