"""JSON logs on stderr: rule R6 (one JSON object a line, in UTC, secrets redacted) and that they never block a call."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from reliability.logs import (
    REDACTED,
    BackgroundHandler,
    JsonFormatter,
    OncePerSecond,
    configure_logging,
    flush_logs,
    log_context,
    redact,
)

from tests.unit.support import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("hunter2")


class Pipe:
    """A pipe whose other end is read only when a test says so."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self.received = b""

    def read_until(self, wanted: bytes, *, within_s: float = 5) -> bytes:
        """Read until `wanted` has arrived."""
        os.set_blocking(self.read_fd, False)
        give_up = time.monotonic() + within_s
        while wanted not in self.received and time.monotonic() < give_up:
            try:
                self.received += os.read(self.read_fd, 65_536)
            except BlockingIOError:
                time.sleep(0.001)
        assert wanted in self.received, f"{wanted!r} did not arrive"
        return self.received


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.read_fd)  # the writer's end stays: its daemon thread may still hold it


def record(message: object = "hello", *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("some.logger", logging.INFO, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


def no_constants(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def formatted(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(made)
    assert "\n" not in line
    found = json.loads(line, parse_constant=no_constants)
    assert isinstance(found, dict)
    return found


def handler_on(fd: int, **options: int) -> BackgroundHandler:
    handler = BackgroundHandler(fd, **options)
    handler.setFormatter(JsonFormatter())
    return handler


def test_r6_a_line_says_when_in_utc_how_bad_what_and_where() -> None:
    line = formatted(record("%s went", "all", created=0.25, msecs=250.0))
    assert line == {"time": "1970-01-01T00:00:00.250Z", "level": "info", "event": "all went", "logger": "some.logger"}


def test_r6_the_time_is_rfc_3339_in_utc() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", formatted(record())["time"])


def test_r6_inside_a_call_every_line_names_the_call() -> None:
    token = log_context.set({"request_id": "7", "tool": "add", "reference": "r-1"})
    try:
        line = formatted(record())
    finally:
        log_context.reset(token)
    assert (line["request_id"], line["tool"], line["reference"]) == ("7", "add", "r-1")
    assert "request_id" not in formatted(record())


def test_r6_extra_fields_are_kept_with_their_types() -> None:
    line = formatted(record(count=3, ratio=0.5, ok=True, nothing=None, names=("a", "b"), nested={"a": {1: [2]}}))
    assert (line["count"], line["ratio"], line["ok"], line["nothing"]) == (3, 0.5, True, None)
    assert (line["names"], line["nested"]) == (["a", "b"], {"a": {"1": [2]}})


def test_r6_extra_fields_do_not_replace_what_every_line_says() -> None:
    line = formatted(record(level="x", event="y", time="z", logger="w"))
    assert (line["level"], line["event"], line["logger"]) == ("info", "hello", "some.logger")
    assert line["time"] != "z"


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_r6_numbers_that_json_does_not_know_do_not_break_the_line(number: float) -> None:
    formatted(record(left_s=number, inside=[number], deeper={"x": number}))


def test_r6_a_traceback_is_one_field_of_one_line() -> None:
    try:
        raise KeyError("password=hunter2")  # noqa: TRY301
    except KeyError as error:
        made = record()
        made.exc_info = (type(error), error, error.__traceback__)
    line = formatted(made)
    assert line["exception"].startswith("Traceback")
    assert "hunter2" not in line["exception"]


@given(message=st.text(), extra=st.dictionaries(st.from_regex(r"\A[a-z]{1,8}\Z"), st.text() | st.floats(), max_size=3))
def test_r6_any_text_becomes_one_line_of_json(message: str, extra: dict[str, object]) -> None:
    assume(not extra.keys() & record().__dict__.keys())
    line = formatted(record("%s", message, **extra))
    assert line["event"] == redact(message)


@pytest.mark.parametrize("made", [record("%d", "x"), record("%s"), record(x=Unprintable()), record(Unprintable())])
def test_r6_a_record_that_cannot_be_formatted_is_a_line_of_json_too(
    pipe: Pipe, made: logging.LogRecord, capfd: pytest.CaptureFixture[str]
) -> None:
    handler_on(pipe.write_fd).handle(made)
    assert isinstance(json.loads(pipe.read_until(b"\n")), dict)
    assert capfd.readouterr().err == ""


def test_r6_a_record_that_contains_itself_is_a_line_of_json_too(pipe: Pipe) -> None:
    loop: dict[str, object] = {}
    loop["loop"] = loop
    handler_on(pipe.write_fd).handle(record(x=loop))
    assert isinstance(json.loads(pipe.read_until(b"\n")), dict)


SECRETS = [
    "password=%s",
    "PASSWORD: %s",
    '{"password": "%s"}',
    "{'api_key': '%s'}",
    "DB_PASSWORD=%s",
    "PGPASSWORD=%s",
    "access_token=%s",
    "client_secret: %s",
    "AWS_SECRET_ACCESS_KEY=%s",
    "x-api-key: %s",
    "Authorization: Bearer %s",
    "Authorization: Basic %s",
    "authorization: token %s",
    "bearer %s",
    "GET /x?a=1&token=%s&b=2",
    "connect postgres://user:%s@db/name failed",
    "redis://:%s@cache:6379/0",
    "key sk-%s was refused",
    "remote: ghp_%s",
    "remote: github_pat_%s",
    "glpat-%s",
    "xoxb-%s",
]
_secret = st.text(alphabet="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=16, max_size=900)


@given(template=st.sampled_from(SECRETS), secret=_secret, around=st.text(alphabet="xyz ,;\n", max_size=10))
def test_r6_a_secret_does_not_survive_in_any_usual_notation(template: str, secret: str, around: str) -> None:
    shown = redact(f"{around} {template % secret} {around}")
    assert REDACTED in shown
    assert secret not in shown
    assert secret[-8:] not in shown  # nor does the end of a long one
    assert secret[:8] not in shown


@given(template=st.sampled_from([t for t in SECRETS if "\n" not in t]), secret=_secret)
def test_r6_what_stands_around_a_secret_stays(template: str, secret: str) -> None:
    shown = redact(f"begin {template % secret} end")
    assert shown.startswith("begin ")
    assert shown.endswith(" end")


def test_r6_a_quoted_secret_with_blanks_is_redacted_to_its_end() -> None:
    assert "battery" not in redact('{"password": "correct horse battery", "user": "bob"}')
    assert "bob" in redact('{"password": "correct horse battery", "user": "bob"}')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "call",
        "A basic connection test",
        "the password is wrong",
        "no such secret",
        "tokens were counted",
        "https://example.com:8080/a?b=c",
        "http://127.0.0.1:8000/mcp",
        "user@example.com",
        "authorship: nobody",
        "task-sk is done",
        "a key = a value",
    ],
)
def test_r6_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@given(st.text(alphabet="abcdefghij .,()[]0123456789", max_size=200))
def test_r6_plain_prose_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "db_password",
        "passwd",
        "client_secret",
        "token",
        "access_token",
        "api_key",
        "apiKey",
        "X-API-Key",
        "authorization",
        "cookie",
        "set-cookie",
        "credentials",
        "private_key",
    ],
)
def test_r6_a_field_whose_name_says_secret_is_redacted_whatever_it_holds(key: str) -> None:
    line = formatted(record(**{key: "hunter2", "nested": {key: ["hunter2"]}, "list": [{key: 12345}]}))
    assert "hunter2" not in json.dumps(line)
    assert "12345" not in json.dumps(line)


@pytest.mark.parametrize(
    "unit", ["token", "token-", "password", "bearer ", "://", "://a:", "authorization: ", "sk-", "a "]
)
def test_r6_redacting_takes_time_in_proportion_to_the_text(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    started = time.process_time()
    redact(text)
    assert time.process_time() - started < 1


def test_r6_lines_arrive_whole_and_in_order(pipe: Pipe) -> None:
    handler = handler_on(pipe.write_fd)
    for number in range(500):
        handler.handle(record(number=number))
    lines = pipe.read_until(b'"number": 499}\n').splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(500))


def test_r6_lines_of_many_threads_arrive_whole_and_none_is_reported_as_dropped(pipe: Pipe) -> None:
    handler = handler_on(pipe.write_fd)

    def log(thread: int) -> None:
        for number in range(300):
            handler.handle(record(worker=thread, number=number))

    threads = [threading.Thread(target=log, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        pipe.read_until(b"\n")
    handler.handle(record(last=True))
    lines = [json.loads(line) for line in pipe.read_until(b'"last": true}\n').splitlines()]
    assert [line["event"] for line in lines] == ["hello"] * 1201
    for n in range(4):
        assert [line["number"] for line in lines if line.get("worker") == n] == list(range(300))


def test_r6_lines_that_arrive_while_a_batch_is_written_are_not_reported_as_dropped(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = handler_on(pipe.write_fd)
    write, late = handler._write, iter([record("late")])

    def write_and_be_disturbed(text: str) -> None:
        for made in late:
            handler.handle(made)  # the batch is taken, and not yet written
        write(text)

    monkeypatch.setattr(handler, "_write", write_and_be_disturbed)
    handler.handle(record("early"))
    pipe.read_until(b'"late"')
    handler.handle(record("last"))
    lines = [json.loads(line) for line in pipe.read_until(b'"last"').splitlines()]
    assert [line["event"] for line in lines] == ["early", "late", "last"]


def test_r6_a_reader_that_stands_still_blocks_nobody_and_costs_bounded_memory(pipe: Pipe) -> None:
    handler = handler_on(pipe.write_fd, capacity=100)
    handler.handle(record("x" * 200_000))  # more than a pipe holds
    handler.flush(0.1)
    started = time.monotonic()
    for number in range(1000):
        handler.handle(record(number=number))
    assert time.monotonic() - started < 2
    assert len(handler._lines) <= 100
    pipe.read_until(b'"count": 900}')
    lines = [json.loads(line) for line in pipe.received.splitlines()]
    assert [line["number"] for line in lines if "number" in line] == list(range(900, 1000))  # the oldest are lost


def test_r6_flushing_a_pipe_that_nobody_reads_gives_up_in_time(pipe: Pipe) -> None:
    handler = handler_on(pipe.write_fd)
    handler.handle(record("x" * 200_000))
    started = time.monotonic()
    handler.flush(0.05)
    assert 0.04 < time.monotonic() - started < 0.5


def test_r6_a_pipe_in_non_blocking_mode_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.write_fd, False)  # what a parent that shares the descriptor may do to it
    handler = handler_on(pipe.write_fd)
    for number in range(20):
        handler.handle(record("x" * 20_000, number=number))
    handler.flush(0.1)
    lines = pipe.read_until(b'"number": 19}\n').splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(20))


def test_r6_a_closed_stderr_is_harmless() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    handler = handler_on(write_fd)
    handler.handle(record())
    handler.flush()
    handler.handle(record())
    handler.flush()
    os.close(write_fd)


def test_r6_lone_surrogates_are_written(pipe: Pipe) -> None:
    handler_on(pipe.write_fd).handle(record("\ud800"))
    assert json.loads(pipe.read_until(b"\n"))["event"] == "\ud800"


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_r6_every_logger_of_the_process_ends_here_from_the_configured_level(pipe: Pipe, level: str) -> None:
    configure_logging(level, fd=pipe.write_fd)
    for name in ("debug", "info", "warning", "error"):
        logging.getLogger("somebody.else").log(getattr(logging, name.upper()), name)
    logging.getLogger().critical("last")
    flush_logs()
    events = [json.loads(line)["event"] for line in pipe.read_until(b'"last"').splitlines()]
    names = ["debug", "info", "warning", "error"]
    assert events == [*names[names.index(level) :], "last"]


def test_r6_the_frameworks_are_quiet_about_ordinary_requests_unless_debugging(pipe: Pipe) -> None:
    configure_logging("info", fd=pipe.write_fd)
    logging.getLogger("mcp.server").info("Processing request")
    logging.getLogger("uvicorn.error").info("Started")
    logging.getLogger("mcp.server").warning("worth knowing")
    flush_logs()
    assert [json.loads(line)["event"] for line in pipe.read_until(b"\n").splitlines()] == ["worth knowing"]


def test_r6_python_warnings_are_lines_of_json(pipe: Pipe) -> None:
    import warnings

    configure_logging("info", fd=pipe.write_fd)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert "DeprecationWarning: old" in json.loads(pipe.read_until(b"\n"))["event"]


def test_r6_the_pipe_of_these_tests_holds_less_than_what_they_write(pipe: Pipe) -> None:
    assert fcntl.fcntl(pipe.write_fd, 1032) < 200_000  # F_GETPIPE_SZ


def test_r59_a_logger_that_anybody_makes_speak_warns_once_a_second_and_tells_every_error() -> None:
    clock = FakeClock()
    throttle = OncePerSecond(clock)

    def told(level: int) -> list[Any]:
        records = [logging.makeLogRecord({"levelno": level, "msg": "x"}) for _ in range(100)]
        return [getattr(record, "others", None) for record in records if throttle.filter(record)]

    assert told(logging.WARNING) == [0]
    assert told(logging.ERROR) == [None] * 100
    clock.now += 1
    assert told(logging.WARNING) == [99]
