"""Programs of Debian's packages, unpacked beside the system and not installed: for machines that lack them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

RELEASE = "trixie"
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SOURCES = [Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")]


def program(name: str, *, package: str) -> Path:
    """Return the program `name` of a package, from the mirror that this machine uses, cached between runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcp-scaffold-tests"
    unpacked = cache / f"debian-{RELEASE}-{package}"
    if not unpacked.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            _unpack(package, Path(directory))
            try:
                (Path(directory) / "root").rename(unpacked)  # whole or not at all
            except OSError:  # another run was quicker
                assert unpacked.exists()
    return unpacked / "usr" / "bin" / name


def _unpack(package: str, directory: Path) -> None:
    mirror = _mirror()
    if mirror is None or not shutil.which("apt-get") or not _KEYS.exists():
        pytest.skip(f"{package} is not installed, and this is no Debian to take it from")
    for folder in ("lists/partial", "cache/archives/partial"):
        (directory / folder).mkdir(parents=True)
    (directory / "sources.list").write_text(f"deb [signed-by={_KEYS}] {mirror} {RELEASE} main\n")
    (directory / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{directory}/sources.list"; Dir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State::Lists "{directory}/lists"; Dir::Cache "{directory}/cache"; Dir::State::status "/dev/null";\n'
        'APT::Sandbox::User "root";\n'
    )
    for command in (["apt-get", "update", "-qq"], ["apt-get", "download", "-qq", package]):
        _run(*command, cwd=directory)
    (archive,) = directory.glob("*.deb")
    _run("dpkg-deb", "-x", str(archive), "root", cwd=directory)


def _mirror() -> str | None:
    text = "\n".join(path.read_text() for path in _SOURCES if path.exists())
    found = re.search(r"^(?:URIs:|deb(?: \[.*?\])?) +(\S+)", text, re.MULTILINE)
    return found and found[1]


def _run(*command: str, cwd: Path) -> None:
    environment = {**os.environ, "APT_CONFIG": str(cwd / "apt.conf")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
