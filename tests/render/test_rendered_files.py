"""What a rendered project holds: which files, well-formed, with nothing of the template left in them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.render.conftest import Renderer

HOSTILE_TEXT = "Say \"hi\", \\n 'x' {{ 7 * 7 }} {% if %} # % ${HOME} <b>&amp; %s {0} é 漢字 🎉 \\"
CODE_BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
HELM = "templates"
"""A directory of Helm's own templates, which are no YAML before Helm has rendered them."""
HOSTILE_NAME = 'Seán O\'Neil "Bob" \\ {Ltd}, ☃ <3; #1'


def test_rendering_twice_changes_nothing(render: Renderer, project: Callable[..., Path]) -> None:
    copy = project(preset="full")
    before = contents(copy)
    render.fresh(copy, preset="full")
    assert contents(copy) == before


def test_nothing_of_the_template_language_is_left(root: Path, every_pair: list[Path]) -> None:
    questions = [name for name in yaml.safe_load((root / "copier.yml").read_text()) if not name.startswith("_")]
    token = re.compile(rf"\{{%|(?<!\d)%\}}|^[ \t]*# %|\{{\{{[-\s]*(?:_copier|{'|'.join(questions)})", re.MULTILINE)
    # Python writes `{share:.0%}` and doubled braces in f-strings, GitHub `${{ }}`, Prometheus and Grafana `{{label}}`;
    # elsewhere they are a left-over.
    braces = re.compile(r"(?<!\$)\{\{")
    for project in every_pair:
        for path in files(project):
            if HELM in path.parts:
                continue
            assert not re.search(r"\.jinja|[{}\[\]]", path.relative_to(project).as_posix())
            text = path.read_text(encoding="utf-8")
            assert not token.search(text), path
            assert path.suffix == ".py" or "deploy" in path.parts or not braces.search(text), path


def test_text_files_end_with_one_newline_and_have_no_trailing_blanks(every_pair: list[Path]) -> None:
    for project in every_pair:
        for path in files(project):
            text = path.read_bytes().decode()
            assert "\r" not in text, path
            assert not text or (text.endswith("\n") and not text.endswith("\n\n")), path
            assert not text.startswith("\n"), path
            assert path.name == "LICENSE" or path.suffix == ".py" or "\n\n\n" not in CODE_BLOCK.sub("code", text), path
            assert not re.search(r"[ \t]$", text, re.MULTILINE), path


def test_every_structured_file_parses(every_pair: list[Path]) -> None:
    for project in every_pair:
        for path in files(project):
            parse(path)


def test_files_exist_where_they_were_asked_for_and_nowhere_else(every_pair: list[Path]) -> None:
    for project in every_pair:
        answers = yaml.safe_load((project / ".copier-answers.yml").read_text(encoding="utf-8"))
        expected = {
            "LICENSE": answers["license"] != "none",
            ".mcp.json": "claude-code" in answers["clients"],
            ".cursor": "cursor" in answers["clients"],
            ".vscode": "vscode" in answers["clients"],
            ".github": answers["ci"] == "github",
            ".gitlab-ci.yml": answers["ci"] == "gitlab",
            "Dockerfile": "container" in answers["deployment"],
            ".dockerignore": "container" in answers["deployment"],
            "compose.yaml": "compose" in answers["deployment"],
            "deploy/prometheus": "compose" in answers["deployment"] and "prometheus" in answers["metrics"],
            "deploy/grafana": {"compose", "kubernetes"} & set(answers["deployment"])
            and "grafana" in answers["metrics"],
            "deploy/grafana/kustomization.yaml": "kubernetes" in answers["deployment"]
            and "grafana" in answers["metrics"],
            "deploy/helm": "kubernetes" in answers["deployment"],
            "deploy/kustomize": "kubernetes" in answers["deployment"],
            "deploy/pm2/ecosystem.config.cjs": "pm2" in answers["deployment"],
            "deploy/supervisord/my-server.conf": "supervisord" in answers["deployment"],
            "deploy/systemd/my-server.service": "systemd" in answers["deployment"],
            "src/my_server/reliability/stdio_server.py": "stdio" in answers["transports"],
            "src/my_server/reliability/http_server.py": "http" in answers["transports"],
            "tests/test_production_stdio.py": "stdio" in answers["transports"],
            "src/my_server/reliability/supervisor.py": answers.get("watchdog", False),
            "src/my_server/reliability/supervisor_session.py": answers.get("watchdog", False),
            "src/my_server/tools/api.py": answers["api_url"] != "",
            "src/my_server/tools/api_debugger": "api-debugger" in answers["examples"],
            "src/my_server/tools/notes.py": "notes" in answers["examples"],
            "src/my_server/tools/project_auditor": "project-auditor" in answers["examples"],
            "src/my_server/reliability/http_client.py": answers["api_url"]
            or "api-debugger" in answers["examples"]
            or answers.get("authentication") == "oauth",
            "src/my_server/reliability/entrance.py": "http" in answers["transports"],
            "src/my_server/reliability/authentication.py": answers.get("authentication", "none") != "none",
            "src/my_server/reliability/static_tokens.py": answers.get("authentication") == "token",
            "src/my_server/reliability/oauth_tokens.py": answers.get("authentication") == "oauth",
            "tests/test_production_authentication.py": answers.get("authentication", "none") != "none",
            "tests/production_helpers/credentials.py": answers.get("authentication", "none") != "none",
            "src/my_server/reliability/pool.py": answers["storage"] != "none",
            "src/my_server/reliability/postgres_database.py": answers["storage"] == "postgres",
            "src/my_server/reliability/prometheus.py": "prometheus" in answers["metrics"],
            "src/my_server/reliability/sqlite_database.py": answers["storage"] == "sqlite",
            "tests/test_production_api.py": answers["api_url"] != "",
            "tests/test_production_database.py": answers["storage"] != "none",
        }
        assert {name: (project / name).exists() for name in expected} == {k: bool(v) for k, v in expected.items()}


@pytest.mark.parametrize(
    ("answers", "is_open"),
    [
        ({"questionnaire": 3}, True),  # it must not stop to start by an update
        ({"questionnaire": 3, "authentication": "token"}, False),
        ({"authentication": "none"}, False),
        ({}, False),
    ],
)
def test_r70_only_a_server_from_before_authentication_serves_others_without_it(
    render: Renderer, answers: dict[str, Any], is_open: bool
) -> None:
    project = render(preset="http", **answers)
    text = (project / "src/my_server/settings.py").read_text(encoding="utf-8")
    assert f"http_allow_unauthenticated: bool = Field({is_open}, " in text
    told = (project / ".env.example").read_text(encoding="utf-8")
    assert f"#MY_SERVER_HTTP_ALLOW_UNAUTHENTICATED={str(is_open).lower()}\n" in told


def test_no_directory_is_empty(every_pair: list[Path]) -> None:
    for project in every_pair:
        assert not [path for path in project.rglob("*") if path.is_dir() and not any(path.iterdir())]


def test_names_in_the_template_suit_every_system(template: Path) -> None:
    names = [path.name for path in template.rglob("*")]
    assert not [name for name in names if re.search(r'[<>:"|?*\\]|[. ]$', name)]


def test_the_workflow_may_read_and_runs_pinned_actions_on_every_python(render: Renderer) -> None:
    project = render(ci="github")
    workflow = parse(project / ".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert [name.split("@")[0] for name in used] == ["actions/checkout", "actions/setup-python"]
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name) for name in used)
    versions = job["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13", "3.14"]
    assert metadata(project)["requires-python"] == f">={versions[0]}"
    (matrix,) = parse(render(ci="gitlab") / ".gitlab-ci.yml")["test"]["parallel"]["matrix"]
    assert matrix == {"PYTHON": versions}


def test_a_project_holds_the_files_of_its_options_and_few_others(render: Renderer) -> None:
    """Without options 60 is the aim: a module of `reliability` is one idea, and each option brings its own."""
    assert len(files(render(preset="minimal", watchdog=False))) <= 75
    assert len(files(render())) <= 105


def test_a_project_without_http_does_not_mention_it(render: Renderer) -> None:
    for name in ("README.md", ".env.example", "pyproject.toml", ".mcp.json"):
        text = (render(transports=["stdio"]) / name).read_text(encoding="utf-8")
        assert not re.search(r"HTTP_|uvicorn|127\.0\.0\.1|livez", text), name


@pytest.mark.parametrize("license_name", ["MIT", "Apache-2.0", "BSD-3-Clause"])
def test_the_licence_names_its_holder(render: Renderer, license_name: str) -> None:
    project = render(license=license_name, author_name="Ada Lovelace")
    text = (project / "LICENSE").read_text(encoding="utf-8")
    assert text.count("Ada Lovelace") == 1
    title = {"MIT": "MIT License", "Apache-2.0": "Apache License", "BSD-3-Clause": "BSD 3-Clause License"}
    assert text.lstrip().startswith(title[license_name])
    assert metadata(project)["license"] == license_name


def test_a_default_that_cannot_be_asked_is_a_wrong_setting(render: Renderer) -> None:
    """The question knows the form of an address; what the server makes of it, the server says (R4)."""
    source = render(api_url="https://127.1") / "src"
    command = [sys.executable, "-m", next(source.iterdir()).name]
    found = subprocess.run(command, cwd=source, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (found.returncode, len(found.stderr.splitlines())) == (2, 1)
    assert "_API_URL='https://127.1' is not valid: " in found.stderr


def test_a_private_project_cannot_be_uploaded_by_accident(render: Renderer) -> None:
    project = metadata(render(license="none"))
    assert project["classifiers"] == ["Private :: Do Not Upload"]
    assert "license" not in project


def test_hostile_free_text_arrives_unchanged(render: Renderer) -> None:
    project = render(
        preset="full", description=HOSTILE_TEXT, author_name=HOSTILE_NAME, author_email="o'neil+x@example.com"
    )
    for path in files(project):
        parse(path)
    assert metadata(project)["description"] == HOSTILE_TEXT
    assert metadata(project)["authors"] == [{"name": HOSTILE_NAME, "email": "o'neil+x@example.com"}]
    assert HOSTILE_TEXT in (project / "README.md").read_text(encoding="utf-8")
    assert HOSTILE_NAME in (project / "LICENSE").read_text(encoding="utf-8")
    answers = yaml.safe_load((project / ".copier-answers.yml").read_text(encoding="utf-8"))
    assert (answers["description"], answers["author_name"]) == (HOSTILE_TEXT, HOSTILE_NAME)


def test_every_module_of_the_runtime_is_used(every_pair: list[Path]) -> None:
    """A module that nothing imports belongs to an option that was not chosen."""
    for project in every_pair:
        (package,) = (project / "src").iterdir()
        modules = {path.stem for path in (package / "reliability").glob("*.py")} - {"__init__"}
        imported = {name for path in package.rglob("*.py") for name in imports(path)}
        assert modules <= imported, project


def contents(project: Path) -> dict[str, bytes]:
    return {path.relative_to(project).as_posix(): path.read_bytes() for path in files(project)}


def files(project: Path) -> list[Path]:
    return sorted(path for path in project.rglob("*") if path.is_file())


def metadata(project: Path) -> dict[str, Any]:
    table = parse(project / "pyproject.toml")["project"]
    assert isinstance(table, dict)
    return table


def imports(path: Path) -> set[str]:
    """Return the last parts of all modules and names that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names} | {(node.module or "").rpartition(".")[2]}
        elif isinstance(node, ast.Import):
            names |= {alias.name.rpartition(".")[2] for alias in node.names}
        elif isinstance(node, ast.Constant) and str(node.value).startswith("."):
            names.add(str(node.value).rpartition(".")[2])  # import_module(f"{__package__}.name")
    return names


def parse(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if HELM in path.parts:
        return None
    match path.suffix:
        case ".toml":
            return tomllib.loads(text)
        case ".json":
            return json.loads(text)
        case ".yml" | ".yaml":
            return yaml.safe_load(text)
        case ".py":
            return ast.parse(text, str(path))
    return None
