"""How questions look: no line is longer than the terminal, and nothing else of the template changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mcp_scaffold.prompts import fit_to_terminal

if TYPE_CHECKING:
    from pathlib import Path


def without_looks(content: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in question.items() if key not in {"help", "qmark"}}
        if isinstance(question, dict) and not name.startswith("_")
        else question
        for name, question in content.items()
    }


@pytest.mark.parametrize("columns", [10, 40, 80, 200])
def test_help_is_broken_into_lines(root: Path, tmp_path: Path, columns: int) -> None:
    config = tmp_path / "copier.yml"
    config.write_text((root / "copier.yml").read_text())
    before = yaml.safe_load(config.read_text())
    fit_to_terminal(config, columns)
    after = yaml.safe_load(config.read_text())
    assert without_looks(after) == without_looks(before)
    assert list(after) == list(before)
    for name in after:
        if isinstance(before[name], dict) and before[name].get("help"):
            assert after[name]["help"].split() == before[name]["help"].split()
            shown = f"? {after[name]['help']}"
            assert max(len(line) for line in shown.splitlines()) <= max(columns, 24)
