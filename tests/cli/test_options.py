"""`mcp-scaffold options`: for people, and as JSON whose form programs rely on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.helpers import Ran

    Run = Callable[..., Ran]


def test_lists_every_question_for_people(run: Run) -> None:
    ran = run("options")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == (
        "preset\n  What kind of server? The preset sets the defaults of the questions below.\n"
        "  one of: stdio, http\n  default: stdio\n\n"
        "project_name\n  What is the server called?\n  default: my-server\n\n"
        "author_name\n  Who writes it?\n  default: Somebody\n\n"
        "author_email\n  Which address?\n  default: (none)\n\n"
        "license\n  Under which licence?\n  one of: MIT, Apache-2.0, none\n  default: MIT\n\n"
        "transports\n  How do clients reach it?\n  any of: stdio, http\n  default: stdio\n\n"
        "port\n  Which port?\n  default: 8000\n"
    )


def test_shows_the_defaults_of_a_preset(run: Run) -> None:
    assert "any of: stdio, http\n  default: http\n" in run("options", "--preset", "http").out


def test_json(run: Run) -> None:
    found = json.loads(run("options", "--json").out)
    assert [option["name"] for option in found][:2] == ["preset", "project_name"]
    assert found[5] == {
        "name": "transports",
        "type": "str",
        "help": "How do clients reach it?",
        "default": ["stdio"],
        "choices": ["stdio", "http"],
        "multiple": True,
    }


def test_of_a_template_of_ones_own(run: Run, checkout: Path) -> None:
    assert run("options", "--template", checkout, "--ref", "main").out == run("options").out
