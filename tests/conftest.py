"""Shared by all tests: the reliability package is imported in place, as `reliability`, without rendering."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT / "template" / "src" / "{{package_name}}"))


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the checkout's top directory."""
    return ROOT
