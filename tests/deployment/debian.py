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
    """Return the program `name` of a package."""
    return unpacked(package) / "usr" / "bin" / name


def unpacked(*packages: str) -> Path:
    """Return the directory that holds the files of the packages, from this machine's mirror, cached between runs."""
    directory = cache() / "-".join(["debian", RELEASE, *packages])
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
            _unpack(packages, Path(scratch))
            try:
                (Path(scratch) / "root").rename(directory)  # whole or not at all
            except OSError:  # another run was quicker
                assert directory.exists()
    return directory


def cache() -> Path:
    """Return the directory for what outlives a run."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcp-scaffold-tests"


def mirror() -> str:
    """Return the address of Debian's packages that this machine uses; without one the test is skipped."""
    text = "\n".join(path.read_text() for path in _SOURCES if path.exists())
    found = re.search(r"^(?:URIs:|deb(?: \[.*?\])?) +(\S+)", text, re.MULTILINE)
    if found is None or not shutil.which("apt-get") or not _KEYS.exists():
        pytest.skip("a program that the test needs is not installed, and this is no Debian to take it from")
    return found[1]


def _unpack(packages: tuple[str, ...], directory: Path) -> None:
    for folder in ("lists/partial", "cache/archives/partial"):
        (directory / folder).mkdir(parents=True)
    (directory / "sources.list").write_text(f"deb [signed-by={_KEYS}] {mirror()} {RELEASE} main\n")
    (directory / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{directory}/sources.list"; Dir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State::Lists "{directory}/lists"; Dir::Cache "{directory}/cache"; Dir::State::status "/dev/null";\n'
        'APT::Sandbox::User "root";\n'
    )
    for command in (["apt-get", "update", "-qq"], ["apt-get", "download", "-qq", *packages]):
        _run(*command, cwd=directory)
    for archive in directory.glob("*.deb"):
        _run("dpkg-deb", "-x", str(archive), "root", cwd=directory)


def _run(*command: str, cwd: Path) -> None:
    environment = {**os.environ, "APT_CONFIG": str(cwd / "apt.conf")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
