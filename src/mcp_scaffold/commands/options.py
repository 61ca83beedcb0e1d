"""`mcp-scaffold options`: every question with its choices and default."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated, Any

import typer

from mcp_scaffold.commands.new import TemplateRef, TemplateSource, choose_template, gather, show
from mcp_scaffold.completion import complete_preset
from mcp_scaffold.console import paint


def options(
    preset: Annotated[
        str | None,
        typer.Option(help="Show the defaults of this preset.", show_default=False, autocompletion=complete_preset),
    ] = None,
    template: TemplateSource = None,
    ref: TemplateRef = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List every question with its choices and default.

    Answer them with `mcp-scaffold new --data KEY=VALUE` or in a file for --answers.
    """
    from mcp_scaffold.listing import list_options

    with choose_template(template, ref) as chosen:
        found = list_options(chosen, gather(chosen, preset, [], None))
    print(json.dumps([option.as_dict() for option in found], indent=2) if as_json else as_text(found))


def as_text(found: list[Any]) -> str:
    """Return the options for people, one paragraph each."""
    import sys

    paragraphs = []
    for option in found:
        lines = [paint(option.name, "bold", sys.stdout)]
        lines += textwrap.wrap(option.help, 90) if option.help else []
        if option.choices:
            many = "any of" if option.multiple else "one of"
            lines.append(f"{many}: {', '.join(str(choice) for choice in option.choices)}")
        lines.append(f"default: {show(option.default)}")
        paragraphs.append("\n  ".join(lines))
    return "\n\n".join(paragraphs)
