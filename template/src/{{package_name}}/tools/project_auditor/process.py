"""Starts the program `analysis` and reads its answer."""

import os
import sys
from pathlib import Path

from ...app import App
from ...reliability import DependencyFailed
from ...reliability.child_processes import run_program

TIMEOUT_S = 15
MAX_ANSWER_BYTES = 5_000_000
PROGRAM = [sys.executable, "-P", "-m", f"{__package__}.analysis"]
"""`-P`: what lies in the directory that is looked at is never imported."""


async def analyse(app: App, task: str, root: Path) -> bytes:
    """The JSON that `analysis` prints for a task.

    Raises:
        DependencyError: It failed, took too long, or is not tried again yet.
    """
    return await app.analysis.call(lambda: _run(task, root), timeout_s=TIMEOUT_S)


async def _run(task: str, root: Path) -> bytes:
    result = await run_program(
        [*PROGRAM, task, root],
        timeout_s=TIMEOUT_S,
        max_output_bytes=MAX_ANSWER_BYTES,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if result.exit_code != 0:
        why = "wrote too much" if result.truncated else f"ended with exit code {result.exit_code}"
        raise DependencyFailed("analysis", f"The analysis of the files {why}.")
    return result.stdout
