"""Brings a later version of its template into a project: all of `mcp-scaffold update`, without a terminal.

Copier merges, and says nothing where a merge went wrong: it exits 0 with conflicts, deletes a file that a person
edited if the template dropped it, and overwrites an edited binary file. So the project is compared with git, and with
what the old and the new template render, before and after.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from packaging.version import Version

from mcp_scaffold import __version__, bundle, engine, signals, templates
from mcp_scaffold.errors import StateError
from mcp_scaffold.git import git, git_bytes, names, try_git
from mcp_scaffold.staging import ANSWERS_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MARKER = b"<<<<<<< before updating"
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Updated:
    """What an update did. Paths are relative to the project; `prefix` leads from the repository's top to it."""

    project: Path
    prefix: str
    before: str
    after: str
    changed: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    diff: str = ""

    @property
    def attention(self) -> int:
        """Number of files that a person must look at."""
        return len({*self.conflicts, *self.lost, *self.deleted})

    @property
    def is_stale_lock(self) -> bool:
        """Say whether `uv.lock` may no longer fit `pyproject.toml`."""
        return "pyproject.toml" in self.changed and (self.project / "uv.lock").exists()


@dataclass(frozen=True, kw_only=True)
class _Project:
    """A project that is ready for an update: where it is, and what it records."""

    path: Path
    top: Path
    source: str
    version: str
    answers: dict[str, Any]

    @property
    def prefix(self) -> str:
        prefix = self.path.relative_to(self.top).as_posix()
        return "" if prefix == "." else f"{prefix}/"


def update(path: Path, to: str | None, *, warn: Callable[[str], None]) -> Updated:
    """Update the project at `path` to version `to`, or to that of this installation.

    Raises StateError if the project is dirty, is no git repository, was not generated, or would be downgraded;
    UsageError for an unknown version. After an error, Ctrl-C or a signal the project is as it was.
    """
    project = _open(path)
    return _update(project, _target(project, to), warn)


def preview(path: Path, to: str | None, *, warn: Callable[[str], None]) -> Updated:
    """Return what `update` would do, with the diff; the project is not touched: a clone of it is updated."""
    project = _open(path)
    ref = _target(project, to)
    with tempfile.TemporaryDirectory(prefix="mcp-scaffold-") as name:
        clone = Path(name).resolve() / project.top.name
        git(project.top, "clone", "--quiet", "--shared", str(project.top), str(clone))
        copy = _open(clone / project.prefix)
        found = _update(copy, ref, warn)
        if found.changed:
            git(copy.path, "add", "--all", ".")
        diff = git(copy.path, "diff", "--cached", "--relative", "--binary", "HEAD") if found.changed else ""
    return Updated(**{**vars(found), "project": project.path, "diff": diff})


def _open(path: Path) -> _Project:
    """Check that the project can be updated, and read what it records."""
    if not path.is_dir():
        raise StateError(f"`{path}` is not a directory.")
    path = path.resolve()
    recorded = _recorded(path)
    top = try_git(path, "rev-parse", "--show-toplevel")
    if not top:
        raise StateError(
            f"`{path}` is not in a git repository, and updates are merged through git.",
            hint='git init && git add --all && git commit --message "Start"',
        )
    if try_git(path, "rev-parse", "--quiet", "--verify", "HEAD") is None:
        raise StateError(f"`{path}` has no commit yet.", hint='git add --all && git commit --message "Start"')
    # Untracked files count whatever the person's configuration says: undoing a failed update would remove them.
    status = git(path, "status", "--porcelain", "--untracked-files=normal", "--no-renames", "-z", "--", ".")
    dirty = [entry[3:] for entry in names(status)]
    if dirty:
        raise StateError(
            f"`{path.name}` has uncommitted changes: {_some(dirty)}.",
            hint="Commit them, or `git stash --include-untracked`; an update is then easy to review and to undo.",
        )
    return _Project(
        path=path,
        top=Path(top).resolve(),
        source=str(recorded["_src_path"]),
        version=str(recorded["_commit"]),
        answers={key: value for key, value in recorded.items() if not key.startswith("_")},
    )


def _recorded(path: Path) -> dict[str, Any]:
    """Read the answers file. Raises StateError if the project was not generated, or not from a versioned template."""
    try:
        content = yaml.safe_load((path / ANSWERS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StateError(
            f"`{path}` was not generated from a template: it has no {ANSWERS_FILE}.",
            hint="Name the project's directory: mcp-scaffold update PATH",
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StateError(f"`{path / ANSWERS_FILE}` cannot be read.", hint="Restore it from git.") from error
    if not isinstance(content, dict) or not content.get("_src_path") or not content.get("_commit"):
        raise StateError(f"`{path / ANSWERS_FILE}` does not record a template and its version.")
    return content


def _some(paths: list[str]) -> str:
    shown = ", ".join(f"`{path}`" for path in paths[:_SHOWN])
    return f"{shown} and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else shown


def _target(project: _Project, to: str | None) -> str | None:
    """Return the ref to update to: for our own template a checked tag, for others what Copier understands."""
    if project.source == bundle.MIRROR:
        return _own_target(project, to)
    origin = templates.installed_from()
    if origin and origin.source == project.source:
        return f"v{to.removeprefix('v')}" if to else origin.commit
    return to


def _own_target(project: _Project, to: str | None) -> str:
    known = bundle.mirror()
    target = templates.find_tag(known, to or __version__)
    if project.version not in known:
        raise StateError(
            f"`{project.path.name}` was made from version {_plain(project.version)} of the template, which this "
            f"mcp-scaffold ({__version__}) does not hold.",
            hint=f"If it is newer, upgrade mcp-scaffold. If it was never released, `copier recopy --vcs-ref {target}` "
            "renders the template over the project; review with `git diff`.",
        )
    if Version(project.version) > Version(target):
        raise StateError(
            f"`{project.path.name}` is at {_plain(project.version)}, newer than {_plain(target)}: "
            "an update never goes back.",
            hint="" if to else "Upgrade mcp-scaffold: `pip install --upgrade mcp-scaffold`",
        )
    return target


def _update(project: _Project, ref: str | None, warn: Callable[[str], None]) -> Updated:
    if ref is not None and ref == project.version:
        version = _plain(ref)
        return Updated(project=project.path, prefix=project.prefix, before=version, after=version)
    try:
        engine.update(project.path, ref, warn=warn)
        return _compare(project)
    except BaseException:
        with signals.ignored():
            _restore(project)
        raise


def _restore(project: _Project) -> None:
    """Bring the project back to HEAD. It was clean, so whatever is there now came from the update."""
    git(project.path, "reset", "--quiet", "--", ".")
    git(project.path, "checkout", "--quiet", "HEAD", "--", ".")
    git(project.path, "clean", "--quiet", "-d", "--force", "--", ".")


def _compare(project: _Project) -> Updated:
    """Find out what the update did to each file."""
    path = project.path
    modified = names(git(path, "diff", "--relative", "--name-only", "--no-renames", "-z", "HEAD"))
    added = names(git(path, "ls-files", "--others", "--exclude-standard", "-z"))
    deleted = [name for name in modified if not (path / name).is_symlink() and not (path / name).exists()]
    conflicts = _conflicts(path, [*modified, *added])
    merged = sorted({*modified} - {*deleted, *conflicts, ANSWERS_FILE})
    lost = _lost(project, deleted, merged)
    return Updated(
        project=path,
        prefix=project.prefix,
        before=_plain(project.version),
        after=_plain(str(_recorded(path)["_commit"])),
        changed=sorted({*modified, *added}),
        conflicts=conflicts,
        lost=lost,
        deleted=sorted({*deleted} - {*lost}),
    )


def _conflicts(path: Path, candidates: Iterable[str]) -> list[str]:
    """Return files with conflict markers, and those that git has as unmerged."""
    unmerged = {entry.partition("\t")[2] for entry in names(git(path, "ls-files", "--unmerged", "-z"))}
    marked = {name for name in candidates if (path / name).is_file() and _is_marked((path / name).read_bytes())}
    rejected = {name.removesuffix(".rej") for name in candidates if name.endswith(".rej")}
    return sorted(unmerged | marked | rejected)


def _is_marked(content: bytes) -> bool:
    return any(line.rstrip() == _MARKER for line in content.splitlines())


def _lost(project: _Project, deleted: list[str], merged: list[str]) -> list[str]:
    """Return files whose edits are gone.

    Deleted ones that differed from the old template, and merged ones that now are just what the new one renders.
    """
    edited = _edited(project, [*deleted, *merged])
    gone = [name for name in deleted if name in edited]
    replaced = [name for name in merged if name in edited]
    if replaced:
        recorded = _recorded(project.path)
        answers = {key: value for key, value in recorded.items() if not key.startswith("_")}
        with tempfile.TemporaryDirectory(prefix="mcp-scaffold-") as name:
            new = _render(project, str(recorded["_commit"]), answers, Path(name))
            replaced = [item for item in replaced if _is_replaced(project.path, new, item)]
    return sorted([*gone, *replaced])


def _edited(project: _Project, candidates: list[str]) -> set[str]:
    """Return those files that were not, at HEAD, what the old template renders."""
    if not candidates:
        return set()
    with tempfile.TemporaryDirectory(prefix="mcp-scaffold-") as name:
        old = _render(project, project.version, project.answers, Path(name))
        return {item for item in candidates if _read(old / item) != _committed(project.path, item)}


def _is_replaced(path: Path, new: Path, name: str) -> bool:
    """Say whether a file is what the new template renders although HEAD had it different."""
    rendered = _read(new / name)
    return _read(path / name) == rendered != _committed(path, name)


def _render(project: _Project, ref: str, answers: dict[str, Any], scratch: Path) -> Path:
    """Render the template at `ref` into a directory named like the project, which a template may use."""
    rendered = scratch / project.path.name
    if project.source == bundle.MIRROR:
        with templates.builtin(ref) as template:
            engine.render(template, rendered, data=answers, warn=_ignore)
    else:
        template = templates.Template(source=project.source, ref=ref, label="", questions={})
        engine.render(template, rendered, data=answers, warn=_ignore)
    return rendered


def _ignore(text: str) -> None:
    """Drop a warning that the update itself has given already."""


def _committed(path: Path, name: str) -> bytes | None:
    if try_git(path, "cat-file", "-e", f"HEAD:./{name}") is None:
        return None
    return git_bytes(path, "cat-file", "blob", f"HEAD:./{name}").replace(b"\r\n", b"\n")


def _read(path: Path) -> bytes | None:
    """Return a file's content, line endings aside: git may have changed those."""
    return path.read_bytes().replace(b"\r\n", b"\n") if path.is_file() else None


def _plain(version: str) -> str:
    """Return `v1.2.3` as `1.2.3`, and a commit shortened; leave everything else alone."""
    if re.fullmatch(r"[0-9a-f]{40}", version):
        return version[:12]
    return re.sub(r"^v(?=\d)", "", version)
