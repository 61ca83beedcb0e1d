"""What becomes of a server's requests to the client, an example each (R28)."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from reliability.server_questions import ServerQuestions, referred

QUESTION = b'{ "jsonrpc":"2.0", "id":1,"method":"elicitation/create","params":{} }\n'
ANSWER = b'{ "jsonrpc":"2.0", "id":1,"result":{} }\n'


def of_first_server() -> ServerQuestions:
    numbers = itertools.count()
    return ServerQuestions(lambda: f"new {next(numbers)}")


def of_later_server() -> ServerQuestions:
    questions = of_first_server()
    assert questions.cancel_all("it ended") == []
    return questions


def cancelled(request_id: object) -> bytes:
    message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}}
    return json.dumps(message).encode() + b"\n"


def read(line: Any) -> Any:
    return json.loads(line)


def test_r17_what_the_first_server_asks_passes_as_it_is() -> None:
    questions = of_first_server()
    assert questions.ask(QUESTION, 1) is QUESTION
    assert questions.answer(ANSWER, 1) is ANSWER
    assert questions.ask(QUESTION, 1) is QUESTION
    line = cancelled(1)
    assert questions.withdraw(line) is line


def test_r28_what_a_later_server_asks_has_an_id_of_its_own() -> None:
    questions = of_later_server()
    assert read(questions.ask(QUESTION, 1)) == {**read(QUESTION), "id": "new 0"}
    assert questions.answer(ANSWER, 1) is None
    assert read(questions.answer(ANSWER.replace(b"1,", b'"new 0",'), "new 0")) == read(ANSWER)
    questions.ask(QUESTION, 1)
    assert read(questions.withdraw(cancelled(1)))["params"] == {"requestId": "new 1"}
    assert questions.cancel_all("it ended") == []


def test_r28_an_answer_that_nobody_waits_for_goes_nowhere() -> None:
    questions = of_first_server()
    questions.ask(QUESTION, 1)
    assert questions.answer(ANSWER, 2) is None
    assert questions.answer(ANSWER, None) is None
    assert questions.answer(ANSWER, 1) is ANSWER
    assert questions.answer(ANSWER, 1) is None


def test_r28_what_is_open_is_cancelled_when_the_server_ends() -> None:
    questions = of_first_server()
    for number in (1, 2):
        questions.ask(QUESTION, number)
    messages = [read(line) for line in questions.cancel_all("SIGKILL")]
    assert {message["method"] for message in messages} == {"notifications/cancelled"}
    assert [message["params"] for message in messages] == [{"requestId": n, "reason": "SIGKILL"} for n in (1, 2)]
    assert questions.answer(ANSWER, 1) is None


@pytest.mark.parametrize("line", [cancelled(7), cancelled(True), cancelled([1]), b'{"params":[1]}\n', b"{\n"])
def test_a_cancellation_of_nothing_passes_as_it_is(line: bytes) -> None:
    questions = of_first_server()
    questions.ask(QUESTION, 1)
    assert questions.withdraw(line) is line
    assert questions.answer(ANSWER, 1) is ANSWER


@pytest.mark.parametrize(("request_id", "found"), [(1, 1), ("a", "a"), (True, None), (None, None), ([1], None)])
def test_a_cancellation_is_about_a_number_or_a_text(request_id: object, found: object) -> None:
    assert referred(cancelled(request_id)) == found
    assert referred(b'{"params":["requestId"]}\n') is None
