"""The command line with the template of this checkout, as it is now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import copier
import pytest

from mcp_scaffold import __version__, bundle, cli, pack, templates
from tests.cli.helpers import content, recorded

if TYPE_CHECKING:
    from collections.abc import Callable

    Real = Callable[..., str]

PRESETS = ("stdio", "http", "full", "minimal")


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Real:
    """Run the command line of this checkout in an empty directory; return its stdout, or fail with its stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(templates, "installed_from", lambda: None)
    monkeypatch.setattr("mcp_scaffold.signals.install", lambda: None)

    def run(*arguments: str) -> str:
        capfd.readouterr()
        code = cli.run(list(arguments))
        captured = capfd.readouterr()
        assert code == 0, captured.err
        return captured.out

    return run


def test_the_history_of_this_checkout_can_be_packed(root: Path, tmp_path: Path) -> None:
    # Fails where a tag contradicts the history.
    assert pack.build(root, tmp_path / "t.bundle")[-1] == f"v{__version__}"


@pytest.mark.parametrize("preset", PRESETS)
def test_renders_exactly_what_copier_renders(real: Real, preset: str) -> None:
    real("new", "my-server", "--yes", "--no-lock", "--preset", preset)
    data, copied = {"preset": preset}, Path("copied")
    ref = recorded(Path("my-server"))["_commit"]
    copier.run_copy(bundle.MIRROR, copied, data, vcs_ref=ref, defaults=True, quiet=True, settings=copier.Settings())
    assert content(Path("my-server")) == content(copied)


def test_the_person_of_the_git_configuration_is_accepted(real: Real, home: Path) -> None:
    name = 'José O\'Néill, Ph.D. "Joe"'
    quoted = json.dumps(name, ensure_ascii=False)
    (home / ".gitconfig").write_text(f"[user]\nname = {quoted}\nemail = jose+mcp@example.co.uk\n", encoding="utf-8")
    real("new", "my-server", "--yes", "--no-lock")
    assert recorded(Path("my-server"))["author_name"] == name
    assert recorded(Path("my-server"))["author_email"] == "jose+mcp@example.co.uk"


def test_every_question_has_a_sentence_of_help(real: Real) -> None:
    options = json.loads(real("options", "--json"))
    assert options[0]["name"] == "preset"
    assert options[0]["choices"] == list(PRESETS)
    assert [option["name"] for option in options if not option["help"].endswith((".", "?"))] == []


OF_ONE_TRANSPORT = {"authentication", "watchdog"}
"""Questions that are asked and recorded with one transport alone."""


@pytest.mark.parametrize("preset", PRESETS)
def test_the_defaults_of_a_preset_are_shown(real: Real, preset: str) -> None:
    shown = {option["name"]: option["default"] for option in json.loads(real("options", "--json", "--preset", preset))}
    real("new", "my-server", "--yes", "--no-lock", "--preset", preset)
    answers = recorded(Path("my-server"))
    asked = {name: default for name, default in shown.items() if name in answers}
    assert asked == {name: answers[name] for name in asked}
    assert set(shown) - set(asked) <= OF_ONE_TRANSPORT


NEEDS = {"grafana": ["prometheus"], "compose": ["container"], "kubernetes": ["container"]}
"""What a choice is refused without."""


def test_every_choice_can_be_given(real: Real) -> None:
    for option in json.loads(real("options", "--json")):
        for number, choice in enumerate(option["choices"]):
            if option["name"] == "preset":
                continue
            name = f"{option['name'].replace('_', '-')}-{number}"
            answer = [*NEEDS.get(choice, []), choice]
            given = ("--preset", "full", "--data", f"{option['name']}={','.join(answer)}")
            real("new", name, "--yes", "--no-lock", "--no-git", *given)
            assert recorded(Path(name))[option["name"]] == (answer if option["multiple"] else choice)
