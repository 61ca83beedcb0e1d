"""The questions of a template as a person or a program wants to see them: with their effective defaults."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp_scaffold.engine import render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mcp_scaffold.templates import Template


@dataclass(frozen=True, kw_only=True)
class Option:
    """One question. `default` is what it is answered with if nothing else is given."""

    name: str
    type: str
    help: str
    default: Any
    choices: list[Any]
    multiple: bool

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints; names and meaning stay the same within a major version."""
        return asdict(self)


def list_options(template: Template, given: Mapping[str, Any]) -> list[Option]:
    """Return every question that can be answered, in order; Copier works the defaults out from `given`."""
    with tempfile.TemporaryDirectory(prefix="mcp-scaffold-") as name:
        answers = render(
            template,
            Path(name) / "project",
            data=given,
            exclude=("*",),
            warn=lambda text: None,  # noqa: ARG005 - what matters when rendering does not matter here
        )
    return [
        Option(
            name=question.name,
            type=question.type,
            help=question.help,
            default=answers.get(question.name),
            choices=list(question.choices),
            multiple=question.multiselect,
        )
        for question in template.questions.values()
        if question.is_asked
    ]
