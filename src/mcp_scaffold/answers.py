"""Answers given on the command line and in files: parsed, and checked against the template's questions."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import yaml

from mcp_scaffold.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from mcp_scaffold.questions import Question

_NUMBERS: dict[str, tuple[Callable[[Any], object], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
}


def parse_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """Split `KEY=VALUE` arguments; the last one of a key counts. Raises UsageError for anything else."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"`--data {pair}` is not of the form KEY=VALUE.", hint="For example: --data license=MIT")
        found[key.strip()] = value
    return found


def read_file(path: Path) -> dict[str, Any]:
    """Read a YAML file of answers; the private keys (`_commit`) of a project's own answers file are skipped.

    Raises UsageError if the file cannot be read or is no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The answers file `{path}` cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The answers file `{path}` is not UTF-8 text.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise UsageError(f"The answers file `{path}` is not valid YAML{where}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"The answers file `{path}` must map questions to answers, such as `license: MIT`.")
    return {str(key): value for key, value in content.items() if not str(key).startswith("_")}


def check(questions: Mapping[str, Question], given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return `given` in the types that the questions want. `source` names where they came from (`--data`).

    Raises UsageError for an unknown question, one that cannot be set, an unknown choice and a value of a wrong type.
    """
    return {name: _answer(_find(questions, name, source), value, source) for name, value in given.items()}


def from_project(questions: Mapping[str, Question], given: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what a project's answers file records but nobody answers (`ask: false`)."""
    return {name: value for name, value in given.items() if name not in questions or questions[name].ask is not False}


def nearest(word: str, known: Iterable[Any]) -> str:
    """Return `Did you mean X?` if one of `known` is close to `word`, else nothing."""
    by_lower = {str(item).lower(): item for item in known}
    close = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f"Did you mean `{by_lower[close[0]]}`?" if close else ""


def _find(questions: Mapping[str, Question], name: str, source: str) -> Question:
    settable = [question.name for question in questions.values() if question.is_asked]
    question = questions.get(name)
    if question is None:
        guess = nearest(name, settable)
        raise UsageError(
            f"`{name}` ({source}) is not a question of the template.",
            hint=guess or "`mcp-scaffold options` lists the questions.",
        )
    if not question.is_asked:
        why = "computed from other answers" if question.is_computed else "set by the template"
        raise UsageError(f"`{name}` ({source}) is {why} and cannot be given.")
    return question


def _answer(question: Question, value: Any, source: str) -> Any:
    if question.multiselect:
        values = _as_list(question, value, source)
        for item in values:
            _check_choice(question, item, source)
        return values
    if isinstance(value, list | dict) and question.type not in {"yaml", "json"}:
        raise UsageError(f"`{question.name}` ({source}) takes one value, not `{value}`.")
    if question.type == "str":
        value = _as_text(question, value, source)
    elif question.type in _NUMBERS:
        _check_number(question, value, source)
    _check_choice(question, value, source)
    return value


def _as_list(question: Question, value: Any, source: str) -> list[Any]:
    """Read a list from YAML (`[a, b]`), from `a,b`, or from one value."""
    if isinstance(value, str):
        value = _yaml(question, value, source) if value.lstrip().startswith("[") else value.split(",")
    if not isinstance(value, list):
        value = [value]
    items = [item.strip() if isinstance(item, str) else item for item in value]
    return [item for item in items if item != ""]


def _yaml(question: Question, value: str, source: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"`{question.name}` ({source}): `{value}` is not a list such as `[a, b]`.") from error


def _as_text(question: Question, value: Any, source: str) -> str:
    """Take text as it is; YAML read `no`, `null` and dates in a file as something else than text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UsageError(
            f"`{question.name}` ({source}) takes text, but YAML reads the value as `{value}`.",
            hint=f'Put it in quotes: {question.name}: "..."',
        )
    return value


def _check_number(question: Question, value: Any, source: str) -> None:
    read, name = _NUMBERS[question.type]
    try:
        read(value)
    except (TypeError, ValueError):
        raise UsageError(f"`{question.name}` ({source}) takes {name}, not `{value}`.") from None


def _check_choice(question: Question, value: Any, source: str) -> None:
    if not question.choices or str(value) in [str(choice) for choice in question.choices]:
        return
    raise UsageError(
        f"`{value}` is no choice for `{question.name}` ({source}); it takes {one_of(question.choices)}.",
        hint=nearest(str(value), question.choices),
    )


def one_of(items: Sequence[Any]) -> str:
    """`a`, `a or b`, `a, b or c`, in backticks."""
    quoted = [f"`{item}`" for item in items]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
