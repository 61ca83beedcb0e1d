"""Every error of this package, each with what a caller needs in order to react (R43, R52, R58).

    ReliabilityError
    ├── ToolFailure        a failure that the tool foresaw; its text is meant for the client
    ├── DeadlineExceeded   a time limit ran out and the work was cancelled
    └── Overloaded         refused before any work began
        └── ShuttingDown   refused because the server is about to stop

The texts are safe to show to a client. Anything that is not in this tree is masked before it leaves the process.
"""

from __future__ import annotations

from typing import ClassVar


class ReliabilityError(Exception):
    """Base of the tree.

    Args:
        text: What went wrong, in words that a client may read.
        retryable: Whether the same call may succeed later; the class decides when it is None.
        retry_after_s: Seconds after which a retry makes sense, when that is known.
    """

    kind: ClassVar[str] = "error"
    retryable_by_default: ClassVar[bool] = False

    def __init__(self, text: str, *, retryable: bool | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.retryable = self.retryable_by_default if retryable is None else retryable
        self.retry_after_s = retry_after_s


class ToolFailure(ReliabilityError):
    """A failure that the tool's author foresaw: "No note is called 'x'"."""

    kind = "tool_error"


class DeadlineExceeded(ReliabilityError):
    """The time limit `limit_s` (seconds) ran out; the work was cancelled (R43)."""

    kind = "timeout"
    retryable_by_default = True

    def __init__(self, limit_s: float, *, what: str = "The call") -> None:
        super().__init__(f"{what} took longer than its limit of {limit_s:g} s and was stopped.")
        self.limit_s = limit_s


class Overloaded(ReliabilityError):
    """Refused without doing any work, because too much is in progress (R59)."""

    kind = "busy"
    retryable_by_default = True


class ShuttingDown(Overloaded):
    """Refused because the server has been asked to stop (R68)."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down and accepts no new calls.")
