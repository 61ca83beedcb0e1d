"""`mcp-scaffold new`: creates a server."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mcp_scaffold.completion import complete_answer, complete_preset
from mcp_scaffold.console import Console, count, is_interactive, paint
from mcp_scaffold.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from mcp_scaffold.create import Created, Plan, Request
    from mcp_scaffold.templates import Template

TemplateSource = Annotated[
    str | None,
    typer.Option(metavar="SOURCE", help="A Copier template of your own: path or address.", show_default=False),
]
TemplateRef = Annotated[
    str | None, typer.Option(metavar="REF", help="Version of the template to use.", show_default=False)
]


def new(  # noqa: PLR0913 - one for each option
    destination: Annotated[
        Path | None,
        typer.Argument(
            metavar="DESTINATION", help="Directory to create; its name becomes the project's.", show_default=False
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Kind of server: stdio, http, full or minimal.",
            show_default=False,
            autocompletion=complete_preset,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Answer a question; repeatable.",
            show_default=False,
            autocompletion=complete_answer,
        ),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answers from a YAML file.", show_default=False)
    ] = None,
    template: TemplateSource = None,
    ref: TemplateRef = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: defaults for what is open.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be written; write nothing.")] = False,
    no_git: Annotated[bool, typer.Option("--no-git", help="No git repository, no first commit.")] = False,
    no_lock: Annotated[bool, typer.Option("--no-lock", help="No `uv lock`.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors and warnings.")] = False,
) -> None:
    """Create an MCP server that is ready for production.

    In a terminal it asks what is open, shows a summary and waits for your consent. Without a terminal, or with
    --yes, it asks nothing. After an error or Ctrl-C nothing is left behind.
    """
    from mcp_scaffold import create
    from mcp_scaffold.prompts import fit_to_terminal

    ask = is_interactive() and not yes
    progress = TerminalProgress(Console(quiet=quiet), ask=ask)
    try:
        if ask and destination is None:
            destination = ask_destination()
        with choose_template(template, ref) as chosen:
            if ask and chosen.is_builtin:
                fit_to_terminal(Path(chosen.source) / "copier.yml", shutil.get_terminal_size().columns)
            request = create.Request(
                template=chosen,
                destination=destination,
                answers=gather(chosen, preset, data or [], answers),
                ask=ask,
                git=not no_git,
                lock=not no_lock,
            )
            if dry_run:
                list_files(create.preview(request, progress), progress.console)
            else:
                report(create.create(request, progress), request, progress.console)
    except KeyboardInterrupt:
        raise Interrupted("Stopped. Nothing was written.") from None


def choose_template(source: str | None, ref: str | None) -> AbstractContextManager[Template]:
    """Find the template of this installation, or the one that the person named."""
    from mcp_scaffold import templates

    return templates.custom(source, ref) if source else templates.builtin(ref)


def gather(template: Template, preset: str | None, data: list[str], file: Path | None) -> dict[str, Any]:
    """Return all given answers, checked; --data counts before --answers. `--preset X` is `--data preset=X`."""
    from mcp_scaffold import answers

    pairs = answers.parse_pairs(data)
    if preset is not None and pairs.get("preset", preset) != preset:
        raise UsageError(f"`--preset {preset}` and `--data preset={pairs['preset']}` contradict each other.")
    if preset is not None and "preset" not in template.questions:
        raise UsageError(f"The {template.label} has no presets; leave `--preset` out.")
    chosen = {} if preset is None else {"preset": preset}
    from_file = answers.from_project(template.questions, answers.read_file(file)) if file else {}
    return {
        **answers.check(template.questions, from_file, str(file)),
        **answers.check(template.questions, pairs, "--data"),
        **answers.check(template.questions, chosen, "--preset"),
    }


def ask_destination() -> Path:
    """Ask for the directory; refuses one that is in use while it is typed."""
    import questionary

    from mcp_scaffold.errors import StateError
    from mcp_scaffold.staging import check_destination

    def is_free(text: str) -> bool | str:
        path = Path(text.strip()).expanduser().absolute()
        try:
            check_destination(path)
        except OSError as error:
            return f"{text.strip()}: {error.strerror}."
        except StateError as error:
            # One line at the bottom of the terminal: the path as it was typed is the shorter one.
            return error.message.replace(str(path), text.strip())
        return bool(text.strip()) or "A directory is needed, such as `my-server`."

    question = questionary.text("Which directory should be created?", default="my-server", validate=is_free, qmark="?")
    return Path(str(question.unsafe_ask()).strip()).expanduser()


class TerminalProgress:
    """Tells progress in the terminal; asks for consent only where questions were asked."""

    def __init__(self, console: Console, *, ask: bool) -> None:
        self.console = console
        self._ask = ask

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.console.warn(text)

    def status(self, text: str) -> AbstractContextManager[None]:
        """Show a spinner."""
        return self.console.status(text)

    def confirm(self, plan: Plan) -> bool:
        """Show the summary and ask for consent."""
        if not self._ask:
            return True
        import questionary

        console = Console()
        console.say(f"\n{paint('Summary', 'bold')}")
        rows = {
            "directory": str(plan.destination),
            **plan.answers,
            "files": f"{len(plan.files)}, {plan.template.label}",
        }
        width = max(len(name) for name in rows)
        for name, value in rows.items():
            console.say(f"  {name.ljust(width)}  {show(value)}")
        console.say()
        return bool(questionary.confirm("Create it?", default=True, qmark="?").unsafe_ask())


def show(value: Any) -> str:
    """Return an answer as a person reads it."""
    if isinstance(value, list):
        value = ", ".join(str(item) for item in value)
    return str(value) if value not in (None, "") else "(none)"


def list_files(plan: Plan, console: Console) -> None:
    """Print the files that would be written, one a line, on stdout."""
    for name in plan.files:
        print(name)
    console.say(f"{count(len(plan.files), 'file')} would be written to `{plan.destination}`; nothing was.")


def report(created: Created, request: Request, console: Console) -> None:
    """Print what was made and what to type next."""
    where = shown_path(created.destination)
    commit = ", first commit" if created.is_committed else ""
    lock = ", uv.lock" if created.is_locked else ""
    console.done(
        f"Created `{created.destination.name}` from {request.template.label} in `{created.destination}`"
        f" ({count(created.files, 'file')}{lock}{commit})."
    )
    if not request.template.is_released:
        console.say("It is not released yet: only a server made from a release is sure of later updates.")
    console.say("\nNext:\n")
    for line in next_steps(created, where):
        console.say(f"  {line}")


def next_steps(created: Created, where: str) -> list[str]:
    """Return commands to paste, for what is installed here."""
    steps = [] if created.destination == Path.cwd() else [f"cd {where}"]
    if not created.is_committed:
        init = "" if created.is_inside_work_tree else "git init && "
        steps.append(
            f"{init}git add --all . && git commit --message {shlex.quote(f'Start {created.destination.name}')}"
        )
    if created.command and shutil.which("uv"):
        steps += [f"uv run {created.command}", "uv run pytest"]
    elif created.command:
        steps += ["python3 -m venv .venv && .venv/bin/pip install --editable .", f".venv/bin/{created.command}"]
    return steps


def shown_path(path: Path) -> str:
    """Return the shortest form of a path that can be pasted."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        relative = str(path)
    return shlex.quote(min(relative, str(path), key=len))
