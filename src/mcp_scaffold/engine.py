"""Copier, through its public API alone: rendering and updating, with its errors told as ours.

Never with `unsafe`: a template that wants to run code is refused. A person's own Copier settings are left out.
"""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import copier
from copier.errors import (
    CopierError,
    CopierWarning,
    InteractiveSessionError,
    UnsafeTemplateError,
    UserMessageError,
)
from jinja2 import TemplateError
from plumbum import ProcessExecutionError, local
from yaml import YAMLError

from mcp_scaffold.errors import OutsideError, ScaffoldError, StateError, UsageError, disk_error
from mcp_scaffold.git import reason_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from mcp_scaffold.templates import Template


def render(
    template: Template,
    destination: Path,
    *,
    data: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    ask: bool = False,
    exclude: tuple[str, ...] = (),
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """Render a template into `destination`; return the answers, computed ones included.

    `data` answers questions for good; `defaults` replaces the template's defaults; `ask` lets Copier ask the rest in
    the terminal. Raises ScaffoldError for everything that a person can mend, KeyboardInterrupt for Ctrl-C.
    """
    # Copier starts git once for every file, to read a setting that matters in repositories alone. Of a template that
    # lies unpacked it needs nothing else from git, so git is hidden from it: that saves a third of the time.
    hidden = local.env(PATH="") if template.is_builtin else nullcontext()
    with _errors_told(), _warnings_told(warn), hidden:
        worker = copier.run_copy(
            template.source,
            destination,
            dict(data),
            vcs_ref=template.ref,
            settings=copier.Settings(),
            user_defaults=dict(defaults or {}),
            defaults=not ask,
            exclude=exclude,
            quiet=True,
        )
    return {name: value for name, value in worker.answers.combined.items() if not name.startswith("_")}


def update(project: Path, ref: str | None, *, warn: Callable[[str], None]) -> None:
    """Update a project to `ref` (None: the newest release), with the answers that it records."""
    with _errors_told(), _warnings_told(warn):
        copier.run_update(project, vcs_ref=ref, settings=copier.Settings(), defaults=True, overwrite=True, quiet=True)


@contextmanager
def _errors_told() -> Iterator[None]:
    """Tell what Copier raises as one of our errors; it has no common base class for them."""
    try:
        yield
    except KeyboardInterrupt:
        # Copier's own subclass carries half of the answers; nobody needs them.
        raise KeyboardInterrupt from None
    except (CopierError, ValueError, TypeError, TemplateError, YAMLError) as error:
        raise _told(error) from error
    except ProcessExecutionError as error:
        raise _git_told(reason_in(str(error.stderr))) from error
    except OSError as error:
        raise disk_error(error) from error


def _told(error: Exception) -> ScaffoldError:
    text = " ".join(str(error).split())
    if isinstance(error, UnsafeTemplateError):
        return UsageError(
            "The template wants to run code (tasks, migrations or Jinja extensions), which mcp-scaffold never does.",
            hint="If you trust it: copier copy --trust SOURCE DESTINATION",
        )
    if isinstance(error, InteractiveSessionError):
        return UsageError("The input ended before every question was answered.", hint="Pass --yes or --data.")
    if isinstance(error, TemplateError | YAMLError):
        return OutsideError(f"The template is broken: {text}.")
    if isinstance(error, UserMessageError):
        return StateError(text)
    return _refused_answer(text) or OutsideError(f"Copier stopped: {text}.")


def _git_told(reason: str) -> ScaffoldError:
    unknown = re.fullmatch(r"invalid reference: (.*)", reason)
    if unknown:
        return UsageError(f"The template has no version `{unknown[1]}`.")
    return OutsideError(f"git failed: {reason}.")


def _refused_answer(text: str) -> UsageError | None:
    """Recognise the sentences in which Copier refuses an answer."""
    patterns = (
        (r"Validation error for question '(?P<name>[^']+)': (?P<why>.*)", "`{name}`: {why}"),
        (r"Invalid choice for '(?P<name>[^']+)': (?P<why>.*)", "`{name}`: {why}"),
        (
            r'Question "(?P<name>[^"]+)" is required',
            "`{name}` has no default; give it with --data {name}=VALUE.",
        ),
        (r"Unknown revision: '(?P<name>.*)'", "The template has no version `{name}`."),
    )
    for pattern, message in patterns:
        match = re.fullmatch(pattern, text)
        if match:
            return AnswerError(message.format(**match.groupdict()), match["name"])
    return None


class AnswerError(UsageError):
    """The template refuses the answer to the question `name`."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


@contextmanager
def _warnings_told(warn: Callable[[str], None]) -> Iterator[None]:
    """Pass Copier's warnings on in our words; drop the warnings of the libraries beneath it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", CopierWarning)
        yield
    for text in dict.fromkeys(str(item.message) for item in caught):
        warn(text)
