"""The command line: puts the commands together and tells every error in one place."""

from __future__ import annotations

import os
import re
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from mcp_scaffold import __version__, signals
from mcp_scaffold.commands.new import new
from mcp_scaffold.commands.options import options
from mcp_scaffold.commands.update import update
from mcp_scaffold.console import Console
from mcp_scaffold.errors import Exit, Interrupted, ScaffoldError, UsageError, disk_error
from mcp_scaffold.pack import GIT_VARIABLES

_EPILOG = (
    "Exit codes: 0 done; 1 done, but files need a look; 2 a wrong option or answer; 3 the destination or project is "
    "in no state for it; 4 git, disk, network or template in the way; 130 stopped."
)

app = typer.Typer(
    name="mcp-scaffold",
    help="Create production-grade Python MCP servers, and keep them that way.",
    epilog=_EPILOG,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(new)
app.command()(update)
app.command()(options)


def _print_version(is_wanted: bool) -> None:  # noqa: FBT001 - the signature of a callback
    if is_wanted:
        print(f"mcp-scaffold {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    *,
    version: Annotated[  # noqa: ARG001 - its callback answers it
        bool,
        typer.Option("--version", "-V", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Take the options that stand before a command; without a command, print the help."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; every error for people is printed here."""
    signals.install()
    for name in GIT_VARIABLES:
        # Set inside a git hook; Copier's git would work on the hook's repository instead of the project.
        os.environ.pop(name, None)
    try:
        code = app(arguments, prog_name="mcp-scaffold", standalone_mode=False)
    except ScaffoldError as error:
        Console().fail(error)
        return error.exit_code
    except TyperException as error:
        return _wrong_usage(error)
    except OSError as error:
        told = disk_error(error)
        Console().fail(told)
        return told.exit_code
    except (typer.Abort, EOFError):
        Console().fail(Interrupted("Stopped."))
        return Exit.INTERRUPTED
    except signals.Terminated as signal:
        Console().fail(Interrupted("Stopped by a signal; what was begun is undone."))
        return signal.exit_code
    return code if isinstance(code, int) else Exit.OK


def _wrong_usage(error: TyperException) -> int:
    """Tell what typer found wrong with the options, in our words."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "mcp-scaffold"
    text = re.sub(r"'([^']+)'", r"`\1`", error.format_message()).replace("argument(s)", "argument")
    text = re.sub(r"(?<=option: )(\S+?)(?=\.| \(|$)", r"`\1`", text)
    # Two ways in which typer proposes what was meant.
    found = re.fullmatch(r"(.*?)\.? (?:Did you mean|\(Possible options:) (.*?)(?:\?|\)\.?)", text)
    message, meant = found.groups() if found else (text.rstrip("."), "")
    meant = re.sub(r"(?<!\S)(-[\w-]+)", r"`\1`", meant)
    hint = f"Did you mean {meant}?" if meant else f"`{command} --help` lists the options."
    Console().fail(UsageError(f"{message}.", hint=hint))
    return Exit.USAGE


if __name__ == "__main__":
    sys.exit(run())
