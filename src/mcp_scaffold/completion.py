"""What the shell proposes for answers: the questions and choices of the built-in template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcp_scaffold.errors import ScaffoldError

if TYPE_CHECKING:
    from mcp_scaffold.questions import Question


def complete_preset(incomplete: str) -> list[str]:
    """Return the presets that begin with `incomplete`."""
    preset = _questions().get("preset")
    return [str(choice) for choice in preset.choices if str(choice).startswith(incomplete)] if preset else []


def complete_answer(incomplete: str) -> list[str]:
    """Return `KEY=` for the beginning of a question, and `KEY=VALUE` once the question is complete."""
    questions = _questions()
    name, equals, _ = incomplete.partition("=")
    if equals and name in questions:
        proposals = [f"{name}={choice}" for choice in questions[name].choices]
    else:
        proposals = [f"{question.name}=" for question in questions.values() if question.is_asked]
    return [proposal for proposal in proposals if proposal.startswith(incomplete)]


def _questions() -> dict[str, Question]:
    """Return the questions; none where the template is out of reach: a shell must not see an error here."""
    from mcp_scaffold.templates import builtin

    try:
        with builtin() as template:
            return template.questions
    except ScaffoldError:
        return {}
