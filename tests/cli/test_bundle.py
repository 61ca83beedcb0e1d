"""The mirror of the bundle in the home directory: never older, never damaged, never half written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mcp_scaffold import bundle
from mcp_scaffold.errors import OutsideError
from tests.cli.helpers import git

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def mirror(home: Path) -> Path:
    return home / ".mcp-scaffold" / "template.bundle"


def test_the_first_use_copies_the_bundle(
    install: Callable[[str], None], mirror: Path, bundles: dict[str, Path]
) -> None:
    install("0.2.0")
    assert list(bundle.mirror()) == ["v0.1.0", "v0.2.0"]
    assert mirror.read_bytes() == bundles["0.2.0"].read_bytes()


def test_the_second_use_writes_nothing(install: Callable[[str], None], mirror: Path) -> None:
    install("0.2.0")
    bundle.mirror()
    before = mirror.stat()
    bundle.mirror()
    assert mirror.stat().st_ino == before.st_ino


def test_a_newer_installation_replaces_an_older_bundle(
    install: Callable[[str], None], mirror: Path, bundles: dict[str, Path]
) -> None:
    install("0.1.0")
    bundle.mirror()
    install("0.2.0")
    assert list(bundle.mirror()) == ["v0.1.0", "v0.2.0"]
    assert mirror.read_bytes() == bundles["0.2.0"].read_bytes()


def test_an_older_installation_leaves_a_newer_bundle_alone(
    install: Callable[[str], None], mirror: Path, bundles: dict[str, Path]
) -> None:
    install("0.2.0")
    bundle.mirror()
    install("0.1.0")
    assert list(bundle.mirror()) == ["v0.1.0", "v0.2.0"]
    assert mirror.read_bytes() == bundles["0.2.0"].read_bytes()


def test_a_version_that_only_one_of_two_bundles_has_is_kept(
    install: Callable[[str], None], mirror: Path, tmp_path: Path
) -> None:
    install("0.1.0.dev0")
    bundle.mirror()
    install("0.2.0")
    assert list(bundle.mirror()) == ["v0.1.0.dev0", "v0.1.0", "v0.2.0"]
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(mirror), str(clone))
    assert git(clone, "tag").split() == ["v0.1.0", "v0.1.0.dev0", "v0.2.0"]
    assert git(clone, "describe", "--tags", "HEAD") == "v0.2.0"
    bundle.mirror()
    assert list(bundle.mirror()) == ["v0.1.0.dev0", "v0.1.0", "v0.2.0"]


def test_a_development_version_is_always_the_one_that_runs(
    install: Callable[[str], None],
    bundles: dict[str, Path],
    mirror: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("0.3.0.dev0")
    bundle.mirror()
    older = tmp_path / "older.bundle"
    lines = bundles["0.3.0.dev0"].read_bytes()
    release = bundle.read_refs(bundles["0.3.0.dev0"])["refs/tags/v0.2.0"].encode()
    unreleased = bundle.read_refs(bundles["0.3.0.dev0"])["refs/tags/v0.3.0.dev0"].encode()
    header, end, rest = lines.partition(b"\n\n")
    older.write_bytes(header.replace(unreleased, release) + end + rest)
    monkeypatch.setattr(bundle, "own_bundle", lambda: older)
    assert bundle.mirror()["v0.3.0.dev0"] == release.decode()
    assert bundle.read_refs(mirror)["refs/tags/v0.3.0.dev0"] == release.decode()


@pytest.mark.parametrize("content", [b"", b"rubbish", b"# v2 git bundle\nrubbish\n", b"# v2 git bundle\n\xff\xfe x\n"])
def test_a_damaged_mirror_is_written_anew(
    content: bytes, install: Callable[[str], None], mirror: Path, bundles: dict[str, Path]
) -> None:
    mirror.parent.mkdir()
    mirror.write_bytes(content)
    install("0.1.0")
    bundle.mirror()
    assert mirror.read_bytes() == bundles["0.1.0"].read_bytes()


def test_a_home_that_cannot_be_written_is_told(install: Callable[[str], None], home: Path) -> None:
    (home / ".mcp-scaffold").write_text("in the way")
    install("0.1.0")
    with pytest.raises(OutsideError, match=r"The template cannot be put at `~/\.mcp-scaffold/template\.bundle`"):
        bundle.mirror()


def test_a_missing_bundle_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundle, "own_bundle", lambda: tmp_path / "nothing")
    with pytest.raises(OutsideError, match="cannot be read") as caught:
        bundle.mirror()
    assert caught.value.hint == "Install mcp-scaffold again."


def test_a_checkout_uses_a_bundle_of_its_present_files(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "hatch_build.py").write_text("")
    monkeypatch.setattr(bundle, "__file__", str(checkout / "src" / "mcp_scaffold" / "bundle.py"))
    assert bundle.own_bundle() == checkout / "src" / "mcp_scaffold" / "template.bundle"
    (checkout / "PKG-INFO").write_text("an unpacked sdist carries its bundle")
    (checkout / "src" / "mcp_scaffold" / "template.bundle").unlink()
    assert not bundle.own_bundle().exists()
