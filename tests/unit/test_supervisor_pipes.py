"""The pipes of the supervisor: what waits for them, and what is left of them (R17)."""

from __future__ import annotations

import os
import select
import sys

import pytest

if sys.platform == "win32":
    pytest.skip("the supervisor is for POSIX", allow_module_level=True)

from reliability.supervisor_pipes import Poller, new_pipe


@pytest.mark.parametrize("timeout_ms", [0.5, 60_000.5, 1e12, None])
def test_any_time_may_be_waited(timeout_ms: float | None) -> None:
    poller = Poller()
    seen: list[float] = []
    read_end, write_end = new_pipe()
    os.write(write_end, b"x")
    poller.watch(read_end, select.POLLIN, seen.append)
    assert poller.wait(timeout_ms, lambda: 7.0) == 7.0
    assert seen == [7.0]
    for fd in (read_end, write_end):
        os.close(fd)
