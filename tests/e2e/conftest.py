"""Real projects, really installed, and real clients of other people."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import copier
import pytest

from tests.e2e.supervised import Supervised, child_of
from tests.support_npm import installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support_npm import Node

CLIENTS = Path(__file__).parent / "clients"
FAULTY = Path(__file__).parent / "faulty"
INSTALL_S = 240
START_S = 30


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def generated(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Render a preset, with other answers if any; without git Copier renders what is there, and not the latest tag."""
    template = tmp_path_factory.mktemp("template")
    shutil.copy(root / "copier.yml", template)
    shutil.copytree(root / "template", template / "template", ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
    target = tmp_path_factory.mktemp("generated")

    def generate(preset: str, **answers: str) -> Path:
        destination = target / "-".join([preset, *answers.values()])
        if not destination.exists():
            copier.run_copy(
                str(template),
                destination,
                data={"preset": preset, **answers},
                defaults=True,
                overwrite=True,
                quiet=True,
                settings=copier.Settings(),
            )
        return destination

    return generate


@pytest.fixture(scope="session")
def console_script(generated: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the preset "full", without a database."""
    return install(generated("full", storage="none"), tmp_path_factory.mktemp("installed") / "venv")


@pytest.fixture(scope="session")
def faulty_script(generated: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the preset "minimal", whose server can be made to go wrong in every way; see `faulty`."""
    project = tmp_path_factory.mktemp("faulty") / "project"
    shutil.copytree(generated("minimal"), project)
    package = project / "src" / "my_server"
    shutil.copy(FAULTY / "at_start.py", package)
    tools = (FAULTY / "faults.py").read_text(encoding="utf-8")
    for own in ("reliability", "at_start"):
        tools = re.sub(rf"^from \.?{own} ", f"from ..{own} ", tools, flags=re.MULTILINE)
    (package / "tools" / "faults.py").write_text(tools, encoding="utf-8")
    replace(package / "__init__.py", "\n\n__version__", "\n\nfrom . import at_start as at_start\n\n__version__")
    registered = "    server.include(tools)\n"
    replace(package / "app.py", registered, f"{registered}    tools.faults.add_handlers(server)\n")
    replace(package / "app.py", "subscriptions=False,", "")
    return install(project, project / ".venv")


@pytest.fixture(scope="module")
def helpers(generated: Callable[[str], Path]) -> Iterator[Any]:
    """Return the module with which a generated project's own tests start its server, of the preset "full".

    Until the end of the tests' module this process, and whatever it starts, finds the package of that project: no test
    elsewhere may come upon it.
    """
    project = generated("full")
    before = os.environ.get("PYTHONPATH")
    sys.path.insert(0, str(project / "tests"))
    os.environ["PYTHONPATH"] = str(project / "src")
    yield importlib.import_module("production_helpers.process")
    sys.path.remove(str(project / "tests"))
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def start(
    helpers: Any, faulty_script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Supervised]]:
    """Start a supervisor; whatever is left of it in the end is killed."""
    monkeypatch.setattr(helpers, "command", lambda *_, **__: [str(faulty_script), "supervise"])
    started: list[Supervised] = []

    def start(
        plan: str = "well", settings: dict[str, object] | None = None, *, era: str | None = None, **more: Any
    ) -> Supervised:
        started.append(Supervised(helpers, tmp_path, plan=plan, settings=settings or {}, **more))
        if era is not None:
            started[-1].begin(era)
        return started[-1]

    yield start
    for one in started:
        with one.process:
            server = child_of(one.pid)
            if server is not None:
                os.killpg(server, signal.SIGKILL)


@pytest.fixture(scope="session")
def npm_clients() -> Node:
    """Return the official clients of npm."""
    wanted = json.loads((CLIENTS / "package.json").read_text())["dependencies"]
    node = installed("clients", wanted)
    for script in CLIENTS.glob("*.mjs"):
        shutil.copy(script, node.directory)
    return node


def install(project: Path, directory: Path) -> Path:
    """Install a project in an environment that borrows the dependencies of this one; returns its program."""
    venv.create(directory)
    bin_directory = directory / ("Scripts" if os.name == "nt" else "bin")
    python = bin_directory / Path(sys.executable).name
    own = Path(sysconfig.get_path("purelib", vars={"base": str(directory), "platbase": str(directory)}))
    (own / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", project)
    return bin_directory / f"my-server{sysconfig.get_config_var('EXE') or ''}"


def replace(file: Path, old: str, new: str) -> None:
    """Change the one place of a file where something stands."""
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, (file, old)
    file.write_text(text.replace(old, new), encoding="utf-8")


def run(*command: object, cwd: Path | None = None) -> None:
    """Run a command; its whole output is the message of a failure."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False, timeout=INSTALL_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
