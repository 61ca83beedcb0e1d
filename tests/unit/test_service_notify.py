"""Messages to a service manager, which is a real socket here: rule R70."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
import tempfile
from typing import TYPE_CHECKING

import anyio
import pytest
from reliability import service_notify
from reliability.service_notify import ServiceNotifier

from tests.unit.support import until

if TYPE_CHECKING:
    from collections.abc import Iterator

if sys.platform == "win32":
    pytest.skip("sockets with a path", allow_module_level=True)

pytestmark = pytest.mark.anyio


class Manager:
    """The other end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def received(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


def an_address(kind: str, directory: str) -> str:
    return f"@test/{secrets.token_hex(8)}" if kind == "abstract" else f"{directory}/notify"


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[Manager]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    with tempfile.TemporaryDirectory() as directory:  # pytest's own paths are too long for a socket
        made = Manager(an_address(request.param, directory))
        yield made
        made.socket.close()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in service_notify._VARIABLES:
        monkeypatch.delenv(name, raising=False)


async def test_r70_it_says_ready_and_stopping_each_once_and_in_time(manager: Manager) -> None:
    ready, stopping = asyncio.Event(), asyncio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ServiceNotifier(manager.address).announce, ready, stopping)
        await anyio.wait_all_tasks_blocked()
        assert manager.received() == []
        ready.set()
        await anyio.wait_all_tasks_blocked()
        assert manager.received() == ["READY=1"]
        stopping.set()
    assert manager.received() == ["STOPPING=1"]


async def test_r70_the_watchdog_hears_from_it_twice_as_often_as_it_asks(manager: Manager) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        await ServiceNotifier(manager.address, watchdog_s=30, sleep=sleep).keep_alive()
    assert manager.received() == ["WATCHDOG=1"] * 3
    assert slept == [15] * 3


async def test_r70_without_a_watchdog_there_is_nothing_to_keep_alive(manager: Manager) -> None:
    await ServiceNotifier(manager.address).keep_alive()
    assert manager.received() == []


async def test_r70_a_manager_that_is_being_restarted_itself_is_told_later() -> None:
    with tempfile.TemporaryDirectory() as directory:
        address = an_address("path", directory)
        managers: list[Manager] = []

        async def sleep(_: float) -> None:
            managers.append(Manager(address))

        notifier = ServiceNotifier(address, sleep=sleep)
        ready = asyncio.Event()
        ready.set()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(notifier.announce, ready, asyncio.Event())
            await until(lambda: managers and managers[0].received() == ["READY=1"])
            tasks.cancel_scope.cancel()
        managers[0].socket.close()


async def test_r70_a_manager_that_is_gone_costs_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    events = asyncio.Event()
    events.set()
    waits = 0

    async def sleep(_: float) -> None:
        nonlocal waits
        waits += 1

    await ServiceNotifier("/nowhere/notify", sleep=sleep).announce(events, events)
    assert [record.message for record in caplog.records] == ["the service manager was not told"] * 2
    assert waits == 2 * service_notify._ATTEMPTS


async def test_r70_a_manager_that_does_not_read_never_blocks_the_loop(manager: Manager) -> None:
    notifier = ServiceNotifier(manager.address)
    found = [notifier._send("WATCHDOG=1") for _ in range(5_000)]
    assert any(isinstance(error, BlockingIOError) for error in found)


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),  # meant for the process that started this one
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
    ],
)
def test_r70_the_environment_is_read_and_kept_from_child_processes(
    environment: dict[str, str], watchdog_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NOTIFY_SOCKET": "/run/notify", **environment}.items():
        monkeypatch.setenv(name, value)
    notifier = ServiceNotifier.from_environment()
    assert notifier is not None
    assert notifier.watchdog_s == watchdog_s
    assert not {*service_notify._VARIABLES} & {*os.environ}


@pytest.mark.parametrize("address", ["vsock:2:1234", "notify", "./notify"])
def test_r70_an_address_of_another_kind_is_logged(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert ServiceNotifier.from_environment() is None
    assert "cannot be told" in caplog.text


def test_r70_without_a_service_manager_there_is_nobody_to_tell() -> None:
    assert ServiceNotifier.from_environment() is None
