"""The two pipes that a client talks through. Imports next to nothing, because it comes before everything else."""

from __future__ import annotations

import os
import sys

_WIDE_BYTES = 1_048_576


def expect_client(name: str) -> None:
    """End the process with a sentence where stdin or stdout is closed, and tell a person at a terminal what it does.

    Args:
        name: The program's name.
    """
    if not (is_open(0) and is_open(1)):
        raise SystemExit(f"{name}: stdin or stdout is closed; a client must keep both open to talk to it.")
    if os.isatty(0):
        os.write(2, f"{name}: waiting for an MCP client on stdin; Ctrl-C stops it.\n".encode())


def is_open(fd: int) -> bool:
    """Whether a descriptor is there."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def widen(fd: int) -> None:
    """Let much fit into a pipe: long lines pass in few steps, and who writes is not held up."""
    if sys.platform == "linux":
        import fcntl

        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _WIDE_BYTES)
        except OSError:  # no pipe, or the system's limit is lower
            return
