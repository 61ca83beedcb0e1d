"""The bundle that carries the template's releases, and its mirror in the home directory.

The mirror's path is the same string on every machine, so a project can record it and be updated anywhere.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from packaging.version import InvalidVersion, Version

from mcp_scaffold import __version__, pack
from mcp_scaffold.errors import OutsideError
from mcp_scaffold.git import git

MIRROR = "~/.mcp-scaffold/template.bundle"
_TAG = "refs/tags/"


def mirror() -> dict[str, str]:
    """Bring our releases into the mirror and return its commits by tag, oldest first.

    Releases that only the mirror knows (a newer mcp-scaffold ran here) stay. Written atomically, and only if
    something is missing. Raises OutsideError if our own bundle or the home directory is out of reach.
    """
    ours_path, mirror_path = own_bundle(), Path(MIRROR).expanduser()
    ours, theirs = read_refs(ours_path), _read_mirror(mirror_path)
    wanted = _merge(ours, theirs)
    try:
        if wanted != theirs:
            alone = wanted == ours
            content = ours_path.read_bytes() if alone else _union(ours_path, mirror_path, wanted)
            pack.replace_file(mirror_path, content)
    except OSError as error:
        raise OutsideError(
            f"The template cannot be put at `{MIRROR}`: {error.strerror}.",
            hint="Projects record that path for later updates; make your home directory writable, or set HOME.",
        ) from error
    return tags(wanted)


def own_bundle() -> Path:
    """Return the bundle of this installation; in a checkout, one that holds the files as they are now."""
    root = Path(__file__).resolve().parents[2]
    if (root / "hatch_build.py").exists() and not (root / "PKG-INFO").exists():
        try:
            return pack.refresh(root)
        except pack.PackError as error:
            raise OutsideError(str(error)) from error
        except OSError as error:
            raise OutsideError(f"The template of `{root}` cannot be packed: {error}.") from error
    return Path(__file__).with_name("template.bundle")


def read_refs(path: Path) -> dict[str, str]:
    """Return commits by reference from the header of a bundle. Raises OutsideError if it is none."""
    refs = {}
    try:
        with path.open("rb") as file:
            if file.readline() != b"# v2 git bundle\n":
                raise OutsideError(f"`{path}` is not a template bundle.")
            for line in iter(file.readline, b"\n"):
                commit, _, name = line.decode().strip().partition(" ")
                if not name:
                    raise OutsideError(f"`{path}` is damaged.")
                refs[name] = commit
    except (OSError, UnicodeDecodeError) as error:
        raise OutsideError(
            f"The template `{path}` cannot be read: {error}.", hint="Install mcp-scaffold again."
        ) from error
    return refs


def tags(refs: dict[str, str]) -> dict[str, str]:
    """Return the version tags among `refs`, oldest first."""
    found = {name.removeprefix(_TAG): commit for name, commit in refs.items() if name.startswith(_TAG)}
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def _order(tag: str) -> Version:
    try:
        return Version(tag)
    except InvalidVersion:
        return Version("0.dev0")


def _read_mirror(path: Path) -> dict[str, str]:
    """Return the references of the mirror; a missing or damaged one has none and is written anew."""
    try:
        return read_refs(path)
    except OutsideError:
        return {}


def _merge(ours: dict[str, str], theirs: dict[str, str]) -> dict[str, str]:
    """Keep every release of both; where they differ, the newer bundle is right, but our own version is ours."""
    if not tags(theirs):
        return ours
    newest_ours, newest_theirs = (_order(list(tags(refs))[-1]) for refs in (ours, theirs))
    merged = {**ours, **theirs} if newest_theirs > newest_ours else {**theirs, **ours}
    own = f"{_TAG}v{__version__}"
    if not pack.is_final(__version__) and own in ours:
        merged[own] = ours[own]
    return merged


def _union(ours: Path, theirs: Path, wanted: dict[str, str]) -> bytes:
    """Pack the wanted commits of two bundles into one."""
    with tempfile.TemporaryDirectory(prefix="mcp-scaffold-bundle-") as name:
        scratch = Path(name)
        git(scratch, "init", "--quiet", "--bare")
        for number, path in enumerate((ours, theirs)):
            git(scratch, "fetch", "--quiet", "--no-tags", str(path), f"+refs/*:refs/from/{number}/*")
        head = wanted.pop("HEAD")
        git(scratch, "update-ref", "--no-deref", "HEAD", head)
        for ref, commit in wanted.items():
            git(scratch, "update-ref", ref, commit)
        wanted["HEAD"] = head
        git(scratch, "bundle", "create", "--quiet", "union.bundle", "HEAD", "--branches", "--tags")
        return (scratch / "union.bundle").read_bytes()
