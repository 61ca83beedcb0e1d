"""A generated server under its supervisor, with everything that a test needs to harm it."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

HANDSHAKE = "legacy"
MODERN = "auto"
ERAS = (HANDSHAKE, MODERN)
QUICK = {"WATCHDOG_STABLE_S": 0}
"""Every restart is the first one: the next waits are not longer."""
LONGEST_S = 30.0
"""For anything that has to happen, on a busy machine."""
BUSY_MACHINE_S = 1.0
"""What other work on the machine may add to a limit."""
FAILED = -32000
"""The code of a supervisor's errors."""


def until(condition: Callable[[], Any], what: str, *, within_s: float = LONGEST_S) -> Any:
    """Wait for what another process does; returns what the condition did."""
    give_up = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < give_up, f"not within {within_s} s: {what}"
        time.sleep(0.005)
    return found


def child_of(supervisor: int) -> int | None:
    """The server of a supervisor, if it has one; its other child leads the group and watches over the supervisor."""
    for child in children_of(supervisor):
        with suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and "guardian" not in child.cmdline():
                return child.pid
    return None


def children_of(pid: int) -> list[psutil.Process]:
    """The children of a process, none if it is gone."""
    try:
        return list(psutil.Process(pid).children())
    except psutil.NoSuchProcess:
        return []


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class Supervised:
    """A supervisor, the servers that it starts one after another, and a client that sees every line.

    Args:
        helpers: The generated project's own helpers, whose `ServerProcess` starts the supervisor.
        directory: For the plan and the traces of the servers.
        plan: What goes wrong at the start of the first server, the second and so on.
        settings: Of the server and the supervisor.
        arguments: What goes to `subprocess.Popen`.
    """

    def __init__(
        self, helpers: Any, directory: Path, *, plan: str = "well", settings: Mapping[str, object], **arguments: Any
    ) -> None:
        self.directory = directory
        self.plan(plan)
        variables = {"FAULTS": str(directory), "PYTHONPATH": ""}
        self.process = helpers.ServerProcess("stdio", {**QUICK, **settings}, variables, supervised=True, **arguments)
        self.pid: int = self.process.process.pid
        self.messages: list[dict[str, Any]] = []
        """Everything that has been read from the server."""

    def plan(self, plan: str) -> None:
        """Change what goes wrong at a start."""
        (self.directory / "plan").write_text(plan)

    # ---- the processes -----------------------------------------------------------------------------------------------

    @property
    def lives(self) -> int:
        """How many servers have been started."""
        file = self.directory / "lives"
        return len(file.read_text().split()) if file.exists() else 0

    def server(self) -> int:
        """The process id of the present server."""
        return int(until(lambda: child_of(self.pid), "a server"))

    def kill_server(self) -> int:
        """End the present server, and wait until its supervisor knows: a zombie may still hold its pipes."""
        pid = self.server()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not psutil.pid_exists(pid), "the end of the server")
        return pid

    def logged(self, event: str, *, count: int = 1, **fields: object) -> list[dict[str, Any]]:
        """Wait until an event has been logged so many times."""

        def found() -> list[dict[str, Any]] | None:
            lines = [line for line in self.process.logs() if line["event"].startswith(event)]
            lines = [line for line in lines if fields.items() <= line.items()]
            return lines if len(lines) >= count else None

        try:
            return list(until(found, f"{event!r} {fields}"))
        except AssertionError:
            sys.stderr.write(self.process.stderr())
            raise

    # ---- messages ----------------------------------------------------------------------------------------------------

    def introduce(self, era: str, **capabilities: Any) -> None:
        """Send the first request of an era."""
        self.process._era = era
        client = {"name": "tests", "version": "1"}
        hello = {"protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": client}
        if era == HANDSHAKE:
            self.process.request("begin", "initialize", **hello)
        else:
            self.process.request("begin", "server/discover")

    def begin(self, era: str, **capabilities: Any) -> None:
        """Send the first request of an era, and what belongs to it, and wait for the answer."""
        self.introduce(era, **capabilities)
        assert "result" in self.answer("begin"), self.answer("begin")
        if era == HANDSHAKE:
            self.process.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def call(self, request_id: object, tool: str, **arguments: object) -> None:
        """Send a call."""
        self.process.call(request_id, tool, **arguments)

    def wait_for(self, fits: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Wait for a message, or find it among those that have been read."""
        for message in self.messages:
            if fits(message):
                return message
        for message in self.process.answers(within_s=LONGEST_S):
            self.messages.append(message)
            if fits(message):
                return self.messages[-1]
        sys.stderr.write(self.process.stderr())
        raise AssertionError(f"not received: {what}")

    def answer(self, request_id: object) -> dict[str, Any]:
        """Wait for the answer to a request."""
        return self.wait_for(
            lambda message: message.get("id") == request_id and "method" not in message, f"the answer to {request_id!r}"
        )

    def text(self, request_id: object) -> str:
        """Wait for the result of a call that went well."""
        answer = self.answer(request_id)
        assert "error" not in answer, answer
        return str(answer["result"]["content"][0]["text"])

    def error(self, request_id: object) -> dict[str, Any]:
        """Wait for an error of the supervisor; returns its data and its text."""
        answer = self.answer(request_id)
        assert answer.get("error", {}).get("code") == FAILED, answer
        return {**answer["error"]["data"], "message": answer["error"]["message"]}

    def notification(self, method: str, about: str) -> dict[str, Any]:
        """Wait for a notification or a question with that method in which something is named."""
        return self.wait_for(
            lambda message: message.get("method") == method and about in str(message), f"{method} about {about}"
        )

    def works(self) -> bool:
        """Whether a call is answered as it should be."""
        request_id = f"works-{len(self.messages)}-{time.monotonic()}"
        self.call(request_id, "echo", text=request_id)
        return self.text(request_id) == request_id

    # ---- the end -----------------------------------------------------------------------------------------------------

    def leave(self) -> int:
        """Close stdin as a client does that is done; returns the exit code, when all messages have been read."""
        self.process.stdin.close()
        return self.ends()

    def ends(self) -> int:
        """Wait for the end of the supervisor; everything that it said is in `messages` then."""
        children = [child.pid for child in children_of(self.pid)]
        code = int(self.process.exit_code(within_s=LONGEST_S))
        self.messages += list(self.process.answers(within_s=LONGEST_S))
        until(lambda: all(map(is_gone, children)), "its processes are gone")
        assert self.process.stray_lines == []
        answered = [message["id"] for message in self.messages if "method" not in message]
        assert len(answered) == len(set(answered)), "a request was answered twice"
        return code
