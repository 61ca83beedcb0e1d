"""The questions: what is asked, what is refused, and what later releases rely on."""

from __future__ import annotations

import importlib.metadata
import keyword
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from jinja2 import Environment, StrictUndefined

if TYPE_CHECKING:
    from pathlib import Path

    from tests.render.conftest import Renderer

RUNTIME = ("mcp", "anyio", "asyncpg", "httptools", "prometheus-client", "pydantic", "uvicorn")
GITHUB = "https://api.github.com"
NOTES = ["notes"]
TARGETS = ["container", "compose", "kubernetes", "systemd", "supervisord", "pm2"]
EXAMPLES = ["notes", "api-debugger", "project-auditor"]


@pytest.fixture(scope="session")
def questions(root: Path) -> dict[str, Any]:
    return {name: body for name, body in _config(root).items() if not name.startswith("_")}


def test_every_question_has_a_sentence_of_help_and_a_default(questions: dict[str, Any]) -> None:
    for name, question in questions.items():
        assert "default" in question, name
        if question.get("when") is not False:
            assert re.fullmatch(r"[A-Z].*[.?]", question["help"]), name


def test_no_feature_is_used_that_needs_trust(root: Path) -> None:
    assert not {"_tasks", "_migrations", "_jinja_extensions", "_skip_if_exists"} & set(_config(root))


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (
            "stdio",
            {
                "transports": ["stdio"],
                "storage": "sqlite",
                "api_url": GITHUB,
                "examples": NOTES,
                "metrics": [],
                "deployment": ["container"],
                "clients": ["claude-code"],
                "ci": "github",
            },
        ),
        (
            "http",
            {
                "transports": ["http"],
                "storage": "postgres",
                "api_url": GITHUB,
                "examples": NOTES,
                "metrics": ["prometheus"],
                "authentication": "token",
                "deployment": ["container", "compose", "kubernetes"],
                "clients": ["claude-code"],
                "ci": "github",
            },
        ),
        (
            "full",
            {
                "transports": ["stdio", "http"],
                "storage": "postgres",
                "api_url": GITHUB,
                "examples": EXAMPLES,
                "metrics": ["prometheus", "grafana"],
                "authentication": "oauth",
                "deployment": TARGETS,
                "clients": ["claude-code", "cursor", "vscode"],
                "ci": "github",
            },
        ),
        (
            "minimal",
            {
                "transports": ["stdio"],
                "storage": "none",
                "api_url": "",
                "examples": NOTES,
                "metrics": [],
                "deployment": [],
                "clients": [],
                "ci": "none",
            },
        ),
    ],
)
def test_a_preset_sets_the_defaults(render: Renderer, preset: str, expected: dict[str, object]) -> None:
    answers = recorded(render(preset=preset))
    assert {name: answers[name] for name in expected} == expected
    assert ("authentication" in answers) == ("authentication" in expected)  # it is asked with http alone


def test_a_preset_leaves_out_what_its_transports_cannot_do(render: Renderer) -> None:
    for preset in ("http", "full"):
        answers = recorded(render(preset=preset, transports=["stdio"]))
        assert (answers["metrics"], answers["deployment"]) == ([], ["container"])
        assert "authentication" not in answers


def test_a_project_of_the_first_questionnaire_keeps_what_it_was(render: Renderer) -> None:
    """An update asks nothing: the later questions answer themselves with what the older template did."""
    for preset in ("stdio", "http", "full", "minimal"):
        answers = recorded(render(preset=preset, questionnaire=1))
        later = tuple(answers[name] for name in ("storage", "api_url", "examples", "metrics", "deployment"))
        assert later == ("none", "", NOTES, [], [])
        assert answers.get("watchdog", False) is False
        assert answers.get("authentication", "none") == "none"


def test_a_project_of_the_third_questionnaire_keeps_what_it_was(render: Renderer) -> None:
    answers = recorded(render(preset="full", questionnaire=3))
    assert (answers["metrics"], answers["authentication"], answers["deployment"]) == (["prometheus"], "none", [])


def test_an_answer_beats_the_preset(render: Renderer) -> None:
    answers = recorded(render(preset="minimal", transports=["http"], ci="gitlab"))
    assert (answers["transports"], answers["ci"]) == (["http"], "gitlab")


def test_a_preset_does_nothing_but_set_defaults(render: Renderer) -> None:
    answers = {
        "transports": ["stdio", "http"],
        "storage": "sqlite",
        "api_url": "https://api.example.com/v1",
        "examples": [],
        "metrics": ["prometheus"],
        "authentication": "token",
        "deployment": ["container", "systemd"],
        "clients": ["cursor"],
        "ci": "gitlab",
    }
    minimal, full = (
        {path.relative_to(project): path.read_bytes() for path in project.rglob("*") if path.is_file()}
        for project in (render(preset="minimal", **answers), render(preset="full", **answers))
    )
    assert {str(name) for name in minimal | full if minimal.get(name) != full.get(name)} == {".copier-answers.yml"}


def test_the_number_of_the_questionnaire_is_recorded_and_computed_values_are_not(render: Renderer) -> None:
    answers = recorded(render())
    assert answers["questionnaire"] == 4
    assert not set(answers) & {"stdlib_modules", "python_keywords", "dependency_modules"}
    assert not set(answers) & {"calls_http", "reads_files", "has_dependencies", "supervised"}


@pytest.mark.parametrize(
    "address",
    [
        "",
        "http://localhost",
        "https://api.example.com",
        "https://api.example.com:8443/v1/",
        "https://api.example.com:65535",
        "http://127.0.0.1:8080",
        "http://[::1]:8080/v1",
        "https://example.com/a/~b/c-d_e.f%20g",
    ],
)
def test_the_address_of_an_api_is_recorded_as_given(render: Renderer, address: str) -> None:
    assert recorded(render(api_url=address))["api_url"] == address


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"project_name": "My-Server"}, 'hyphens, and begin with a letter: "My-Server" names'),
        ({"project_name": "my_server"}, "Use a-z, 0-9 and single hyphens"),
        ({"project_name": "my--server"}, "Use a-z, 0-9 and single hyphens"),
        ({"project_name": "3d"}, "begin with a letter"),
        ({"project_name": "my-server\n"}, "Use a-z, 0-9 and single hyphens"),
        ({"project_name": ""}, "Use a-z, 0-9 and single hyphens"),
        ({"project_name": "a" * 51}, "has 51 characters; 50 are the limit"),
        ({"project_name": "pydantic-core"}, "name of a dependency"),
        ({"project_name": "python3"}, "a command, which this project would replace"),
        ({"package_name": "my-server"}, "Use a-z, 0-9 and underscores"),
        ({"package_name": "_private"}, "begin with a letter"),
        ({"package_name": "lambda"}, "keyword of Python"),
        ({"package_name": "json"}, "standard library"),
        ({"package_name": "mcp"}, "module of a dependency"),
        ({"description": " "}, "must not be empty"),
        ({"description": "two\nlines"}, "must be one line"),
        ({"description": "bell\a"}, "without control characters"),
        ({"description": "x" * 301}, "has 301 characters"),
        ({"author_name": ""}, "must not be empty"),
        ({"author_name": "a\u2028b"}, "must be one line"),
        ({"author_email": "nobody"}, "Use the form name@example.com"),
        ({"author_email": "a b@example.com"}, "Use the form name@example.com"),
        ({"author_email": "a@example.com\n"}, "Use the form name@example.com"),
        ({"license": "GPL"}, "Invalid choice for 'license'"),
        ({"transports": []}, "At least one transport is needed"),
        ({"transports": ["stdio", "carrier-pigeon"]}, "Invalid choice for 'transports'"),
        ({"storage": "mysql"}, "Invalid choice for 'storage'"),
        ({"api_url": "api.example.com"}, "Use the form https://api.example.com or"),
        ({"api_url": "ftp://example.com"}, "Use the form https://api.example.com or"),
        ({"api_url": "https://user:secret@example.com"}, "holds a user, a query or a fragment"),
        ({"api_url": "https://example.com/?a=b"}, "holds a user, a query or a fragment"),
        ({"api_url": "https://example.com/#a"}, "holds a user, a query or a fragment"),
        ({"api_url": "https://-example.com"}, "Use the form https://api.example.com or"),
        ({"api_url": "https://example.com/\n"}, "Use the form https://api.example.com or"),
        ({"api_url": 'https://example.com/"'}, "Use the form https://api.example.com or"),
        ({"api_url": "https://example.com:65536"}, "Use a port from 1 to 65535"),
        ({"api_url": "http://[::1]:0/v1"}, "Use a port from 1 to 65535"),
        ({"api_url": "https://example.com/" + "x" * 200}, "has 220 characters; 200 are the limit"),
        ({"examples": ["todo"]}, "Invalid choice for 'examples'"),
        ({"metrics": ["graphite"]}, "Invalid choice for 'metrics'"),
        ({"transports": ["stdio"], "metrics": ["prometheus"]}, "Prometheus needs the transport http"),
        ({"transports": ["http"], "metrics": ["grafana"]}, "Grafana needs prometheus"),
        ({"transports": ["stdio"], "authentication": "token"}, "Authentication needs the transport http"),
        ({"transports": ["http"], "authentication": "password"}, "Invalid choice for 'authentication'"),
        ({"deployment": ["cloud"]}, "Invalid choice for 'deployment'"),
        (
            {"transports": ["stdio"], "deployment": ["container", "systemd", "pm2"]},
            "Without the transport http leave out systemd, pm2",
        ),
        ({"transports": ["http"], "deployment": ["kubernetes"]}, "compose and kubernetes need container"),
        ({"ci": "jenkins"}, "Invalid choice for 'ci'"),
    ],
)
def test_a_wrong_answer_is_refused_with_its_reason(
    render: Renderer, tmp_path: Path, answers: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        render.fresh(tmp_path / "project", **answers)
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize(
    ("project", "package"),
    [("my-server", "my_server"), ("weather", "weather"), ("json", "json_server"), ("async", "async_server")],
)
def test_the_package_is_named_after_the_project(render: Renderer, project: str, package: str) -> None:
    assert recorded(render(project_name=project))["package_name"] == package


def test_keywords_and_standard_library_of_this_python_are_taken(questions: dict[str, Any]) -> None:
    public = {name for name in sys.stdlib_module_names if re.fullmatch("[a-z][a-z0-9_]*", name)}
    assert public <= set(questions["stdlib_modules"]["default"].split())
    lower = {name for name in keyword.kwlist if name.islower()}
    assert lower == set(questions["python_keywords"]["default"].split())


def test_names_of_all_runtime_dependencies_are_taken(questions: dict[str, Any]) -> None:
    taken = set(questions["dependency_modules"]["default"].split())
    distributions = _closure(RUNTIME)
    modules = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if module.isidentifier() and module[0] != "_" and {_normal(owner) for owner in owners} & distributions
    }
    assert modules - taken == set()
    assert {name.replace("-", "_") for name in distributions} - taken <= {"colorama", "pywin32"}


def test_exclusions_render_with_the_first_questionnaire_alone(root: Path) -> None:
    """An update renders them with the answers of the previous release, which knew no later question."""
    config = _config(root)
    environment = Environment(undefined=StrictUndefined, autoescape=False)  # noqa: S701 - file patterns, not HTML
    first = {"transports": ["stdio"], "license": "MIT", "clients": ["claude-code"], "ci": "github"}
    for operation in ("copy", "update"):
        for line in config["_exclude"]:
            environment.from_string(line).render(first, _copier_operation=operation)


def recorded(project: Path) -> dict[str, Any]:
    answers = yaml.safe_load((project / ".copier-answers.yml").read_text(encoding="utf-8"))
    assert isinstance(answers, dict)
    return answers


def _config(root: Path) -> dict[str, Any]:
    config = yaml.safe_load((root / "copier.yml").read_text(encoding="utf-8"))
    assert isinstance(config, dict)
    return config


def _closure(names: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = _normal(waiting.pop())
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on another system only
        if name not in found:
            found.add(name)
            waiting += [re.split(r"[^\w.-]", line)[0] for line in requirements if "extra ==" not in line]
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
