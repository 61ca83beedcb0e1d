"""Runs a stdio server as its child, so that a crash, a hang or a leak never ends the client's session (R17-R33).

    my-server supervise

Clients do not start a stdio server again that has ended. This process owns the client's two pipes and hardly ever
changes; the server behind it may end and come back. Lines are forwarded as they came (`supervisor_session` says where
to), in one loop over pipes that never block. It must stay small and start quickly, so that it imports next to nothing:
no asyncio, no typing, no dataclasses, no logging. POSIX only; elsewhere the server runs without it.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

from .client_pipes import expect_client, is_open
from .process_contract import EXIT_CONFIGURATION, RESTART_REQUEST
from .restart_policy import RestartPolicy
from .rpc_lines import LineCutter, LongLine, is_no_message, parsed
from .supervised_server import Ending, SupervisedServer
from .supervisor_config import SupervisorConfig
from .supervisor_log import StderrLog
from .supervisor_pipes import CHUNK_BYTES, Outgoing, Poller, make_ready, quietly, read
from .supervisor_session import State, SupervisorSession

TYPE_CHECKING = False  # of `typing`, which is not imported: the supervisor is small
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from .rpc_lines import Line

_CHUNKS_AT_ONCE = 32
_ENOUGH_BYTES = 1_048_576
"""With so much on its way into a pipe nothing more is read for it."""
_EOF_TERM_S = 1.8
_EOF_KILL_S = 2.0
"""After the client has left: when a server that has not ended gets SIGTERM and SIGKILL."""
_CLEANUP_S = 6.0
"""What a server gets for its cleanup after SIGTERM, beside the time for the calls in flight."""
_ANSWER_S = 1.0
"""What a call that has come to its deadline still needs for its answer."""
_CLOSED_S = 1.0
"""A server that has closed one of its pipes is of no use any more; it gets so long to end by itself."""
_LAST_WORDS_S = 0.5
_DELIBERATE_S = 0.5
"""A SIGINT that follows another one sooner is its echo (a terminal and a launcher both send it)."""
_STRAY_BYTES = 4_096
_LONGEST_ANSWER_BYTES = 268_435_456
"""Half an answer must never reach a client, so that each is held until its end is there."""
_END_OF_INPUT = "the client closed stdin"
_NEVER = float("inf")


def supervise(name: str, *, prefix: str, command: list[str]) -> NoReturn:
    """Run the server and keep it running until the client leaves or this process is told to stop.

    Exit codes: 0 after an orderly stop, 1 after a failure, 2 if the server's settings are wrong.

    Args:
        name: The program's name, for what is said to a person.
        prefix: How the names of its settings begin.
        command: How to start the server.
    """
    if not is_open(2):
        os.set_inheritable(os.open(os.devnull, os.O_WRONLY), True)  # noqa: FBT003 - the server writes there too
    expect_client(name)
    config = SupervisorConfig.from_environment(prefix, os.environ)
    code = Supervisor(command, config).run()
    os._exit(code)  # nothing is left to clean up, and an exit of the interpreter takes time


def own_command(arguments: Sequence[str]) -> list[str]:
    """How this process was started, with other arguments: the same interpreter and the same program."""
    given = len(sys.argv) - 1
    return [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - given], *arguments]


class Supervisor:
    """The loop: reads what can be read, writes what can be written, starts and ends servers.

    Args:
        command: How to start the server.
        config: The settings.
    """

    def __init__(self, command: list[str], config: SupervisorConfig) -> None:
        self._command = command
        self._config = config
        self._log = StderrLog(config.log_level)
        self._policy = RestartPolicy(
            max_restarts=config.max_restarts, window_s=config.window_s, stable_s=config.stable_s
        )
        self._session = SupervisorSession(
            queue_timeout_s=config.queue_timeout_s,
            start_timeout_s=config.start_timeout_s,
            silence_s=config.hang_timeout_s,
            drain_s=config.tool_timeout_s + _ANSWER_S,
            log=self._log,
        )
        self._poller = Poller()
        self._incoming = LineCutter()
        self._passing: Outgoing | None = None
        """Where the rest of a long line goes; it may be the pipe of a server that is dead by now."""
        self._client = Outgoing(1)
        self._client_left = False
        self._input_ended = False
        self._server: SupervisedServer | None = None
        self._down_since: float | None = None
        self._backlog = False
        """Something waits for room in a pipe."""
        self._start_at = self._leave_at = self._term_at = self._kill_at = _NEVER
        self._due_at = 0.0
        """The soonest of these and of the session's."""
        self._due_changed = True
        self._stopping = False
        self._interrupted_at = _NEVER
        self._exit_code: int | None = None
        self._code_after_giving_up = 0

    def run(self) -> int:
        """Serve the client; returns the exit code."""
        blocking = {fd: os.get_blocking(fd) for fd in (0, 1)}
        try:
            for fd in (0, 1):
                make_ready(fd)
            self._watch_signals()
            self._start_server(time.monotonic())
            self._poller.watch(0, select.POLLIN, self._read_client)
            self._poller.watch(1, 0, self._client_does_not_read)
            while self._exit_code is None:
                self._turn()
            self._say_last_words()
        finally:
            for fd, value in blocking.items():
                quietly(os.set_blocking, fd, value)
        return self._exit_code

    # ---- the loop --------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        due_s = self._due_at - time.monotonic()
        now = self._poller.wait(None if due_s == _NEVER else max(0.0, due_s) * 1000 + 1, time.monotonic)
        self._write(now)
        if now >= self._due_at or self._session.due_changed or self._due_changed:
            self._act_in_time(now)
            self._write(now)

    def _act_in_time(self, now: float) -> None:
        session, server = self._session, self._server
        session.tick(now, may_ask=not self._client.size and self._passing is None)
        if self._leave_at != _NEVER and (now >= self._leave_at or not session.awaits_first_answer):
            self._leave_at = _NEVER
            self._write(now)
            self._leave(now, _END_OF_INPUT)
            server = self._server
        if server is not None:
            if session.condemned is not None and not server.killed:
                self._kill_at = now
            if session.is_drained(now) and not server.stdin.is_closed:
                self._end_drained(server, now)
            if now >= self._term_at:
                self._term_at = _NEVER
                server.terminate()
            if now >= self._kill_at:
                self._kill_at = _NEVER
                server.kill()
        elif now >= self._start_at or (session.state is State.DOWN and self._start_at == _NEVER):
            self._start_server(now)  # perhaps because somebody asks again, long after it was given up
        session.due_changed = self._due_changed = False
        wait_s = session.wait_s(now)
        due_at = _NEVER if wait_s is None else now + wait_s
        self._due_at = min(due_at, self._start_at, self._leave_at, self._term_at, self._kill_at)

    def _write(self, now: float) -> None:
        server = self._server
        session = self._session
        if server is not None and not server.stdin.is_closed and (session.to_server or server.stdin.size):
            lines, session.to_server = session.to_server, []
            self._write_to_server(server, lines, now)
        if session.to_client or self._backlog:
            lines, session.to_client = session.to_client, []
            self._write_to_client(lines, now)

    def _write_to_server(self, server: SupervisedServer, lines: list[Line], now: float) -> None:
        try:
            server.stdin.write(lines)
        except OSError:
            self._server_does_not_read(now)
        if server.stdin.size or self._backlog:
            self._adjust()
        if self._input_ended and not server.stdin.size:
            self._close_stdin(server)

    def _write_to_client(self, lines: list[Line], now: float) -> None:
        try:
            self._client.write(lines)
        except OSError:
            self._client_does_not_read(now)
        if self._client.size or self._backlog:
            self._adjust()

    def _adjust(self) -> None:
        """Look only for what something can be done about: what waits for room is not read any further."""
        server, expect = self._server, self._poller.expect
        to_client, to_server = self._client.size, 0 if server is None else server.stdin.size
        self._backlog = bool(to_client or to_server)
        is_refused = self._session.state is not State.LIVE and to_client >= _ENOUGH_BYTES  # and does not read that
        expect(0, select.POLLIN if to_server < _ENOUGH_BYTES and not is_refused else 0)
        expect(1, select.POLLOUT if to_client else 0)
        if server is not None:
            expect(server.stdin.fd, select.POLLOUT if to_server else 0)
            expect(server.stdout_fd, select.POLLIN if to_client < _ENOUGH_BYTES else 0)

    # ---- the client ------------------------------------------------------------------------------------------------

    def _read_client(self, now: float) -> None:
        session = self._session
        for _ in range(_CHUNKS_AT_ONCE):
            chunk = read(0)
            if chunk is None:
                return
            if not chunk:
                self._end_of_input(now)
                return
            server = self._server if self._passing is None and not session.to_server else None
            is_usual = server is not None and not server.stdin.is_closed and self._incoming.is_line(chunk)
            if server is not None and is_usual and session.passes_call(chunk):
                self._write_to_server(server, [chunk], now)
            else:
                self._take_in(chunk, now)
            if len(chunk) < CHUNK_BYTES:
                return

    def _take_in(self, chunk: bytes, now: float) -> None:
        if self._passing is not None:
            piece, separator, chunk = chunk.partition(b"\n")
            self._passing.write_piece(piece + separator)
            if separator:
                self._passing = None
        for line in self._incoming.feed(chunk) if chunk else ():
            self._session.client_line(line, now)
        beginning = self._incoming.long_beginning()
        if beginning is not None and self._server is not None and self._session.passes_beginning(beginning):
            self._write(now)  # what comes before it
            self._passing = self._server.stdin
            for piece in self._incoming.take():
                self._passing.write_piece(piece)

    def _end_of_input(self, now: float) -> None:
        self._poller.unwatch(0)
        if rest := self._incoming.rest():
            self._session.client_line(rest + b"\n", now)
        self._write(now)
        if self._session.awaits_first_answer and not self._stopping:  # as `printf ... | my-server supervise` does
            self._leave_at = now + self._config.start_timeout_s
            self._due_changed = True
        else:
            self._leave(now, _END_OF_INPUT)

    def _client_does_not_read(self, now: float) -> None:
        self._poller.unwatch(1)
        self._client_left = True
        self._leave(now, "the client closed stdout")

    def _leave(self, now: float, reason: str) -> None:
        """The client is gone: the server sees the end of its input, and has little time."""
        self._stop(now, reason, term_s=_EOF_TERM_S, kill_s=_EOF_KILL_S)
        self._input_ended = True
        if self._server is not None and not self._server.stdin.size:
            self._close_stdin(self._server)

    def _close_stdin(self, server: SupervisedServer) -> None:
        self._poller.unwatch(server.stdin.fd)
        server.stdin.close()

    # ---- the server ------------------------------------------------------------------------------------------------

    def _start_server(self, now: float) -> None:
        self._start_at = self._kill_at = _NEVER
        try:
            self._server = server = SupervisedServer(self._command, now)
        except OSError as error:
            self._log("error", "the server cannot be started", error=str(error))
            self._after_the_end(now, 0.0, "crash", str(error))
            return
        self._poller.watch(server.stdout_fd, select.POLLIN, self._read_server)
        self._poller.watch(server.hang_fd, select.POLLIN, self._read_stacks)
        self._poller.watch(server.stdin.fd, 0, self._server_does_not_read)
        self._session.server_started(now)
        self._log("debug", "the server is started", pid=server.pid)

    def _end_drained(self, server: SupervisedServer, now: float) -> None:
        self._kill_at = min(self._kill_at, now + _EOF_KILL_S)
        if not server.stdin.size and self._passing is None:  # else it is not to see half a line as its last one
            self._session.end_drain()
            self._close_stdin(server)

    def _server_does_not_read(self, now: float) -> None:
        """It has ended, which SIGCHLD says as well, or is of no use any more."""
        if self._server is not None:
            self._is_useless(self._server.stdin.fd, now)

    def _is_useless(self, closed_fd: int, now: float) -> None:
        self._poller.unwatch(closed_fd)
        self._kill_at = min(self._kill_at, now + _CLOSED_S)
        self._due_changed = True

    def _read_server(self, now: float) -> None:
        server, session = self._server, self._session
        if server is None:
            return
        for _ in range(_CHUNKS_AT_ONCE):
            chunk = read(server.stdout_fd)
            if chunk is None:
                return
            if not chunk:
                self._is_useless(server.stdout_fd, now)
                return
            is_usual = self._down_since is None and not session.to_client and server.lines.is_line(chunk)
            if is_usual and session.passes_answer(chunk, now):
                self._write_to_client([chunk], now)
            else:
                for line in server.lines.feed(chunk):
                    self._server_line(line, now)
                self._look_at_begun_line(server.lines)
            if len(chunk) < CHUNK_BYTES:
                return

    def _look_at_begun_line(self, lines: LineCutter) -> None:
        """A library that prints may never end its line; what looks like a message has time until it is enormous."""
        beginning = lines.long_beginning()
        if beginning is not None and is_no_message(beginning):
            self._log_stray(beginning)
            lines.drop()
        elif lines.size > _LONGEST_ANSWER_BYTES:
            lines.drop()
            self._session.condemn(f"it wrote more than {_LONGEST_ANSWER_BYTES >> 20} MiB without the end of a line")

    def _server_line(self, line: Line, now: float) -> None:
        if not self._session.server_line(line, now):
            self._log_stray(line)
        if self._down_since is not None and self._session.state is State.LIVE:
            self._log("info", "the server is back", down_s=round(now - self._down_since, 3))
            self._down_since = None

    def _log_stray(self, line: Line) -> None:
        begin = line.ends() if isinstance(line, LongLine) else line
        if text := begin[:_STRAY_BYTES].decode(errors="replace").strip():
            self._log("warning", f"printed to stdout: {text}")

    def _read_stacks(self, now: float) -> None:
        """It hangs, and is about to end itself; or it wants to be restarted."""
        server = self._server
        if server is None:
            return
        chunk = read(server.hang_fd)
        if chunk == RESTART_REQUEST:
            server.wants_restart = True
            self._session.drain(now)
        elif chunk:
            server.hung = True
            self._log.write(chunk)
        elif chunk is not None:
            self._poller.unwatch(server.hang_fd)

    def _look_for_the_end(self, now: float) -> None:
        server = self._server
        exit_code = None if server is None else server.ended()
        if server is None or exit_code is None:
            return
        server.kill()  # what it leaves behind
        self._hear_last_words(server, now)
        condemned, wanted = self._session.condemned, server.wants_restart
        ending = Ending(exit_code, hung=server.hung, condemned=condemned, wanted=wanted)
        self._log(
            "info" if self._stopping else "warning",
            "the server has ended",
            cause=ending.cause,
            exit_code=ending.exit_code,
            reason=ending.text,
            lived_s=round(now - server.started_at, 3),
            calls_in_flight=self._session.calls_in_flight,
        )
        self._session.server_ended(now, ending.text, unsent=server.stdin.unsent())
        for fd in (server.stdin.fd, server.stdout_fd, server.hang_fd):
            self._poller.unwatch(fd)
        server.close()
        self._server = None
        self._term_at = self._kill_at = _NEVER
        self._due_changed = True
        if self._stopping:
            self._finish(now, 0 if ending.exit_code in (0, -signal.SIGTERM) else 1)
        else:
            self._after_the_end(now, now - server.started_at, ending.cause, ending.text)

    def _hear_last_words(self, server: SupervisedServer, now: float) -> None:
        """What it said before its end counts; half a line does not, however much it looks like a message."""
        for fd, handler in ((server.stdout_fd, self._read_server), (server.hang_fd, self._read_stacks)):
            for _ in range(_CHUNKS_AT_ONCE):
                if self._poller.is_watched(fd):
                    handler(now)
        if rest := server.lines.rest():
            self._server_line(rest + b"\n", now) if parsed(rest) else self._log_stray(rest)

    def _after_the_end(self, now: float, lived_s: float, cause: str, text: str) -> None:
        if self._down_since is None:
            self._down_since = now
        if cause == "clean exit" and self._config.clean_exit == "stop":
            self._finish(now, 0)
        elif cause == "configuration":
            self._give_up(now, "The server cannot start: its settings are wrong, see its log.", EXIT_CONFIGURATION)
        elif self._session.fatal is not None:
            self._give_up(now, f"The server is not the one that it was: {self._session.fatal}.", 1)
        elif (wait_s := self._policy.next_wait_s(lived_s=lived_s, asked=cause == "memory")) is None:
            why = f"The server ends again and again, the last time with {text}; see its log."
            self._give_up(now, why, 1, try_again_s=self._config.window_s)
        else:
            self._start_at = now + wait_s
            self._due_changed = True
            self._log("info", "the server is to be started again", in_s=round(wait_s, 3), cause=cause)

    def _give_up(self, now: float, why: str, code: int, *, try_again_s: float | None = None) -> None:
        self._log("error", "the server is given up", reason=why)
        self._session.give_up(now, why, try_again_s=try_again_s)
        self._code_after_giving_up = code
        if self._config.after_giving_up == "exit":
            self._finish(now, code)

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _watch_signals(self) -> None:
        self._signal_fd, write_end = os.pipe()
        os.set_blocking(self._signal_fd, False)  # noqa: FBT003
        os.set_blocking(write_end, False)  # noqa: FBT003
        numbers = [signal.SIGCHLD, signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it on purpose
            numbers.append(signal.SIGHUP)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # for the server, too: `stty tostop` must not stop it
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        self._poller.watch(self._signal_fd, select.POLLIN, self._read_signals)

    def _read_signals(self, now: float) -> None:
        for number in read(self._signal_fd) or b"":
            if number == signal.SIGCHLD:
                self._look_for_the_end(now)
            else:
                self._on_signal(number, now)

    def _on_signal(self, number: int, now: float) -> None:
        if number == signal.SIGINT and now > self._interrupted_at + _DELIBERATE_S:
            if self._server is not None:
                self._server.kill()
            self._exit_code = 128 + number
            return
        if number == signal.SIGINT:
            self._interrupted_at = min(self._interrupted_at, now)
        if not self._stopping:
            self._stop(now, signal.Signals(number).name, term_s=0.0, kill_s=self._config.shutdown_grace_s + _CLEANUP_S)

    def _stop(self, now: float, reason: str, *, term_s: float, kill_s: float) -> None:
        """Begin to stop, or do it sooner than a reason before this one wanted."""
        if not self._stopping:
            self._stopping = True
            self._term_at = now + term_s
            self._log("info", "stopping", reason=reason)
        self._kill_at = min(self._kill_at, now + kill_s)
        self._start_at = _NEVER
        self._due_changed = True
        if self._session.state not in (State.LIVE, State.DRAINING):
            self._session.give_up(now, "The server is being stopped.", try_again_s=None)
            self._term_at = now
        if self._server is None:
            self._finish(now, self._code_after_giving_up)

    def _finish(self, now: float, code: int) -> None:
        self._session.give_up(now, "The server has been stopped.", try_again_s=None)
        self._exit_code = code

    def _say_last_words(self) -> None:
        """Give the client what it has not read yet, if it reads."""
        until = time.monotonic() + _LAST_WORDS_S
        self._write(time.monotonic())
        poll = select.poll()
        poll.register(1, select.POLLOUT)
        while self._client.size and not self._client_left and time.monotonic() < until:
            poll.poll(50)
            self._write(time.monotonic())
