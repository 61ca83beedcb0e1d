"""Packs the template's releases into one git bundle: a tagged commit for each, built the same everywhere.

The standard library alone: the build hook loads this file by its path, before anything is installed.

A release is a commit on the first-parent line of HEAD that sets a final `__version__`. Each becomes a commit that
holds `PATHS` of it alone, tagged `vX.Y.Z`, on top of the release before. A version that is no release yet (`.dev0`)
adds one commit with the present files, tagged `v<version>`. Author, dates (those of the release commits) and pack
settings are fixed, so that the same history gives the same bytes. Nothing is written to the repository.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

PATHS = (".gitattributes", "copier.yml", "template")
VERSION_FILE = "src/mcp_scaffold/__init__.py"
BUNDLE_FILE = "src/mcp_scaffold/template.bundle"

# Set while a hook of git runs; each would send our commands to another repository.
GIT_VARIABLES = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
)
_IDENTITY = ("mcp-scaffold", "mcp-scaffold@localhost")
# A person's configuration must not change the bytes.
_SETTINGS = (
    "core.attributesFile=",
    "core.autocrlf=false",
    "core.eol=lf",
    "core.excludesFile=",
    "core.fsmonitor=false",
    "core.safecrlf=false",
    "i18n.commitEncoding=utf-8",
)
_PACK = "--revs --stdout -q --threads=1 --window=0 --no-reuse-delta --no-reuse-object --compression=9"


class PackError(Exception):
    """The bundle cannot be built; the text is one sentence that says why."""


class Release(NamedTuple):
    """One version of the template: its number, the tree-ish that holds its files, and its date (Unix seconds)."""

    version: str
    tree: str
    date: str


def build(root: Path, bundle: Path) -> list[str]:
    """Write `bundle` from the checkout in `root`, atomically; return its tags, oldest first.

    Raises PackError where there is no git, no version or no template, or where a tag of the repository contradicts
    its history.
    """
    with tempfile.TemporaryDirectory(prefix="mcp-scaffold-pack-") as scratch:
        git = _Git(root, Path(scratch))
        releases = _releases(git)
        current = current_version(root)
        if current not in [release.version for release in releases]:
            releases.append(_present(git, current))
        refs = _commit_all(git, releases)
        _write(git, refs, bundle)
    return list(refs)


def refresh(root: Path) -> Path:
    """Return the checkout's bundle, built anew if the template or HEAD changed since it was built.

    A developer who edits `template/` gets the edit in the next `mcp-scaffold new`; unchanged, this costs about 5 ms.
    """
    bundle = root / BUNDLE_FILE
    stamp = bundle.with_suffix(".bundle.stamp")
    wanted = _fingerprint(root)
    if not bundle.exists() or not stamp.exists() or stamp.read_text() != wanted:
        build(root, bundle)
        stamp.write_text(wanted)
    return bundle


def current_version(root: Path) -> str:
    """Return `__version__` as it stands in the files of `root`."""
    version = _version_in((root / VERSION_FILE).read_text(encoding="utf-8"))
    if version is None:
        raise PackError(f"{VERSION_FILE} sets no __version__.")
    return version


def is_final(version: str) -> bool:
    """Say whether `version` is a release (`1.2.3`), not a development version (`1.3.0.dev0`)."""
    return re.fullmatch(r"\d+\.\d+\.\d+", version) is not None


class _Git:
    """Git in one checkout; new objects and the index go to a scratch directory."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root = root
        self._env = {name: value for name, value in os.environ.items() if name not in GIT_VARIABLES}
        if not self._is_repository():
            # An unpacked archive: no history, but the present files can be packed.
            self._env["GIT_DIR"] = str(scratch / "git")
            self.run("init", "--quiet")
        objects = (root / self.run("rev-parse", "--git-path", "objects")).resolve()
        (scratch / "objects").mkdir()
        self._env |= {
            "GIT_DIR": self.run("rev-parse", "--absolute-git-dir"),
            "GIT_WORK_TREE": str(root),
            "GIT_INDEX_FILE": str(scratch / "index"),
            "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects),
            "GIT_AUTHOR_NAME": _IDENTITY[0],
            "GIT_AUTHOR_EMAIL": _IDENTITY[1],
            "GIT_COMMITTER_NAME": _IDENTITY[0],
            "GIT_COMMITTER_EMAIL": _IDENTITY[1],
        }
        self.head = self.run("rev-parse", "--quiet", "--verify", "HEAD^{commit}", check=False)

    def run(self, *arguments: str, stdin: str = "", check: bool = True, date: str = "") -> str:
        """Return what a git command prints, stripped."""
        output = self.run_bytes(*arguments, stdin=stdin, check=check, date=date)
        return output.decode("utf-8", "surrogateescape").strip()

    def run_bytes(self, *arguments: str, stdin: str = "", check: bool = True, date: str = "") -> bytes:
        """Return what a git command prints; PackError with its last line if it fails and `check` is set."""
        env = self._env | ({"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date} if date else {})
        settings = [part for setting in _SETTINGS for part in ("-c", setting)]
        try:
            result = subprocess.run(
                ["git", *settings, *arguments],
                cwd=self.root,
                env=env,
                input=stdin.encode("utf-8", "surrogateescape"),
                capture_output=True,
                check=False,
            )
        except FileNotFoundError as error:
            raise PackError("git is needed to pack the template, and it is not on the PATH.") from error
        if result.returncode and check:
            reason = result.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise PackError(f"`git {arguments[0]}` failed while packing the template: {reason[-1]}")
        return result.stdout

    def _is_repository(self) -> bool:
        top = self.run("rev-parse", "--show-toplevel", check=False)
        return bool(top) and Path(top).resolve() == self.root.resolve()


def _releases(git: _Git) -> list[Release]:
    """Read the releases from the history of the version file, oldest first."""
    if not git.head:
        return []
    found: dict[str, Release] = {}
    before = None
    log = ("log", "--first-parent", "--reverse", "--format=%H %ct", "HEAD", "--", VERSION_FILE)
    for line in git.run(*log).splitlines():
        commit, date = line.split()
        version = _version_in(git.run("cat-file", "blob", f"{commit}:{VERSION_FILE}", check=False))
        if version and version != before and is_final(version):
            found.pop(version, None)
            found[version] = Release(version, commit, date)
        before = version
    releases = [release for release in found.values() if _holds_template(git, release)]
    for release in releases:
        _check_tag(git, release)
    return releases


def _version_in(text: str) -> str | None:
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    return match[1] if match else None


def _holds_template(git: _Git, release: Release) -> bool:
    return bool(git.run("ls-tree", release.tree, "copier.yml"))


def _check_tag(git: _Git, release: Release) -> None:
    tag = f"v{release.version}"
    tagged = git.run("rev-parse", "--quiet", "--verify", f"refs/tags/{tag}^{{commit}}", check=False)
    if tagged and tagged != release.tree:
        raise PackError(
            f"The tag {tag} points at {tagged[:12]}, but {release.version} was set by {release.tree[:12]}: "
            f"move the tag or mend the history of {VERSION_FILE}."
        )


def _present(git: _Git, version: str) -> Release:
    """Return the files as they lie in the checkout, committed or not; what git ignores is left out."""
    if git.head:
        git.run("read-tree", "HEAD")
    # `git add` fails for what is missing. The index counts as well as the files: a tracked file may be ignored.
    present = [path for path in PATHS if (git.root / path).exists()]
    missing = [path for path in PATHS if path not in present]
    if missing:
        git.run("rm", "-r", "--cached", "--quiet", "--ignore-unmatch", "--", *missing)
    git.run("add", "--all", "--", *present)
    date = git.run("log", "-1", "--format=%ct", "HEAD") if git.head else "0"
    return Release(version, git.run("write-tree"), date)


def _commit_all(git: _Git, releases: list[Release]) -> dict[str, str]:
    """Make one commit per release on top of each other; return commit by tag, oldest first."""
    refs: dict[str, str] = {}
    parent: list[str] = []
    for release in releases:
        entries = git.run("ls-tree", release.tree, *PATHS)
        names = [line.split("\t", 1)[1] for line in entries.splitlines()]
        if not {"copier.yml", "template"} <= set(names):
            raise PackError(f"Version {release.version} holds no copier.yml or no template/.")
        tree = git.run("mktree", stdin=entries + "\n")
        message = f"mcp-scaffold {release.version}"
        date = f"@{release.date} +0000"
        commit = git.run("commit-tree", tree, *parent, "-m", message, date=date)
        refs[f"v{release.version}"] = commit
        parent = ["-p", commit]
    return refs


def _write(git: _Git, refs: dict[str, str], bundle: Path) -> None:
    """Write the bundle: `git bundle` needs real references, its format needs none (gitformat-bundle, version 2)."""
    newest = list(refs.values())[-1]
    lines = [f"{commit} refs/tags/{tag}" for tag, commit in refs.items()]
    # Copier falls back to HEAD where no final release exists yet.
    lines += [f"{newest} HEAD", f"{newest} refs/heads/main"]
    header = "# v2 git bundle\n" + "".join(f"{line}\n" for line in lines) + "\n"
    packed = git.run_bytes("pack-objects", *_PACK.split(), stdin="".join(f"{commit}\n" for commit in refs.values()))
    replace_file(bundle, header.encode() + packed)


def replace_file(path: Path, content: bytes) -> None:
    """Write `path` so that a reader sees the old or the new content, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _fingerprint(root: Path) -> str:
    """Digest what a bundle depends on: HEAD, and names, sizes and times of the files."""
    env = {name: value for name, value in os.environ.items() if name not in GIT_VARIABLES}
    command = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(command, cwd=root, env=env, capture_output=True, check=False).stdout
    digest = hashlib.sha256(head)
    fixed = [
        root / ".gitattributes",
        root / ".gitignore",
        root / "copier.yml",
        root / VERSION_FILE,
        Path(__file__),
    ]
    for path in sorted({*fixed, *(root / "template").rglob("*")}):
        if path.exists() and "__pycache__" not in path.parts:
            status = path.lstat()
            digest.update(f"{path}\0{status.st_mtime_ns}\0{status.st_size}\0{status.st_mode}\n".encode())
    return digest.hexdigest()
