"""The presets as plain text: the tree, and every small file that is rendered from answers.

`UPDATE_SNAPSHOTS=1 python3 tests/run.py test tests/render/test_snapshots.py` writes them anew; review the difference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.render.conftest import Renderer

SNAPSHOTS = Path(__file__).parent / "snapshots"
WHOLE_FILES = (
    ".copier-answers.yml",
    ".cursor/mcp.json",
    ".env.example",
    ".gitlab-ci.yml",
    ".mcp.json",
    ".vscode/mcp.json",
    "README.md",
    "pyproject.toml",
)


@pytest.mark.parametrize("preset", ["stdio", "http", "full", "minimal"])
def test_preset_looks_as_before(render: Renderer, preset: str) -> None:
    compare(f"{preset}.txt", snapshot(render(preset=preset)))


def test_every_answer_changed_looks_as_before(render: Renderer) -> None:
    project = render(
        preset="http",
        project_name="weather-station",
        package_name="stations",
        description='Measures "everything"',
        author_name="Ada Lovelace",
        author_email="ada@example.com",
        license="none",
        transports=["stdio", "http"],
        storage="sqlite",
        api_url="https://api.example.com/v1",
        examples=["project-auditor"],
        metrics=[],
        clients=[],
        ci="gitlab",
    )
    compare("answers.txt", snapshot(project))


def snapshot(project: Path) -> str:
    """Return the tree, and after it the files in full."""
    paths = sorted(path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file())
    parts = ["".join(f"{path}\n" for path in paths)]
    parts += [f"==== {name}\n{(project / name).read_text(encoding='utf-8')}" for name in WHOLE_FILES if name in paths]
    return re.sub(r"^_src_path: .*\n", "", "\n".join(parts), flags=re.MULTILINE)


def compare(name: str, text: str) -> None:
    path = SNAPSHOTS / name
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8", newline="\n")
    assert text == path.read_text(encoding="utf-8"), f"{path} differs; see the top of {Path(__file__).name}"
