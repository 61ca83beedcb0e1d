"""The start of a supervised server where the system has nothing left (R31)."""

from __future__ import annotations

import os
import sys
import time

import pytest

if sys.platform == "win32":
    pytest.skip("the supervisor is for POSIX", allow_module_level=True)

from reliability.supervised_server import SupervisedServer

COMMAND = [sys.executable, "-S", "-c", "input()"]


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def end(server: SupervisedServer) -> None:
    server.kill()
    until = time.monotonic() + 10
    while server.ended() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    server.close()


@pytest.mark.parametrize("left", range(4))
def test_a_start_that_fails_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """The pipes come first, and the guardian's last."""
    before = open_descriptors()
    pipes: list[tuple[int, int]] = []
    pipe = os.pipe

    def few_pipes() -> tuple[int, int]:
        if len(pipes) == left:
            raise OSError(24, "Too many open files")
        pipes.append(pipe())
        return pipes[-1]

    monkeypatch.setattr(os, "pipe", few_pipes)
    if left < 3:
        with pytest.raises(OSError, match="Too many"):
            SupervisedServer(COMMAND, 0.0)
    else:
        end(SupervisedServer(COMMAND, 0.0))
    assert open_descriptors() == before


def test_a_program_that_is_not_there_leaves_nothing_open() -> None:
    before = open_descriptors()
    with pytest.raises(OSError, match="nowhere"):
        SupervisedServer(["/nowhere/program"], 0.0)
    assert open_descriptors() == before


def test_a_guardian_is_dismissed_once() -> None:
    before = open_descriptors()
    server = SupervisedServer(COMMAND, 0.0)
    server.dismiss_guardian()
    end(server)
    assert open_descriptors() == before
