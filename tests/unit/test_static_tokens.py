"""Tokens by their hashes in a file: rule R70."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reliability import static_tokens
from reliability.authentication import InvalidToken
from reliability.configuration import ConfigurationError
from reliability.logs import redact
from reliability.static_tokens import StaticTokens, make_token, token_command

from tests.unit.support import FakeClock, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

ALICE, ALICES_LINE = make_token("alice")
BOB, BOBS_LINE = make_token("bob")


class File:
    def __init__(self, path: Path, *lines: str) -> None:
        self.path = path
        self.clock = FakeClock()
        self.write(*lines)

    def write(self, *lines: str) -> None:
        self.path.write_text("".join(f"{line}\n" for line in lines))
        os.utime(self.path, ns=(1, int(self.clock.now * 1e9)))  # two writes may fall into one tick of the file system

    def tokens(self) -> StaticTokens:
        return StaticTokens(self.path, clock=self.clock)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "tokens", "# who may call", "", ALICES_LINE + "  # until May", BOBS_LINE)


async def holder(tokens: StaticTokens, token: str) -> str | None:
    with suppress(InvalidToken):
        return (await tokens.verify_token(token)).client_id
    return None


async def test_r70_a_token_of_the_file_lets_its_holder_in_and_is_then_forgotten(file: File) -> None:
    tokens = file.tokens()
    assert [await holder(tokens, token) for token in (ALICE, BOB)] == ["alice", "bob"]
    assert ALICE not in repr(await tokens.verify_token(ALICE))


WRONG = {
    "empty": "",
    "short": "x",
    "cut": ALICE[:-1],
    "longer": ALICE + "x",
    "in capitals": ALICE.upper(),
    "after a space": f" {ALICE}",
    "of another": make_token("alice")[0],
    "the line": ALICES_LINE,
    "its hash": hashlib.sha256(ALICE.encode()).hexdigest(),
    "the line's hash": ALICES_LINE.partition(":")[2],
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_r70_no_other_token_does(file: File, wrong: str) -> None:
    with pytest.raises(InvalidToken, match=r"^unknown token$"):  # nothing of it
        await file.tokens().verify_token(WRONG[wrong])


async def test_r70_a_password_cannot_take_the_place_of_a_token(file: File) -> None:
    password = "correct horse battery staple, and more"
    file.write(f"alice:{hashlib.sha256(password.encode()).hexdigest()}")
    assert await holder(file.tokens(), password) is None


async def test_r70_every_entry_is_compared_with_in_constant_time(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    in_constant_time = hmac.compare_digest

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return in_constant_time(first, second)

    tokens = file.tokens()
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for token in (ALICE, BOB, "wrong", "w" * 43, "x" * 8000):
        compared.clear()
        await holder(tokens, token)
        assert len(compared) == 2  # the first that fits ends nothing
        assert {len(digest) for pair in compared for digest in pair} == {32}  # nor does a length tell anything


async def test_a_mark_at_the_beginning_of_the_file_takes_no_token_away(file: File) -> None:
    file.path.write_text(f"\ufeff{ALICES_LINE}\n", encoding="utf-8")
    assert await holder(file.tokens(), ALICE) == "alice"


async def test_r70_a_file_that_changes_counts_within_a_second(file: File) -> None:
    tokens = file.tokens()
    file.write(BOBS_LINE)
    file.clock.now += 0.9
    assert await holder(tokens, ALICE) == "alice"
    file.clock.now += 0.2
    assert [await holder(tokens, token) for token in (ALICE, BOB)] == [None, "bob"]
    file.write(ALICES_LINE, BOBS_LINE)
    file.clock.now += 1.1
    assert await holder(tokens, ALICE) == "alice"


async def test_r70_a_file_system_that_hangs_keeps_one_thread_and_no_call(
    file: File, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokens, may_answer, asked = file.tokens(), threading.Event(), []

    def hang(path: Path) -> os.stat_result:
        asked.append(path)
        may_answer.wait(10)
        return path.stat()

    monkeypatch.setattr(static_tokens, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(static_tokens, "os", SimpleNamespace(stat=hang, fstat=os.fstat))
    file.write(BOBS_LINE)
    while not asked:  # the thread may be slower to begin than its caller is patient
        file.clock.now += 1.1
        assert await holder(tokens, ALICE) == "alice"
    for _ in range(5):
        file.clock.now += 1.1
        assert await holder(tokens, ALICE) == "alice"
    assert len(asked) == 1
    assert {record.error for record in caplog.records if hasattr(record, "error")} == {"it takes too long"}
    may_answer.set()
    await until(lambda: not tokens._reading.busy)
    assert await holder(tokens, ALICE) is None


async def test_r70_a_thread_that_begins_when_its_caller_has_gone_does_not_look(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that is too busy to begin them must not find them all looking at once."""
    tokens, may_begin, in_time = file.tokens(), threading.Event(), anyio.to_thread.run_sync
    asked: list[Path] = []
    ended: list[bool] = []

    def late(function: Callable[[], object], **options: Any) -> Awaitable[object]:
        def run() -> None:
            may_begin.wait(10)
            function()
            ended.append(True)

        return in_time(run, **options)

    monkeypatch.setattr(static_tokens, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(static_tokens, "os", SimpleNamespace(stat=asked.append))
    monkeypatch.setattr(anyio.to_thread, "run_sync", late)
    for _ in range(5):
        file.clock.now += 1.1
        assert await holder(tokens, ALICE) == "alice"
    may_begin.set()
    await until(lambda: len(ended) == 5)
    assert asked == []


async def test_r70_a_token_is_taken_away_also_while_tools_have_all_the_threads(file: File) -> None:
    tokens, threads = file.tokens(), anyio.to_thread.current_default_thread_limiter()
    busy = [object() for _ in range(int(threads.available_tokens))]
    for one in busy:
        threads.acquire_on_behalf_of_nowait(one)
    file.write(BOBS_LINE)
    file.clock.now += 1.1
    try:
        assert await holder(tokens, ALICE) is None
    finally:
        for one in busy:
            threads.release_on_behalf_of(one)


async def test_a_caller_who_leaves_does_not_end_the_looking(file: File) -> None:
    tokens = file.tokens()
    file.write(BOBS_LINE)
    file.clock.now += 1.1
    with anyio.CancelScope() as caller:
        caller.cancel()
        await tokens.verify_token(ALICE)
    assert caller.cancelled_caught
    file.clock.now += 1.1
    await until(lambda: not tokens._reading.busy)
    assert await holder(tokens, ALICE) is None


async def test_r70_a_file_in_the_place_of_another_is_noticed(file: File) -> None:
    tokens, other = file.tokens(), file.path.with_name("new")
    same_time_and_size = file.path.stat()
    other.write_text(file.path.read_text().replace("alice", "carol"))
    os.utime(other, ns=(same_time_and_size.st_atime_ns, same_time_and_size.st_mtime_ns))
    other.replace(file.path)
    file.clock.now += 1.1
    assert await holder(tokens, ALICE) == "carol"


async def test_r70_one_client_may_have_two_tokens_while_one_takes_the_others_place(file: File) -> None:
    newer, line = make_token("alice")
    file.write(ALICES_LINE, line)
    tokens = file.tokens()
    assert [await holder(tokens, token) for token in (ALICE, newer)] == ["alice", "alice"]


async def test_r70_a_broken_line_of_a_running_server_counts_as_none(
    file: File, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = file.tokens()
    file.clock.now += 2
    file.write("# comment", ALICE, BOBS_LINE)  # somebody wrote the token itself
    with caplog.at_level(logging.INFO):
        assert [await holder(tokens, token) for token in (ALICE, BOB)] == [None, "bob"]
    assert [record.lines for record in caplog.records if hasattr(record, "lines")] == [[2]]
    assert ALICE not in caplog.text


async def test_r70_a_file_that_cannot_be_read_leaves_the_tokens_as_they_were(
    file: File, caplog: pytest.LogCaptureFixture
) -> None:
    tokens, text = file.tokens(), file.path.read_text()
    file.path.unlink()
    for _ in range(3):
        file.clock.now += 2
        assert await holder(tokens, ALICE) == "alice"
    assert caplog.text.count("cannot be read") == 1  # said once
    file.path.write_text(text.replace(ALICES_LINE, ""))
    file.clock.now += 2
    assert await holder(tokens, ALICE) is None
    file.write()
    file.clock.now += 2
    assert await holder(tokens, BOB) is None


async def test_r70_a_file_that_has_grown_too_large_leaves_the_tokens_as_they_were(file: File) -> None:
    tokens = file.tokens()
    file.write(*["#" * 100] * 2000)
    file.clock.now += 2
    assert await holder(tokens, ALICE) == "alice"


async def test_a_server_that_nobody_can_call_says_so(file: File, caplog: pytest.LogCaptureFixture) -> None:
    file.write("# nobody yet")
    file.tokens()
    assert "nobody can call" in caplog.text


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["alice"], "1"),
        ([ALICES_LINE, "bob:" + "g" * 64], "2"),
        (["alice:" + "0" * 63], "1"),
        (["al ice:" + "0" * 64], "1"),
        ([":" + "0" * 64], "1"),
        (["x"] * 9, "1, 2, 3, 4, 5 and more"),
        ([ALICE], "1"),
    ],
)
def test_a_file_that_is_not_understood_stops_the_start(file: File, lines: list[str], told: str) -> None:
    file.write(*lines)
    with pytest.raises(ConfigurationError, match=f"NAME:HASH: {told}\\.$") as caught:
        file.tokens()
    assert ALICE not in str(caught.value)


@pytest.mark.parametrize("what", ["none", "a directory", "long"])
def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path, what: str) -> None:
    path = tmp_path / "tokens"
    if what == "a directory":
        path.mkdir()
    elif what == "long":
        path.write_text("#" * 200_000)
    with pytest.raises(ConfigurationError, match=re.escape(f"'{path}' cannot be read: ")):
        StaticTokens(path)


@given(st.binary(max_size=300))
def test_r4_no_file_is_too_strange(data: bytes) -> None:
    entries, wrong = static_tokens._parse(data.decode(errors="replace"))
    assert all(len(entry.digest) == 32 for entry in entries)
    assert len(set(wrong)) == len(wrong)


def test_r70_a_token_holds_256_random_bits_and_is_never_logged() -> None:
    made = {make_token("a")[0] for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"mcp_[\w-]{43}", token) for token in made)
    for token in made:
        assert token not in redact(f"tried {token} and failed")


@pytest.mark.parametrize("name", ["alice", "team-7@example.com", "A.b_c", "x" * 64])
def test_the_command_writes_the_line_and_tells_the_person_the_token(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        token_command("my-server", [name])
    told = capsys.readouterr()
    token = told.err.splitlines()[-1]
    assert (ended.value.code, told.out) == (0, f"{name}:{hashlib.sha256(token.encode()).hexdigest()}\n")
    (tmp_path / "tokens").write_text(told.out)
    assert StaticTokens(tmp_path / "tokens")._name_of(token) == name


@pytest.mark.parametrize("arguments", [[], ["a", "b"], [""], ["a b"], ["-x"], ["a:b"], ["x" * 65], ["é"], ["a\n"]])
def test_the_command_refuses_what_is_no_name(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        token_command("my-server", arguments)
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert "usage: my-server token NAME >> FILE" in told.err
