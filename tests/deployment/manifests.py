"""What a project gives to Kubernetes: rendered by Helm's own engine, and built by kustomize."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.deployment.debian import program

if TYPE_CHECKING:
    from pathlib import Path

RELEASE, NAMESPACE = "my-server", "my-server"
"""As the overlay of kustomize has them, so that both can be compared."""

Manifest = dict[str, Any]

helm = pytest.importorskip("helm_python", reason="Helm's engine has no package for this machine")
HelmError = helm.HelmError


def chart(project: Path) -> Path:
    """Return the directory of a project's chart."""
    return project / "deploy" / "helm"


def lint(project: Path) -> list[str]:
    """Return what Helm finds wrong in the chart, warnings included."""
    found = helm.lint(str(chart(project)))
    return [message["error"] for message in found["messages"] if message["severity"] > 1]


def by_helm(project: Path, values: dict[str, Any] | None = None, *, release: str = RELEASE) -> list[Manifest]:
    """Return the manifests of the chart.

    Raises:
        HelmError: A value is refused.
    """
    with helm.Chart.load(str(chart(project))) as loaded:
        loaded.validate_schema(values)
        texts = loaded.render(values, name=release, namespace=NAMESPACE)
    return [one for name, text in texts.items() if name.endswith(".yaml") for one in yaml.safe_load_all(text) if one]


def parsed(text: str) -> dict[str, Any]:
    """Return the values that `--set` makes of a text."""
    return dict(helm.parse_set_string(text))


def by_kustomize(project: Path) -> list[Manifest]:
    """Return the manifests of the overlay."""
    overlay = project / "deploy" / "kustomize" / "overlays" / "production"
    done = subprocess.run([*_kustomize(), overlay], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # where it would say what is out of date
    return list(yaml.safe_load_all(done.stdout))


def _kustomize() -> list[str | Path]:
    if kubectl := shutil.which("kubectl"):
        return [kubectl, "kustomize"]
    return [shutil.which("kustomize") or program("kustomize", package="kustomize"), "build"]


def only(manifests: list[Manifest], kind: str) -> Manifest:
    """Return the one manifest of a kind."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def kinds(manifests: list[Manifest]) -> list[str]:
    """Return the kinds, sorted."""
    return sorted(manifest["kind"] for manifest in manifests)


def pod(manifests: list[Manifest]) -> Manifest:
    """Return the specification of the Deployment's pods."""
    found = only(manifests, "Deployment")["spec"]["template"]["spec"]
    assert isinstance(found, dict)
    return found


def container(manifests: list[Manifest]) -> Manifest:
    """Return the pods' one container."""
    (found,) = pod(manifests)["containers"]
    assert isinstance(found, dict)
    return found


def settings(manifests: list[Manifest]) -> dict[str, str]:
    """Return what the container gets as environment."""
    (source,) = container(manifests)["envFrom"]
    name = source["configMapRef"]["name"]
    (found,) = (m["data"] for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == name)
    assert "env" not in container(manifests)
    return dict(found)


def secret_files(manifests: list[Manifest]) -> dict[str, tuple[str, str]]:
    """Return which Secret and which key of it lies in which file."""
    found = {}
    for volume in pod(manifests)["volumes"]:
        for source in volume.get("projected", {}).get("sources", []):
            (mount,) = (m["mountPath"] for m in container(manifests)["volumeMounts"] if m["name"] == volume["name"])
            for item in source["secret"]["items"]:
                found[f"{mount}/{item['path']}"] = (source["secret"]["name"], item["key"])
    return found
