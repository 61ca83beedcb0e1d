"""What is not imported: `--version` and `--help` answer at once because they load next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["copier", "jinja2", "plumbum", "prompt_toolkit", "questionary", "rich", "yaml"]


def loaded(*arguments: str) -> tuple[str, set[str]]:
    """Run the command line; return what it printed and the names of the top-level modules that it loaded."""
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr))\n"
        "from mcp_scaffold.__main__ import main\n"
        f"sys.argv[1:] = {list(arguments)!r}\n"
        "main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return ran.stdout, set(ran.stderr.split())


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version_loads_no_typer(option: str) -> None:
    printed, modules = loaded(option)
    assert printed.startswith("mcp-scaffold ")
    assert not modules & {"typer", "click", "pydantic", *HEAVY}


@pytest.mark.parametrize("arguments", [("--help",), ("new", "--help"), ("update", "-h"), ("options", "--help"), ()])
def test_help_loads_no_copier(arguments: tuple[str, ...]) -> None:
    printed, modules = loaded(*arguments)
    assert printed.startswith("Usage: mcp-scaffold")
    assert not modules & set(HEAVY)


def test_help_documents_the_exit_codes_and_loads_no_pydantic() -> None:
    printed, modules = loaded("--help")
    assert "Exit codes: 0 done" in printed
    # Typer needs it for the options of a command, but not here.
    assert "pydantic" not in modules
