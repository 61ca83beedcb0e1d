"""A Docker Engine for the tests: the one that runs here, or one of their own out of Debian's packages.

Where nothing answers to `docker info`, and the tests run as root on a Debian machine, the packages are unpacked into
the cache and the engine is started from there; only the few programs that it needs from the system are installed. Its
images stay in the cache as well, so that the next run is a matter of seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deployment.debian import cache, mirror, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNPACKED = ("docker.io", "docker-cli", "docker-buildx", "docker-compose", "containerd", "tini")
_INSTALLED = ("runc", "iptables", "mmdebstrap")
"""Programs that are not unpacked but installed, because they need libraries; their packages have the same names."""
_START_S = 30


class Engine:
    """The command `docker`, and Compose as `docker compose`.

    Args:
        environment: With it, the command finds its engine.
        is_own: Whether the tests started that engine; then they also make stand-ins for images that cannot be pulled.
    """

    def __init__(self, environment: dict[str, str], *, is_own: bool) -> None:
        self.environment = environment
        self.is_own = is_own

    def __call__(
        self,
        *arguments: object,
        timeout_s: float = 60,
        directory: Path | None = None,
        variables: dict[str, str] | None = None,
        text: str | None = None,
    ) -> str:
        """Run a command and return what it printed on stdout.

        Raises:
            AssertionError: It failed; with all that it printed.
        """
        done = self.attempt(*arguments, timeout_s=timeout_s, directory=directory, variables=variables, text=text)
        assert done.returncode == 0, f"docker {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def attempt(
        self,
        *arguments: object,
        timeout_s: float = 60,
        directory: Path | None = None,
        variables: dict[str, str] | None = None,
        text: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail."""
        return subprocess.run(
            self.command(*arguments),
            cwd=directory,
            env={**self.environment, **(variables or {})},
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def command(self, *arguments: object) -> list[str]:
        """Return the command line, for a process that the test starts itself."""
        return ["docker", *map(str, arguments)]

    def has(self, image: str) -> bool:
        """Whether there is an image of this name."""
        return self.attempt("image", "inspect", image).returncode == 0

    @contextlib.contextmanager
    def container(self, *arguments: object) -> Iterator[str]:
        """Run a container in the background while the body runs; it is removed with its volumes."""
        identity = self("run", "--detach", *arguments)
        try:
            yield identity
        except BaseException:
            logs = self.attempt("logs", identity)
            sys.stderr.write(logs.stdout + logs.stderr)  # pytest shows it beside the failure
            raise
        finally:
            self("rm", "--force", "--volumes", identity)

    def until(self, identity: str, template: str, wanted: str, *, within_s: float) -> float:
        """Wait until the container looks like that (`docker inspect --format`); the seconds that it took."""
        begin = time.monotonic()
        while (seen := self("inspect", "--format", template, identity)) != wanted:
            assert time.monotonic() - begin < within_s, f"{template} is {seen}, not {wanted}, after {within_s} s"
            time.sleep(0.1)
        return time.monotonic() - begin


@contextlib.contextmanager
def docker_engine() -> Iterator[Engine]:
    """Find an engine, or start one that ends with the body; where neither is possible the test is skipped."""
    found = Engine(dict(os.environ), is_own=False)
    if shutil.which("docker") and _answers(found) and _is_complete(found):
        yield found
        return
    _must_be_possible()
    directory = cache() / "docker"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two engines must not share a directory: another run's has to end first
        _install()
        with _running(unpacked(*_UNPACKED), directory / "data") as engine:
            yield engine


def _answers(engine: Engine) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = engine.attempt("info", "--format", "{{.ServerVersion}}", timeout_s=10)
        return done.returncode == 0 and bool(done.stdout.strip())
    return False


def _is_complete(engine: Engine) -> bool:
    plugins = ("buildx", "compose")
    return all(engine.attempt(plugin, "version").returncode == 0 for plugin in plugins)


def _must_be_possible() -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip(
            "no Docker Engine with buildx and compose runs here, and the tests start one only as root on Debian"
        )
    mirror()


def _install() -> None:
    """Install what the engine needs from the system itself."""
    missing = [program for program in _INSTALLED if not shutil.which(program, path=_system_path())]
    if not missing:
        return
    _run("apt-get", "update", "-qq")
    _run(
        *("apt-get", "install", "-qq", "--no-install-recommends", *missing),
        environment={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )


@contextlib.contextmanager
def _running(root: Path, data: Path) -> Iterator[Engine]:
    """Start the engine that is unpacked in `root`; what it runs ends with it."""
    run = Path(tempfile.mkdtemp(prefix="docker-"))  # a socket's path must be short
    plugins = run / "config" / "cli-plugins"
    plugins.mkdir(parents=True)
    for plugin in (root / "usr/libexec/docker/cli-plugins").iterdir():
        (plugins / plugin.name).symlink_to(plugin)
    environment = {
        **os.environ,
        "DOCKER_HOST": f"unix://{run}/docker.sock",
        "DOCKER_CONFIG": str(run / "config"),
        "PATH": os.pathsep.join([str(root / "usr/bin"), str(root / "usr/sbin"), _system_path()]),
    }
    with (run / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [
                *("dockerd", "--data-root", data, "--exec-root", run / "exec", "--pidfile", run / "pid"),
                *("--host", environment["DOCKER_HOST"], "--storage-driver", "overlay2"),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield _started(daemon, environment, run / "log")
    finally:
        daemon.terminate()
        daemon.wait(_START_S)
        for line in Path("/proc/mounts").read_text().splitlines():  # the engine leaves one of its own behind
            if (place := line.split()[1]).startswith(f"{run}/"):
                _run("umount", place)
        shutil.rmtree(run)


def _started(daemon: subprocess.Popen[bytes], environment: dict[str, str], log: Path) -> Engine:
    engine = Engine(environment, is_own=True)
    due = time.monotonic() + _START_S
    while not _answers(engine):
        assert daemon.poll() is None, log.read_text()[-5000:]
        assert time.monotonic() < due, log.read_text()[-5000:]
        time.sleep(0.1)
    leftovers = engine("ps", "--all", "--quiet").split()  # of a run that was killed
    if leftovers:
        engine("rm", "--force", "--volumes", *leftovers)
    return engine


def _system_path() -> str:
    """Return the search path, with the directories of the system's own programs, which not everybody's has."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def _run(*command: object, environment: dict[str, str] | None = None, directory: Path | None = None) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
