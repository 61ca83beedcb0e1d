"""Answers from the command line and from files, checked against the questions."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from mcp_scaffold import answers, questions
from mcp_scaffold.errors import OutsideError, UsageError
from tests.cli.helpers import COPIER_YML

if TYPE_CHECKING:
    from pathlib import Path

QUESTIONS = questions.read(textwrap.dedent(COPIER_YML))


def given(**values: Any) -> dict[str, Any]:
    return answers.check(QUESTIONS, values, "--data")


def test_questions_are_read_in_their_order() -> None:
    assert list(QUESTIONS) == [
        "preset",
        "project_name",
        "package_name",
        "questionnaire",
        "author_name",
        "author_email",
        "license",
        "transports",
        "port",
    ]
    assert QUESTIONS["license"].choices == ("MIT", "Apache-2.0", "none")
    assert [name for name, question in QUESTIONS.items() if not question.is_asked] == ["package_name", "questionnaire"]


def test_short_and_long_forms_of_questions_are_understood() -> None:
    text = """
        plain: 3
        nothing:
        pairs: {type: str, choices: [[One, 1], [Two, {value: 2}]]}
        computed: {type: str, choices: "{{ [1, 2] }}"}
        included: !include other.yml
    """
    found = questions.read(textwrap.dedent(text))
    assert found["plain"].type == "int"
    assert found["nothing"].type == "yaml"
    assert found["pairs"].choices == (1, 2)
    assert found["computed"].choices == ()


@pytest.mark.parametrize("text", ["a: [", "just text"])
def test_a_broken_template_is_told(text: str) -> None:
    with pytest.raises(OutsideError, match=r"copier\.yml"):
        questions.read(text)


def test_pairs() -> None:
    assert answers.parse_pairs(["a=1", "b=x=y", "c=", "a=2"]) == {"a": "2", "b": "x=y", "c": ""}


@pytest.mark.parametrize("pair", ["license", "=MIT", ""])
def test_what_is_no_pair_is_refused(pair: str) -> None:
    with pytest.raises(UsageError, match="not of the form KEY=VALUE"):
        answers.parse_pairs([pair])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http", ["http"]),
        ("stdio,http", ["stdio", "http"]),
        ("stdio, http", ["stdio", "http"]),
        ("[stdio, http]", ["stdio", "http"]),
        ("[]", []),
        ("", []),
        (["http"], ["http"]),
    ],
)
def test_lists_are_given_in_any_way(value: Any, expected: list[str]) -> None:
    assert given(transports=value) == {"transports": expected}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("no", "no"), ("a: b", "a: b"), ("", ""), (" x ", " x "), (1.5, "1.5"), (7, "7")],
)
def test_text_is_taken_as_it_is(value: Any, expected: str) -> None:
    assert given(author_name=value) == {"author_name": expected}


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"licence": "MIT"}, "`licence` (--data) is not a question of the template.", "Did you mean `license`?"),
        ({"xyz": "1"}, "`xyz` (--data) is not a question", "`mcp-scaffold options` lists the questions."),
        ({"package_name": "x"}, "`package_name` (--data) is computed from other answers and cannot be given.", ""),
        ({"questionnaire": "2"}, "`questionnaire` (--data) is set by the template and cannot be given.", ""),
        (
            {"license": "apache"},
            "`apache` is no choice for `license` (--data); it takes `MIT`, `Apache-2.0` or `none`.",
            "Did you mean `Apache-2.0`?",
        ),
        ({"license": "GPL"}, "`GPL` is no choice for `license`", ""),
        ({"transports": "stdio,htp"}, "`htp` is no choice for `transports`", "Did you mean `http`?"),
        ({"transports": "[stdio"}, "`[stdio` is not a list", ""),
        ({"author_name": False}, "takes text, but YAML reads the value as `False`", 'author_name: "..."'),
        ({"author_name": None}, "takes text, but YAML reads the value as `None`", 'author_name: "..."'),
        ({"author_name": ["a"]}, "takes one value", ""),
        ({"port": {"a": 1}}, "takes one value", ""),
    ],
)
def test_wrong_answers_are_refused(values: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        given(**values)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert bool(hint) == bool(caught.value.hint)


def test_a_file_of_answers(tmp_path: Path) -> None:
    file = tmp_path / "answers.yml"
    file.write_text("_commit: v1\nlicense: MIT\ntransports: [http]\n")
    assert answers.read_file(file) == {"license": "MIT", "transports": ["http"]}
    file.write_text("")
    assert answers.read_file(file) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\xff\xfe\xff", "is not UTF-8 text"),
        (b"a: [", "is not valid YAML"),
        (b"- a\n", "must map questions to answers"),
        (b"text", "must map questions to answers"),
    ],
)
def test_a_file_that_is_no_answers_file_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "answers.yml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        answers.read_file(file)
    assert message in caught.value.message
    assert str(file) in caught.value.message
