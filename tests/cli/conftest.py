"""Fixtures of the command line's tests: an empty home, a template with a history of releases, an installation of it."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mcp_scaffold import bundle, cli, create, pack, templates, upgrade
from tests.cli.helpers import Ran, git, make_history

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, and no configuration of whoever runs the tests."""
    home = tmp_path / "home"
    home.mkdir()
    for name in [name for name in os.environ if name.startswith(("GIT_", "COPIER_", "XDG_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    return home


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A checkout with a history of releases, and its commits by version; not to be changed."""
    checkout = tmp_path_factory.mktemp("history") / "checkout"
    return checkout, make_history(checkout)


@pytest.fixture
def checkout(history: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    """A copy of that checkout, to be changed."""
    copy = tmp_path / "checkout"
    shutil.copytree(history[0], copy)
    return copy


@pytest.fixture(scope="session")
def bundles(history: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundle of each version, as its wheel would carry it."""
    found = {}
    for version, commit in history[1].items():
        clone = tmp_path_factory.mktemp("clone") / "checkout"
        git(clone.parent, "clone", "--quiet", str(history[0]), str(clone))
        git(clone, "checkout", "--quiet", "main" if version == "0.3.0.dev0" else commit)
        found[version] = clone.parent / "template.bundle"
        pack.build(clone, found[version])
    return found


@pytest.fixture
def install(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make this process the installation of a version, without a git address."""

    def as_version(version: str) -> None:
        monkeypatch.setattr(bundle, "own_bundle", lambda: bundles[version])
        monkeypatch.setattr(templates, "installed_from", lambda: None)
        for module in (bundle, create, templates, upgrade):
            monkeypatch.setattr(module, "__version__", version)

    return as_version


@pytest.fixture
def run(
    install: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Callable[..., Ran]]:
    """Run the command line of version 0.1.0 in an empty directory, in this process; no terminal."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    install("0.1.0")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments: str | Path) -> Ran:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def project(run: Callable[..., Ran]) -> Path:
    """A project that 0.1.0 generated and committed, in the current directory."""
    assert run("new", "my-server", "--yes", "--no-lock").code == 0
    return Path("my-server").absolute()
