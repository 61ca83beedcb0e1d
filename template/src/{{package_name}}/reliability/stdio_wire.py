"""Takes the protocol's two pipes out of everybody else's reach (R5, R8).

From here on descriptor 0 is empty and descriptor 1 leads into the log, for this process and for every child: a stray
`print`, a C library that writes to stdout, a child process that prints or reads, none of them can touch the protocol,
and none can be held up by a stderr that nobody reads.
It must run before anything else is imported, because an import may print; so this module imports next to nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import NamedTuple

from .client_pipes import expect_client, widen

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 8_192
_PAUSE_S = 0.05
_FIRST_FREE_FD = 3


class Wire(NamedTuple):
    """The private descriptors of the protocol: `read_fd` for requests, `write_fd` for answers.

    `parent_pid` is the process that started this one.
    """

    read_fd: int
    write_fd: int
    parent_pid: int


def claim_wire(name: str) -> Wire:
    """Move the protocol to private descriptors and divert the standard ones.

    Ends the process with a sentence when stdin or stdout is closed, so that there is nobody to talk to.

    Args:
        name: The program's name, for what is said to a person.
    """
    expect_client(name)
    wire = Wire(_private_copy(0), _private_copy(1), os.getppid())
    _divert(0, os.open(os.devnull, os.O_RDONLY))
    log_end, write_end = os.pipe()
    widen(write_end)  # C code that prints much while it holds the interpreter's lock lets nobody empty the pipe
    _divert(1, write_end)
    threading.Thread(target=_log_output, args=(log_end,), name="stray-output", daemon=True).start()
    # A new object, because the old one may still believe that it writes to a file with a position.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    return wire


def _private_copy(fd: int) -> int:
    """A copy of `fd` outside the standard range that no child process inherits."""
    if sys.platform == "win32":
        import msvcrt

        copy = os.dup(fd)
        msvcrt.setmode(copy, os.O_BINARY)
        return copy
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)


def _divert(fd: int, target: int) -> None:
    os.dup2(target, fd)
    os.close(target)


def _log_output(fd: int) -> None:
    """Log what is written to `fd`, line by line, until nobody can write to it any more."""
    while not logging.getLogger().handlers:  # what an import prints waits until it can be a line like the others
        time.sleep(_PAUSE_S)
    partial = b""
    while chunk := os.read(fd, _CHUNK_BYTES):
        *lines, partial = (partial + chunk).split(b"\n")
        if len(partial) >= _CHUNK_BYTES:  # a line without an end is not waited for
            lines.append(partial)
            partial = b""
        for line in lines:
            if line.strip():
                logger.warning("printed to stdout: %s", line.decode(errors="replace"))
