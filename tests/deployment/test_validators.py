"""What the validators of other people say about the files of a project: nothing.

Those of systemd and Kubernetes are asked in the tests of these.
"""

from __future__ import annotations

import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.deployment.debian import program
from tests.deployment.programs import own, said

if TYPE_CHECKING:
    from pathlib import Path

    from tests.render.conftest import Renderer

PRESETS: list[dict[str, Any]] = [
    {"preset": "full"},
    {"preset": "http"},
    {"preset": "full", "ci": "gitlab", "storage": "sqlite", "authentication": "token"},
]
YAML_RULES = """\
extends: default
rules:
  document-start: disable
  indentation: {indent-sequences: whatever}
  line-length: {max: 120}
  truthy: {check-keys: false}
"""
"""The rules of yamllint, but for the length of lines, and for what other programs write or read otherwise."""
NOT_HERE = "SC1091,SC2154"
"""A file or a variable that a command reads is made by another one, or by the reader."""
SHELL_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(params=PRESETS, ids=lambda answers: "-".join(map(str, answers.values())))
def project(request: pytest.FixtureRequest, render: Renderer) -> Path:
    """Return a rendered project. It is shared."""
    return render(**request.param)


def test_hadolint_finds_nothing_in_the_dockerfile(project: Path) -> None:  # R65
    assert said(own("hadolint"), "--failure-threshold", "style", project / "Dockerfile") == ""


def test_the_compose_file_fits_the_specification(project: Path) -> None:
    said(own("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", project / "compose.yaml")


def test_the_workflow_fits_its_schema_and_is_safe(project: Path) -> None:
    if (project / ".gitlab-ci.yml").exists():
        said(own("check-jsonschema"), "--builtin-schema", "vendor.gitlab-ci", project / ".gitlab-ci.yml")
        return
    workflow = project / ".github" / "workflows" / "ci.yml"
    said(own("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", workflow)
    options = ("--offline", "--no-progress", "--persona", "pedantic", "--color", "never")
    assert "No findings to report" in said(own("zizmor"), *options, workflow)


def test_yamllint_finds_nothing(project: Path) -> None:
    """Helm's own templates are none before Helm has rendered them."""
    files = [path for path in project.rglob("*.y*ml") if "templates" not in path.parts]
    assert len(files) > 5
    assert said(sys.executable, "-m", "yamllint", "--strict", "--config-data", YAML_RULES, *files) == ""


def test_shellcheck_finds_nothing_in_the_commands_of_the_readme(project: Path) -> None:
    """As if they were a script that ends where one fails: whoever types them sees that."""
    blocks = SHELL_BLOCK.findall((project / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) > 10
    assert not list(project.rglob("*.sh"))
    for block in blocks:
        assert said(own("shellcheck"), "--shell", "bash", "--exclude", NOT_HERE, "-", text=f"set -e\n{block}") == ""


def test_promtool_finds_nothing(project: Path) -> None:
    found = shutil.which("promtool")
    promtool = found or program("promtool", package="promtool")
    options = ("--lint", "all", "--lint-fatal")
    said(promtool, "check", "config", *options, project / "deploy" / "prometheus" / "prometheus.yml")
    assert "8 rules found" in said(
        promtool, "check", "rules", *options, project / "deploy" / "prometheus" / "alerts.yml"
    )
