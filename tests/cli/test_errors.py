"""Every error that a person can run into: one sentence, what to do, and the documented exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import copier
import pytest

from mcp_scaffold import engine
from mcp_scaffold.errors import OutsideError, ScaffoldError, disk_error
from tests.cli.helpers import commit_all, git, write_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.helpers import Ran

    Run = Callable[..., Ran]

NEW = ("new", "srv", "--yes", "--no-lock")


def check(ran: Ran, code: int, message: str, hint: str = "") -> None:
    """Compare a failed run with what it must say, word for word; `*` stands for anything."""
    expected = f"error: {message}\n" + (f"\nhint: {hint}\n" if hint else "")
    pattern = ".*".join(re.escape(part) for part in expected.split("*"))
    assert re.fullmatch(pattern, ran.err, re.DOTALL), ran.err
    assert (ran.code, ran.out) == (code, "")


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        # Options.
        (("nw",), 2, "No such command `nw`.", "Did you mean `new`?"),
        (("new", "--yess"), 2, "No such option: `--yess`.", "Did you mean `--yes`?"),
        (("new", "--data"), 2, "Option `--data` requires an argument.", "`mcp-scaffold --help` lists the options."),
        (("new", "a", "b"), 2, "Got unexpected extra argument (b).", "`mcp-scaffold new --help` lists the options."),
        # Answers.
        ((*NEW, "--data", "license"), 2, "`--data license` is not of the form KEY=VALUE.", "For example: *"),
        (
            (*NEW, "--data", "licence=MIT"),
            2,
            "`licence` (--data) is not a question of the template.",
            "Did you mean `license`?",
        ),
        (
            (*NEW, "--data", "license=mit-0"),
            2,
            "`mit-0` is no choice for `license` (--data); it takes `MIT`, `Apache-2.0` or `none`.",
            "Did you mean `MIT`?",
        ),
        (
            (*NEW, "--preset", "htpp"),
            2,
            "`htpp` is no choice for `preset` (--preset); it takes `stdio` or `http`.",
            "Did you mean `http`?",
        ),
        (
            (*NEW, "--preset", "http", "--data", "preset=stdio"),
            2,
            "`--preset http` and `--data preset=stdio` contradict each other.",
            "",
        ),
        (
            (*NEW, "--data", "package_name=x"),
            2,
            "`package_name` (--data) is computed from other answers and cannot be given.",
            "",
        ),
        ((*NEW, "--data", "transports="), 2, "`transports`: At least one transport is needed.", ""),
        (
            (*NEW, "--data", "preset=http", "--data", "port=eighty"),
            2,
            "`port` (--data) takes a whole number, not `eighty`.",
            "",
        ),
        (
            (*NEW, "--data", "port=80"),
            2,
            "`port` has no meaning with the other answers.",
            "Leave `port` out, or change the others.",
        ),
        ((*NEW, "--answers", "missing.yml"), 2, "The answers file `missing.yml` cannot be read: No such file*", ""),
        (
            ("new", "Bad Name", "--yes", "--no-lock"),
            2,
            '`project_name`: "Bad Name" must be lower case letters, digits and single hyphens.',
            "The name comes from the destination; choose another: --data project_name=my-server",
        ),
        (
            (*NEW, "--data", "project_name=Bad"),
            2,
            '`project_name`: "Bad" must be lower case letters, digits and single hyphens.',
            "",
        ),
        # Destinations.
        (("new", "file", "--yes"), 3, "`*/file` is a file.", "Choose another destination."),
        (("new", "file/srv", "--yes"), 3, "`*/file/srv` cannot be created: `*/file` is a file.", ""),
        (("new", "nowhere", "--yes"), 3, "`*/nowhere` is a link to nowhere.", ""),
        (
            ("new", "full", "--yes"),
            3,
            "`*/full` exists and is not empty: it holds `thing`.",
            "Choose another destination, or empty this one.",
        ),
        (
            ("new", "generated", "--yes"),
            3,
            "`*/generated` exists and is not empty: it holds `.copier-answers.yml`.",
            "It was generated from a template: `mcp-scaffold update` brings in the newest one.",
        ),
        # Templates.
        ((*NEW, "--ref", "9.9.9"), 2, "The template has no version `9.9.9`; it has 0.1.0.", ""),
        ((*NEW, "--template", "missing"), 4, "The template `missing` cannot be reached: *", ""),
        ((*NEW, "--template", "file:///missing.git"), 4, "The template `file:///missing.git` cannot be reached: *", ""),
        ((*NEW, "--template", "full"), 2, "`full` is not a template: it has no copier.yml.", ""),
        (
            (*NEW, "--template", "full", "--ref", "v1"),
            2,
            "`full` is not a git repository, so it has no `--ref v1`.",
            "",
        ),
        (
            (*NEW, "--template", "repository", "--ref", "v1"),
            2,
            "The template `repository` has no version, branch or commit `v1`.",
            "",
        ),
        ((*NEW, "--template", "broken"), 4, "The template's copier.yml is not valid YAML: *", ""),
        (
            (*NEW, "--template", "running"),
            2,
            "The template wants to run code (tasks, migrations or Jinja extensions), which mcp-scaffold never does.",
            "If you trust it: copier copy --trust SOURCE DESTINATION",
        ),
        ((*NEW, "--template", "undefined"), 4, "The template is broken: 'nothing' is undefined.", ""),
        ((*NEW, "--template", "plain", "--preset", "x"), 2, "The template `plain` has no presets; *", ""),
        (
            (*NEW, "--template", "required"),
            2,
            "`word` has no default; give it with --data word=VALUE.",
            "",
        ),
        (("new", "--yes", "--template", "plain"), 2, "The destination is missing.", "For example: *"),
        # Projects.
        (("update", "missing"), 3, "`missing` is not a directory.", ""),
        (("update", "full"), 3, "`*/full` was not generated from a template: it has no .copier-answers.yml.", "*"),
        (("update", "generated"), 3, "`*` does not record a template and its version.", ""),
    ],
)
def test_is_one_clear_sentence(
    run: Run, arguments: tuple[str, ...], code: int, message: str, hint: str, tmp_path: Path
) -> None:
    write_tree(
        Path(),
        {
            "file": "",
            "full/thing": "",
            "generated/.copier-answers.yml": "a: 1\n",
            "repository/copier.yml": "a: 1\n",
            "broken/copier.yml": "a: [\n",
            "running/copier.yml": "_tasks: [touch ran]\n",
            "undefined/copier.yml": "_envops: {undefined: jinja2.StrictUndefined}\n",
            "undefined/x.txt.jinja": "{{ nothing }}\n",
            "plain/copier.yml": "a: 1\n",
            "required/copier.yml": 'word: {type: str, default: "{{ UNSET }}"}\n',
        },
    )
    Path("nowhere").symlink_to("missing")
    git(Path("repository"), "init", "--quiet")
    git(Path("repository"), "add", ".")
    git(Path("repository"), "commit", "--quiet", "-m", "x")
    before = sorted(Path().rglob("*"))
    check(run(*arguments), code, message, hint)
    assert sorted(Path().rglob("*")) == before


def test_no_git(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check(run(*NEW), 4, "git is not on the PATH.", "Install git; templates and updates are built on it.")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a place that even root cannot write to")
def test_no_permission(run: Run) -> None:
    check(run("new", "/sys/srv", "--yes"), 4, "`/sys` cannot be written: *", "*")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_of_ones_own(run: Run) -> None:
    Path("locked").mkdir(mode=0o500)
    check(
        run("new", "locked/srv", "--yes"),
        4,
        "`*/locked` cannot be written: Permission denied.",
        "Choose a directory that you may write to.",
    )
    Path("locked").chmod(0)
    check(
        run("new", "locked/srv", "--yes"),
        4,
        "`*/locked*` cannot be written: Permission denied.",
        "Choose a directory that you may write to.",
    )
    Path("locked").chmod(0o700)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EACCES, "that you may write to"),
        (errno.EROFS, "read-only"),
        (errno.EIO, ""),
    ],
)
def test_errors_of_the_disk(number: int, hint: str) -> None:
    error = disk_error(OSError(number, os.strerror(number), "/a/file"))
    assert error.message == f"`/a/file` cannot be written: {os.strerror(number)}."
    assert hint in error.hint
    assert disk_error(OSError("odd.")).message == "Writing failed: odd."


@pytest.mark.parametrize("command", [("new", "srv", "--yes"), ("update", "."), ("options",)])
def test_a_disk_that_fails_anywhere_is_told(
    run: Run, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/a/file")

    write_tree(Path(), {".copier-answers.yml": "_src_path: ~/.mcp-scaffold/template.bundle\n_commit: v0.1.0\n"})
    git(Path(), "init", "--quiet")
    commit_all(Path(), "x")
    monkeypatch.setattr("mcp_scaffold.bundle.read_refs", fail)
    check(run(*command), 4, "`/a/file` cannot be written: Input/output error.", "")


def test_a_failing_git_inside_copier_is_told() -> None:
    from plumbum import ProcessExecutionError

    with pytest.raises(OutsideError, match=r"^git failed: no space left\.$"), engine._errors_told():
        raise ProcessExecutionError(["git"], 128, "", "hint: x\nfatal: no space left\n")


def test_an_unknown_error_of_copier_is_told() -> None:
    with pytest.raises(ScaffoldError, match=r"^Copier stopped: something odd\.$"), engine._errors_told():
        raise ValueError("something\n  odd")


def test_a_defect_of_ours_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object, **__: object) -> None:
        raise KeyError("defect")

    monkeypatch.setattr(copier, "run_copy", defect)
    with pytest.raises(KeyError):
        run(*NEW)
    assert not Path("srv").exists()
