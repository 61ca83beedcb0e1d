"""What a server leaves behind for whoever looks from outside: rule R66."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from reliability.heartbeat import Heartbeat

from tests.unit.support import FakeClock, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


def beat_in(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


async def test_r66_the_first_beat_says_who_is_how_and_since_when(tmp_path: Path) -> None:
    path, clock = tmp_path / "beat", FakeClock(now=17.12345)
    with Heartbeat(path, reason=lambda: "", address=("::1", 8000), clock=clock).beating():
        assert beat_in(path) == {
            "pid": os.getpid(),
            "monotonic_s": 17.12345,  # not rounded: nobody must see a beat of the future
            "beat_s": 2.0,
            "reason": "",
            "address": ["::1", 8000],
        }


async def test_r66_it_beats_again_and_again(tmp_path: Path) -> None:
    path, clock = tmp_path / "beat", FakeClock()
    with Heartbeat(path, reason=lambda: "", beat_s=0.01, clock=clock).beating():
        clock.now += 60
        await until(lambda: beat_in(path)["monotonic_s"] == clock.now)


async def test_r66_becoming_ready_is_not_kept_back_for_a_whole_beat(tmp_path: Path) -> None:
    path, reasons = tmp_path / "beat", iter(["it starts", "it starts"])
    with Heartbeat(path, reason=lambda: next(reasons, ""), beat_s=2).beating():
        assert beat_in(path)["reason"] == "it starts"
        with anyio.fail_after(1.5):
            await until(lambda: not beat_in(path)["reason"])


async def test_r66_nothing_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Heartbeat(tmp_path / "beat", reason=lambda: "").beating():
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


async def test_r66_the_file_of_another_server_stays(tmp_path: Path) -> None:
    path = tmp_path / "beat"
    with Heartbeat(path, reason=lambda: "").beating():
        path.write_text('{"pid": 1}', encoding="utf-8")
    assert beat_in(path) == {"pid": 1}


async def test_a_file_that_cannot_be_written_is_said_once_and_written_as_soon_as_it_can_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "missing" / "beat"
    beats = 0

    def reason() -> str:
        nonlocal beats
        beats += 1
        return ""

    with caplog.at_level(logging.WARNING), Heartbeat(path, reason=reason, beat_s=0.005).beating():
        await until(lambda: beats > 5)
        assert [record.message for record in caplog.records] == ["the heartbeat cannot be written"]
        path.parent.mkdir()
        await until(path.exists)


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
async def test_a_link_that_somebody_put_there_is_not_written_through(tmp_path: Path) -> None:
    path, precious = tmp_path / "beat", tmp_path / "precious"
    precious.write_text("precious", encoding="utf-8")
    for name in ("beat", f"beat.{os.getpid()}"):
        (tmp_path / name).symlink_to(precious)
    with Heartbeat(path, reason=lambda: "").beating():
        assert beat_in(path)["pid"] == os.getpid()
    assert precious.read_text(encoding="utf-8") == "precious"
