"""The generated project's own tests pass in every preset."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_passed: set[str] = set()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("preset", ["stdio", "http", "full", "minimal"])
def test_a_generated_project_passes_its_tests(generated: Callable[[str], Path], preset: str) -> None:
    """Run them; answers that change no Python file cannot change the verdict, so each different source is run once."""
    project = generated(preset)
    source = fingerprint(project)
    if source in _passed:
        return
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--quiet", "--timeout=120"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "src")},
        capture_output=True,
        text=True,
        check=False,
        timeout=880,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    _passed.add(source)


def fingerprint(project: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([*project.rglob("*.py"), project / "pytest.ini"]):
        digest.update(path.relative_to(project).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
