"""Shell completion: of commands and options by typer, of answers by the template's questions."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from mcp_scaffold.completion import complete_answer, complete_preset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def test_presets_and_answers(install: Callable[[str], None]) -> None:
    install("0.1.0")
    assert complete_preset("") == ["stdio", "http"]
    assert complete_preset("h") == ["http"]
    assert complete_answer("author") == ["author_name=", "author_email="]
    assert complete_answer("package") == []
    assert complete_answer("license=") == ["license=MIT", "license=Apache-2.0", "license=none"]
    assert complete_answer("license=A") == ["license=Apache-2.0"]


def test_a_template_out_of_reach_proposes_nothing(
    install: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install("0.1.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert complete_preset("") == []


def test_the_shell_is_answered() -> None:
    env = {**os.environ, "_MCP_SCAFFOLD_COMPLETE": "complete_bash", "COMP_WORDS": "mcp-scaffold up", "COMP_CWORD": "1"}
    ran = subprocess.run([sys.executable, "-m", "mcp_scaffold"], env=env, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["update"]
