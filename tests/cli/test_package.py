"""What is installed: wheel, sdist and git address, used in empty environments, by another person, without a network."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from mcp_scaffold import bundle
from tests.cli.helpers import commit_all, git, recorded, set_version, write_tree

REPOSITORY = Path(__file__).resolve().parents[2]
PACKED = ["hatch_build.py", "pyproject.toml", "README.md", ".gitignore"]


def execute(*command: str | Path, where: Path, **env: str) -> str:
    """Run a program; return what it printed on stderr, or fail with it."""
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **env}
    arguments = [str(part) for part in command]
    ran = subprocess.run(arguments, cwd=where, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{arguments}\n{ran.stdout}\n{ran.stderr}"
    return ran.stderr


@pytest.fixture(scope="module")
def project(history: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the small template and its history, as it would be cloned, at release 0.3.0."""
    checkout = tmp_path_factory.mktemp("package") / "checkout"
    git(checkout.parent, "clone", "--quiet", str(history[0]), str(checkout))
    for path in (REPOSITORY / "src" / "mcp_scaffold").rglob("*"):
        if path.suffix == ".py" or path.name == "py.typed":
            copy = checkout / path.relative_to(REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    for name in PACKED:
        (checkout / name).write_bytes((REPOSITORY / name).read_bytes())
    set_version(checkout, "0.3.0")
    return checkout


def build(source: Path, kind: str, target: Path) -> Path:
    """Build a wheel or an sdist with the tools of this environment."""
    execute(sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", target, source, where=source)
    (found,) = target.iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(project, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(project, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def next_wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the release after."""
    checkout = tmp_path_factory.mktemp("next") / "checkout"
    git(checkout.parent, "clone", "--quiet", str(project), str(checkout))
    write_tree(checkout, {"template/limits.txt": "ONE\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n"})
    set_version(checkout, "0.4.0")
    return build(checkout, "wheel", tmp_path_factory.mktemp("next_wheel"))


class Machine:
    """A person's machine: a home of its own, and an environment in which one file was installed."""

    def __init__(self, place: Path) -> None:
        self.home = place / "home"
        self.work = place / "work"
        self._environment = place / "venv"
        self.home.mkdir(parents=True)
        self.work.mkdir()
        venv.create(self._environment, with_pip=True)
        # What mcp-scaffold depends on is taken from here; mcp-scaffold itself is not, which an import below shows.
        site = next(self._environment.glob("lib/*/site-packages"))
        (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    def install(self, *what: str | Path) -> None:
        pip = self._environment / "bin" / "python"
        execute(pip, "-m", "pip", "install", "--no-deps", "--force-reinstall", *what, where=self.work)

    def run(self, *arguments: str | Path) -> str:
        env = {"HOME": str(self.home), "NO_COLOR": "1", "PYTHONPATH": "", "http_proxy": "http://127.0.0.1:9"}
        return execute(self._environment / "bin" / "mcp-scaffold", *arguments, where=self.work, **env)

    def python(self, script: str) -> str:
        command = [str(self._environment / "bin" / "python"), "-c", script]
        return subprocess.run(command, cwd=self.work, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "a")


def test_the_wheel_carries_the_releases_and_no_template_files(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extract("mcp_scaffold/template.bundle", tmp_path)
    assert list(bundle.tags(bundle.read_refs(tmp_path / "mcp_scaffold/template.bundle"))) == [
        "v0.1.0",
        "v0.2.0",
        "v0.3.0",
    ]
    assert "mcp_scaffold/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"mcp_scaffold", "mcp_scaffold-0.3.0.dist-info"}
    assert len(names) == len(set(names))


def test_the_same_wheel_from_the_sdist_without_history(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.name.startswith("mcp_scaffold"))
    assert (unpacked / "template" / "limits.txt").exists()
    rebuilt = build(unpacked, "wheel", tmp_path / "rebuilt")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, rebuilt)]
    assert digests[0] == digests[1]


def test_the_wheel_works_where_there_is_no_checkout(machine: Machine, wheel: Path) -> None:
    machine.install(wheel)
    where = machine.python("import mcp_scaffold; print(mcp_scaffold.__file__)")
    assert where.startswith(str(machine.work.parent))
    machine.run("new", "my-server", "--yes", "--no-lock")
    assert (machine.home / ".mcp-scaffold" / "template.bundle").exists()
    assert recorded(machine.work / "my-server")["_commit"] == "v0.3.0"


def test_the_sdist_works_as_well(machine: Machine, sdist: Path) -> None:
    # The build backend comes from the environment that the machine reads.
    machine.install("--no-build-isolation", sdist)
    machine.run("new", "my-server", "--yes", "--no-lock")
    assert recorded(machine.work / "my-server")["_commit"] == "v0.3.0"


def test_a_project_of_one_machine_is_updated_on_another(wheel: Path, next_wheel: Path, tmp_path: Path) -> None:
    first, second = Machine(tmp_path / "a"), Machine(tmp_path / "b")
    first.install(wheel)
    first.run("new", "my-server", "--yes", "--no-lock")
    second.install(next_wheel)
    git(second.work, "clone", "--quiet", str(first.work / "my-server"), "my-server")
    project = second.work / "my-server"
    assert recorded(project)["_src_path"] == "~/.mcp-scaffold/template.bundle"
    assert "Updated `my-server` from 0.3.0 to 0.4.0: 2 files changed" in second.run("update", "my-server")
    assert (project / "limits.txt").read_text().endswith("eight\n")
    # Once mcp-scaffold has run there, plain Copier works there, too.
    git(project, "checkout", "--quiet", ".")
    env = {"HOME": str(second.home)}
    execute(sys.executable, "-m", "copier", "update", "--defaults", ".", where=project, **env)
    assert (project / "limits.txt").read_text().endswith("eight\n")


def test_an_installation_from_git_records_its_address(machine: Machine, project: Path) -> None:
    commit = git(project, "rev-parse", "HEAD")
    machine.install("--no-build-isolation", f"git+file://{project}")
    machine.run("new", "my-server", "--yes", "--no-lock")
    found = recorded(machine.work / "my-server")
    assert (found["_src_path"], found["_commit"]) == (f"git+file://{project}", commit)
    # No mcp-scaffold is needed for updates then.
    write_tree(project, {"template/later.txt": "later\n"})
    commit_all(project, "Later")
    env = {"HOME": str(machine.home)}
    update = [sys.executable, "-m", "copier", "update", "--defaults", "--vcs-ref", "HEAD", "."]
    execute(*update, where=machine.work / "my-server", **env)
    assert (machine.work / "my-server" / "later.txt").exists()


def test_an_editable_installation_follows_the_checkout(machine: Machine, project: Path) -> None:
    machine.install("--no-build-isolation", "--editable", project)
    set_version(project, "0.5.0.dev0")
    write_tree(project, {"template/draft.txt": "draft\n"})
    machine.run("new", "one", "--yes", "--no-lock")
    assert (machine.work / "one" / "draft.txt").read_text() == "draft\n"
    write_tree(project, {"template/draft.txt": "better\n"})
    machine.run("new", "two", "--yes", "--no-lock")
    assert (machine.work / "two" / "draft.txt").read_text() == "better\n"
