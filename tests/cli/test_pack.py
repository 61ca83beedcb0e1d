"""The bundle: what it holds, that it is the same everywhere, and that it follows the checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mcp_scaffold import bundle, pack
from tests.cli.helpers import commit_all, git, set_version, write_tree


def unpack(file: Path) -> Path:
    clone = file.with_suffix(".clone")
    git(file.parent, "clone", "--quiet", str(file), str(clone))
    return clone


def files_at(clone: Path, ref: str) -> list[str]:
    return git(clone, "ls-tree", "-r", "--name-only", ref).splitlines()


def test_one_commit_for_each_release_and_one_for_the_unreleased_state(checkout: Path, tmp_path: Path) -> None:
    assert pack.build(checkout, tmp_path / "t.bundle") == ["v0.1.0", "v0.2.0", "v0.3.0.dev0"]
    clone = unpack(tmp_path / "t.bundle")
    log = git(clone, "log", "--format=%D|%s|%an|%ae|%cI", "v0.3.0.dev0").splitlines()
    author = "mcp-scaffold|mcp-scaffold@localhost|2026-01-02T03:04:05+00:00"
    assert [line.split("|", 1)[1] for line in log] == [
        f"mcp-scaffold {version}|{author}" for version in ("0.3.0.dev0", "0.2.0", "0.1.0")
    ]
    assert git(clone, "tag").split() == ["v0.1.0", "v0.2.0", "v0.3.0.dev0"]


def test_holds_the_template_alone(checkout: Path, tmp_path: Path) -> None:
    pack.build(checkout, tmp_path / "t.bundle")
    clone = unpack(tmp_path / "t.bundle")
    names = files_at(clone, "v0.2.0")
    assert {name.split("/")[0] for name in names} == {".gitattributes", "copier.yml", "template"}
    assert "template/added.txt" in names
    assert "template/retired.txt" not in names
    assert "template/retired.txt" in files_at(clone, "v0.1.0")
    assert "100755" in git(clone, "ls-tree", "v0.1.0", "template/check.sh")


def test_the_same_history_gives_the_same_bytes(
    checkout: Path, history: tuple[Path, dict[str, str]], tmp_path: Path, home: Path
) -> None:
    first, second, third = (tmp_path / f"{name}.bundle" for name in ("first", "second", "third"))
    pack.build(history[0], first)
    # Another clone without tags, stored differently, by somebody with another configuration.
    clone = tmp_path / "elsewhere"
    git(tmp_path, "clone", "--quiet", "--no-tags", f"file://{checkout}", str(clone))
    git(clone, "repack", "-adfq", "--depth=50", "--window=200")
    (home / ".gitconfig").write_text(
        "[user]\nname = Other\nemail = other@example.com\n[core]\nautocrlf = true\ncompression = 1\n"
        "excludesFile = ~/ignored\n[pack]\nthreads = 2\ncompression = 0\n[commit]\ngpgSign = true\n"
    )
    (home / "ignored").write_text("added.txt\n")
    pack.build(clone, second)
    git(checkout, "tag", "v0.1.0", git(checkout, "log", "--format=%H", "--grep", "^Version 0.1.0$"))
    pack.build(checkout, third)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()


def test_is_a_bundle_for_git_and_for_its_reader(checkout: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.bundle"
    pack.build(checkout, file)
    git(checkout, "bundle", "verify", "--quiet", str(file))
    assert list(bundle.tags(bundle.read_refs(file))) == ["v0.1.0", "v0.2.0", "v0.3.0.dev0"]


def test_a_release_carries_no_unreleased_state(checkout: Path, tmp_path: Path) -> None:
    set_version(checkout, "0.3.0")
    assert pack.build(checkout, tmp_path / "t.bundle") == ["v0.1.0", "v0.2.0", "v0.3.0"]


def test_uncommitted_files_are_in_the_unreleased_state_and_ignored_ones_are_not(checkout: Path, tmp_path: Path) -> None:
    write_tree(checkout, {".gitignore": "*.pyc\n", "template/draft.txt": "draft\n", "template/x.pyc": "junk\n"})
    pack.build(checkout, tmp_path / "t.bundle")
    names = files_at(unpack(tmp_path / "t.bundle"), "v0.3.0.dev0")
    assert "template/draft.txt" in names
    assert "template/x.pyc" not in names


def test_packing_leaves_the_repository_alone(checkout: Path, tmp_path: Path) -> None:
    write_tree(checkout, {"template/draft.txt": "draft\n"})
    before = git(checkout, "status", "--porcelain"), git(checkout, "count-objects"), git(checkout, "show-ref")
    pack.build(checkout, tmp_path / "t.bundle")
    assert (git(checkout, "status", "--porcelain"), git(checkout, "count-objects"), git(checkout, "show-ref")) == before


def test_works_inside_a_git_hook(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    git(tmp_path / "other", "init", "--quiet")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / ".git" / "index"))
    assert pack.build(checkout, tmp_path / "t.bundle")[0] == "v0.1.0"


def test_a_worktree_and_a_merge_are_fine(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "checkout", "--quiet", "-b", "topic", "HEAD~1")
    commit_all(checkout, "Topic")
    git(checkout, "checkout", "--quiet", "main")
    git(checkout, "merge", "--quiet", "--no-edit", "topic")
    git(checkout, "worktree", "add", "--quiet", "--detach", str(tmp_path / "worktree"))
    assert pack.build(tmp_path / "worktree", tmp_path / "t.bundle") == ["v0.1.0", "v0.2.0", "v0.3.0.dev0"]


def test_a_tag_that_contradicts_the_history_is_refused(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "tag", "v0.1.0", "HEAD")
    with pytest.raises(pack.PackError, match=r"The tag v0\.1\.0 points at \w+, but 0\.1\.0 was set by \w+"):
        pack.build(checkout, tmp_path / "t.bundle")


def test_a_shallow_clone_packs_what_it_has(checkout: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--depth=3", f"file://{checkout}", "shallow")
    assert pack.build(tmp_path / "shallow", tmp_path / "t.bundle") == ["v0.2.0", "v0.3.0.dev0"]


def test_a_partial_clone_fetches_what_it_needs(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "--quiet", "--filter=blob:none", f"file://{checkout}", "partial")
    pack.build(tmp_path / "partial", tmp_path / "partial.bundle")
    pack.build(checkout, tmp_path / "full.bundle")
    assert (tmp_path / "partial.bundle").read_bytes() == (tmp_path / "full.bundle").read_bytes()


def test_an_archive_without_git_packs_its_files(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".git")
    assert pack.build(checkout, tmp_path / "t.bundle") == ["v0.3.0.dev0"]
    assert "template/unreleased.txt" in files_at(unpack(tmp_path / "t.bundle"), "v0.3.0.dev0")


def test_without_a_template_there_is_nothing_to_pack(checkout: Path, tmp_path: Path) -> None:
    (checkout / "copier.yml").unlink()
    with pytest.raises(pack.PackError, match=r"Version 0\.3\.0\.dev0 holds no copier\.yml"):
        pack.build(checkout, tmp_path / "t.bundle")


def test_without_git_it_says_so(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pack.PackError, match="git is needed"):
        pack.build(checkout, tmp_path / "t.bundle")


def test_refresh_builds_only_what_changed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Path] = []
    real = pack.build

    def build(root: Path, file: Path) -> list[str]:
        built.append(file)
        return real(root, file)

    monkeypatch.setattr(pack, "build", build)
    pack.refresh(checkout)
    pack.refresh(checkout)
    assert len(built) == 1
    write_tree(checkout, {"template/limits.txt": "edited\n"})
    pack.refresh(checkout)
    assert len(built) == 2
    commit_all(checkout, "Commit the edit")
    pack.refresh(checkout)
    assert len(built) == 3
    assert git(unpack(checkout / pack.BUNDLE_FILE), "show", "v0.3.0.dev0:template/limits.txt") == "edited"


def test_replacing_a_file_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "place" / "file"
    pack.replace_file(target, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        pack.replace_file(target, b"new")
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    assert target.read_bytes() == b"old"
