"""The questions of a template, read from its `copier.yml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from mcp_scaffold.errors import OutsideError


class _Loader(yaml.SafeLoader):
    """Reads `copier.yml` like Copier; what `!include` would bring in is left out."""


_Loader.add_multi_constructor("!", lambda *_: None)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question; `default` and `when` may be Jinja expressions over the earlier answers."""

    name: str
    type: str
    help: str
    default: Any
    choices: tuple[Any, ...]
    multiselect: bool
    when: Any
    ask: Any
    secret: bool

    @property
    def is_computed(self) -> bool:
        """Say whether the template computes it from other answers (`when: false`)."""
        return self.when is False

    @property
    def is_asked(self) -> bool:
        """Say whether a person may answer it at all."""
        return not self.is_computed and self.ask is not False


def read(text: str) -> dict[str, Question]:
    """Return the questions of a `copier.yml`, in the order in which they are asked.

    Raises OutsideError if the text is not the YAML of a template.
    """
    try:
        documents = [document for document in yaml.load_all(text, Loader=_Loader) if document]
    except yaml.YAMLError as error:
        raise OutsideError(f"The template's copier.yml is not valid YAML: {_place(error)}.") from error
    found: dict[str, Question] = {}
    for document in documents:
        if not isinstance(document, dict):
            raise OutsideError("The template's copier.yml does not hold settings and questions.")
        for name, details in document.items():
            if not str(name).startswith("_"):
                found[str(name)] = _question(str(name), details)
    return found


def _question(name: str, details: Any) -> Question:
    if not isinstance(details, dict):
        details = {"default": details}
    default = details.get("default")
    return Question(
        name=name,
        type=str(details.get("type") or _type_of(default)),
        help=str(details.get("help", "")).strip(),
        default=default,
        choices=_choices(details.get("choices")),
        multiselect=bool(details.get("multiselect", False)),
        when=details.get("when", True),
        ask=details.get("ask", True),
        secret=bool(details.get("secret", False)),
    )


def _type_of(default: Any) -> str:
    name = type(default).__name__
    return name if name in {"bool", "float", "int", "str"} else "yaml"


def _choices(choices: Any) -> tuple[Any, ...]:
    """Return the values that may be chosen; none where the template computes them with Jinja."""
    if isinstance(choices, dict):
        choices = list(choices.values())
    if not isinstance(choices, list):
        return ()
    return tuple(_value(choice) for choice in choices)


def _value(choice: Any) -> Any:
    """Unwrap `[label, value]` and `{value: ...}`."""
    if isinstance(choice, list):
        choice = choice[-1]
    return choice.get("value") if isinstance(choice, dict) else choice


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "unreadable"
    return f"{problem} in line {mark.line + 1}" if mark else str(problem)
