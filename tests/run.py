"""Installs what the tests need into `.venv` and runs them: `python3 tests/run.py [STEP] [PYTEST ARGUMENTS]`.

STEP is `lint` (ruff and mypy) or `test` (pytest); without it both run, in this order. All further arguments go to
pytest: `python3 tests/run.py test -k update`. Without any, two processes share the tests, because many of them wait.
Needs Python 3.11 or newer with pip and venv, and git; nothing else.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "installed.sha256"
IN_PARALLEL = ["--numprocesses=2", "--dist=loadfile"]
RELIABILITY = ROOT / "template" / "src" / "{{package_name}}" / "reliability"


def prepare() -> None:
    """Create `.venv` and install the project in it, again only when pyproject.toml or the interpreter changed."""
    pyproject = (ROOT / "pyproject.toml").read_bytes()
    wanted = hashlib.sha256(pyproject + f"{sys.version} {VENV}".encode()).hexdigest()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        return
    step("install", "into .venv")
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True, clear=VENV.exists())
    run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e", ".[test]")
    STAMP.write_text(wanted)


def lint() -> None:
    """Ruff and strict mypy, with the template's reliability package checked in place."""
    step("lint", "ruff check, ruff format --check, mypy")
    run(PYTHON, "-m", "ruff", "check", ".")
    run(PYTHON, "-m", "ruff", "format", "--check", ".")
    benchmarks = ["benchmarks"] if (ROOT / "benchmarks").is_dir() else []
    run(PYTHON, "-m", "mypy", "src", "hatch_build.py", "tests", *benchmarks, RELIABILITY)


def test(arguments: list[str]) -> None:
    """Run pytest with the given arguments."""
    step("test", "pytest")
    run(PYTHON, "-m", "pytest", *(arguments or IN_PARALLEL))


def step(name: str, what: str) -> None:
    """Say which step begins."""
    print(f"== {name}: {what}", flush=True)


def run(*command: object) -> None:
    """Run one command in the project root and end with its exit code if it fails."""
    arguments = [str(part) for part in command]
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    result = subprocess.run(arguments, cwd=ROOT, env={**os.environ, "PATH": path}, check=False)
    if result.returncode:
        sys.exit(result.returncode)


def main(arguments: list[str]) -> None:
    """Run the named step, or all of them."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the one message for an interpreter that is too old
        sys.exit(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}.")
    prepare()
    if arguments[:1] == ["lint"]:
        return lint()
    if arguments[:1] == ["test"]:
        return test(arguments[1:])
    lint()
    return test(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
