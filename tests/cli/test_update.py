"""`mcp-scaffold update`: what it merges, what it names, and that it leaves a project as it was when it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from mcp_scaffold import bundle, engine, templates, upgrade
from mcp_scaffold.errors import OutsideError, StateError
from tests.cli.helpers import commit_all, git, set_version, write_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.helpers import Ran

    Run = Callable[..., Ran]
    Install = Callable[[str], None]


def edit(project: Path, **files: str) -> None:
    """Change files and commit them, as the project's owner."""
    write_tree(project, dict(files.items()))
    commit_all(project, "Edit")


def status(project: Path) -> list[str]:
    return git(project, "status", "--porcelain").splitlines()


@pytest.fixture
def old(project: Path, install: Install) -> Path:
    """A project of 0.1.0 under the installation of 0.2.0."""
    install("0.2.0")
    return project


LIMITS = "one\ntwo\nthree\nfour\nfive\nsix\nseven\n"
NOT_EDITED = "`retired.txt`: deleted, because the template has no such file any more."


def keep_retired(project: Path) -> None:
    """Take the one file that 0.2.0 drops out of the way, so that an update can be clean."""
    (project / "retired.txt").unlink()
    commit_all(project, "Drop it myself")


def test_a_clean_update_says_one_line_and_exits_0(run: Run, old: Path) -> None:
    keep_retired(old)
    edit(old, **{"limits.txt": LIMITS.replace("seven", "SEVEN"), "src/my_server/tools/hello.py": "HELLO = 'mine'\n"})
    ran = run("update", old)
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == (
        "Updated `my-server` from 0.1.0 to 0.2.0: 5 files changed; review with `git diff`, then commit.\n"
    )
    assert (old / "limits.txt").read_text() == LIMITS.replace("seven", "SEVEN").replace("one", "ONE")
    assert (old / "added.txt").exists()
    assert (old / "src/my_server/tools/hello.py").read_text() == "HELLO = 'mine'\n"
    assert "_commit: v0.2.0" in (old / ".copier-answers.yml").read_text()


def test_the_current_directory_is_the_default(run: Run, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(old)
    assert run("update").code == 1
    assert (old / "added.txt").exists()


def test_twice_changes_nothing(run: Run, old: Path) -> None:
    run("update", old)
    commit_all(old, "Update")
    ran = run("update", old)
    assert (ran.code, ran.err) == (0, "Nothing to do: `my-server` is at 0.2.0 already.\n")
    assert status(old) == []


def test_quiet(run: Run, old: Path) -> None:
    keep_retired(old)
    assert run("update", old, "--quiet").err == ""


def test_tools_are_never_brought_back(run: Run, old: Path) -> None:
    (old / "src/my_server/tools/hello.py").unlink()
    commit_all(old, "No hello")
    run("update", old)
    assert not (old / "src/my_server/tools/hello.py").exists()


def test_a_stale_lock_is_named(run: Run, old: Path) -> None:
    found = upgrade.Updated(project=old, prefix="", before="1", after="2", changed=["pyproject.toml"])
    assert not found.is_stale_lock
    (old / "uv.lock").touch()
    assert found.is_stale_lock


class TestAttention:
    """Files that need a look are named, with exit code 1."""

    def test_a_conflict(self, run: Run, old: Path) -> None:
        keep_retired(old)
        edit(old, **{"limits.txt": LIMITS.replace("one", "1")})
        ran = run("update", old)
        assert ran.code == 1
        assert ran.err == (
            "warning: `limits.txt`: your edits and the template's conflict. Choose between the lines marked `<<<<<<<` "
            "and `>>>>>>>`, then `git add limits.txt`.\n"
            "Updated `my-server` from 0.1.0 to 0.2.0: 5 files changed, 1 file to look at.\n"
        )
        assert "UU limits.txt" in status(old)

    def test_an_edited_file_that_the_template_dropped(self, run: Run, old: Path) -> None:
        edit(old, **{"retired.txt": "I need it.\n"})
        ran = run("update", old)
        assert ran.code == 1
        assert (
            "warning: `retired.txt`: your edits are gone, because the template has no such file any more. "
            "`git show HEAD:retired.txt` prints your version.\n" in ran.err
        )
        assert git(old, "show", "HEAD:retired.txt") == "I need it."

    def test_a_file_that_the_template_dropped(self, run: Run, old: Path) -> None:
        ran = run("update", old)
        assert ran.code == 1
        assert f"warning: {NOT_EDITED} `git checkout HEAD -- retired.txt` brings it back.\n" in ran.err

    def test_an_edited_binary_file_that_the_template_replaced(self, run: Run, old: Path) -> None:
        keep_retired(old)
        edit(old, **{"logo.bin": "\0my logo\n"})
        ran = run("update", old)
        assert ran.code == 1
        assert (
            "warning: `logo.bin`: your edits are gone, because the template's version replaced yours. "
            "`git show HEAD:logo.bin` prints your version.\n" in ran.err
        )

    def test_an_edit_that_the_template_made_as_well_is_not_lost(self, run: Run, old: Path) -> None:
        keep_retired(old)
        edit(old, **{"limits.txt": LIMITS.replace("one", "ONE")})
        assert run("update", old).code == 0

    def test_names_with_spaces_and_accents(self, run: Run, old: Path) -> None:
        edit(old, **{"mes données.txt": "é\n"})
        assert run("update", old).code == 1
        assert (old / "mes données.txt").read_text() == "é\n"

    def test_a_project_below_the_top_of_its_repository(self, run: Run, old: Path) -> None:
        (old / ".git").rename(old.parent / ".git")
        edit(old, **{"retired.txt": "I need it.\n"})
        commit_all(old.parent, "Move")
        (old.parent / "beside.txt").write_text("uncommitted, but not ours")
        ran = run("update", old)
        assert "`git show HEAD:my-server/retired.txt` prints your version." in ran.err
        assert git(old, "show", "HEAD:my-server/retired.txt") == "I need it."
        assert (old.parent / "beside.txt").exists()


class TestDryRun:
    """`--dry-run` prints the diff and changes nothing."""

    def test_prints_a_diff_that_applies(self, run: Run, old: Path, tmp_path: Path) -> None:
        keep_retired(old)
        ran = run("update", old, "--dry-run")
        assert ran.code == 0
        assert "+New in 0.2.0.\n" in ran.out
        assert ran.err == "Would update `my-server` from 0.1.0 to 0.2.0: 5 files changed.\n"
        assert status(old) == []
        (tmp_path / "diff").write_text(ran.out)
        git(old, "apply", str(tmp_path / "diff"))
        applied = (old / "limits.txt").read_text()
        git(old, "checkout", ".")
        (old / "added.txt").unlink()
        run("update", old)
        assert applied == (old / "limits.txt").read_text()

    def test_names_what_would_need_a_look(self, run: Run, old: Path) -> None:
        edit(old, **{"retired.txt": "I need it.\n"})
        ran = run("update", old, "--dry-run")
        assert ran.code == 1
        assert "`retired.txt`: your edits are gone" in ran.err
        assert ran.err.endswith("from 0.1.0 to 0.2.0: 6 files changed, 1 file to look at.\n")
        assert "deleted file mode" in ran.out
        assert status(old) == []

    def test_says_when_there_is_nothing_to_do(self, run: Run, project: Path) -> None:
        ran = run("update", project, "--dry-run")
        assert (ran.code, ran.out) == (0, "")
        assert ran.err == "Nothing to do: `my-server` is at 0.1.0 already.\n"


class TestVersions:
    """`--to`, and which versions can be reached."""

    def test_a_version_between(self, run: Run, project: Path, install: Install) -> None:
        install("0.3.0.dev0")
        assert run("update", project, "--to", "v0.2.0").code == 1
        assert "_commit: v0.2.0" in (project / ".copier-answers.yml").read_text()

    def test_the_unreleased_version_of_the_installation(self, run: Run, project: Path, install: Install) -> None:
        install("0.3.0.dev0")
        run("update", project)
        assert (project / "unreleased.txt").exists()

    def test_from_an_unreleased_version_to_its_release(self, run: Run, install: Install) -> None:
        install("0.1.0.dev0")
        run("new", "early", "--yes", "--no-lock", "--quiet")
        install("0.1.0")
        ran = run("update", "early")
        assert ran.code == 0
        assert "Updated `early` from 0.1.0.dev0 to 0.1.0" in ran.err

    def test_an_unknown_version(self, run: Run, old: Path) -> None:
        ran = run("update", old, "--to", "7.0")
        assert (ran.code, ran.err) == (2, "error: The template has no version `7.0`; it has 0.1.0, 0.2.0.\n")

    def test_back(self, run: Run, old: Path, install: Install) -> None:
        run("update", old)
        commit_all(old, "Update")
        expected = "error: `my-server` is at 0.2.0, newer than 0.1.0: an update never goes back.\n"
        ran = run("update", old, "--to", "0.1.0")
        assert (ran.code, ran.err) == (3, expected)
        install("0.1.0")
        ran = run("update", old)
        assert ran.err.startswith(expected)
        assert "hint: Upgrade mcp-scaffold" in ran.err

    def test_a_project_from_a_version_that_nobody_has(self, run: Run, old: Path) -> None:
        answers = old / ".copier-answers.yml"
        answers.write_text(answers.read_text().replace("v0.1.0", "v0.1.5.dev0"))
        commit_all(old, "Pretend")
        ran = run("update", old)
        assert ran.code == 3
        assert (
            "was made from version 0.1.5.dev0 of the template, which this mcp-scaffold (0.2.0) does not hold" in ran.err
        )
        assert "`copier recopy --vcs-ref v0.2.0`" in ran.err


class TestRefusals:
    """A project that is in no state for an update is left alone."""

    def test_uncommitted_changes(self, run: Run, old: Path) -> None:
        for name in ("a", "b", "c d", "e"):
            (old / name).touch()
        ran = run("update", old)
        assert ran.code == 3
        assert ran.err.startswith(
            "error: `my-server` has uncommitted changes: `a`, `b`, `c d` and 1 more.\n\nhint: Commit"
        )
        assert not (old / "added.txt").exists()

    def test_no_repository(self, run: Run, old: Path) -> None:
        (old / ".git").rename(old.parent.parent / "elsewhere")
        ran = run("update", old)
        assert ran.code == 3
        assert "is not in a git repository, and updates are merged through git.\n\nhint: git init &&" in ran.err

    def test_no_commit(self, run: Run, old: Path) -> None:
        (old / ".git").rename(old.parent.parent / "elsewhere")
        git(old, "init", "--quiet")
        ran = run("update", old)
        assert (ran.code, "has no commit yet" in ran.err) == (3, True)

    def test_an_answers_file_that_is_none(self, run: Run, old: Path) -> None:
        (old / ".copier-answers.yml").write_text("a: [")
        ran = run("update", old)
        assert (ran.code, "cannot be read" in ran.err) == (3, True)


class TestUndone:
    """An update that stops halfway leaves the project as it was."""

    @pytest.mark.parametrize("stop", [OutsideError("The disk is full."), KeyboardInterrupt()])
    def test_after(self, run: Run, old: Path, stop: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
        def halfway(project: Path, *_: object, **__: object) -> None:
            (project / "limits.txt").write_text("half")
            (project / "new").mkdir()
            (project / "new" / "file").touch()
            (project / "README.md").unlink()
            git(project, "add", "--all")
            raise stop

        monkeypatch.setattr(engine, "update", halfway)
        ran = run("update", old)
        assert ran.code in (4, 130)
        assert status(old) == []
        assert (old / "limits.txt").read_text() == LIMITS
        assert not (old / "new").exists()


class TestPlainCopier:
    """`copier update` works as well, without `--trust`."""

    def copier(self, project: Path, *arguments: str) -> str:
        command = [sys.executable, "-m", "copier", "update", "--defaults", *arguments, str(project)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stderr

    def test_goes_to_the_newest_release(self, run: Run, project: Path, install: Install) -> None:
        install("0.3.0.dev0")
        bundle.mirror()
        assert "Updating to template version 0.2.0" in self.copier(project)
        assert (project / "added.txt").exists()
        assert not (project / "unreleased.txt").exists()

    def test_gives_the_same_files(self, run: Run, old: Path, tmp_path: Path) -> None:
        bundle.mirror()
        copy = tmp_path / "copy" / "my-server"
        copy.parent.mkdir()
        git(tmp_path, "clone", "--quiet", str(old), str(copy))
        self.copier(copy)
        run("update", old)
        for project in (old, copy):
            commit_all(project, "Update")
        assert git(old, "rev-parse", "HEAD^{tree}") == git(copy, "rev-parse", "HEAD^{tree}")

    def test_changes_an_answer(self, run: Run, project: Path) -> None:
        self.copier(project, "--vcs-ref", ":current:", "--data", "license=none")
        assert not (project / "LICENSE").exists()


class TestOrigin:
    """A project that records a git address is updated from there."""

    @pytest.fixture
    def remote(self, checkout: Path) -> Path:
        git(checkout, "tag", "v0.1.0", git(checkout, "log", "--format=%H", "--grep", "^Version 0.1.0$"))
        git(checkout, "tag", "v0.2.0", git(checkout, "log", "--format=%H", "--grep", "^Version 0.2.0$"))
        return checkout

    @pytest.fixture
    def origin(self, remote: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        def at(version: str) -> None:
            commit = git(remote, "rev-parse", f"v{version}")
            found = templates.Origin(source=f"git+file://{remote}", commit=commit)
            monkeypatch.setattr(templates, "installed_from", lambda: found)

        return at

    def test_from_release_to_release(
        self, run: Run, install: Install, origin: Callable[[str], None], remote: Path
    ) -> None:
        origin("0.1.0")
        run("new", "srv", "--yes", "--no-lock", "--quiet")
        install("0.2.0")
        origin("0.2.0")
        ran = run("update", "srv")
        assert (ran.code, Path("srv/added.txt").exists()) == (1, True)
        recorded = yaml.safe_load(Path("srv/.copier-answers.yml").read_text())
        assert recorded["_src_path"] == f"git+file://{remote}"
        assert recorded["_commit"] == "v0.2.0"

    def test_to_a_named_version(self, run: Run, origin: Callable[[str], None]) -> None:
        origin("0.1.0")
        run("new", "srv", "--yes", "--no-lock", "--quiet")
        assert run("update", "srv", "--to", "0.2.0").code == 1
        commit_all(Path("srv"), "Update")
        ran = run("update", "srv", "--to", "0.9.0")
        assert (ran.code, ran.err) == (2, "error: The template has no version `v0.9.0`.\n")

    def test_a_template_of_ones_own(self, run: Run, remote: Path) -> None:
        run("new", "srv", "--yes", "--no-lock", "--quiet", "--template", remote, "--ref", "v0.1.0")
        edit(Path("srv"), **{"logo.bin": "\0my logo\n"})
        ran = run("update", "srv")
        assert ran.code == 1
        assert "`logo.bin`: your edits are gone" in ran.err
        set_version(remote, "0.4.0")
        git(remote, "tag", "v0.4.0")
        commit_all(Path("srv"), "Update")
        assert "from 0.2.0 to 0.4.0" in run("update", "srv").err

    def test_a_template_that_is_gone(self, run: Run, remote: Path) -> None:
        run("new", "srv", "--yes", "--no-lock", "--quiet", "--template", remote)
        remote.rename(remote.with_name("moved"))
        ran = run("update", "srv")
        assert ran.code == 4
        assert status(Path("srv")) == []


def test_can_be_called_without_a_terminal(old: Path) -> None:
    told: list[str] = []
    found = upgrade.update(old, None, warn=told.append)
    assert (found.before, found.after, found.deleted, told) == ("0.1.0", "0.2.0", ["retired.txt"], [])
    with pytest.raises(StateError, match="uncommitted changes"):
        upgrade.update(old, None, warn=told.append)
