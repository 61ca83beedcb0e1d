"""What a circuit breaker remembers of the latest calls, in memory that never grows (R54).

Three kinds, one face: the last N calls, the calls of the last N seconds, or the failures in a row. Each keeps its sums
up to date, so that recording a call and reading the sums cost the same however large the window is.
"""

from __future__ import annotations

from typing import Literal

OK, FAILED, SLOW = 0, 1, 2
"""How a call ended; bits, because a call may have failed slowly. Plain numbers: every call records one."""

WindowType = Literal["count", "time", "consecutive"]


class SlidingWindow:
    """The sums over some latest calls; what these are is up to the kind."""

    __slots__ = ("calls", "failures", "slow")

    def __init__(self) -> None:
        self.calls = 0
        self.failures = 0
        self.slow = 0

    def record(self, outcome: int, now: float) -> None:
        """Count a call that ended at `now`, in monotonic seconds, with `outcome`, a union of `FAILED` and `SLOW`."""
        raise NotImplementedError

    def expire(self, now: float) -> None:
        """Forget what is too old at `now`; `record` does it by itself."""

    def __str__(self) -> str:
        return f"{self.failures} of {self.calls} calls failed, {self.slow} took too long"


class CountWindow(SlidingWindow):
    """The last `size` calls, one byte each."""

    __slots__ = ("_next", "_outcomes", "_size")

    def __init__(self, size: int) -> None:
        super().__init__()
        self._outcomes = bytearray(size)
        self._size = size
        self._next = 0

    def record(self, outcome: int, now: float) -> None:  # noqa: ARG002 - the face of all windows
        """Count a call; the oldest one makes room for it."""
        oldest = self._outcomes[self._next]  # `OK` where none is yet: nothing to subtract
        self._outcomes[self._next] = outcome
        self._next = (self._next + 1) % self._size
        if self.calls < self._size:
            self.calls += 1
        if outcome != oldest:
            self.failures += (outcome & FAILED) - (oldest & FAILED)
            self.slow += (outcome // SLOW) - (oldest // SLOW)


class TimeWindow(SlidingWindow):
    """The calls of the last `size_s` seconds, in one bucket for each second of the clock.

    The current second is not over yet: the window reaches back between `size_s - 1` and `size_s` seconds.
    """

    __slots__ = ("_buckets", "_second", "_size_s")

    def __init__(self, size_s: int) -> None:
        super().__init__()
        self._buckets = [[0, 0, 0] for _ in range(size_s)]
        self._size_s = size_s
        self._second = 0

    def record(self, outcome: int, now: float) -> None:
        """Count a call in the bucket of its second."""
        self.expire(now)
        bucket = self._buckets[self._second % self._size_s]
        bucket[0] += 1
        self.calls += 1
        if outcome:
            bucket[1] += outcome & FAILED
            bucket[2] += outcome // SLOW
            self.failures += outcome & FAILED
            self.slow += outcome // SLOW

    def expire(self, now: float) -> None:
        """Empty the buckets of the seconds that have left the window, which are those of the seconds come since."""
        second = int(now)
        if second == self._second:
            return
        for come in range(max(self._second, second - self._size_s) + 1, second + 1):
            bucket = self._buckets[come % self._size_s]
            self.calls -= bucket[0]
            self.failures -= bucket[1]
            self.slow -= bucket[2]
            bucket[:] = 0, 0, 0
        self._second = second


class ConsecutiveWindow(SlidingWindow):
    """Only the failures in a row and the slow calls in a row; a call that is neither ends both (R54)."""

    __slots__ = ()

    def record(self, outcome: int, now: float) -> None:  # noqa: ARG002 - the face of all windows
        """Lengthen the rows that go on, and end the others."""
        self.failures = self.failures + 1 if outcome & FAILED else 0
        self.slow = self.slow + 1 if outcome & SLOW else 0
        self.calls = max(self.failures, self.slow)


def sliding_window(kind: WindowType, size: int) -> SlidingWindow:
    """An empty window of `size` calls ("count") or seconds ("time"); "consecutive" needs no size."""
    if kind == "consecutive":
        return ConsecutiveWindow()
    return CountWindow(size) if kind == "count" else TimeWindow(size)
