"""The start of a supervised server where the system has nothing left (R31)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

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
    """The pipes come first, and the guardian's last: without one the server leads its group itself."""
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


def test_the_group_is_led_by_who_kills_it_when_the_supervisor_is_gone() -> None:
    server = SupervisedServer(COMMAND, 0.0)
    group = os.getpgid(server.pid)
    assert group not in (server.pid, os.getpgid(0))
    assert os.getpgid(group) == group
    end(server)


def test_a_server_without_a_shell_leads_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    spawn = os.posix_spawn

    def no_shell(path: str, *arguments: Any, **settings: Any) -> int:
        return spawn("/nowhere/sh" if path == "/bin/sh" else path, *arguments, **settings)

    monkeypatch.setattr(os, "posix_spawn", no_shell)
    server = SupervisedServer(COMMAND, 0.0)
    assert os.getpgid(server.pid) == server.pid
    end(server)


KILLED_AT_ONCE = """
import os, signal, sys
from reliability.supervised_server import SupervisedServer
spawn = os.posix_spawn
def spawn_and_die(path, *arguments, **settings):
    pid = spawn(path, *arguments, **settings)
    if path != "/bin/sh":
        os.write(1, b"started\\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return pid
os.posix_spawn = spawn_and_die
SupervisedServer([sys.executable, "-S", "-c", "import time; time.sleep(60)"], 0.0)
"""


def test_r31_a_server_ends_whose_supervisor_is_killed_in_the_moment_it_starts_it() -> None:
    """It has inherited the pipe for stderr, which is open for as long as it lives."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    supervisor = subprocess.run(
        [sys.executable, "-c", KILLED_AT_ONCE], env=environment, capture_output=True, timeout=20, check=False
    )
    assert supervisor.returncode == -signal.SIGKILL
    assert supervisor.stdout == b"started\n"
