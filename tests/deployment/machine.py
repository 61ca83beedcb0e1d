"""A machine within this one, with systemd as its first process, for what a test does to a system.

It has processes, mounts, control groups and a name of its own (namespaces of Linux), and the network of this one. What
is written to its /etc, /opt, /run and /var is gone when it ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deployment.debian import mirror

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SYSTEMD = Path("/lib/systemd/systemd")
_NAMESPACES = ("--mount", "--pid", "--uts", "--ipc", "--cgroup")
_START_S = 20

# What systemd needs and nothing else: none of the units, devices and kernel settings of this machine are its business.
_BOOT = """
set -eu
mount --make-rprivate /
mount -t cgroup2 none /sys/fs/cgroup
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t tmpfs none /run
mount -t tmpfs none /mnt
cd /mnt
mkdir -p dev opt units etc.upper etc.work var.upper var.work
mount -t tmpfs none dev
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
    mknod -m 666 dev/${device%%:*} c $(echo ${device#*:} | tr : " ")
done
mkdir dev/pts dev/shm dev/mqueue
mount -t devpts -o newinstance,ptmxmode=0666 none dev/pts
mount -t tmpfs none dev/shm
mount -t mqueue none dev/mqueue
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
mount --move dev /dev
mount --bind opt /opt
for name in etc var; do
    mount -t overlay overlay -o lowerdir=/$name,upperdir=$name.upper,workdir=$name.work /$name
done
for name in sysinit basic multi-user network-online shutdown umount; do
    printf '[Unit]\\nDefaultDependencies=no\\n' >units/$name.target
done
printf '[Unit]\\nDefaultDependencies=no\\nRequires=basic.target systemd-journald.service\\n' >units/machine.target
cp /lib/systemd/system/systemd-journald.service /lib/systemd/system/systemd-journald.socket units
mkdir -p /etc/systemd/journald.conf.d
printf '[Journal]\\nAudit=no\\nReadKMsg=no\\nStorage=volatile\\n' >/etc/systemd/journald.conf.d/machine.conf
mount --make-rshared /
export container=other SYSTEMD_UNIT_PATH=/etc/systemd/system:/mnt/units SYSTEMD_GENERATOR_PATH=
exec /lib/systemd/systemd --system --unit=machine.target --log-target=journal-or-kmsg --show-status=no
"""


class Machine:
    """Runs commands in the machine.

    Args:
        pid: Its first process, as this machine counts.
        environment: Variables of the commands.
    """

    def __init__(self, pid: int, environment: Mapping[str, str]) -> None:
        self.pid = pid
        self.environment = dict(environment)

    def __call__(self, script: str, *, directory: str = "/", timeout_s: float = 60) -> str:
        """Run commands until one fails; return everything that they printed.

        Raises:
            AssertionError: One failed.
        """
        done = self.attempt(script, directory=directory, timeout_s=timeout_s)
        assert done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout

    def attempt(self, script: str, *, directory: str = "/", timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run commands, of which `sudo` is none: everything is done by root."""
        return subprocess.run(
            [
                *("nsenter", "--target", str(self.pid), *_NAMESPACES, "bash", "-euo", "pipefail", "-c"),
                f'sudo() {{ "$@"; }}\ncd {directory}\n{script}',
            ],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout_s,
        )


@contextlib.contextmanager
def machine(environment: Mapping[str, str]) -> Iterator[Machine]:
    """Start a machine that ends with the body; where that is not possible the test is skipped."""
    install_systemd()
    group = _control_group()
    try:
        with subprocess.Popen(
            ["bash", "-c", 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"', "-", group, *_unshare(), _BOOT],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as outer:
            try:
                yield _started(outer, environment)
            finally:
                outer.send_signal(signal.SIGKILL)
    finally:
        _remove(group)


def install_systemd() -> None:
    """Have the programs of systemd on this machine; where that is not possible the test is skipped."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("a machine with systemd within this one can be made only by root, and only on Linux")
    if _SYSTEMD.exists() and shutil.which("systemd-analyze"):
        return
    mirror()
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-qq", "--no-install-recommends", "systemd"]):
        variables = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr


def _control_group() -> Path:
    """Make a control group of the unified kind."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next((mount[1] for mount in mounts if mount[2] == "cgroup2"), None)
    own = [line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    if root is None or not own:
        pytest.skip("this machine has no unified control groups, which systemd needs")
    group = Path(root, own[0].removeprefix("0::/"), f"machine-{secrets.token_hex(4)}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here, and systemd needs one: {error}")
    return group


def _unshare() -> list[str]:
    return ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc", "bash", "-c"]


def _started(outer: subprocess.Popen[str], environment: Mapping[str, str]) -> Machine:
    due = time.monotonic() + _START_S
    while True:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        if children:
            found = Machine(int(children[0]), environment)
            if found.attempt("systemctl is-active --quiet machine.target").returncode == 0:
                return found
        assert outer.poll() is None, outer.stdout and outer.stdout.read()
        assert time.monotonic() < due, "the machine does not start"
        time.sleep(0.05)


def _remove(group: Path) -> None:
    """Remove the control groups as soon as their last processes are gone."""
    due = time.monotonic() + _START_S
    while group.exists() and time.monotonic() < due:
        for directory, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
        time.sleep(0.05)
