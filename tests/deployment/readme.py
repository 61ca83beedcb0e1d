"""The commands of a generated project's README, run as they stand there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.deployment.programs import said

if TYPE_CHECKING:
    from pathlib import Path


def commands(project: Path, heading: str) -> list[str]:
    """Return the blocks of commands in the section with this heading."""
    text = (project / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE)
    return re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def run(script: str, directory: Path, environment: dict[str, str], *, timeout_s: float) -> str:
    """Run commands until one fails, and return everything that they printed."""
    return said(
        *("bash", "-euo", "pipefail", "-c", script), directory=directory, environment=environment, timeout_s=timeout_s
    )
