"""Every error that a person is meant to read, and the exit codes of the command line.

    ScaffoldError
      UsageError      2    an option, an answer or a combination of them is wrong
      StateError      3    the destination or the project is in no state for it
      OutsideError    4    git, the disk, the network or the template is in the way
      Interrupted   130    Ctrl-C, or SIGTERM (143) and SIGHUP (129)

Anything else that is raised is a defect of ours and ends with a traceback.
"""

from __future__ import annotations

import errno
from enum import IntEnum


class Exit(IntEnum):
    """The exit codes; `--help` documents them."""

    OK = 0
    ATTENTION = 1
    USAGE = 2
    STATE = 3
    OUTSIDE = 4
    INTERRUPTED = 130


class ScaffoldError(Exception):
    """One sentence that says what is wrong; `hint` says what to do about it."""

    exit_code: int = Exit.OUTSIDE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ScaffoldError):
    """An option, an answer or a combination of them is wrong."""

    exit_code = Exit.USAGE


class StateError(ScaffoldError):
    """The destination or the project is in no state for what was asked."""

    exit_code = Exit.STATE


class OutsideError(ScaffoldError):
    """Something outside is in the way: git, the disk, the network, the template."""

    exit_code = Exit.OUTSIDE


class Interrupted(ScaffoldError):
    """A person or a signal stopped the command; what it had begun is undone."""

    def __init__(self, message: str, *, exit_code: int = Exit.INTERRUPTED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def disk_error(error: OSError) -> OutsideError:
    """Tell an OSError: which file is concerned, and why."""
    what = f"`{error.filename}` cannot be written" if error.filename else "Writing failed"
    hints = {
        errno.ENOSPC: "Free some space and try again.",
        errno.EDQUOT: "Free some of your quota and try again.",
        errno.EACCES: "Choose a directory that you may write to.",
        errno.EPERM: "Choose a directory that you may write to.",
        errno.EROFS: "The file system is read-only; choose another directory.",
    }
    reason = (error.strerror or str(error)).rstrip(".")
    return OutsideError(f"{what}: {reason}.", hint=hints.get(error.errno or 0, ""))
