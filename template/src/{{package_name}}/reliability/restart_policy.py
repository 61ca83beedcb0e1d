"""When a server that ended is started again, and when it is left alone (R29, R30).

The wait doubles from death to death, until the server has lived for a stable time. Deaths are counted in a window of
time beside that: a server that ends again and again is given up. Only time that servers lived counts, because waits
longer than the window would let a server end for ever. Knows no process and reads no clock.
"""

from __future__ import annotations

import os
from collections import deque

TYPE_CHECKING = False  # of `typing`, which is not imported: the supervisor is small
if TYPE_CHECKING:
    from collections.abc import Callable

_JITTER = 0.2
_MAX_DOUBLINGS = 32


def _share() -> float:
    """A number from 0 to 1, without the module `random` and what it imports."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


class RestartPolicy:
    """Counts the deaths of one server.

    Args:
        max_restarts: Restarts within the window; the death after that is the last one. 0: never start again.
        window_s: Length of the window, in seconds that servers lived.
        stable_s: A server that lived so long has recovered: the next wait is the first one again.
        initial_s: The first wait, a fifth more or less.
        max_s: The longest wait.
        random: Gives a number from 0 to 1.

    Raises:
        ValueError: A number is negative.
    """

    def __init__(
        self,
        *,
        max_restarts: int = 5,
        window_s: float = 60.0,
        stable_s: float = 10.0,
        initial_s: float = 0.25,
        max_s: float = 30.0,
        random: Callable[[], float] = _share,
    ) -> None:
        if min(max_restarts, window_s, stable_s, initial_s, max_s) < 0:
            raise ValueError("no number of a restart policy may be negative")
        self._max_restarts = max_restarts
        self._window_s = window_s
        self._stable_s = stable_s
        self._initial_s = initial_s
        self._max_s = max_s
        self._random = random
        self._lived_s = 0.0
        self._restarts: deque[float] = deque()
        """How long servers had lived in all by each restart of the window."""
        self._doublings = 0

    def next_wait_s(self, *, lived_s: float, asked: bool = False) -> float | None:
        """The server has ended: seconds until the next start, or None to give up; then the window is empty again.

        Args:
            lived_s: How long it had lived.
            asked: It ended in order to be started anew, and lost nothing: after a stable time that needs no wait.
        """
        self._lived_s += lived_s
        while self._restarts and self._restarts[0] <= self._lived_s - self._window_s:
            self._restarts.popleft()
        if len(self._restarts) >= self._max_restarts:
            self._restarts.clear()
            return None
        self._restarts.append(self._lived_s)
        stable = lived_s >= self._stable_s
        self._doublings = 0 if stable else self._doublings
        if asked and stable:
            return 0.0
        wait_s = self._initial_s * 2.0 ** min(self._doublings, _MAX_DOUBLINGS)
        self._doublings += 1
        return min(self._max_s, wait_s * (1 - _JITTER + 2 * _JITTER * self._random()))
