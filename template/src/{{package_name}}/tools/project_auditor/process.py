"""Starts the program `analysis` and reads its answer."""

import os
import sys
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ...app import App
from ...reliability import DependencyFailed, remaining_s
from ...reliability.child_processes import run_program

TIMEOUT_S = 15
SHARE_OF_TIME = 0.75
"""What the program gets for its files; then it answers with what it has, and says what is missing."""
MAX_ANSWER_BYTES = 5_000_000
PROGRAM = [sys.executable, "-P", "-m", f"{__package__}.analysis"]
"""`-P`: what lies in the directory that is looked at is never imported."""

AnswerT = TypeVar("AnswerT", bound=BaseModel)


async def analyse(app: App, task: str, root: Path, answer: type[AnswerT]) -> AnswerT:
    """What `analysis` says about the files below `root`.

    Raises:
        DependencyError: It failed, took too long, or failed so often that it is left alone for a while.
    """
    return await app.analysis.call(lambda: _run(task, root, answer), timeout_s=TIMEOUT_S)


async def _run(task: str, root: Path, answer: type[AnswerT]) -> AnswerT:
    seconds = SHARE_OF_TIME * min(TIMEOUT_S, remaining_s())
    result = await run_program(
        [*PROGRAM, task, root, f"{seconds:.2f}"],
        timeout_s=TIMEOUT_S,
        max_output_bytes=MAX_ANSWER_BYTES,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        if result.exit_code == 0:
            return answer.model_validate_json(result.stdout)
    except ValidationError:
        raise DependencyFailed("analysis", "The analysis of the files gave an answer that makes no sense.") from None
    why = "wrote too much" if result.truncated else f"ended with exit code {result.exit_code}"
    raise DependencyFailed("analysis", f"The analysis of the files {why}.")
