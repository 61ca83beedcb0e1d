"""Creates a project: everything that `mcp-scaffold new` does, callable without a terminal."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from mcp_scaffold import __version__, finish
from mcp_scaffold.engine import AnswerError, render
from mcp_scaffold.errors import Interrupted, UsageError, disk_error
from mcp_scaffold.git import GitError
from mcp_scaffold.staging import ANSWERS_FILE, check_destination, existing_part, staged

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from mcp_scaffold.templates import Origin, Template

_NAME = "project_name"


class Progress(Protocol):
    """What happens on the way is told to this."""

    def warn(self, text: str) -> None:
        """Tell a warning."""

    def status(self, text: str) -> AbstractContextManager[None]:
        """Tell what takes its time."""

    def confirm(self, plan: Plan) -> bool:
        """Show the answers; say whether to go on."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to create. `answers` are checked already; `ask` lets a person answer the rest in the terminal."""

    template: Template
    destination: Path | None = None
    answers: Mapping[str, Any] = field(default_factory=dict)
    ask: bool = False
    git: bool = True
    lock: bool = True


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would be created: the answers in the order of the questions, and the files, relative."""

    destination: Path
    template: Template
    answers: dict[str, Any]
    files: list[str]


@dataclass(frozen=True, kw_only=True)
class Created:
    """What was created. `command` is the console script of the project, if it has one."""

    destination: Path
    files: int
    is_committed: bool
    is_inside_work_tree: bool
    is_locked: bool
    command: str | None


def preview(request: Request, progress: Progress) -> Plan:
    """Return what `create` would write; nothing is left behind."""
    destination = _destination(request)
    check_destination(destination)
    with tempfile.TemporaryDirectory(prefix="mcp-scaffold-") as name:
        return _render(request, destination, Path(name) / destination.name, progress)


def create(request: Request, progress: Progress) -> Created:
    """Create the project, whole or not at all.

    Raises ScaffoldError for everything that a person can mend; then, and after Ctrl-C or a signal, nothing is left
    at the destination.
    """
    destination = _destination(request)
    try:
        check_destination(destination)
        with staged(destination) as project:
            plan = _render(request, destination, project, progress)
            if not progress.confirm(plan):
                raise Interrupted("Stopped. Nothing was written.", exit_code=1)
            is_locked = request.lock and _lock(project, progress)
            inside = finish.is_inside_work_tree(existing_part(destination))
            is_committed = request.git and not inside and _commit(project, progress)
            command = _command(project)
    except OSError as error:
        raise disk_error(error) from error
    return Created(
        destination=destination,
        files=len(plan.files),
        is_committed=is_committed,
        is_inside_work_tree=inside,
        is_locked=is_locked,
        command=command,
    )


def _destination(request: Request) -> Path:
    """Return the absolute destination; without one, the project's name in the current directory."""
    if request.destination is not None:
        # Unlike `absolute`, this takes `..` away: the last part names the project.
        return Path(os.path.abspath(request.destination))
    name = request.answers.get(_NAME) or getattr(request.template.questions.get(_NAME), "default", None)
    if not isinstance(name, str) or not name or "{" in name:
        raise UsageError("The destination is missing.", hint="For example: mcp-scaffold new my-server")
    return Path(name).absolute()


def _render(request: Request, destination: Path, project: Path, progress: Progress) -> Plan:
    template = request.template
    try:
        answers = render(
            template,
            project,
            data=request.answers,
            defaults=_defaults(request, destination),
            ask=request.ask,
            warn=progress.warn,
        )
    except AnswerError as error:
        if error.name == _NAME and _NAME not in request.answers:
            error.hint = f"The name comes from the destination; choose another: --data {_NAME}=my-server"
        raise
    recorded = _recorded(project)
    _check_effective(request, recorded)
    if template.origin:
        _record_origin(project, template.origin)
    shown = {name: answers[name] for name, question in template.questions.items() if question.is_asked}
    files = sorted(path.relative_to(project).as_posix() for path in project.rglob("*") if not path.is_dir())
    return Plan(
        destination=destination,
        template=template,
        answers={name: value for name, value in shown.items() if name in recorded or not recorded},
        files=files,
    )


def _defaults(request: Request, destination: Path) -> dict[str, str]:
    """Return better defaults than the template's: the destination's name, and git's idea of the person."""
    name = destination.name
    if request.ask and not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        # A person sees the proposal and can change it; without one, an invalid name is an error.
        name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")
    known = finish.identity(existing_part(destination))
    author, email = known.get("name", ""), known.get("email", "")
    wanted = {
        _NAME: name,
        # The template refuses control characters and more than 100 of any; a default must never be refused.
        "author_name": author if author.isprintable() and len(author) <= 100 else "",  # noqa: PLR2004
        "author_email": email if re.fullmatch(r"[\w.+-]*\w@([a-zA-Z0-9-]+\.)+[a-zA-Z]+", email, re.ASCII) else "",
    }
    return {key: value for key, value in wanted.items() if value and key in request.template.questions}


def _recorded(project: Path) -> dict[str, Any]:
    """Return what the project records for later updates; nothing if its template records nothing."""
    try:
        content = yaml.safe_load((project / ANSWERS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return content if isinstance(content, dict) else {}


def _check_effective(request: Request, recorded: Mapping[str, Any]) -> None:
    """Refuse an answer that the other answers make meaningless: Copier would render it and then forget it."""
    for name in request.answers:
        question = request.template.questions[name]
        if recorded and name not in recorded and not question.secret:
            raise UsageError(
                f"`{name}` has no meaning with the other answers.", hint=f"Leave `{name}` out, or change the others."
            )


def _record_origin(project: Path, origin: Origin) -> None:
    """Record where the template really comes from, as Copier would have: it saw the unpacked files alone."""
    path = project / ANSWERS_FILE
    lines = yaml.safe_dump({"_commit": origin.commit, "_src_path": origin.source}, width=1000)
    text = re.sub(r"(?m)^_src_path: .*\n(?: .*\n)*", lambda _: lines, path.read_text(encoding="utf-8"), count=1)
    path.write_text(text, encoding="utf-8", newline="\n")


def _lock(project: Path, progress: Progress) -> bool:
    try:
        with progress.status("Locking dependencies with `uv lock`"):
            return finish.lock(project)
    except finish.FinishError as error:
        progress.warn(f"no uv.lock was made: {error}. Run `uv lock` in the project later.")
        return False


def _commit(project: Path, progress: Progress) -> bool:
    try:
        if not finish.commit(project, project.name, __version__):
            progress.warn(
                "git does not know your name and e-mail address, so the first commit is by `mcp-scaffold`. "
                "Set user.name and user.email, then `git commit --amend --reset-author` makes it yours."
            )
    except GitError as error:
        progress.warn(f"the first commit was not made: {error.reason}. Updates need one.")
        return False
    return True


def _command(project: Path) -> str | None:
    """Return the first console script of the project."""
    import tomllib

    try:
        pyproject = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return next(iter(pyproject.get("project", {}).get("scripts", {})), None)
