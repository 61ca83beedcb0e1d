"""`mcp-scaffold new` at a real pseudo-terminal: questions, defaults, validation, consent, Ctrl-C and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.helpers import git, recorded, set_version, write_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pexpect = pytest.importorskip("pexpect")
pyte = pytest.importorskip("pyte")

DOWN, SPACE, ENTER, CTRL_C, CTRL_D = "\x1b[B", " ", "\r", "\x03", "\x04"
REPOSITORY = Path(__file__).resolve().parents[2]


class Screen:
    """A program at a terminal of 40 lines and 160 columns, so that no path is broken; `text` is what a person sees."""

    def __init__(self, command: list[str], where: Path) -> None:
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "160", "LINES": "40"}
        self._child = pexpect.spawn(command[0], command[1:], cwd=str(where), env=env, dimensions=(40, 160), echo=False)
        self._screen = pyte.Screen(160, 40)
        # Programs ask a terminal where its cursor is; it answers as if somebody typed.
        self._screen.write_process_input = self._child.send
        self._stream = pyte.ByteStream(self._screen)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def wait_for(self, text: str) -> None:
        """Wait until `text` stands on the screen."""
        while text not in self.text:
            try:
                self._stream.feed(self._child.read_nonblocking(65536, timeout=60))
            except (pexpect.EOF, pexpect.TIMEOUT):
                pytest.fail(f"{text!r} never came:\n{self.text}")

    def type(self, *keys: str) -> None:
        for key in keys:
            self._child.send(key)

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        while True:
            try:
                self._stream.feed(self._child.read_nonblocking(65536, timeout=60))
            except pexpect.EOF:
                break
        self._child.close()
        code: int = self._child.exitstatus
        return code

    def close(self) -> None:
        self._child.close(force=True)


@pytest.fixture(scope="session")
def released(history: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of mcp-scaffold with the small template, at a release."""
    checkout = tmp_path_factory.mktemp("released") / "checkout"
    git(checkout.parent, "clone", "--quiet", str(history[0]), str(checkout))
    for path in (REPOSITORY / "src" / "mcp_scaffold").rglob("*.py"):
        copy = checkout / path.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    write_tree(checkout, {"hatch_build.py": "", ".gitignore": "*.bundle*\n__pycache__/\n"})
    set_version(checkout, "0.3.0")
    return checkout


@pytest.fixture
def command(released: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of that checkout."""
    monkeypatch.setenv("PYTHONPATH", str(released / "src"))
    return [sys.executable, "-m", "mcp_scaffold"]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    return work


@pytest.fixture
def at_terminal(command: list[str], work: Path) -> Iterator[Callable[..., Screen]]:
    """Start `mcp-scaffold` at a terminal, in an empty directory."""
    screens: list[Screen] = []

    def start(*arguments: str) -> Screen:
        screens.append(Screen([*command, *arguments], work))
        return screens[-1]

    yield start
    for screen in screens:
        screen.close()


def test_asks_what_is_open_and_shows_a_summary(at_terminal: Callable[..., Screen], work: Path) -> None:
    screen = at_terminal("new", "weather", "--no-lock", "--data", "author_email=")
    screen.wait_for("What kind of server?")
    screen.type(DOWN, ENTER)
    screen.wait_for("What is the server called?")
    screen.wait_for("weather")
    screen.type(ENTER)
    screen.wait_for("Who writes it?")
    screen.type("\x15", "Ann Author", ENTER)
    screen.wait_for("Under which licence?")
    screen.type(DOWN, ENTER)
    screen.wait_for("How do clients reach it?")
    # The preset's choice is marked already; the other one is added.
    screen.type(SPACE, ENTER)
    screen.wait_for("Which port?")
    screen.type(ENTER)
    screen.wait_for("Create it?")
    summary = [line.split(maxsplit=1) for line in screen.text.partition("Summary\n")[2].splitlines()[:7]]
    assert dict(summary) == {
        "directory": str(work / "weather"),
        "preset": "http",
        "project_name": "weather",
        "author_name": "Ann Author",
        "author_email": "(none)",
        "license": "Apache-2.0",
        "transports": "stdio, http",
    }
    assert list(work.glob("weather")) == []
    screen.type("y")
    screen.wait_for("cd weather")
    assert screen.end() == 0
    assert recorded(work / "weather")["transports"] == ["stdio", "http"]
    assert git(work / "weather", "log", "--format=%s") == "Start weather"


def test_asks_for_the_directory_and_refuses_one_in_use(at_terminal: Callable[..., Screen], work: Path) -> None:
    write_tree(work, {"taken/file": ""})
    screen = at_terminal("new", "--no-lock", "--preset", "stdio", "--dry-run")
    screen.wait_for("Which directory should be created? my-server")
    screen.type("\x15", "taken", ENTER)
    screen.wait_for("exists and is not empty: it holds `file`.")
    screen.type("\x15", "free", ENTER)
    screen.wait_for("What is the server called?")
    screen.wait_for("free")
    screen.type(CTRL_C)
    assert screen.end() == 130


def test_an_invalid_answer_is_explained_and_asked_again(at_terminal: Callable[..., Screen]) -> None:
    screen = at_terminal("new", "My Server", "--no-lock", "--preset", "stdio")
    screen.wait_for("What is the server called?")
    # The directory's name is no name of a project: the nearest one is proposed.
    screen.wait_for("my-server")
    screen.type("\x15", "My Server", ENTER)
    screen.wait_for('"My Server" must be lower')
    screen.type("\x15", "fine", ENTER)
    screen.wait_for("Who writes it?")
    screen.type(CTRL_C)
    screen.end()


def test_nothing_chosen_where_something_is_needed(at_terminal: Callable[..., Screen]) -> None:
    screen = at_terminal(
        "new", "srv", "--no-lock", "--preset", "stdio", "--data", "project_name=srv", "--data", "author_name=A",
        "--data", "author_email=", "--data", "license=MIT",
    )  # fmt: skip
    screen.wait_for("How do clients reach it?")
    screen.type(SPACE, ENTER)
    screen.wait_for("At least one transport is needed.")
    screen.type(DOWN, SPACE, ENTER)
    screen.wait_for("Which port?")
    screen.type(CTRL_C)
    screen.end()


@pytest.mark.parametrize("question", ["What kind of server?", "How do clients reach it?", "Create it?"])
def test_ctrl_c_leaves_nothing(at_terminal: Callable[..., Screen], work: Path, question: str) -> None:
    screen = at_terminal("new", "a/srv", "--no-lock")
    shown = ["What kind of server?", "What is the server called?", "Who writes it?", "Which address?"]
    shown += ["Under which licence?", "How do clients reach it?", "Create it?"]
    for text in shown[: shown.index(question)]:
        screen.wait_for(text)
        screen.type(ENTER)
    screen.wait_for(question)
    screen.type(CTRL_C)
    assert screen.end() == 130
    assert "error: Stopped. Nothing was written." in screen.text
    assert list(work.iterdir()) == []


def test_no_consent_leaves_nothing(at_terminal: Callable[..., Screen], work: Path) -> None:
    options = [f"--data={name}" for name in ("project_name=srv", "author_name=A", "author_email=", "license=MIT")]
    screen = at_terminal("new", "srv", "--no-lock", "--preset=stdio", "--data=transports=stdio", *options)
    screen.wait_for("Create it?")
    screen.type("n")
    assert screen.end() == 1
    assert list(work.iterdir()) == []


def test_yes_asks_nothing_at_a_terminal(at_terminal: Callable[..., Screen], work: Path) -> None:
    screen = at_terminal("new", "srv", "--yes", "--no-lock")
    assert screen.end() == 0
    assert "Created `srv`" in screen.text
    assert (work / "srv").exists()


def test_asks_nothing_without_a_terminal(command: list[str], work: Path) -> None:
    ran = subprocess.run(
        [*command, "new", "srv", "--no-lock"], cwd=work, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, b"")


@pytest.fixture
def waiting_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `uv` that says through a pipe that it runs, and then waits for its end."""
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    write_tree(
        tmp_path / "bin",
        {
            "uv": f"""\
                #!{sys.executable}
                import pathlib, signal
                pathlib.Path({str(ready)!r}).write_text("ready")
                signal.pause()
                """
        },
    )
    (tmp_path / "bin" / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return ready


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_a_signal_halfway_leaves_nothing(
    command: list[str], work: Path, waiting_uv: Path, number: int, code: int
) -> None:
    process = subprocess.Popen(
        [*command, "new", "a/srv", "--yes"], cwd=work, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        # Returns when the stand-in for uv has opened the other end: everything is rendered by then.
        assert waiting_uv.read_text() == "ready"
        assert len(list(work.glob(".mcp-scaffold-*/srv/pyproject.toml"))) == 1
        os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "error: Stopped" in stderr
    assert list(work.iterdir()) == []
