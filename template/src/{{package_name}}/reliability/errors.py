"""Every error of this package, each with what a caller needs in order to react (R43, R52, R58).

    ReliabilityError
    ├── ToolFailure        a failure that the tool foresaw; its text is meant for the client
    │   ├── ConstraintViolated  a change that breaks a rule of the database
    │   ├── HostNotAllowed  a URL that must not be asked
    │   └── PathNotAllowed  a file or directory that must not be read
    ├── DeadlineExceeded   a time limit ran out and the work was cancelled
    │   └── NotEnoughTime  too little of it was left to begin
    ├── Overloaded         refused before any work began
    │   └── ShuttingDown   refused because the server is about to stop
    └── DependencyError    an HTTP API, a database or another dependency did not do its part
        ├── DependencyFailed    it answered with a failure
        │   ├── ConnectionBroken    it could not be reached, or broke off
        │   └── HttpStatusError     the failure is a status of HTTP: 5xx or 429 (in `http_response`)
        ├── DependencyTimeout   it did not answer within its own limit
        ├── DependencyBusy      too many calls to it are in progress already
        └── CircuitOpen         it failed too often of late and is left alone for a while

The texts are safe to show to a client. Anything that is not in this tree is masked before it leaves the process.
"""

from __future__ import annotations

from typing import ClassVar

_MOST_CAUSES, _LONGEST_WORDS = 4, 100


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


class HostNotAllowed(ToolFailure):
    """The caller's URL is not on the list of hosts that may be asked, or is no URL (R7)."""


class PathNotAllowed(ToolFailure):
    """The caller's path leads out of the directories that may be read, or to nothing that can be (R7)."""


class ConstraintViolated(ToolFailure):
    """The database refused a change, because it breaks a rule of the schema: its answer, not its failure.

    `rule` is "unique", "foreign key", "not null", "check", or "other".
    """

    def __init__(self, rule: str) -> None:
        super().__init__(f"The database refused the change: it breaks a rule ({rule}).")
        self.rule = rule


class DeadlineExceeded(ReliabilityError):
    """The time limit `limit_s` (seconds) ran out; the work was cancelled (R43)."""

    kind = "timeout"
    retryable_by_default = True

    def __init__(self, limit_s: float, *, what: str = "The call") -> None:
        super().__init__(f"{what} took longer than its limit of {limit_s:g} s and was stopped.")
        self.limit_s = limit_s


class NotEnoughTime(DeadlineExceeded):
    """Refused, because `left_s` seconds of the time limit were left, and it needs `needed_s` (R44)."""

    def __init__(self, left_s: float, needed_s: float, *, what: str = "The call") -> None:
        text = f"{what} was not begun: it needs {needed_s:.3g} s, and {left_s:.3g} s of the time limit are left."
        ReliabilityError.__init__(self, text)
        self.limit_s = self.left_s = left_s
        self.needed_s = needed_s


class Overloaded(ReliabilityError):
    """Refused without doing any work, because too much is in progress (R59)."""

    kind = "busy"
    retryable_by_default = True


class ShuttingDown(Overloaded):
    """Refused because the server has been asked to stop (R68)."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down and accepts no new calls.")


class DependencyError(ReliabilityError):
    """A dependency did not do its part. A fallback is served on these, and on nothing else but a timeout (R48).

    Args:
        dependency: The dependency's name.
        text: What went wrong, in words that a client may read; begins with a capital letter and ends with a full stop.
        retryable: As in `ReliabilityError`.
        retry_after_s: As in `ReliabilityError`.
    """

    kind = "dependency_failed"
    retryable_by_default = True

    def __init__(
        self, dependency: str, text: str, *, retryable: bool | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(text, retryable=retryable, retry_after_s=retry_after_s)
        self.dependency = dependency


class DependencyFailed(DependencyError):
    """It was asked and failed: a status of 5xx, a broken connection, a database that refuses (R55)."""


class ConnectionBroken(DependencyFailed):
    """It could not be reached, or broke off: its failure whatever else counts as one (R55).

    Args:
        dependency: The dependency's name.
        why: What happened, in a word or two.
    """

    def __init__(self, dependency: str, why: str) -> None:
        super().__init__(dependency, f"The connection to the dependency {dependency!r} broke ({why}).")


class DependencyTimeout(DependencyError):
    """It did not answer within `limit_s` seconds (R43, R47)."""

    kind = "dependency_timeout"

    def __init__(self, dependency: str, limit_s: float) -> None:
        super().__init__(dependency, f"The dependency {dependency!r} did not answer within {limit_s:g} s.")
        self.limit_s = limit_s


class DependencyBusy(DependencyError):
    """Refused before it was asked: its bulkhead or its pool is full, and so is the queue (R35, R59)."""

    kind = "dependency_busy"


class CircuitOpen(DependencyError):
    """Refused before it was asked: it failed too often of late (R58). `retry_after_s` says when it is tried again."""

    kind = "circuit_open"

    def __init__(self, dependency: str, *, retry_after_s: float | None, because: str = "it failed too often") -> None:
        when = "." if retry_after_s is None else f"; it is tried again in {retry_after_s:.3g} s."
        super().__init__(
            dependency,
            f"The dependency {dependency!r} is not asked, because {because}{when}",
            retry_after_s=retry_after_s,
        )


def cause_of(error: BaseException) -> str:
    """What `error` was raised from, for the log: the types, and the operating system's words.

    Nothing else of their texts, because these may quote what a dependency has sent.
    """
    found: list[str] = []
    cause = error.__cause__
    while cause is not None and len(found) < _MOST_CAUSES:
        words = cause.strerror if isinstance(cause, OSError) else None
        found.append(type(cause).__name__ + (f" ({words[:_LONGEST_WORDS]})" if isinstance(words, str) else ""))
        cause = cause.__cause__
    return ", from ".join(found)
