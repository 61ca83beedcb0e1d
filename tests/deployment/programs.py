"""Programs that the tests run, and what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def own(name: str) -> str:
    """Return a program of the tests' own environment."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found is not None, f"{name} is missing: it comes with the extra `test`"
    return found


def said(
    *command: object,
    text: str = "",
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 60,
) -> str:
    """Run a program, and return everything that it printed.

    Raises:
        AssertionError: It failed.
    """
    done = subprocess.run(
        list(map(str, command)),
        cwd=directory,
        env=environment,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
