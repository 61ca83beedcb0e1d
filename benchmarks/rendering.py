"""How long the command line takes, against Copier alone on the same template."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
TARGET = "where to write"


def measure(directory: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each command, `rounds` times, taken in turns.

    The first `new` also mirrors the template's bundle, which the later ones and Copier use; it is not counted.
    """
    new = [str(BIN / "mcp-scaffold"), "new", "--yes", "--no-lock", "--quiet"]
    subprocess.run([*new, str(directory / "first")], check=True, capture_output=True)
    bundle = str(Path.home() / ".mcp-scaffold" / "template.bundle")
    version = _recorded_version(directory / "first")
    copier = [str(BIN / "copier"), "copy", "--defaults", "--quiet", "--vcs-ref", version]
    commands = {
        "mcp-scaffold new": [*new, TARGET],
        "mcp-scaffold new --no-git": [*new, "--no-git", TARGET],
        "copier copy": [*copier, bundle, TARGET],
        "mcp-scaffold --help": [str(BIN / "mcp-scaffold"), "--help"],
        "mcp-scaffold --version": [str(BIN / "mcp-scaffold"), "--version"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, command in commands.items():
            target = directory / f"project-{number}"
            arguments = [str(target) if part is TARGET else part for part in command]
            started = time.perf_counter()
            subprocess.run(arguments, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
            shutil.rmtree(target, ignore_errors=True)
    return seconds


def files_of_default_project(directory: Path) -> int:
    """Number of files that `new` writes without any option."""
    return sum(path.is_file() and ".git/" not in str(path) for path in (directory / "first").rglob("*"))


def _recorded_version(project: Path) -> str:
    answers = (project / ".copier-answers.yml").read_text(encoding="utf-8")
    return next(line.split(": ", 1)[1].strip("'\"") for line in answers.splitlines() if line.startswith("_commit"))
