"""What keeps the process small: rules R14 and R69, and the pauses of garbage collection."""

from __future__ import annotations

import ctypes
import gc
import os
import struct
import sys
from typing import TYPE_CHECKING

import anyio
import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

_MEASURE = """
import sys, threading
from reliability.memory import return_memory_to_system
from reliability.health import rss_mb
return_memory_to_system()
def hold_and_let_go():
    held = [bytes(200_000) for _ in range(500)]
before = rss_mb()
for _ in range(3):
    threads = [threading.Thread(target=hold_and_let_go) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print(rss_mb() - before)
"""


async def test_r69_freed_memory_goes_back_to_the_system(root: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("mallopt is glibc's")
    source = root / "template" / "src" / "{{package_name}}"
    done = await anyio.run_process([sys.executable, "-c", _MEASURE], env={"PYTHONPATH": str(source)})
    assert float(done.stdout) < 20  # of 200 MB


def test_freezing_takes_what_exists_out_of_the_collector_and_leaves_it_usable() -> None:
    from reliability.memory import freeze_startup_objects

    before = gc.get_freeze_count()  # Python 3.12 counts its immortal objects
    try:
        freeze_startup_objects()
        assert gc.get_freeze_count() > before + 1000
    finally:
        gc.unfreeze()


def test_r14_on_macos_the_current_figure_counts_and_not_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    from reliability import health

    class Library:
        filled = 96

        def proc_pidinfo(
            self, pid: int, flavour: int, _: object, buffer: ctypes.Array[ctypes.c_char], size: int
        ) -> int:
            assert (pid, flavour, size) == (os.getpid(), 4, 96)
            ctypes.memmove(buffer, struct.pack("=QQ", 400_000_000_000, 123_400_000), 16)
            return self.filled

    library = Library()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert health.rss_mb() == 123.4
    library.filled = 0
    assert health.rss_mb() is None
