"""Serves over HTTP with several processes on one port, so that more than one processor works.

The parent takes the port and starts the workers: each is the whole server in a process of its own, started anew and not
forked, that inherits the listening socket. A connection waits in that socket for whichever worker is free, so that none
is lost when one of them ends. The parent serves nobody. It starts a worker again that ends, ends one that is silent,
passes on what they say to each other, and stops all of them in order. Whatever becomes of the parent, its workers
notice, and stop in order, too. POSIX only.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import anyio

from .listener import bracketed, listen
from .process_contract import EXIT_CONFIGURATION, EXIT_MEMORY
from .restart_policy import RestartPolicy
from .service_notify import ServiceNotifier
from .shutdown import CLEANUP_S, Shutdown, end_process
from .workers_link import BEAT_S, WORKER, Link, Member, Message

logger = logging.getLogger(__name__)

_PATIENCE_S = 1.0
"""The workers of a parent that was killed have let go of the port by then."""
_START_S = 90.0
"""Time until a worker says how it is; the first run of its checks alone may take a minute."""
_SILENCE_S = 5.0
"""A worker that hangs ends by itself; one that cannot, because it is stopped, is ended so much later."""
_STOP_S = 2.0
_TICK_S = 0.5
_MEND_S = 30.0
"""Time between two looks whether somebody has mended the settings."""
_BEATS_MISSED = 3
_BEFORE_IT_SERVED = -signal.SIGTERM
"""Exit code of a worker that was stopped before it listened to signals."""


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """How to serve with several workers.

    Args:
        count: How many there are.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        path: Where MCP is served, for the log.
        grace_s: Seconds that calls in flight get after SIGTERM or SIGINT.
        delay_s: Seconds before that in which calls are still taken.
        hang_timeout_s: How long a worker's event loop may be stuck. All of them count as stuck when the whole service
            was stopped for longer (Ctrl-Z, `docker pause`) and goes on: they are ended and started again.
        heartbeat_path: File for the heartbeat of the whole service; none by default.
        key_variable: Variable in which all workers get the same new key for the state that callers bring back, with
            whichever worker they began; None where it is set already.
    """

    count: int
    host: str = "127.0.0.1"
    port: int = 8000
    path: str = "/mcp"
    grace_s: float = 10
    delay_s: float = 0
    hang_timeout_s: float = 30
    heartbeat_path: Path | None = None
    key_variable: str | None = None


def run_workers(config: WorkersConfig) -> NoReturn:
    """Serve until the process is told to stop, stop the workers, and end the process.

    Exit codes: 0 after an orderly stop, 1 when a worker cannot be kept alive or had to be killed, 2 if one that has
    never served says that the settings are wrong, or if the port cannot be had; any other is that of a first worker
    that ended before it served. A port that is taken is 1, so that the service is started again: a worker that is
    stuck may hold it, of a parent that was killed, until it ends itself.
    """
    try:
        listener = listen(config.host, config.port, patience_s=_PATIENCE_S)
    except (OSError, OverflowError, UnicodeError) as error:
        logger.error("cannot listen: %s", error, extra={"host": config.host, "port": config.port})  # noqa: TRY400
        end_process(1 if getattr(error, "errno", None) == errno.EADDRINUSE else EXIT_CONFIGURATION)
    command = [sys.executable, *sys.orig_argv[1:]]
    try:
        exit_code = anyio.run(partial(_serve, config, listener, command))
    except Exception:
        logger.exception("the server failed")
        end_process(1)
    end_process(exit_code)


async def _serve(config: WorkersConfig, listener: socket.socket, command: list[str]) -> int:
    port = listener.getsockname()[1]
    shutdown = Shutdown(grace_s=config.grace_s, delay_s=config.delay_s + _STOP_S)
    notifier = ServiceNotifier.from_environment()  # which takes it out of the environment
    service = Service(config, listener, command, shutdown)
    with shutdown.watching(), ExitStack() as stack:
        if config.heartbeat_path is not None:
            from .heartbeat import Heartbeat  # here, because few processes are asked to

            heartbeat = Heartbeat(config.heartbeat_path, reason=service.unready_because, address=(config.host, port))
            stack.enter_context(heartbeat.beating())
        async with anyio.create_task_group() as tasks:
            if notifier is not None:
                tasks.start_soon(notifier.announce, service.ready, shutdown.requested)
                tasks.start_soon(notifier.keep_alive)
            logger.info("listening", extra={"url": f"http://{bracketed(config.host)}:{port}{config.path}"})
            await service.run()
            tasks.cancel_scope.cancel()
    shutdown.cleaned_up()
    return shutdown.exit_code or int(service.was_disorderly)


class Slot:
    """The place of one worker: the processes that have it one after the other."""

    def __init__(self, number: int, policy: RestartPolicy) -> None:
        self.number = number
        self.policy = policy
        self.restarts = 0
        self.has_served = False
        self.is_misconfigured = False
        """Its last process found the settings wrong, and the next one is not there yet."""
        """Whether one of them ever has."""
        self.process: asyncio.subprocess.Process | None = None
        self.link: Link | None = None
        self.started_at = 0.0
        self.heard_at = 0.0
        self.reason: str | None = None
        """Why the worker says that it is not ready; None before it serves."""
        self.questions: dict[int, asyncio.Future[Any]] = {}

    @property
    def is_serving(self) -> bool:
        """Whether it takes calls, as far as is known."""
        return self.process is not None and self.reason is not None

    def unready_because(self) -> str:
        """Why it is not ready for calls; one that does not serve yet gets none."""
        return f"worker {self.number}: {self.reason}" if self.reason else ""

    def forget(self) -> None:
        """The process has ended."""
        if self.link is not None:
            self.link.close()
        for question in self.questions.values():
            question.cancel()
        self.process, self.link, self.reason, self.questions = None, None, None, {}


class Service:
    """The workers of one service.

    Args:
        config: See `WorkersConfig`.
        listener: The socket that they inherit.
        command: How to start one.
        shutdown: When to stop.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        config: WorkersConfig,
        listener: socket.socket,
        command: list[str],
        shutdown: Shutdown,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ready = asyncio.Event()
        """Set as soon as every worker serves."""
        self.was_disorderly = False
        """Whether a worker did not stop in order."""
        self._config = config
        self._listener = listener
        self._command = command
        self._shared = {config.key_variable: secrets.token_hex()} if config.key_variable else {}
        self._shutdown = shutdown
        self._clock = clock
        self._slots = [Slot(number, RestartPolicy()) for number in range(1, config.count + 1)]
        self._one_has_served = False
        self._others_may_start = asyncio.Event()
        self._said: dict[int, str] = {}
        self._questions = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def unready_because(self) -> str:
        """Why no calls should be sent to the service; empty while they should."""
        if self._shutdown.reason is not None:
            return "the server is stopping"
        if not any(slot.is_serving for slot in self._slots):
            return "no worker serves yet"
        return next(filter(None, (slot.unready_because() for slot in self._slots)), "")

    async def run(self) -> None:
        """Keep the workers running until a stop is requested and they have stopped."""
        async with anyio.create_task_group() as watching:
            watching.start_soon(self._end_the_silent)
            watching.start_soon(self._stop_when_asked)
            async with anyio.create_task_group() as keeping:
                for slot in self._slots:
                    keeping.start_soon(self._keep_running, slot)
            watching.cancel_scope.cancel()

    # ---- one worker --------------------------------------------------------------------------------------------------

    async def _keep_running(self, slot: Slot) -> None:
        if slot.number > 1:  # the first one goes ahead: what is wrong with the settings need not be said by all of them
            await self._others_may_start.wait()
        while not self._shutdown.requested.is_set():
            slot.started_at = self._clock()
            exit_code = await self._live(slot)
            if self._shutdown.requested.is_set():
                self.was_disorderly |= exit_code not in (0, EXIT_MEMORY, _BEFORE_IT_SERVED)
                return
            await self._recover(slot, exit_code)

    async def _live(self, slot: Slot) -> int:
        """Start a process, wait for its end, and return its exit code."""
        slot.heard_at = self._clock()
        try:
            slot.process, own = await self._spawn(slot.number)
        except OSError as error:  # no memory, or no more processes or files
            logger.error("a worker cannot be started", extra={"error": str(error)})  # noqa: TRY400
            return 1
        slot.link = await Link.over(own, partial(self._hear, slot))
        if self._shutdown.requested.is_set():  # it began while the process was being started
            slot.link.send(kind="stop")
            _signal(slot.process, signal.SIGTERM)
        exit_code = await slot.process.wait()
        slot.forget()
        self._tell_others()
        return exit_code

    async def _spawn(self, number: int) -> tuple[asyncio.subprocess.Process, socket.socket]:
        """A process, and the parent's end of the link to it."""
        own, its = socket.socketpair()
        descriptors = (self._listener.fileno(), its.fileno())
        given = {WORKER: " ".join(map(str, (number, *descriptors)))}
        with its, ExitStack() as unless_started:
            unless_started.enter_context(own)
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **self._shared, **given},
                pass_fds=descriptors,
            )
            unless_started.pop_all()
        return process, own

    async def _recover(self, slot: Slot, exit_code: int) -> None:
        """Wait until the next start is due, or stop the service where there is none."""
        slot.is_misconfigured = exit_code == EXIT_CONFIGURATION
        hopeless = slot.is_misconfigured and not slot.has_served
        if hopeless or not self._one_has_served or all(one.is_misconfigured for one in self._slots):
            self._shutdown.request("a worker cannot start", exit_code=exit_code if exit_code > 0 else 1)
            return
        about = {"worker": slot.number, "exit_code": exit_code, "restarts": slot.restarts}
        wait_s = self._next_wait_s(slot, exit_code, about)
        if wait_s is None:
            logger.error("a worker is given up: it ends again and again", extra=about)
            self._shutdown.request("a worker was given up", exit_code=1)
            return
        slot.restarts += 1
        with anyio.move_on_after(wait_s):
            await self._shutdown.requested.wait()

    def _next_wait_s(self, slot: Slot, exit_code: int, about: dict[str, int]) -> float | None:
        """Say that a worker has ended, and return how long to wait; None where there is no next start."""
        if exit_code == EXIT_CONFIGURATION:  # with these settings others serve: not a reason to stop them
            logger.error(
                "a worker cannot start again: a setting, or what it names, is wrong by now",
                extra={**about, "wait_s": _MEND_S},
            )
            return _MEND_S
        asked = exit_code in (0, EXIT_MEMORY)
        wait_s = slot.policy.next_wait_s(lived_s=self._clock() - slot.started_at, asked=asked)
        if wait_s is not None:
            logger.log(
                logging.INFO if asked else logging.WARNING,
                "a worker has ended and is started again",
                extra={**about, "wait_s": round(wait_s, 3)},
            )
        return wait_s

    async def _end_the_silent(self) -> None:
        while True:
            await anyio.sleep(_TICK_S)
            for slot in self._slots:
                limit_s = _START_S if slot.reason is None else 1.1 * self._config.hang_timeout_s + _SILENCE_S
                silence_s = self._clock() - slot.heard_at
                if slot.process is not None and silence_s > limit_s:
                    logger.error(
                        "a worker is killed: it says nothing any more",
                        extra={"worker": slot.number, "silence_s": round(silence_s, 1)},
                    )
                    _signal(slot.process, signal.SIGKILL)
                    slot.heard_at = self._clock()

    async def _stop_when_asked(self) -> None:
        """Have every worker stop in order, and kill what has not stopped in time."""
        await self._shutdown.requested.wait()
        self._others_may_start.set()  # they see that they are to stop
        for slot in self._slots:
            if slot.link is not None:
                slot.link.send(kind="stop")
            _signal(slot.process, signal.SIGTERM)  # which a stuck event loop does not keep from being noticed
        await anyio.sleep(self._config.delay_s + self._config.grace_s + CLEANUP_S + _STOP_S / 2)
        for slot in self._slots:
            if slot.process is not None:
                logger.error("a worker is killed: it does not stop", extra={"worker": slot.number})
                _signal(slot.process, signal.SIGKILL)

    # ---- what the workers say ----------------------------------------------------------------------------------------

    def _hear(self, slot: Slot, message: Message) -> None:
        slot.heard_at = self._clock()
        match message["kind"]:
            case "state":
                slot.reason, slot.has_served, slot.is_misconfigured = message["reason"], True, False
                self._note_progress()
                self._tell_others()
            case "ask":
                task = asyncio.ensure_future(self._ask_others(slot, message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case "answer":
                question = slot.questions.pop(message["question"], None)
                if question is not None and not question.done():
                    question.set_result(message["body"])
            case "share":
                for other in self._others(slot):
                    other.send(kind="share", body=message["body"])

    def _note_progress(self) -> None:
        self._one_has_served = True
        self._others_may_start.set()
        if all(slot.is_serving for slot in self._slots) and not self.ready.is_set():
            logger.info("ready", extra={"workers": len(self._slots)})
            self.ready.set()

    def _tell_others(self) -> None:
        """Let every worker know why another one is not ready, as soon as that changes."""
        for slot in self._slots:
            if slot.link is None:
                self._said.pop(slot.number, None)
                continue
            reason = next(filter(None, (other.unready_because() for other in self._slots if other is not slot)), "")
            if self._said.get(slot.number, "") != reason:
                slot.link.send(kind="others", reason=reason)
                self._said[slot.number] = reason

    def _others(self, slot: Slot) -> list[Link]:
        return [other.link for other in self._slots if other is not slot and other.is_serving and other.link]

    async def _ask_others(self, asking: Slot, message: Message) -> None:
        link = asking.link  # whoever has its place afterwards did not ask
        self._questions += 1
        question = self._questions
        asked: dict[int, asyncio.Future[Any]] = {}
        for slot in self._slots:
            is_silent = self._clock() - slot.heard_at > _BEATS_MISSED * BEAT_S  # it would only make others wait
            if slot is not asking and slot.is_serving and slot.link is not None and not is_silent:
                asked[slot.number] = slot.questions[question] = asyncio.get_running_loop().create_future()
                slot.link.send(kind="ask", question=question, what=message["what"])
        if asked:
            await asyncio.wait(asked.values(), timeout=message["limit_s"])
        for slot in self._slots:
            slot.questions.pop(question, None)
        bodies = {number: one.result() for number, one in asked.items() if one.done() and not one.cancelled()}
        if link is not None:
            members = [asdict(self._member(slot)) for slot in self._slots]
            link.send(kind="answers", question=message["question"], bodies=bodies, members=members)

    def _member(self, slot: Slot) -> Member:
        return Member(
            number=slot.number, pid=slot.process.pid if slot.process is not None else None, restarts=slot.restarts
        )


def _signal(process: asyncio.subprocess.Process | None, number: int) -> None:
    if process is not None:
        with suppress(ProcessLookupError):
            process.send_signal(number)
