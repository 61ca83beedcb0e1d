"""The generated project's own tests pass in every preset."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PRESETS = ["full", "stdio", "http", "minimal"]
LIMIT_S = 880

Suite = Future[subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def suites(request: pytest.FixtureRequest, generated: Callable[..., Path]) -> Iterator[dict[str, Suite]]:
    """Run the tests of the presets that were chosen, two projects at a time: they wait more than they compute."""
    chosen = [preset for preset in PRESETS if any(f"[{preset}]" in item.name for item in request.session.items)]
    projects = {preset: generated(preset) for preset in chosen}
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {preset: pool.submit(run_tests, project) for preset, project in projects.items()}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_generated_project_passes_its_tests(suites: dict[str, Suite], preset: str) -> None:
    """The longest comes first, so that the others fit beside it."""
    done = suites[preset].result()
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]


def run_tests(project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--quiet", "--timeout=120", "--durations=15"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "src")},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
