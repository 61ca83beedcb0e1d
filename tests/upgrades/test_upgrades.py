"""A project of every release, edited as its owner would, is brought to the present state: by both commands."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from mcp_scaffold import __version__, pack
from mcp_scaffold.bundle import MIRROR, read_refs, tags

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path("src/my_server")

# What an owner does to a generated project: a file, a text in it, and what takes its place (an empty text: appended).
EDITS = [
    (
        PACKAGE / "tools" / "notes.py",
        "",
        '\n\n@tool(title="Mine")\nasync def mine() -> str:\n    """Mine."""\n    return "mine"\n',
    ),
    (Path("README.md"), "", "\n## Ours\n\nHow we work with it.\n"),
    (Path("README.md"), "# my-server\n", "# my-server, the one of our team\n"),
    (Path("pyproject.toml"), "", "\n[tool.ours]\nanswer = 42\n"),
    (Path("pyproject.toml"), '"pydantic>=2.12,<3",\n', '"pydantic>=2.12,<3",\n    "idna>=3",\n'),
    (PACKAGE / "settings.py", "", '    our_limit: int = Field(7, description="Ours")\n'),
    (Path(".github/workflows/ci.yml"), "", "      # our step\n      - run: echo ours\n"),
]
OURS = [
    (PACKAGE / "tools" / "notes.py", "async def mine()"),
    (Path("README.md"), "## Ours"),
    (Path("README.md"), "the one of our team"),
    (Path("pyproject.toml"), "answer = 42"),
    (Path("pyproject.toml"), '"idna>=3",'),
    (PACKAGE / "settings.py", "our_limit"),
    (Path(".github/workflows/ci.yml"), "echo ours"),
]


def _releases() -> list[str]:
    with TemporaryDirectory() as directory:
        bundle = Path(directory) / "template.bundle"
        pack.build(ROOT, bundle)
        return [tag for tag in tags(read_refs(bundle)) if pack.is_final(tag.removeprefix("v"))]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory with the bundle of this checkout, as a first run of the command line leaves it."""
    pack.build(ROOT, tmp_path / MIRROR.removeprefix("~/"))
    return tmp_path


def run(home: Path, directory: Path, *command: str) -> str:
    """Run a command that must succeed; return what it printed."""
    known = {
        name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "COPIER_", "MY_SERVER_"))
    }
    environment = known | {"HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1", "PYTHONPATH": "src"}
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def render(home: Path, tag: str, project: Path, **answers: object) -> None:
    """Render a version of the template as plain Copier does."""
    command = ["-m", "copier", "copy", "--defaults", "--quiet", "--vcs-ref", tag]
    given = {"preset": "full", "project_name": "my-server", "author_name": "Ada", **answers}
    data = [part for name, value in given.items() for part in ("--data", f"{name}={value}")]
    run(home, home, sys.executable, *command, *data, MIRROR, str(project))


def recorded(project: Path, question: str) -> object:
    """Return an answer of a project."""
    return yaml.safe_load((project / ".copier-answers.yml").read_text(encoding="utf-8"))[question]


def commit(home: Path, project: Path, subject: str) -> None:
    """Commit everything there is."""
    run(home, project, "git", "add", "--all")
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    run(home, project, "git", *identity, "commit", "--quiet", "--message", subject)


def own(project: Path) -> None:
    """Edit the project as its owner would, and add a file of their own."""
    for name, old, new in EDITS:
        text = (project / name).read_text(encoding="utf-8")
        assert old in text, f"{name} no longer holds {old!r}: choose another place to edit"
        (project / name).write_text(text.replace(old, new, 1) if old else text + new, encoding="utf-8")
    (project / PACKAGE / "tools" / "more.py").write_text('"""More of ours."""\n', encoding="utf-8")


COMMANDS = {
    "mcp-scaffold update": ["mcp_scaffold", "update"],
    "copier update": ["copier", "update", "--defaults", "--quiet", "--vcs-ref", f"v{__version__}"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("release", _releases())
def test_a_project_of_every_release_updates_without_a_conflict(release: str, command: str, home: Path) -> None:
    project = edited_project(home, release)

    run(home, project, sys.executable, "-m", *COMMANDS[command])

    assert_updated(home, project)
    fresh = home / "fresh" / "my-server"
    render(home, f"v{__version__}", fresh, questionnaire=recorded(project, "questionnaire"))
    compared = filecmp.dircmp(
        project / PACKAGE / "reliability", fresh / PACKAGE / "reliability", ignore=["__pycache__"]
    )
    assert not [*compared.left_only, *compared.right_only, *compared.diff_files], "reliability/ is not the template's"
    run(home, project, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_tools.py")


@pytest.mark.parametrize("release", _releases()[:1])
def test_an_old_project_can_take_the_options_of_later_releases(release: str, home: Path) -> None:
    project = edited_project(home, release)
    later = {"storage": "sqlite", "api_url": "https://api.example.com", "metrics": "[prometheus]"}
    data = [part for name, value in later.items() for part in ("--data", f"{name}={value}")]

    run(home, project, sys.executable, "-m", *COMMANDS["copier update"], *data)

    assert_updated(home, project)
    assert (project / PACKAGE / "reliability" / "sqlite_database.py").exists()
    assert not (project / PACKAGE / "tools" / "api.py").exists()  # tools are the owner's alone
    run(home, project, sys.executable, "-m", "my_server", "--version")


def edited_project(home: Path, release: str) -> Path:
    """Return a project of a release, committed, edited by its owner and committed again."""
    project = home / "my-server"
    render(home, release, project)
    run(home, project, "git", "init", "--quiet")
    commit(home, project, "Start")
    own(project)
    commit(home, project, "Make it ours")
    return project


def assert_updated(home: Path, project: Path) -> None:
    """It is of this version, it has every edit of its owner, and nothing is in conflict."""
    assert recorded(project, "_commit") == f"v{__version__}"
    for name, text in OURS:
        assert text in (project / name).read_text(encoding="utf-8"), f"an edit in {name} is lost"
    assert (project / PACKAGE / "tools" / "more.py").exists()
    assert not list(project.rglob("*.rej"))
    assert "<<<<<<<" not in run(home, project, "git", "diff", "HEAD")
