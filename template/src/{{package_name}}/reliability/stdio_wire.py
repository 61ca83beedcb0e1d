"""Takes the protocol's two pipes out of everybody else's reach (R5, R8).

From here on descriptor 1 is stderr and descriptor 0 is empty, for this process and for every child: a stray `print`,
a C library that writes to stdout, a child process that prints or reads, none of them can touch the protocol.
It must run before anything else is imported, because an import may print; so this module imports next to nothing.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

_FIRST_FREE_FD = 3


class Wire(NamedTuple):
    """The private descriptors of the protocol: `read_fd` for requests, `write_fd` for answers."""

    read_fd: int
    write_fd: int


def claim_wire(name: str) -> Wire:
    """Move the protocol to private descriptors and divert the standard ones.

    Ends the process with a sentence when stdin or stdout is closed, so that there is nobody to talk to.

    Args:
        name: The program's name, for what is said to a person.
    """
    try:
        wire = Wire(_private_copy(0), _private_copy(1))
    except OSError:
        raise SystemExit(f"{name}: stdin or stdout is closed; a client must keep both open to talk to it.") from None
    if os.isatty(wire.read_fd):
        os.write(2, f"{name}: waiting for an MCP client on stdin; Ctrl-C stops it.\n".encode())
    _divert(0, os.open(os.devnull, os.O_RDONLY))
    try:
        _divert(1, os.dup(2))
    except OSError:  # started without a stderr
        _divert(1, os.open(os.devnull, os.O_WRONLY))
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
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
