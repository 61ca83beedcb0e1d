"""How the questions look in the terminal: Copier asks them, and cuts every line that is too long."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from pathlib import Path

_MARGIN = 4


def fit_to_terminal(config: Path, columns: int) -> None:
    """Break the help of each question into lines of `columns`, in an unpacked template's `copier.yml`.

    Only how questions look changes; what Copier renders does not depend on it.
    """
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    for name, question in content.items():
        if not name.startswith("_") and isinstance(question, dict):
            words = str(question.get("help", name)).split()
            # Copier puts a mark before the first line, and the answer below the last one.
            lines = textwrap.wrap(" ".join(words), max(columns - _MARGIN, 20), break_on_hyphens=False)
            question |= {"help": "\n  ".join(lines), "qmark": "?"}
    config.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
