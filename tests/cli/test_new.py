"""`mcp-scaffold new` without a terminal: what it makes, and that it makes all of it or nothing."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import copier
import pytest

from mcp_scaffold import bundle, create, finish, staging, templates
from mcp_scaffold.errors import Interrupted, OutsideError, StateError
from mcp_scaffold.git import GitError
from tests.cli.helpers import content, git, recorded, write_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cli.helpers import Ran

    Run = Callable[..., Ran]


class Silent:
    """Progress that nobody watches."""

    def __init__(self, *, consent: bool = True) -> None:
        self.warnings: list[str] = []
        self.consent = consent

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        yield

    def confirm(self, plan: create.Plan) -> bool:
        return self.consent


def make(destination: Path | None, *, consent: bool = True, **options: Any) -> create.Created:
    """Create a project from the installation's template, as a program would."""
    with templates.builtin() as template:
        request = create.Request(template=template, destination=destination, lock=False, **options)
        return create.create(request, Silent(consent=consent))


def test_makes_a_project_with_a_first_commit(run: Run, project: Path) -> None:
    assert (project / "src" / "my_server" / "tools" / "hello.py").exists()
    assert git(project, "status", "--porcelain") == ""
    assert git(project, "log", "--format=%s") == "Start my-server"
    assert git(project, "branch", "--show-current") == "main"
    assert recorded(project)["_src_path"] == "~/.mcp-scaffold/template.bundle"
    assert recorded(project)["_commit"] == "v0.1.0"
    assert os.listdir(project.parent) == ["my-server"]


def test_renders_exactly_what_copier_renders(run: Run, project: Path, tmp_path: Path) -> None:
    data = {"project_name": "my-server"}
    copied, settings = tmp_path / "copied", copier.Settings()
    copier.run_copy(bundle.MIRROR, copied, data, vcs_ref="v0.1.0", defaults=True, quiet=True, settings=settings)
    assert content(project) == content(copied)


def test_says_what_it_made_and_what_to_type_next(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    ran = run("new", "my server/srv-1", "--yes", "--no-lock", "--data", "license=none")
    where = Path("my server/srv-1").absolute()
    assert ran.out == ""
    assert ran.err.splitlines()[1:] == [
        f"Created `srv-1` from template 0.1.0 in `{where}` (10 files, first commit).",
        "",
        "Next:",
        "",
        "  cd 'my server/srv-1'",
        "  uv run srv-1",
        "  uv run pytest",
    ]
    assert ran.err.startswith("warning: git does not know your name and e-mail address")


def test_says_how_to_go_on_without_uv(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    err = run("new", "my-server", "--yes").err
    assert "  python3 -m venv .venv && .venv/bin/pip install --editable .\n  .venv/bin/my-server\n" in err


def test_an_unreleased_template_is_named(run: Run, install: Callable[[str], None]) -> None:
    install("0.3.0.dev0")
    assert "It is not released yet" in run("new", "my-server", "--yes", "--no-lock").err


def test_quiet_prints_nothing(run: Run, home: Path) -> None:
    (home / ".gitconfig").write_text("[user]\nname = Ann\nemail = ann@example.com\n")
    assert run("new", "my-server", "--yes", "--no-lock", "--quiet").err == ""


def test_without_a_destination_the_name_is_the_directory(run: Run) -> None:
    assert run("new", "--yes", "--no-lock", "--quiet").code == 0
    assert run("new", "--yes", "--no-lock", "--quiet", "--data", "project_name=other").code == 0
    assert sorted(os.listdir()) == ["my-server", "other"]


def test_the_destination_gives_the_name(run: Run) -> None:
    run("new", "deep/down/weather", "--yes", "--no-lock")
    assert recorded(Path("deep/down/weather"))["project_name"] == "weather"
    assert Path("deep/down/weather/src/weather/core.py").exists()


def test_a_destination_above_is_named_by_its_own_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("here").mkdir()
    monkeypatch.chdir("here")
    ran = run("new", "../x/../weather", "--yes", "--no-lock")
    assert recorded(Path("../weather"))["project_name"] == "weather"
    assert "  cd ../weather\n" in ran.err
    assert f"in `{Path.cwd().parent / 'weather'}`" in ran.err


def test_a_given_name_counts_before_the_destination(run: Run) -> None:
    run("new", "Weather Service", "--yes", "--no-lock", "--data", "project_name=weather")
    assert recorded(Path("Weather Service"))["project_name"] == "weather"


def test_answers_come_from_options_before_files(run: Run) -> None:
    Path("answers.yml").write_text("license: Apache-2.0\nauthor_name: Ann\n_src_path: elsewhere\nquestionnaire: 7\n")
    options = ("--answers", "answers.yml", "--data", "license=none", "--preset", "http", "--data", "port=1")
    assert run("new", "srv", "--yes", "--no-lock", *options).code == 0
    expected = {
        "license": "none",
        "author_name": "Ann",
        "preset": "http",
        "transports": ["http"],
        "port": 1,
        "questionnaire": 1,
    }
    assert recorded(Path("srv")).items() >= expected.items()
    assert not Path("srv/LICENSE").exists()


def test_the_answers_of_another_project_can_be_used(run: Run, project: Path) -> None:
    options = ("--answers", project / ".copier-answers.yml", "--data", "project_name=other")
    assert run("new", "other", "--yes", "--no-lock", *options).code == 0
    assert recorded(Path("other")) == {**recorded(project), "project_name": "other"}


def test_dry_run_lists_the_files_and_writes_nothing(run: Run) -> None:
    ran = run("new", "my-server", "--yes", "--dry-run", "--data", "license=none")
    assert ran.code == 0
    assert ran.out.splitlines() == [
        ".copier-answers.yml",
        "README.md",
        "check.sh",
        "limits.txt",
        "logo.bin",
        "pyproject.toml",
        "retired.txt",
        "src/my_server/__init__.py",
        "src/my_server/core.py",
        "src/my_server/tools/hello.py",
    ]
    assert ran.err == f"10 files would be written to `{Path('my-server').absolute()}`; nothing was.\n"
    assert os.listdir() == []


def test_an_older_version_can_be_asked_for(run: Run, install: Callable[[str], None]) -> None:
    install("0.2.0")
    run("new", "old", "--yes", "--no-lock", "--ref", "0.1.0")
    assert recorded(Path("old"))["_commit"] == "v0.1.0"
    assert Path("old/retired.txt").exists()


class TestGit:
    """The first commit."""

    def test_is_by_the_person(self, run: Run, home: Path) -> None:
        (home / ".gitconfig").write_text(
            "[user]\nname = Ann\nemail = ann@example.com\n[init]\ndefaultBranch = trunk\n[commit]\ngpgSign = true\n"
        )
        run("new", "my-server", "--yes", "--no-lock")
        assert git(Path("my-server"), "log", "--format=%an %ae %cn %ce") == "Ann ann@example.com Ann ann@example.com"
        assert git(Path("my-server"), "branch", "--show-current") == "trunk"
        assert recorded(Path("my-server"))["author_name"] == "Ann"
        assert recorded(Path("my-server"))["author_email"] == "ann@example.com"

    def test_needs_no_identity(self, run: Run, project: Path) -> None:
        assert git(project, "log", "--format=%an %ae") == "mcp-scaffold mcp-scaffold@localhost"

    def test_fills_in_what_is_missing(self, run: Run, home: Path) -> None:
        (home / ".gitconfig").write_text("[user]\nname = Ann\n")
        run("new", "my-server", "--yes", "--no-lock")
        assert git(Path("my-server"), "log", "--format=%an %ae") == "Ann mcp-scaffold@localhost"

    @pytest.mark.parametrize("email", ["root@localhost", "not an address", "ann@example.com\\nx"])
    def test_an_odd_address_is_no_default(self, run: Run, home: Path, email: str) -> None:
        (home / ".gitconfig").write_text(f'[user]\nname = Ann\nemail = "{email}"\n')
        assert run("new", "my-server", "--yes", "--no-lock").code == 0
        assert recorded(Path("my-server"))["author_email"] == ""

    def test_is_not_made_inside_a_work_tree(self, run: Run) -> None:
        git(Path(), "init", "--quiet")
        ran = run("new", "my-server", "--yes", "--no-lock")
        assert not Path("my-server/.git").exists()
        assert "  git add --all . && git commit --message 'Start my-server'\n" in ran.err

    def test_can_be_left_out(self, run: Run) -> None:
        ran = run("new", "my-server", "--yes", "--no-lock", "--no-git")
        assert not Path("my-server/.git").exists()
        assert "  git init && git add --all . && git commit" in ran.err

    def test_its_failure_is_a_warning(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> bool:
            raise GitError("commit", "unable to write")

        monkeypatch.setattr(finish, "commit", refuse)
        ran = run("new", "my-server", "--yes", "--no-lock")
        assert ran.code == 0
        assert "warning: the first commit was not made: unable to write. Updates need one." in ran.err


@pytest.fixture
def fake_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a `uv` of our own on the PATH."""

    def script(body: str) -> None:
        uv = tmp_path / "bin" / "uv"
        write_tree(uv.parent, {"uv": f"#!{sys.executable}\nimport os, pathlib, sys\n{body}\n"})
        uv.chmod(0o755)
        monkeypatch.setenv("PATH", f"{uv.parent}{os.pathsep}{os.environ['PATH']}")

    return script


class TestLock:
    """`uv lock`."""

    def test_is_part_of_the_first_commit(self, run: Run, fake_uv: Callable[[str], None]) -> None:
        fake_uv("assert sys.argv[1] == 'lock'; pathlib.Path('uv.lock').write_text('')")
        ran = run("new", "my-server", "--yes")
        assert "uv.lock" in git(Path("my-server"), "ls-files").split()
        assert "Locking dependencies with `uv lock`" in ran.err
        assert ", uv.lock, first commit)" in ran.err

    def test_its_failure_is_a_warning_with_the_reason(self, run: Run, fake_uv: Callable[[str], None]) -> None:
        fake_uv(
            "pathlib.Path('uv.lock').write_text('half')\n"
            "sys.exit('Using CPython 3.12\\nerror: Failed to fetch: `x`\\n  Caused by: one\\n  Caused by: dns error')"
        )
        ran = run("new", "my-server", "--yes")
        assert ran.code == 0
        assert "warning: no uv.lock was made: Failed to fetch: `x` (dns error). Run `uv lock` in the project" in ran.err
        assert not Path("my-server/uv.lock").exists()

    def test_a_resolver_error_is_readable(self) -> None:
        stderr = "  × No solution found when resolving dependencies:\n  ╰─▶ Because a and b"  # noqa: RUF001
        assert finish._reason(stderr) == "No solution found when resolving dependencies:"
        assert finish._reason("") == "it gave no reason"

    def test_is_left_out_without_uv(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda name: None)
        assert run("new", "my-server", "--yes").code == 0


class TestAllOrNothing:
    """After anything that goes wrong, the place is as it was."""

    def test_after_an_error_while_rendering(self, run: Run) -> None:
        assert run("new", "a/b/srv", "--yes", "--data", "transports=[]").code == 2
        assert os.listdir() == []

    def test_after_a_full_disk(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        real, writes = Path.write_bytes, []

        def full(self: Path, data: bytes) -> int:
            writes.append(self)
            if len(writes) > 3:
                raise OSError(28, "No space left on device", str(self))
            return real(self, data)

        monkeypatch.setattr(Path, "write_bytes", full)
        ran = run("new", "srv", "--yes", "--no-lock")
        assert ran.code == 4
        assert "cannot be written: No space left on device.\n\nhint: Free some space" in ran.err
        assert os.listdir() == []

    def test_after_no(self, run: Run) -> None:
        with pytest.raises(Interrupted, match="Nothing was written"):
            make(Path("srv"), consent=False)
        assert os.listdir() == []

    def test_after_a_failed_move(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Path, target: Path) -> Path:
            raise PermissionError(13, "Permission denied", str(target))

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(OutsideError, match="Permission denied"):
            make(Path("a/b/srv"))
        assert os.listdir() == []

    def test_an_empty_destination_is_filled_and_stays_the_same_directory(self, run: Run) -> None:
        Path("srv").mkdir(mode=0o750)
        before = Path("srv").stat()
        make(Path("srv"))
        assert Path("srv").stat().st_ino == before.st_ino
        assert Path("srv").stat().st_mode == before.st_mode
        assert git(Path("srv"), "status", "--porcelain") == ""

    def test_the_current_directory_can_be_filled(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        Path("srv").mkdir()
        monkeypatch.chdir("srv")
        ran = run("new", ".", "--yes", "--no-lock")
        assert ran.code == 0
        assert "cd " not in ran.err
        assert recorded(Path())["project_name"] == "srv"

    def test_an_empty_destination_is_emptied_again(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        Path("srv").mkdir()
        real, moves = Path.rename, []

        def fail_on_the_third(self: Path, target: Path) -> Path:
            moves.append(target)
            if len(moves) == 3:
                raise OSError(5, "Input/output error", str(target))
            return real(self, target)

        monkeypatch.setattr(Path, "rename", fail_on_the_third)
        with pytest.raises(OutsideError, match="Input/output error"):
            make(Path("srv"))
        assert os.listdir("srv") == []

    def test_what_appears_meanwhile_is_left_alone(self, run: Run) -> None:
        Path("srv").mkdir()
        with pytest.raises(StateError, match="no longer empty"), staging.staged(Path("srv").absolute()) as place:
            place.mkdir()
            Path("srv/theirs").touch()
        assert os.listdir("srv") == ["theirs"]

    def test_rendering_happens_on_the_same_file_system(self, run: Run) -> None:
        with staging.staged(Path("x/y/srv").absolute()) as place:
            assert place.name == "srv"
            assert place.parent.parent == Path().absolute()
            place.mkdir()
        assert os.listdir("x/y") == ["srv"]


class TestOrigin:
    """An installation that knows its git address records that instead of the bundle."""

    def test_the_address_is_recorded(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        origin = templates.Origin(source="git+https://git.example.com/m: x #y", commit="1234567")
        monkeypatch.setattr(templates, "installed_from", lambda: origin)
        assert run("new", "srv", "--yes", "--no-lock").code == 0
        assert recorded(Path("srv"))["_src_path"] == origin.source
        assert recorded(Path("srv"))["_commit"] == origin.commit

    def test_another_version_is_not_that_commit(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(templates, "__version__", "0.1.0.dev0")
        monkeypatch.setattr(templates, "installed_from", lambda: templates.Origin(source="git+x", commit="1"))
        assert run("new", "srv", "--yes", "--no-lock", "--ref", "0.1.0").code == 0
        assert recorded(Path("srv"))["_src_path"] == bundle.MIRROR

    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            (None, None),
            ("{}", None),
            ("rubbish", None),
            ('{"url": "file:///x", "dir_info": {}}', None),
            (
                '{"url": "https://h/x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
                templates.Origin(source="git+https://h/x", commit="abc"),
            ),
            (
                '{"url": "https://h/x.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
                templates.Origin(source="https://h/x.git", commit="abc"),
            ),
        ],
    )
    def test_is_read_from_the_installation(
        self, record: str | None, expected: templates.Origin | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Distribution:
            def read_text(self, name: str) -> str | None:
                assert name == "direct_url.json"
                return record

        monkeypatch.setattr("importlib.metadata.distribution", lambda name: Distribution())
        assert templates.installed_from() == expected


class TestOwnTemplate:
    """`--template`."""

    def test_a_repository_at_its_newest_release(self, run: Run, checkout: Path) -> None:
        git(checkout, "tag", "v0.1.0", "HEAD~3")
        git(checkout, "tag", "v0.2.0rc1", "HEAD~2")
        assert run("new", "srv", "--yes", "--no-lock", "--template", checkout).code == 0
        assert recorded(Path("srv"))["_commit"] == "v0.1.0"
        assert recorded(Path("srv"))["_src_path"] == str(checkout)

    def test_a_relative_path_is_recorded_as_an_absolute_one(self, run: Run, checkout: Path) -> None:
        Path("link").symlink_to(checkout)
        assert run("new", "srv", "--yes", "--no-lock", "--template", "link", "--ref", "main").code == 0
        assert recorded(Path("srv"))["_src_path"] == str(checkout)

    def test_uncommitted_files_of_a_checkout_without_releases(self, run: Run, checkout: Path) -> None:
        write_tree(checkout, {"template/draft.txt": "draft\n"})
        ran = run("new", "srv", "--yes", "--no-lock", "--template", checkout)
        assert ran.code == 0
        assert Path("srv/draft.txt").exists()
        assert "warning: Dirty template changes included automatically." in ran.err

    def test_a_plain_directory(self, run: Run, tmp_path: Path) -> None:
        write_tree(tmp_path / "plain", {"copier.yml": "word: hello\n", "file.txt.jinja": "[[ {{ word }} ]]\n"})
        options = ("--data", "word=bye", "--template", tmp_path / "plain")
        assert run("new", "srv", "--yes", "--no-lock", *options).code == 0
        assert Path("srv/file.txt").read_text() == "[[ bye ]]\n"

    def test_an_address(self, run: Run, checkout: Path) -> None:
        assert run("new", "srv", "--yes", "--no-lock", "--template", f"file://{checkout}", "--ref", "main").code == 0
        assert recorded(Path("srv"))["_src_path"] == f"git+file://{checkout}"

    @pytest.mark.parametrize(
        ("source", "address", "for_copier"),
        [
            ("gh:a/b", "https://github.com/a/b", "gh:a/b"),
            ("git+https://h/x", "https://h/x", "git+https://h/x"),
            ("https://h/x", "https://h/x", "git+https://h/x"),
            ("ssh://git@h/x.git", "ssh://git@h/x.git", "ssh://git@h/x.git"),
            ("git@h:x", "git@h:x", "git@h:x"),
        ],
    )
    def test_addresses_are_understood_as_copier_does(self, source: str, address: str, for_copier: str) -> None:
        assert templates._address(source) == address
        assert templates._for_copier(source, Path("/nowhere")) == for_copier
