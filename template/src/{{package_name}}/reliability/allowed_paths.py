"""Which files and directories tools may read (R7).

Whoever asks names a path; a model does so for everyone whose text it has read. The path is followed to its end, through
`..` and symbolic links, before it is held against the list.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from .errors import PathNotAllowed

_SHOWN_CHARACTERS = 200
_NEVER_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class AllowedPaths:
    """The directories that tools may read, with everything below them.

    Args:
        roots: The directories; `~` is the home directory. None at all allows nothing.
        setting: Names the setting that lists them, for errors.
    """

    def __init__(self, roots: Iterable[str], *, setting: str) -> None:
        self._roots = [Path(root).expanduser() for root in roots]
        self._setting = setting

    def root_of(self, path: Path) -> Path:
        """The root that `path`, as `resolve` returned it, is in."""
        return next(root for root in self._real_roots() if path.is_relative_to(root))

    def resolve(self, path: str) -> Path:
        """The true place of a file or directory; a relative path is one below the first root.

        Raises:
            PathNotAllowed: It is outside of all roots, or there is nothing.
        """
        if not self._roots:
            raise PathNotAllowed(f"No directory may be read. {self._setting} lists those that may.")
        shown = repr(path[:_SHOWN_CHARACTERS])
        if "\0" in path:
            raise PathNotAllowed(f"{shown} is no path.")
        try:
            real = Path(os.path.realpath(self._roots[0] / Path(path).expanduser()))
        except RuntimeError:  # `~name`, and nobody has that name
            raise PathNotAllowed(f"There is no {shown}.") from None
        roots = self._real_roots()
        if not any(real.is_relative_to(root) for root in roots):
            raise PathNotAllowed(f"{shown} is outside of what {self._setting} allows: {', '.join(map(str, roots))}.")
        if not os.path.exists(real):  # noqa: PTH110 - never raises; and only now: what is elsewhere is none of the caller's business
            raise PathNotAllowed(f"There is no {shown}.")
        return real

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """The contents of a file. It blocks: call it in a thread.

        Raises:
            PathNotAllowed: As for `resolve`; or it is no ordinary file, is larger than `max_bytes`, or unreadable.
        """
        real = self.resolve(path)
        try:
            with open(real, "rb", opener=lambda name, flags: os.open(name, flags | _NEVER_WAIT)) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a pipe or a device might never end
                    raise PathNotAllowed(f"{path[:_SHOWN_CHARACTERS]!r} is not a file.")
                data = file.read(max_bytes + 1)
        except OSError as error:
            raise PathNotAllowed(f"{path[:_SHOWN_CHARACTERS]!r} cannot be read: {error.strerror}.") from None
        if len(data) > max_bytes:
            raise PathNotAllowed(f"{path[:_SHOWN_CHARACTERS]!r} is larger than the limit of {max_bytes:,} bytes.")
        return data

    def _real_roots(self) -> list[Path]:
        return [Path(os.path.realpath(root)) for root in self._roots]
