"""Projects for the tests of what they are deployed with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.render.conftest import Renderer, copy_template

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def render(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    """Return the cached renderer; its projects are shared."""
    template = tmp_path_factory.mktemp("template")
    copy_template(root, template)
    return Renderer(template, tmp_path_factory.mktemp("rendered"))
