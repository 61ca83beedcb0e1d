"""The servers that are compared, and the way to start each of them."""

from __future__ import annotations

import compileall
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
ROOT = HERE.parent


OPEN_DOOR = {"BENCH_SERVER_HTTP_ALLOW_UNAUTHENTICATED": "true", "BENCH_SERVER_HTTP_RATE_LIMIT_PER_MINUTE": "0"}
"""The competitors neither ask who calls nor count how often."""


@dataclass(frozen=True)
class Contestant:
    """One server. `stdio` and `http` are its commands; a port is appended to `http` or set in the environment."""

    name: str
    stdio: list[str]
    http: list[str]
    environment: dict[str, str]
    port_variable: str | None = None

    def http_command(self, port: int) -> tuple[list[str], dict[str, str]]:
        """Command and environment that serve on `port`."""
        if self.port_variable is None:
            return [*self.http, str(port)], self.environment
        return self.http, self.environment | {self.port_variable: str(port)}


@contextmanager
def contestants(directory: Path) -> Iterator[list[Contestant]]:
    """Render a server with everything on below `directory`, and name its competitors."""
    import copier

    project = directory / "bench-server"
    copier.run_copy(
        str(ROOT),
        project,
        data={"preset": "full", "storage": "none", "examples": ["notes"], "project_name": "bench-server"},
        vcs_ref="HEAD",
        defaults=True,
        quiet=True,
        settings=copier.Settings(),
    )
    compileall.compile_dir(project / "src", quiet=1)  # as an installation does; some environments forbid it later
    environment = dict(os.environ)
    python = sys.executable
    yield [
        Contestant(
            "generated",
            [python, "-m", "bench_server", "stdio"],
            [python, "-m", "bench_server", "http"],
            environment | {"PYTHONPATH": str(project / "src")} | OPEN_DOOR,
            "BENCH_SERVER_HTTP_PORT",
        ),
        Contestant(
            "bare SDK",
            [python, str(HERE / "servers" / "bare.py"), "stdio"],
            [python, str(HERE / "servers" / "bare.py"), "http"],
            environment,
        ),
        Contestant(
            "FastMCP",
            [python, str(HERE / "servers" / "peer.py"), "stdio"],
            [python, str(HERE / "servers" / "peer.py"), "http"],
            environment,
        ),
    ]
