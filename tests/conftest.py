"""Shared by all tests: the reliability package is imported in place, as `reliability`, without rendering."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent

# A shell starts background jobs, and nohup its command, with these ignored, and every process below would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

sys.path.insert(0, str(ROOT / "template" / "src" / "{{package_name}}"))


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the checkout's top directory."""
    return ROOT


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line although the test passes."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}")

    return show
