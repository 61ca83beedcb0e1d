"""What a client may see of a failure (R4, R52).

The SDK wraps what a handler raises; the functions here give the original back. Errors of this package, and those that
an author raised on purpose (`ToolFailure`, `ToolError`, `ResourceError`), keep their text. Everything else may hold a
password, a path or a query: the client learns that it happened, whether a retry makes sense, and a reference that
finds the traceback in the server's log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from mcp.server.mcpserver.exceptions import (
    ResourceError,
    ResourceNotFoundError,
    ToolError,
    UnexpectedResourceError,
    UnexpectedToolError,
)
from mcp_types import CallToolResult, TextContent
from pydantic import ValidationError

from .errors import DependencyError, ReliabilityError, ToolFailure

ERROR_META = "reliability/error"
"""Key in a failed result's `_meta`: the kind, whether and when to retry, and the reference."""

_FATAL = (SystemExit, KeyboardInterrupt, GeneratorExit)
"""One call must not end the process; Ctrl-C is not among them, because it never arrives as an exception here."""
_SHOWN_CHARACTERS = 100
_LONGEST_TEXT = 4_000


@contextmanager
def tool_errors() -> Iterator[None]:
    """Raise what the tool raised, in place of the SDK's wrapper."""
    try:
        yield
    except UnexpectedToolError as error:
        _raise_original(error)
    except ToolError as error:
        if isinstance(error.__cause__, ValidationError):
            raise ToolFailure(f"Invalid arguments: {_problems(error.__cause__)}.") from None
        _raise_original(error)
    except _FATAL as error:
        raise RuntimeError(f"{type(error).__name__} was raised") from error


@contextmanager
def resource_errors() -> Iterator[None]:
    """Raise what the resource raised, in place of the SDK's wrapper."""
    try:
        yield
    except ResourceNotFoundError:
        raise
    except UnexpectedResourceError as error:
        _raise_original(error)
    except ResourceError as error:
        raise ToolFailure(str(error)) from error
    except _FATAL as error:
        raise RuntimeError(f"{type(error).__name__} was raised") from error


@contextmanager
def prompt_errors() -> Iterator[None]:
    """Raise what the prompt raised, in place of the SDK's two wrappers."""
    try:
        yield
    except ValueError as error:
        rendering = error.__cause__ or error
        cause = rendering.__cause__
        if cause is None:  # the SDK's own words: an argument is missing
            raise ToolFailure(str(rendering)) from None
        if isinstance(cause, ValidationError):
            raise ToolFailure(f"Invalid arguments: {_problems(cause)}.") from None
        _raise_original(rendering)
    except _FATAL as error:
        raise RuntimeError(f"{type(error).__name__} was raised") from error


def public_error(error: Exception, subject: str) -> ReliabilityError:
    """`error` itself if its text may be shown, otherwise an error that says no more than that `subject` failed."""
    if isinstance(error, ReliabilityError):
        return error
    return ReliabilityError(f"{subject} failed unexpectedly. The details are in the server's log.")


def public_text(error: ReliabilityError, reference: str) -> str:
    """The error in words: what happened, whether to retry, and the reference; an author's own text stays alone."""
    text = error.text[:_LONGEST_TEXT]
    if isinstance(error, ToolFailure):
        return text
    advice = "Retrying the same call will not help."
    if error.retry_after_s is not None:
        advice = f"Retry after {error.retry_after_s:g} s."
    elif error.retryable:
        advice = "Retrying may help."
    return f"{text} {advice} (Reference: {reference})"


def failed_result(error: ReliabilityError, reference: str) -> CallToolResult:
    """The error as the result of a tool, for the model to read and for programs to act on."""
    meta = {"kind": error.kind, "retryable": error.retryable, "reference": reference}
    if error.retry_after_s is not None:
        meta["retry_after_s"] = error.retry_after_s
    text = TextContent(type="text", text=public_text(error, reference))
    return CallToolResult(content=[text], is_error=True, _meta={ERROR_META: meta})


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ToolFailure:
    """The failure for a name that does not exist, with the nearest one that does."""
    import difflib  # only where something is wrong: it would slow every start

    nearest = difflib.get_close_matches(name[:_SHOWN_CHARACTERS], known, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return ToolFailure(f"Unknown {kind}: {name[:_SHOWN_CHARACTERS]!r}.{hint}")


def _raise_original(wrapper: BaseException) -> None:
    cause = wrapper.__cause__ or wrapper
    while isinstance(cause, BaseExceptionGroup) and _is_as_good_as_one(cause):
        cause = cause.exceptions[0]
    if isinstance(cause, ToolError | ResourceError) and not isinstance(
        cause, UnexpectedToolError | UnexpectedResourceError
    ):
        raise ToolFailure(str(cause)) from cause
    raise cause from cause.__cause__


def _is_as_good_as_one(group: BaseExceptionGroup[BaseException]) -> bool:
    """Tasks that ask at the same time fail at the same time: the breaker refuses all of them at once."""
    found = group.exceptions
    return len(found) == 1 or all(isinstance(error, DependencyError) for error in found)


def _problems(error: ValidationError) -> str:
    """Each wrong argument and the rule it breaks; the values are the caller's data and are not repeated."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    listed = [f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in found[:10]]
    if len(found) > len(listed):
        listed.append(f"and {len(found) - len(listed)} more")
    return "; ".join(text[: 2 * _SHOWN_CHARACTERS] for text in listed)
