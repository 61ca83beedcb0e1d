"""The files that tools may read: rule R7."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from reliability.allowed_paths import AllowedPaths
from reliability.errors import PathNotAllowed

if TYPE_CHECKING:
    from pathlib import Path

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links and named pipes")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return an allowed directory with a file in it, beside a file that is not allowed."""
    (tmp_path / "secret").write_text("hunter2")
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "file").write_text("hello")
    return root.resolve()


@pytest.fixture
def paths(root: Path) -> AllowedPaths:
    return AllowedPaths([str(root)], setting="ALLOWED_ROOTS")


def refusal(paths: AllowedPaths, path: str) -> str:
    with pytest.raises(PathNotAllowed) as caught:
        paths.read(path, max_bytes=100)
    return caught.value.text


def test_r7_what_is_below_a_root_can_be_read(paths: AllowedPaths, root: Path) -> None:
    for path in ("deep/file", "./deep/../deep/file", str(root / "deep" / "file")):
        assert paths.resolve(path) == root / "deep" / "file"
        assert paths.read(path, max_bytes=5) == b"hello"
    assert paths.resolve(".") == root
    assert paths.root_of(root / "deep") == root


@pytest.mark.parametrize("path", ["../secret", "deep/../../secret", "{outside}", "/", "..", "../root2"])
def test_r7_what_is_outside_is_refused_by_the_name_of_the_setting(paths: AllowedPaths, root: Path, path: str) -> None:
    (root.parent / "root2").mkdir()  # begins like the root
    path = path.format(outside=root.parent / "secret")
    assert refusal(paths, path) == f"{path!r} is outside of what ALLOWED_ROOTS allows: {root}."


def test_r7_nobody_learns_what_exists_outside(paths: AllowedPaths) -> None:
    assert refusal(paths, "../secret").replace("secret", "nothing") == refusal(paths, "../nothing")


@posix
@pytest.mark.parametrize("target", ["../secret", "..", "../root/../secret"])
def test_r7_a_link_leads_no_further_than_its_end(paths: AllowedPaths, root: Path, target: str) -> None:
    (root / "link").symlink_to(target)
    assert "is outside" in refusal(paths, "link" if target != ".." else "link/secret")


@posix
def test_r7_a_link_within_and_a_root_that_is_a_link_are_followed(root: Path) -> None:
    (root / "link").symlink_to("deep")
    (root.parent / "alias").symlink_to(root)
    paths = AllowedPaths([str(root.parent / "alias")], setting="ALLOWED_ROOTS")
    assert paths.resolve("link/file") == root / "deep" / "file"


@posix
def test_r7_a_link_that_leads_to_itself_ends(paths: AllowedPaths, root: Path) -> None:
    (root / "loop").symlink_to("loop")
    assert refusal(paths, "loop") == "There is no 'loop'."


@posix
def test_r7_a_named_pipe_holds_nobody_up(paths: AllowedPaths, root: Path) -> None:
    os.mkfifo(root / "pipe")
    assert refusal(paths, "pipe") == "'pipe' is not a file."


def test_r7_directories_missing_and_large_files_are_refused(paths: AllowedPaths, root: Path) -> None:
    assert refusal(paths, "deep").startswith("'deep' cannot be read")
    assert refusal(paths, "nothing") == "There is no 'nothing'."
    assert refusal(paths, "a\0b") == "'a\\x00b' is no path."
    (root / "large").write_bytes(b"x" * 101)
    assert refusal(paths, "large") == "'large' is larger than the limit of 100 bytes."


def test_r7_without_roots_nothing_is_allowed() -> None:
    nothing = AllowedPaths([], setting="ALLOWED_ROOTS")
    assert refusal(nothing, ".") == "No directory may be read. ALLOWED_ROOTS lists those that may."


def test_a_root_may_begin_at_home(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.setenv("USERPROFILE", str(root.parent))
    assert AllowedPaths(["~/root"], setting="ALLOWED_ROOTS").resolve("~/root/deep") == root / "deep"


def test_r7_the_home_of_nobody_is_not_there(paths: AllowedPaths) -> None:
    assert refusal(paths, "~nobody-has-this-name/x") == "There is no '~nobody-has-this-name/x'."


def test_r7_a_refusal_shows_no_endless_path(paths: AllowedPaths) -> None:
    assert len(refusal(paths, "x" * 100_000)) < 300
