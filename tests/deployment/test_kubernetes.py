"""The Helm chart and the manifests for kustomize: by the real engines, strict schemas, and what they promise."""

from __future__ import annotations

import copy
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml
from reliability.shutdown import CLEANUP_S

from tests.deployment.callers import until
from tests.deployment.manifests import (
    NAMESPACE,
    HelmError,
    Manifest,
    by_helm,
    by_kustomize,
    container,
    kinds,
    lint,
    only,
    parsed,
    pod,
    secret_files,
    settings,
)
from tests.deployment.pod_security import violations
from tests.render.conftest import pairs
from tests.render.test_rendered_files import HOSTILE_TEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.render.conftest import Renderer

OPTIONS: dict[str, list[Any]] = {
    "storage": ["none", "sqlite", "postgres"],
    "authentication": ["none", "token", "oauth"],
    "metrics": [[], ["prometheus"], ["prometheus", "grafana"]],
    "api_url": ["", "http://api.internal:8080/v1"],
    "examples": [["notes"], []],
}
PRESETS = [{"preset": "http"}, {"preset": "full"}]
VERSIONS = ["1.30", kubernetes_validate.latest_version()]
"""The oldest version that the chart takes, and the newest whose schemas are known."""

OAUTH = {"OAUTH_ISSUER": "https://id.example.com", "OAUTH_AUDIENCE": "https://my-server.example.com/mcp"}
EVERYTHING: dict[str, Any] = {
    "image": {"tag": "1.2.3", "digest": "sha256:" + "0" * 64, "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "settings": {"SHUTDOWN_DELAY_S": 7.5, "MAX_INPUT_BYTES": 10_000_000, "HTTP_ALLOWED_HOSTS": ["a.example.com"]},
    "drainDelaySeconds": 10,
    "service": {"port": 8080},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "host": "my-server.example.com",
        "tlsSecret": "certificate",
        "annotations": {"example.com/timeout": "60s"},
    },
    "networkPolicy": {"from": [{"namespaceSelector": {"matchLabels": {"name": "clients"}}}]},
    "podAnnotations": {"example.com/team": "one"},
    "priorityClassName": "high",
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
}

LOAD = """
import json
from my_server.reliability import load_settings
from my_server.reliability.configuration import unknown_variables
from my_server.settings import Settings
loaded = load_settings(Settings)
print(json.dumps([unknown_variables(Settings), loaded.model_dump(mode="json")]))
"""
ASKING = """
import os
import anyio
from mcp import Client, MCPError
from mcp.server.mcpserver import Context
from mcp_types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult
from my_server.app import create_server
from my_server.reliability import load_settings
from my_server.settings import Settings

OLD, NEW = "o" * 32, "n" * 32
FORM = ElicitRequestFormParams(message="How many?", requested_schema={"type": "object", "properties": {}})

async def order(ctx: Context) -> str | InputRequiredResult:
    if ctx.request_state is None:
        return InputRequiredResult(input_requests={"n": ElicitRequest(params=FORM)}, request_state="where it was")
    return ctx.request_state

def replica(keys):
    os.environ["MY_SERVER_REQUEST_STATE_KEYS"] = keys
    server = create_server(load_settings(Settings))
    server.add_tool(order, name="order")
    return Client(server)

async def main(asked, answered):
    async with replica(asked) as first, replica(answered) as second:
        question = await first.session.call_tool("order", {}, allow_input_required=True)
        try:
            call = {"request_state": question.request_state, "input_responses": {}}
            return (await second.session.call_tool("order", {}, **call)).content[0].text
        except MCPError:
            return "refused"

for keys in [(OLD, OLD), (OLD, f"{NEW},{OLD}"), (f"{NEW},{OLD}", NEW), (OLD, NEW), ("", "")]:
    print(anyio.run(main, *keys))
"""
START_S = 30
SERVED: dict[str, Any] = {
    "preset": "http",
    "storage": "sqlite",
    "authentication": "token",
    "metrics": ["prometheus"],
    "deployment": ["container", "kubernetes"],
}
TOKENS = ["mcp_" + "1" * 43, "mcp_" + "2" * 43]
POD = "10.1.2.3:8000"
"""The address by which the kubelet asks."""
GREETING = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "tests", "version": "1"}},
}


@pytest.fixture(scope="module")
def projects(render: Renderer) -> list[Path]:
    """Render the presets, and few more projects in which every value of every option meets every other one."""
    combined = ({"preset": "http", "deployment": ["container", "kubernetes"], **row} for row in pairs(OPTIONS, []))
    return [render(**answers) for answers in [*PRESETS, *combined]]


def answers(project: Path) -> dict[str, Any]:
    read = yaml.safe_load((project / ".copier-answers.yml").read_text(encoding="utf-8"))
    assert isinstance(read, dict)
    return read


def least(project: Path) -> dict[str, Any]:
    """The values without which the chart refuses to be rendered."""
    return {"settings": dict(OAUTH)} if answers(project)["authentication"] == "oauth" else {}


def everything(project: Path) -> dict[str, Any]:
    """Every value that is not a number of replicas set to something else."""
    values = copy.deepcopy(EVERYTHING)
    values["settings"].update(least(project).get("settings", {}))
    if "prometheus" in answers(project)["metrics"]:
        values["serviceMonitor"] = {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}}
    if answers(project)["api_url"]:
        values["secrets"] = {"API_TOKEN": {"name": "other", "key": "api-token"}}
    return values


@pytest.fixture(scope="module")
def every_set(projects: list[Path]) -> list[tuple[Path, list[Manifest]]]:
    """Return what Helm makes of each project with few and with all values, and what kustomize makes of it."""
    makers: list[Callable[[Path], list[Manifest]]] = [
        lambda project: by_helm(project, least(project)),
        lambda project: by_helm(project, everything(project)),
        by_kustomize,
    ]
    return [(project, make(project)) for project in projects for make in makers]


def test_helm_finds_nothing_wrong(projects: list[Path], render: Renderer) -> None:
    for project in [*projects, render(preset="http", description=HOSTILE_TEXT)]:
        assert lint(project) == []


def test_every_manifest_fits_its_schema(every_set: list[tuple[Path, list[Manifest]]]) -> None:
    different = {json.dumps(manifest): manifest for _, manifests in every_set for manifest in manifests}
    seen = set()
    for manifest in different.values():
        seen.add(manifest["kind"])
        if manifest["kind"] != "ServiceMonitor":  # a kind of the Prometheus Operator
            for version in VERSIONS:
                kubernetes_validate.validate(manifest, version, strict=True)
    assert seen == {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "Ingress", "NetworkPolicy", "PersistentVolumeClaim",
        "PodDisruptionBudget", "Service", "ServiceAccount", "ServiceMonitor",
    }  # fmt: skip


def test_helm_and_kustomize_make_the_same(projects: list[Path]) -> None:
    for project in projects:
        monitored = {"serviceMonitor": {"enabled": True}} if "prometheus" in answers(project)["metrics"] else {}
        assert comparable(by_helm(project, {**least(project), **monitored})) == comparable(by_kustomize(project))


def comparable(manifests: list[Manifest]) -> dict[str, Any]:
    """Leave out what both write in their own ways: labels of the release, the names of the ConfigMaps, the volumes."""
    result = {}
    own = {name for name in settings(manifests) if "OAUTH" not in name}
    for manifest in copy.deepcopy(manifests):
        if manifest["kind"] == "ConfigMap":
            if own <= manifest["data"].keys():
                result["settings"] = manifest["data"]
            continue
        manifest.pop("metadata")
        if manifest["kind"] == "Deployment":
            template = manifest["spec"]["template"]
            template["metadata"].pop("annotations", None)
            (server,) = template["spec"]["containers"]
            server.pop("envFrom")
            template["spec"]["volumes"] = [v for v in template["spec"]["volumes"] if "projected" not in v]
        result[manifest["kind"]] = json.loads(
            re.sub(r', "app.kubernetes.io/instance": "[^"]+"', "", json.dumps(manifest))
        )
    return {**result, "secrets": secret_files(manifests)}


def test_pods_are_restricted(every_set: list[tuple[Path, list[Manifest]]]) -> None:
    for _, manifests in every_set:
        assert violations(pod(manifests)) == []
        assert container(manifests)["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod(manifests)["securityContext"]["runAsUser"] >= 10_000
        assert pod(manifests)["automountServiceAccountToken"] is False
        assert only(manifests, "ServiceAccount")["automountServiceAccountToken"] is False
        assert "/tmp" in [mount["mountPath"] for mount in container(manifests)["volumeMounts"]]  # noqa: S108


@pytest.mark.parametrize(
    ("place", "change", "found"),
    [
        ("pod", {"hostNetwork": True}, "hostNetwork"),
        ("pod", {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}, "volumes.hostPath"),
        ("pod", {"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}, "runAsNonRoot"),
        ("pod", {"securityContext": {"runAsNonRoot": True}}, "seccompProfile"),
        ("container", {"ports": [{"containerPort": 80, "hostPort": 80}]}, "hostPort"),
        ("context", {"privileged": True}, "privileged"),
        ("context", {"allowPrivilegeEscalation": None}, "allowPrivilegeEscalation"),
        ("context", {"capabilities": {"drop": ["NET_RAW"]}}, "capabilities.drop"),
        ("context", {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}, "capabilities.add"),
        ("context", {"runAsUser": 0}, "runAsUser"),
        ("context", {"runAsNonRoot": False}, "runAsNonRoot"),
        ("context", {"procMount": "Unmasked"}, "procMount"),
        ("context", {"seccompProfile": {"type": "Unconfined"}}, "seccompProfile"),
        ("context", {"seLinuxOptions": {"type": "spc_t"}}, "seLinuxOptions"),
        ("context", {"appArmorProfile": {"type": "Unconfined"}}, "appArmorProfile"),
    ],
)
def test_the_check_of_the_standard_sees_what_is_wrong(
    render: Renderer, place: str, change: dict[str, Any], found: str
) -> None:
    changed = copy.deepcopy(pod(by_helm(render(preset="http"))))
    server = changed["containers"][0]
    {"pod": changed, "container": server, "context": server["securityContext"]}[place].update(change)
    assert violations(changed) == [found]


def test_the_settings_are_those_of_the_server(every_set: list[tuple[Path, list[Manifest]]], tmp_path: Path) -> None:
    """The server takes them all, without a wrong and without an unknown one."""
    tried = set()
    for number, (project, manifests) in enumerate(every_set):
        environment = settings(manifests)
        key = ((project / "src" / "my_server" / "settings.py").read_bytes(), frozenset(environment))
        if key not in tried:
            tried.add(key)
            mount_secrets(tmp_path / str(number), manifests)
            assert secret_files(manifests).keys() <= set(environment.values())
            unknown, loaded = json.loads(run_python(project, LOAD, moved(environment, tmp_path / str(number))))
            assert unknown == {}
            assert loaded["http_host"] == "0.0.0.0"  # noqa: S104
            assert loaded["http_port"] == container(manifests)["ports"][0]["containerPort"]
            # R68: the longest call finishes, whenever it began.
            assert loaded["shutdown_grace_s"] >= loaded["tool_timeout_s"] + loaded["queue_timeout_s"]
            # R69: the server restarts itself before the kernel ends it.
            assert megabytes(container(manifests)["resources"]["limits"]["memory"]) > loaded["memory_hard_limit_mb"]
    assert len(tried) >= 10


def test_numbers_arrive_as_they_were_written(render: Renderer) -> None:
    written = {"MAX_INPUT_BYTES": 10_000_000, "TOOL_TIMEOUT_S": 2.5, "HTTP_JSON_RESPONSE": False, "LOG_LEVEL": "debug"}
    found = settings(by_helm(render(preset="http"), {"settings": written}))
    assert [found[f"MY_SERVER_{name}"] for name in written] == ["10000000", "2.5", "false", "debug"]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"drainDelaySeconds": 0},
        {"drainDelaySeconds": 60},
        {"settings": {"SHUTDOWN_GRACE_S": 0}},
        {"settings": {"SHUTDOWN_GRACE_S": 299.5, "SHUTDOWN_DELAY_S": 12.5}},
    ],
)
def test_a_pod_gets_the_time_that_its_server_takes(render: Renderer, change: dict[str, Any]) -> None:
    """R68: the wait for the proxies, calls in flight and the cleanup all fit before SIGKILL."""
    manifests = by_helm(render(preset="http"), change)
    assert time_to_stop(manifests) + 3 <= pod(manifests)["terminationGracePeriodSeconds"] <= time_to_stop(manifests) + 6


def test_a_grace_period_that_is_not_set_is_the_servers_own(render: Renderer) -> None:
    manifests = by_helm(render(preset="http"), {"settings": {"SHUTDOWN_GRACE_S": None}})
    assert "MY_SERVER_SHUTDOWN_GRACE_S" not in settings(manifests)
    assert pod(manifests)["terminationGracePeriodSeconds"] == 25


def test_plain_pods_get_it_too(every_set: list[tuple[Path, list[Manifest]]]) -> None:
    for _, manifests in every_set:
        assert time_to_stop(manifests) + 3 <= pod(manifests)["terminationGracePeriodSeconds"]


def time_to_stop(manifests: list[Manifest]) -> float:
    hook = container(manifests).get("lifecycle", {}).get("preStop", {"sleep": {"seconds": 0}})
    found = settings(manifests)
    delays = [float(found.get(f"MY_SERVER_SHUTDOWN_{name}_S", 0)) for name in ("DELAY", "GRACE")]
    return float(hook["sleep"]["seconds"]) + sum(delays) + CLEANUP_S


def test_a_server_answers_its_probes_and_its_service(render: Renderer, tmp_path: Path) -> None:
    """R9, R16: the process that the manifests describe, with their settings, asked as the kubelet and clients ask."""
    project = render(**SERVED)
    manifests = by_helm(project, everything(project))
    with running(project, manifests, tmp_path) as port:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container(manifests)[probe]["httpGet"]
            assert asked["port"] == "http"
            assert status(port, asked["path"], host=POD, within_s=START_S) == 200
        monitored = only(manifests, "ServiceMonitor")["spec"]["endpoints"][0]
        assert status(port, monitored["path"], host=POD) == 200
        (rule,) = only(manifests, "Ingress")["spec"]["rules"]
        path = rule["http"]["paths"][0]["path"]
        names = ["my-server:8080", f"my-server.{NAMESPACE}.svc.cluster.local:8080", rule["host"], "a.example.com"]
        assert [greeted(port, path, host=name, token=TOKENS[0]) for name in names] == [200] * len(names)
        assert greeted(port, path, host="elsewhere.example.com", token=TOKENS[0]) == 421
        assert greeted(port, path, host=names[0], token="") == 401


def test_a_token_in_the_secret_is_changed_without_a_restart(render: Renderer, tmp_path: Path) -> None:
    """The kubelet writes a new directory and turns a link round to it."""
    project = render(**SERVED)
    manifests = by_helm(project)
    (mounted,) = {(tmp_path / path.removeprefix("/")).parent for path in secret_files(manifests)}
    with running(project, manifests, tmp_path) as port:
        assert status(port, "/readyz", host=POD, within_s=START_S) == 200
        assert [greeted(port, "/mcp", host="my-server", token=token) for token in TOKENS] == [200, 401]
        shutil.copytree(mounted / "..data", mounted / "..new")
        (mounted / "..new" / "HTTP_TOKENS_PATH").write_text(line_of(TOKENS[1]))
        (mounted / "..link").symlink_to("..new")
        (mounted / "..link").replace(mounted / "..data")
        until(lambda: greeted(port, "/mcp", host="my-server", token=TOKENS[1]) == 200)
        assert greeted(port, "/mcp", host="my-server", token=TOKENS[0]) == 401


@contextmanager
def running(project: Path, manifests: list[Manifest], directory: Path) -> Iterator[int]:
    """The server with the settings of the manifests, all files below `directory`; gives its port."""
    mount_secrets(directory, manifests)
    (directory / "data").mkdir()
    (directory / "tmp").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    environment = {**moved(settings(manifests), directory), "MY_SERVER_HTTP_PORT": str(port)}
    with (directory / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "my_server"], env=python_environment(project, environment), stderr=log
        )
    try:
        yield port
    finally:
        server.terminate()
        assert server.wait(START_S) == 0, (directory / "log").read_text()


def test_what_was_asked_by_one_replica_can_be_answered_at_another(render: Renderer) -> None:
    """Also while one has a new key already; without a shared one it cannot."""
    told = run_python(render(preset="http", storage="none"), ASKING, {}).splitlines()
    assert told == ["where it was", "where it was", "where it was", "refused", "refused"]


def test_no_secret_is_in_clear(every_set: list[tuple[Path, list[Manifest]]]) -> None:
    for project, manifests in every_set:
        assert "Secret" not in kinds(manifests)
        found = settings(manifests)
        assert not [name for name in found if re.search(r"(_URL|_TOKEN|_KEYS)$", name) and "API_URL" not in name]
        assert {path for name, path in found.items() if name.endswith(("_FILE", "_TOKENS_PATH"))} == set(
            secret_files(manifests)
        )
        wanted = {"DATABASE_URL": answers(project)["storage"] == "postgres", "REQUEST_STATE_KEYS": True}
        wanted["HTTP_TOKENS_PATH"] = answers(project)["authentication"] == "token"
        names = {path.rpartition("/")[2] for path in secret_files(manifests)} - {"API_TOKEN"}
        assert names == {name for name, is_wanted in wanted.items() if is_wanted}


def test_selectors_and_ports_meet(every_set: list[tuple[Path, list[Manifest]]]) -> None:
    for _, manifests in every_set:
        deployment = only(manifests, "Deployment")
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        selectors = [deployment["spec"]["selector"]["matchLabels"], only(manifests, "Service")["spec"]["selector"]]
        selectors += [spread["labelSelector"]["matchLabels"] for spread in pod(manifests)["topologySpreadConstraints"]]
        selectors.append(only(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
        if "PodDisruptionBudget" in kinds(manifests):
            selectors.append(only(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"])
        assert [s for s in selectors if not s or not s.items() <= labels.items()] == []
        (port,) = container(manifests)["ports"]
        assert port["name"] == "http"
        service = only(manifests, "Service")
        assert [(one["name"], one["targetPort"]) for one in service["spec"]["ports"]] == [("http", "http")]
        assert only(manifests, "NetworkPolicy")["spec"]["ingress"][0]["ports"] == [{"port": "http", "protocol": "TCP"}]
        if "HorizontalPodAutoscaler" in kinds(manifests):
            target = only(manifests, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
            assert target["name"] == deployment["metadata"]["name"]
            assert "replicas" not in deployment["spec"]
        if "ServiceMonitor" in kinds(manifests):
            monitor = only(manifests, "ServiceMonitor")["spec"]
            assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
            assert [endpoint["port"] for endpoint in monitor["endpoints"]] == ["http"]


def test_a_database_in_a_file_has_one_replica_and_all_others_are_replaced_without_a_gap(
    every_set: list[tuple[Path, list[Manifest]]],
) -> None:
    for project, manifests in every_set:
        spec = only(manifests, "Deployment")["spec"]
        several = {"HorizontalPodAutoscaler", "PodDisruptionBudget"} & set(kinds(manifests))
        if answers(project)["storage"] == "sqlite":
            assert (spec["replicas"], spec["strategy"], several) == (1, {"type": "Recreate"}, set())
            claim = only(manifests, "PersistentVolumeClaim")["metadata"]["name"]
            assert claim in [v.get("persistentVolumeClaim", {}).get("claimName") for v in pod(manifests)["volumes"]]
            mounts = [mount["mountPath"] for mount in container(manifests)["volumeMounts"]]
            assert settings(manifests)["MY_SERVER_DATABASE_PATH"].rpartition("/")[0] in mounts
        else:
            assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
            assert "PersistentVolumeClaim" not in kinds(manifests)
            assert "PodDisruptionBudget" in several
            in_memory = answers(project)["storage"] == "none" and answers(project)["examples"] == ["notes"]
            assert spec.get("replicas") == (1 if in_memory else None)


def test_the_network_is_open_for_what_is_configured_and_nothing_else(
    every_set: list[tuple[Path, list[Manifest]]],
) -> None:
    for project, manifests in every_set:
        chosen = answers(project)
        policy = only(manifests, "NetworkPolicy")["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
        api = {8080} if "8080" in chosen["api_url"] else {443} if chosen["api_url"] else set()
        database = {5432} if chosen["storage"] == "postgres" else set()
        assert ports == {53, *api, *database, *({443} if chosen["authentication"] == "oauth" else ())}
        for rule in policy["egress"]:
            for peer in rule.get("to", []):
                assert peer["ipBlock"]["except"]  # the metadata service of the cloud
        # Whoever may call a server that asks nobody who he is, is in the namespace or was named.
        assert policy["ingress"][0].get("from") or chosen["authentication"] != "none"


def test_the_commands_of_the_readme_suit_the_manifests(projects: list[Path]) -> None:
    for project in projects:
        readme = (project / "README.md").read_text(encoding="utf-8")
        chosen = ",".join(re.findall(r"--set (\S+)", readme))
        manifests = by_helm(project, parsed(chosen))
        assert container(manifests)["image"] == "registry.example.com/my-server:0.1.0"
        assert container(by_kustomize(project))["image"] == "registry.example.com/my-server:0.1.0"
        assert only(manifests, "Deployment")["metadata"]["name"] in readme
        # Every command that makes the Secret gives it all the keys that the pods mount.
        made = [set(re.findall(r"--from-file ([\w-]+)=", block)) for block in readme.split("create secret")[1:]]
        mounted = {("my-server", key) for keys in made for key in keys}
        assert mounted == set(secret_files(manifests).values())
        assert all(keys == made[0] for keys in made)


def test_the_public_reaches_calls_alone(render: Renderer) -> None:
    project = render(preset="full")
    assert "Ingress" not in kinds(by_helm(project, least(project)))
    (rule,) = only(by_helm(project, everything(project)), "Ingress")["spec"]["rules"]
    paths = [path["path"] for path in rule["http"]["paths"]]
    assert paths == ["/mcp", "/.well-known/oauth-protected-resource"]


def test_the_dashboard_is_a_config_map_for_the_sidecar(projects: list[Path]) -> None:
    for project in projects:
        maps = [m for m in by_kustomize(project) if m["metadata"]["name"] == "my-server-dashboard"]
        assert len(maps) == ("grafana" in answers(project)["metrics"])
        for found in maps:
            assert found["metadata"]["labels"] == {"grafana_dashboard": "1"}
            assert json.loads(found["data"]["my-server.json"])["panels"]


def test_a_changed_setting_replaces_the_pods(render: Renderer) -> None:
    project = render(preset="http")
    sums = [
        only(by_helm(project, {"settings": {"LOG_LEVEL": level}}), "Deployment")["spec"]["template"]["metadata"]
        for level in ("info", "info", "debug")
    ]
    assert sums[0] == sums[1] != sums[2]
    named = [m["metadata"]["name"] for m in by_kustomize(project) if m["kind"] == "ConfigMap"]
    assert all(re.fullmatch(r"my-server-[a-z0-9]{10}", name) for name in named)


@pytest.mark.parametrize("release", ["my-server", "green", "blue-my-server", "r" * 53])
def test_a_release_of_any_name_is_whole(render: Renderer, release: str) -> None:
    project = render(preset="http", project_name="my-server")
    manifests = by_helm(project, release=release)
    names = {manifest["metadata"]["name"] for manifest in manifests}
    assert len(names) == 1
    (name,) = names
    assert len(name) <= 63
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert pod(manifests)["serviceAccountName"] == name
    assert f"{name}.{NAMESPACE}.svc" in settings(manifests)["MY_SERVER_HTTP_ALLOWED_HOSTS"].split(",")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"replica": 3}, "additional properties 'replica' not allowed"),
        ({"replicas": "3"}, "'/replicas': got string, want integer"),
        ({"replicas": -1}, "'/replicas': minimum: got -1, want 0"),
        ({"image": {"tag": "a b"}}, "'/image/tag': 'a b' does not match pattern"),
        ({"image": {"digest": "sha256:1"}}, "'/image/digest'"),
        ({"image": {"pullPolicy": "always"}}, "'/image/pullPolicy': value must be one of 'Always', 'IfNotPresent'"),
        ({"autoscaling": {"minReplicas": 0}}, "'/autoscaling/minReplicas': minimum: got 0, want 1"),
        ({"autoscaling": {"minReplicas": 11}}, "autoscaling.minReplicas (11) is above autoscaling.maxReplicas (10)."),
        ({"settings": {"HTTP_PORT": 80}}, "'/settings/HTTP_PORT': minimum: got 80, want 1,024"),
        ({"settings": {"SHUTDOWN_GRACE_S": "30s"}}, "'/settings/SHUTDOWN_GRACE_S': got string, want number"),
        ({"settings": {"log_level": "debug"}}, "'log_level' does not match pattern"),
        ({"settings": {"LOG_LEVEL": {"a": 1}}}, "'/settings/LOG_LEVEL': got object, want"),
        ({"settings": {"DATABASE_URL": "postgresql://u:p@h/d"}}, "settings.DATABASE_URL would be readable by every"),
        ({"settings": {"HTTP_TOKENS_PATH": "/tokens"}}, "HTTP_TOKENS_PATH is given twice, under settings and under se"),
        ({"settings": {"HTTP_STATELESS": False}}, "a session lives in one replica"),
        ({"secrets": {"API_TOKEN": "abc"}}, "'/secrets/API_TOKEN': got string, want object"),
        ({"secrets": {"API_TOKEN": {"name": "x"}}}, "'/secrets/API_TOKEN': missing property 'key'"),
        ({"ingress": {"enabled": True}}, "ingress.enabled needs ingress.host"),
        ({"ingress": {"enabled": True, "host": "https://a.example.com"}}, "'/ingress/host'"),
        ({"resources": {"limits": {"memory": "640 MB"}}}, "'/resources/limits/memory'"),
        ({"serviceMonitor": {"interval": "often"}}, "'/serviceMonitor/interval'"),
        ({"drainDelaySeconds": 2.5}, "'/drainDelaySeconds': got number, want integer"),
        ({"settings": {"HTTP_HOST": "127.0.0.1"}}, "With settings.HTTP_HOST=127.0.0.1 nobody outside of the pod"),
        ({"settings": {"HTTP_WORKERS": 4}}, "resources.limits.memory is enough for one worker, not for settings"),
        ({"autoscaling": None}, "missing property 'autoscaling'"),
        ({"secrets": {"HTTP_TOKENS_PATH": None}}, "missing property 'HTTP_TOKENS_PATH'"),
    ],
)
def test_a_wrong_value_is_refused_with_a_sentence(render: Renderer, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HelmError) as refused:
        by_helm(render(preset="http"), values)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("answers", "values", "sentence"),
    [
        (
            {"storage": "sqlite"},
            {"replicas": 2},
            "SQLite keeps its data in one file of one replica: replicas must be 1.",
        ),
        ({"storage": "sqlite"}, {"persistence": None}, "missing property 'persistence'"),
        ({"storage": "postgres"}, {"secrets": {"DATABASE_URL": None}}, "missing property 'DATABASE_URL'"),
        ({"storage": "sqlite"}, {"autoscaling": {"enabled": True}}, "additional properties 'autoscaling' not allowed"),
        ({"authentication": "oauth"}, {}, "settings.OAUTH_ISSUER is empty: without it the server cannot tell whose"),
        ({"metrics": []}, {"serviceMonitor": {"enabled": True}}, "additional properties 'serviceMonitor' not allowed"),
    ],
)
def test_a_value_that_does_not_suit_the_project_is_refused(
    render: Renderer, answers: dict[str, Any], values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(HelmError) as refused:
        by_helm(render(preset="http", **answers), values)
    assert sentence in str(refused.value)


def mount_secrets(directory: Path, manifests: list[Manifest]) -> None:
    """Put what the Secrets would hold where the pod would see it, below `directory`, as the kubelet does."""
    texts = {
        "DATABASE_URL": "postgresql://user:password@database/my_server",
        "HTTP_TOKENS_PATH": line_of(TOKENS[0]),
        "REQUEST_STATE_KEYS": "k" * 32,
        "API_TOKEN": "token",
    }
    for path in secret_files(manifests):
        link = directory / path.removeprefix("/")
        data = link.parent / "..data"
        if not data.exists():
            (link.parent / "..first").mkdir(parents=True)
            data.symlink_to("..first")
        (data / link.name).write_text(texts[link.name] + "\n", encoding="utf-8")
        if not link.is_symlink():
            link.symlink_to(f"..data/{link.name}")


def line_of(token: str) -> str:
    return f"tests:{hashlib.sha256(token.encode()).hexdigest()}"


def moved(environment: dict[str, str], directory: Path) -> dict[str, str]:
    """The same settings with every path of the container below `directory`."""
    return {name: f"{directory}{value}" if value.startswith("/") else value for name, value in environment.items()}


def python_environment(project: Path, environment: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MY_SERVER_")}
    return {**inherited, "PYTHONPATH": str(project / "src"), "PYTHONDONTWRITEBYTECODE": "1", **environment}


def run_python(project: Path, code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=python_environment(project, environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def greeted(port: int, path: str, *, host: str, token: str) -> int:
    """Return the status of the answer to a client's first request."""
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return ask(port, "POST", path, json.dumps(GREETING), {"Host": host, **headers})


def status(port: int, path: str, *, host: str, within_s: float = 0) -> int:
    """Return the status of what a probe is answered; it asks again while nobody listens or the server starts."""
    give_up = time.monotonic() + within_s
    while True:
        with suppress(ConnectionError):
            found = ask(port, "GET", path, None, {"Host": host})
            if found != 503 or time.monotonic() > give_up:
                return found
        assert time.monotonic() < give_up, "nobody listens"
        time.sleep(0.05)


def ask(port: int, method: str, path: str, body: str | None, headers: dict[str, str]) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)) as connection:
        connection.request(method, path, body, headers)
        return connection.getresponse().status


def megabytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([KMG]i)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[unit] / 1e6
