"""What an update may do to a project: nothing to its owner's files, and no conflict where two sides can be merged.

A repository with two releases of the template is made from the working tree; the second one changes, adds and drops
files of every kind. A project of the first release is edited as a person would, then updated.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import copier
import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST, SECOND = "v1.0.0", "v1.1.0"

NEXT_QUESTIONNAIRE = 5
NEW_QUESTION = f"""
manual:
  type: str
  help: Which manual does it get?
  choices: [none, short]
  default: "{{{{ 'short' if questionnaire >= {NEXT_QUESTIONNAIRE} and preset == 'stdio' else 'none' }}}}"
"""
NEW_EXCLUSION = """
_exclude:
  - |
    {% if manual | default('none') != 'short' %}
    /docs
    {% endif %}
"""
TOOLS = "src/{{package_name}}/tools"


class Releases(NamedTuple):
    """A template repository with two tagged releases, and a project of the first in git."""

    repository: Path
    project: Path


@pytest.fixture(scope="module")
def _identity() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Ada Lovelace")
            patch.setenv(f"GIT_{role}_EMAIL", "ada@example.com")
        yield


@pytest.fixture(scope="module")
def releases(template: Path, tmp_path_factory: pytest.TempPathFactory, _identity: None) -> Releases:
    base = tmp_path_factory.mktemp("releases")
    repository = Path(shutil.copytree(template, base / "template"))
    first_release(repository / "template")
    git(repository, "init", "--quiet", "--initial-branch=main")
    commit(repository, "First release")
    git(repository, "tag", FIRST)
    second_release(repository)
    commit(repository, "Second release")
    git(repository, "tag", SECOND)
    project = base / "project"
    answers = {"preset": "full", "project_name": "my-server"}
    copier.run_copy(
        str(repository),
        project,
        data=answers,
        defaults=True,
        quiet=True,
        vcs_ref=FIRST,
        settings=copier.Settings(),
    )
    git(project, "init", "--quiet", "--initial-branch=main")
    commit(project, "Start my-server")
    return Releases(repository, project)


@pytest.fixture
def project(releases: Releases, tmp_path: Path) -> Path:
    """Copy the project of the first release, to be edited."""
    return Path(shutil.copytree(releases.project, tmp_path / "my-server"))


class Edited(NamedTuple):
    """A project that a person edited and then updated, and what was the person's own before the update."""

    project: Path
    owned_before: dict[str, bytes]


@pytest.fixture(scope="module", params=["api", "command"])
def edited(releases: Releases, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Edited:
    """Edit a project everywhere and update it, by Copier's Python interface and by its command."""
    project = Path(shutil.copytree(releases.project, tmp_path_factory.mktemp("edited") / "my-server"))
    edit_own_files(project)
    edit_shared_files(project)
    commit(project, "Make it mine")
    before = owned(project)
    (update_by_api if request.param == "api" else update_by_command)(project)
    return Edited(project, before)


def edit_own_files(project: Path) -> None:
    tools = project / "src/my_server/tools"
    (tools / "edited.py").write_text("# mine\n")
    (tools / "own.py").write_text("# mine\n")
    (tools / "added.py").write_text("# mine, and the second release has one of this name\n")
    (tools / "deleted.py").unlink()
    (project / "tests/test_tools.py").write_text("# mine\n")


def edit_shared_files(project: Path) -> None:
    change(project, "pyproject.toml", '(    "pydantic.*\n)', r'\1    "rich>=14,<16",\n')
    change(project, "pyproject.toml", '(    "mypy.*\n)', r'\1    "pytest-cov>=7,<8",\n')
    append(project, "pyproject.toml", '\n[tool.coverage.run]\nsource = ["my_server"]\n')
    change(project, "README.md", r"^Tools for language models.*$", "Looks after the garden.")
    append(project, "README.md", "\n## Credits\n\nAda.\n")
    append(project, ".github/workflows/ci.yml", "      - name: Coverage\n        run: pytest --cov\n")
    append(project, ".gitignore", "\n/garden.db\n")
    append(project, "ruff.toml", '\n[format]\nquote-style = "double"\n')
    (project / ".mcp.json").unlink()
    (project / "LICENSE").unlink()


def test_an_untouched_project_becomes_the_next_release(project: Path) -> None:
    update_by_api(project)
    assert_clean(project)
    assert read(project, "pyproject.toml").count('"mcp>=2.4,<3"') == 1
    assert "timeout-minutes: 20" in read(project, ".github/workflows/ci.yml")
    assert read(project, "src/my_server/reliability/deadlines.py").endswith("# second release\n")
    assert (project / "src/my_server/reliability/added_later.py").exists()
    assert read(project, "tests/test_production.py").endswith("# second release\n")
    assert answers_of(project)["_commit"] == SECOND


def test_an_edited_project_updates_without_a_conflict(edited: Edited) -> None:
    assert_clean(edited.project)
    assert answers_of(edited.project)["_commit"] == SECOND


def test_files_of_the_owner_are_never_touched_resurrected_or_deleted(edited: Edited) -> None:
    assert owned(edited.project) == edited.owned_before
    tools = {path.name for path in (edited.project / "src/my_server/tools").iterdir()}
    assert {"untouched.py", "dropped.py", "edited.py", "own.py"} <= tools


def test_files_of_the_template_are_replaced(edited: Edited) -> None:
    assert read(edited.project, "src/my_server/reliability/deadlines.py").endswith("# second release\n")
    assert read(edited.project, "tests/test_production.py").endswith("# second release\n")


def test_additions_to_shared_files_merge(edited: Edited) -> None:
    table = tomllib.loads(read(edited.project, "pyproject.toml"))
    assert {"mcp>=2.4,<3", "tenacity>=9,<10", "rich>=14,<16"} <= set(table["project"]["dependencies"])
    assert {"mypy>=2.4,<3", "ruff>=0.18,<0.19", "pytest-cov>=7,<8"} <= set(table["dependency-groups"]["dev"])
    assert table["tool"]["coverage"]["run"]["source"] == ["my_server"]
    workflow = yaml.safe_load(read(edited.project, ".github/workflows/ci.yml"))["jobs"]["test"]
    assert (workflow["timeout-minutes"], workflow["steps"][-1]["name"]) == (20, "Coverage")
    readme = read(edited.project, "README.md")
    assert "Looks after the garden." in readme
    assert readme.endswith("Ada.\n")
    assert "uv run pytest --durations=5" in readme
    assert {"/garden.db", "/second-release.log"} <= set(read(edited.project, ".gitignore").splitlines())
    ruff = tomllib.loads(read(edited.project, "ruff.toml"))
    assert (ruff["target-version"], ruff["format"]["quote-style"]) == ("py312", "double")


def test_deleted_shared_files_stay_deleted(edited: Edited) -> None:
    assert not (edited.project / ".mcp.json").exists()
    assert not (edited.project / "LICENSE").exists()


def test_deleted_files_of_the_owner_stay_deleted_with_their_directory(project: Path) -> None:
    shutil.rmtree(project / "src/my_server/tools")
    (project / "tests/test_tools.py").unlink()
    commit(project, "Delete what came with the project")
    update_by_api(project)
    assert_clean(project)
    assert not (project / "src/my_server/tools").exists()
    assert not (project / "tests/test_tools.py").exists()


def test_a_question_of_a_later_release_changes_new_projects_only(
    project: Path, releases: Releases, tmp_path: Path
) -> None:
    update_by_api(project)
    answers = answers_of(project)
    assert (answers["manual"], answers["questionnaire"]) == ("none", NEXT_QUESTIONNAIRE - 1)
    assert not (project / "docs").exists()
    commit(project, "Update")
    update_by_command(project, manual="short")
    assert answers_of(project)["manual"] == "short"
    assert (project / "docs/manual.md").exists()
    new = tmp_path / "new"
    copier.run_copy(str(releases.repository), new, defaults=True, quiet=True, settings=copier.Settings())
    assert (answers_of(new)["manual"], answers_of(new)["questionnaire"]) == ("short", NEXT_QUESTIONNAIRE)


def test_an_option_can_be_dropped_and_taken_back(project: Path) -> None:
    http = project / "src/my_server/reliability/http_server.py"
    assert http.exists()
    update_by_api(project, transports=["stdio"], metrics=[], clients=["cursor"])
    assert_clean(project)
    assert not http.exists()
    assert not (project / ".mcp.json").exists()
    assert not (project / ".vscode").exists()
    assert "uvicorn" not in read(project, "pyproject.toml")
    commit(project, "Only stdio")
    update_by_api(project, transports=["stdio", "http"], clients=["claude-code", "cursor"])
    assert_clean(project)
    assert http.exists()
    assert (project / ".mcp.json").exists()
    assert "uvicorn" in read(project, "pyproject.toml")


def test_recopy_starts_over_but_leaves_own_files_alone(project: Path) -> None:
    """`copier recopy` is a copy, not an update: it renders the owner's files anew, which git shows."""
    tools = project / "src/my_server/tools"
    (tools / "edited.py").write_text("# mine\n")
    (tools / "deleted.py").unlink()
    (tools / "own.py").write_text("# mine\n")
    commit(project, "Write tools")
    copier.run_recopy(project, defaults=True, overwrite=True, quiet=True, settings=copier.Settings())
    assert read(project, "src/my_server/tools/edited.py") == "# second\n"
    assert read(project, "src/my_server/tools/deleted.py") == "# second\n"
    assert read(project, "src/my_server/tools/own.py") == "# mine\n"


def update_by_api(project: Path, **answers: Any) -> None:
    copier.run_update(project, data=answers, defaults=True, overwrite=True, quiet=True, settings=copier.Settings())


def update_by_command(project: Path, **answers: Any) -> None:
    data = [part for name, value in answers.items() for part in ("--data", f"{name}={value}")]
    subprocess.run([sys.executable, "-m", "copier", "update", "--defaults", "--quiet", *data], cwd=project, check=True)


def first_release(template: Path) -> None:
    """Give every kind of file a name that the tests know, whatever the template ships at present."""
    for name in ("edited", "untouched", "deleted", "dropped"):
        write(template / TOOLS / f"{name}.py", "# first\n")
    for name in ("test_tools.py", "test_production.py"):
        if not list((template / "tests").glob(f"{name}*")):
            write(template / "tests" / name, "# first\n")


def second_release(repository: Path) -> None:
    template = repository / "template"
    for name in ("edited", "untouched", "deleted", "added"):
        write(template / TOOLS / f"{name}.py", "# second\n")
    (template / TOOLS / "dropped.py").unlink()
    for pattern in (
        "tests/test_tools.py*",
        "tests/test_production.py*",
        "src/*/reliability/deadlines.py",
    ):
        (path,) = template.glob(pattern)
        write(path, path.read_text(encoding="utf-8") + "# second release\n")
    write(template / "src/{{package_name}}/reliability/added_later.py", "# second\n")
    change(template, "pyproject.toml.jinja", "mcp>=2.3", "mcp>=2.4")
    change(template, "pyproject.toml.jinja", r"(dependencies = \[\n)", r'\1    "tenacity>=9,<10",\n')
    change(template, "pyproject.toml.jinja", r"ruff>=\d.*,<[\d.]+", "ruff>=0.18,<0.19")
    change(template, ".github/workflows/ci.yml", "timeout-minutes: 15", "timeout-minutes: 20")
    change(template, "README.md.jinja", "uv run pytest", "uv run pytest --durations=5")
    change(template, ".gitignore.jinja", "^/dist/\n", "/dist/\n/second-release.log\n")
    change(template, "ruff.toml.jinja", '^target-version = "py311"$', 'target-version = "py312"')
    write(template / "docs/manual.md", "# Manual\n")
    number = rf"(?s)(^questionnaire:.*?default: ){NEXT_QUESTIONNAIRE - 1}$"
    change(repository, "copier.yml", number, rf"\g<1>{NEXT_QUESTIONNAIRE}")
    change(repository, "copier.yml", r"\Z", f"{NEW_QUESTION}---{NEW_EXCLUSION}")


def assert_clean(project: Path) -> None:
    """No conflict, no rejected hunk, no conflict marker, nothing that git could not merge."""
    status = git(project, "status", "--porcelain", "--untracked-files=all")
    assert not re.search(r"^(?:[DAU]U|U[DA]|AA|DD) |\.rej$", status, re.MULTILINE), status
    assert not subprocess.run(
        ["git", "grep", "--no-index", "-lE", "^(<<<<<<<|>>>>>>>) "], cwd=project, capture_output=True, check=False
    ).stdout


def owned(project: Path) -> dict[str, bytes]:
    paths = [*(project / "src/my_server/tools").rglob("*"), project / "tests/test_tools.py"]
    return {path.relative_to(project).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def answers_of(project: Path) -> dict[str, Any]:
    answers = yaml.safe_load(read(project, ".copier-answers.yml"))
    assert isinstance(answers, dict)
    return answers


def read(project: Path, name: str) -> str:
    return (project / name).read_text(encoding="utf-8")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def append(project: Path, name: str, text: str) -> None:
    write(project / name, read(project, name) + text)


def change(project: Path, name: str, pattern: str, replacement: str) -> None:
    """Replace the first match; a pattern that matches nothing is a mistake in the test."""
    text, found = re.subn(pattern, replacement, read(project, name), count=1, flags=re.MULTILINE)
    assert found == 1, (name, pattern)
    write(project / name, text)


def commit(directory: Path, subject: str) -> None:
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--no-verify", "--message", subject)


def git(directory: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=directory, check=True, capture_output=True, text=True).stdout
