"""Where a template comes from: the bundle of this installation, or a source of one's own."""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from mcp_scaffold import __version__, bundle
from mcp_scaffold.errors import OutsideError, UsageError
from mcp_scaffold.git import GitError, git, try_git
from mcp_scaffold.pack import is_final
from mcp_scaffold.questions import read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mcp_scaffold.questions import Question

_CONFIG_FILES = ("copier.yml", "copier.yaml")
# What Copier takes for the address of a repository; anything else needs `git+` before it.
_GIT_PREFIXES = ("git@", "git://", "git+", "gh:", "gl:", "https://github.com/", "https://gitlab.com/")
_ALIASES = {"gh:": "https://github.com/", "gl:": "https://gitlab.com/"}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a project records of its template: where it is, and the tag or commit."""

    source: str
    commit: str


@dataclass(frozen=True, kw_only=True)
class Template:
    """A template at one version: `source` and `ref` as Copier takes them, and its questions.

    `origin` is set for a template that was unpacked for the occasion: the project records it instead of `source`.
    """

    source: str
    ref: str | None
    label: str
    questions: dict[str, Question]
    origin: Origin | None = None

    @property
    def is_builtin(self) -> bool:
        """Say whether it is the template of this installation."""
        return self.origin is not None

    @property
    def is_released(self) -> bool:
        """Say whether it is none of our development versions."""
        return not self.is_builtin or is_final(self.label.removeprefix("template "))


@contextmanager
def builtin(ref: str | None = None) -> Iterator[Template]:
    """Unpack the template that this installation carries, at its own version or at `ref` (`0.1.0`, `v0.1.0`).

    Copier would clone the bundle, too, and ask git once for every file that it renders: from the unpacked files it
    needs half the time. Raises UsageError for an unknown version, OutsideError if the bundle is out of reach.
    """
    tag = find_tag(bundle.mirror(), ref or __version__)
    origin = installed_from() if tag == f"v{__version__}" else None
    with tempfile.TemporaryDirectory(prefix="mcp-scaffold-") as name:
        files = Path(name) / "template"
        mirror = str(Path(bundle.MIRROR).expanduser())
        git(Path(name), "-c", "advice.detachedHead=false", "clone", "--quiet", "--branch", tag, mirror, str(files))
        yield Template(
            source=str(files.resolve()),
            ref=None,
            label=f"template {tag.removeprefix('v')}",
            questions=_read_directory(files, bundle.MIRROR),
            origin=origin or Origin(source=bundle.MIRROR, commit=tag),
        )


def find_tag(known: dict[str, str], version: str) -> str:
    """Return the tag of `version` (with or without `v`); UsageError names what there is."""
    tag = f"v{version.removeprefix('v')}"
    if tag not in known:
        there = ", ".join(tag.removeprefix("v") for tag in known)
        raise UsageError(f"The template has no version `{version}`; it has {there}.")
    return tag


@contextmanager
def custom(source: str, ref: str | None) -> Iterator[Template]:
    """Find a template of one's own: a directory, a git repository or bundle, or the address of a repository.

    Without `ref` it is the newest release tag, as in Copier, or HEAD. Raises OutsideError if it is out of reach and
    UsageError if it has no such ref or is no template.
    """
    local = Path(source).expanduser()
    if local.is_dir() and try_git(local, "rev-parse", "--show-cdup") != "":
        if ref:
            raise UsageError(f"`{source}` is not a git repository, so it has no `--ref {ref}`.")
        questions = _read_directory(local, source)
        yield Template(source=str(local.resolve()), ref=None, label=f"template `{source}`", questions=questions)
        return
    address = str(local.resolve()) if local.exists() else _address(source)
    with tempfile.TemporaryDirectory(prefix="mcp-scaffold-") as name:
        clone = Path(name)
        _clone(clone, address, source)
        found = ref or newest_release(git(clone, "tag", "--list").split()) or "HEAD"
        if try_git(clone, "rev-parse", "--quiet", "--verify", f"{found}^{{commit}}") is None:
            raise UsageError(f"The template `{source}` has no version, branch or commit `{found}`.")
        # Of a checkout without releases Copier takes the files as they lie there, uncommitted edits included.
        in_place = found == "HEAD" and local.is_dir()
        questions = _read_directory(local, source) if in_place else _read_commit(clone, found, source)
    label = f"template `{source}` at `{found}`"
    yield Template(source=_for_copier(source, local), ref=found, label=label, questions=questions)


def newest_release(names: list[str]) -> str | None:
    """Return the newest tag that is a final version, as Copier chooses it."""
    versions = []
    for name in names:
        try:
            versions.append((Version(name), name))
        except InvalidVersion:
            continue
    final = [pair for pair in versions if not pair[0].is_prerelease]
    return max(final)[1] if final else None


def installed_from() -> Origin | None:
    """Return the git address that this installation came from (PEP 610), if it came from one."""
    try:
        text = metadata.distribution("mcp-scaffold").read_text("direct_url.json")
        record = json.loads(text) if text else {}
    except (metadata.PackageNotFoundError, ValueError):
        return None
    commit = record.get("vcs_info", {}).get("commit_id")
    if record.get("vcs_info", {}).get("vcs") != "git" or not commit:
        return None
    return Origin(source=as_git_address(str(record["url"])), commit=str(commit))


def as_git_address(url: str) -> str:
    """Mark an address so that Copier knows it for a git repository."""
    is_known = url.startswith(_GIT_PREFIXES) or url.endswith(".git")
    return url if is_known else f"git+{url}"


def _address(source: str) -> str:
    for alias, prefix in _ALIASES.items():
        if source.startswith(alias):
            return prefix + source.removeprefix(alias).lstrip("/")
    return source.removeprefix("git+")


def _for_copier(source: str, local: Path) -> str:
    """A relative path would break updates, so a local source is recorded as an absolute one."""
    return str(local.resolve()) if local.exists() else as_git_address(source)


def _clone(where: Path, address: str, source: str) -> None:
    try:
        git(where, "clone", "--quiet", "--bare", "--", address, ".")
    except GitError as error:
        raise OutsideError(f"The template `{source}` cannot be reached: {error.reason}.") from error


def _read_commit(clone: Path, ref: str, source: str) -> dict[str, Question]:
    for name in _CONFIG_FILES:
        text = try_git(clone, "show", f"{ref}:{name}")
        if text is not None:
            return read(text)
    raise UsageError(f"`{source}` is not a template: it has no copier.yml.")


def _read_directory(directory: Path, source: str) -> dict[str, Question]:
    for name in _CONFIG_FILES:
        if (directory / name).is_file():
            return read((directory / name).read_text(encoding="utf-8"))
    raise UsageError(f"`{source}` is not a template: it has no copier.yml.")
