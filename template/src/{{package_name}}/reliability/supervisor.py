"""Runs a stdio server as its child, so that a crash, a hang or a leak never ends the client's session (R17-R33).

    my-server supervise

Clients do not start a stdio server again that has ended. This process owns the client's two pipes and hardly ever
changes; the server behind it may end and come back. Lines are forwarded as they came (`supervisor_session` says where
to), in one loop over pipes that never block. It must stay small and start quickly, so that it imports next to nothing:
no asyncio, no typing, no dataclasses, no logging. POSIX only; elsewhere the server runs without it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import stat
import sys
import time
from collections import deque

from .restart_policy import RestartPolicy
from .rpc_lines import LineCutter
from .supervisor_session import State, SupervisorSession

TYPE_CHECKING = False  # of `typing`, which is not imported: the supervisor is small
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    from .rpc_lines import Line

HANG_FD_VARIABLE = "MCP_SUPERVISOR_HANG_FD"
"""Names the descriptor into which a server writes its stacks before it ends itself because it hangs."""
EXIT_CONFIGURATION = 2
"""Of a server: its settings are wrong, starting again will not help."""
EXIT_MEMORY = 75
"""Of a server: it asks to be started anew, because it has become too large."""

_CHUNK_BYTES = 65_536
_CHUNKS_AT_ONCE = 32
_ENOUGH_BYTES = 1_048_576
"""With so much on its way into a pipe nothing more is read for it."""
_PIPE_BYTES = 1_048_576
_PIECES_AT_ONCE = 64
_EOF_TERM_S = 2.0
_EOF_KILL_S = 3.0
"""After the client has left: when a server that has not ended gets SIGTERM and SIGKILL."""
_CLEANUP_S = 6.0
"""What a server gets for its cleanup after SIGTERM, beside the time for the calls in flight."""
_CLOSED_S = 1.0
"""A server that has closed one of its pipes is of no use any more; it gets so long to end by itself."""
_LAST_WORDS_S = 0.5
_DELIBERATE_S = 0.5
"""A SIGINT that follows another one sooner is its echo (a terminal and a launcher both send it)."""
_STRAY_BYTES = 4_096
_NEVER = float("inf")
_LEVELS = ("debug", "info", "warning", "error")


class SupervisorConfig:
    """The settings, as the server's own: it checks them, and refuses to start where one is wrong.

    Args:
        max_restarts: Restarts within `window_s` seconds after which the server is given up.
        window_s: See there.
        stable_s: Life of a server after which the wait between two restarts is short again.
        start_timeout_s: Seconds for a server's first answer.
        queue_timeout_s: Seconds for which a request waits for a server.
        after_giving_up: "answer" every request with an error, or "exit".
        clean_exit: "restart" a server that ended in order by itself, or "stop" with it.
        hang_timeout_s: Seconds of silence after which a server is asked whether it lives; it looks after itself sooner.
        shutdown_grace_s: Seconds for calls in flight after SIGTERM or SIGINT.
        log_level: As the server's.
    """

    def __init__(
        self,
        *,
        max_restarts: int = 5,
        window_s: float = 60.0,
        stable_s: float = 10.0,
        start_timeout_s: float = 60.0,
        queue_timeout_s: float = 30.0,
        after_giving_up: str = "answer",
        clean_exit: str = "restart",
        hang_timeout_s: float = 30.0,
        shutdown_grace_s: float = 10.0,
        log_level: str = "info",
    ) -> None:
        self.max_restarts = max_restarts
        self.window_s = window_s
        self.stable_s = stable_s
        self.start_timeout_s = start_timeout_s
        self.queue_timeout_s = queue_timeout_s
        self.after_giving_up = after_giving_up
        self.clean_exit = clean_exit
        self.hang_timeout_s = hang_timeout_s
        self.shutdown_grace_s = shutdown_grace_s
        self.log_level = log_level

    @classmethod
    def from_environment(cls, prefix: str, environment: Mapping[str, str]) -> SupervisorConfig:
        """The settings in variables such as `MY_SERVER_WATCHDOG_MAX_RESTARTS`; a wrong one counts as none."""
        config = cls()
        for name, default in vars(config).items():
            own = name not in ("hang_timeout_s", "shutdown_grace_s", "log_level")
            text = environment.get(f"{prefix}{'WATCHDOG_' if own else ''}{name.upper()}", "")
            try:
                setattr(config, name, type(default)(text.lower()) if text else default)
            except ValueError:
                continue  # the server says what is wrong with it, to a person
        return config


def supervise(name: str, *, prefix: str, command: list[str]) -> NoReturn:
    """Run the server and keep it running until the client leaves or this process is told to stop.

    Exit codes: 0 after an orderly stop, 1 after a failure, 2 if the server's settings are wrong.

    Args:
        name: The program's name, for what is said to a person.
        prefix: How the names of its settings begin.
        command: How to start the server.
    """
    for fd in (0, 1):
        if not _is_open(fd):
            raise SystemExit(f"{name}: stdin or stdout is closed; a client must keep both open to talk to it.")
    if not _is_open(2):
        os.open(os.devnull, os.O_WRONLY)
    if os.isatty(0):
        os.write(2, f"{name}: waiting for an MCP client on stdin; Ctrl-C stops it.\n".encode())
    config = SupervisorConfig.from_environment(prefix, os.environ)
    code = Supervisor(command, config).run()
    os._exit(code)  # nothing is left to clean up, and an exit of the interpreter takes time


def own_command(arguments: Sequence[str]) -> list[str]:
    """How this process was started, with other arguments: the same interpreter and the same program."""
    given = len(sys.argv) - 1
    return [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - given], *arguments]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class Ending:
    """How a server ended.

    Args:
        status: What `os.waitpid` says.
        hung: It was seen to hang.
        condemned: Why it was killed by its supervisor, if it was.
    """

    def __init__(self, status: int, *, hung: bool = False, condemned: str | None = None) -> None:
        self.exit_code = os.waitstatus_to_exitcode(status)
        self.cause = self._cause(hung=hung or (condemned or "").startswith("hung"), condemned=condemned)
        self.text = condemned or self._text()

    def _cause(self, *, hung: bool, condemned: str | None) -> str:
        if hung:
            return "hang"
        if condemned is not None:
            return "useless"
        return {0: "clean exit", EXIT_CONFIGURATION: "configuration", EXIT_MEMORY: "memory"}.get(
            self.exit_code, "crash" if self.exit_code != -signal.SIGKILL else "killed"
        )

    def _text(self) -> str:
        if self.cause == "hang":
            return "it hung"
        if self.cause == "memory":
            return "it had become too large"
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        try:
            return signal.Signals(-self.exit_code).name
        except ValueError:
            return f"signal {-self.exit_code}"


class Outgoing:
    """Lines on their way into a pipe that must not block."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.is_closed = False
        self.size = 0
        """Bytes that are not written yet."""
        self._pieces: deque[tuple[bytes, Line | None]] = deque()
        """What is to be written, and the line that begins with it."""
        self._written = 0
        """How much of the first piece is written."""

    def write(self, lines: list[Line]) -> None:
        """Write what there is room for, and keep the rest.

        Raises:
            OSError: Nobody reads any more.
        """
        if len(lines) == 1 and not self._pieces:  # nearly always
            line = lines[0]
            if isinstance(line, bytes):
                done = _write(self.fd, line)
                if done == len(line):
                    return
                self._written = done
                self.size -= done
        for line in lines:
            self._keep(line)
        while self._pieces and self._write_once():
            pass

    def _keep(self, line: Line) -> None:
        self.size += len(line)
        if isinstance(line, bytes):
            self._pieces.append((line, line))
        else:
            self._pieces.append((line.pieces[0], line))
            self._pieces.extend((piece, None) for piece in line.pieces[1:])

    def _write_once(self) -> bool:
        more = [self._pieces[i][0] for i in range(1, min(len(self._pieces), _PIECES_AT_ONCE))]
        try:
            done = os.writev(self.fd, [memoryview(self._pieces[0][0])[self._written :], *more])
        except BlockingIOError:
            return False
        self.size -= done
        self._written += done
        while self._pieces and self._written >= len(self._pieces[0][0]):
            self._written -= len(self._pieces.popleft()[0])
        return True

    def write_piece(self, piece: bytes) -> None:
        """Write a part of a line."""
        if not self.is_closed:
            self._pieces.append((piece, None))
            self.size += len(piece)

    def unsent(self) -> list[Line]:
        """Lines of which nothing is written."""
        begun = 1 if self._written else 0
        return [line for _, line in list(self._pieces)[begun:] if line is not None]


class ServerProcess:
    """One life of the server: a process group of its own, three pipes.

    Args:
        command: The program and its arguments.
        now: The time.
    """

    def __init__(self, command: list[str], now: float) -> None:
        self.started_at = now
        self.hung = False
        self.killed = False
        its_stdin, self.stdin_fd = _pipe()
        self.stdout_fd, its_stdout = _pipe()
        self.hang_fd, its_hang = _pipe()
        for fd in (its_stdin, its_stdout, self.stdin_fd, self.stdout_fd, self.hang_fd):
            os.set_blocking(fd, False)  # noqa: FBT003 - the server reads its end in its event loop
        try:
            os.set_inheritable(its_hang, True)  # noqa: FBT003
            self.pid = os.posix_spawn(
                command[0],
                command,
                {**os.environ, HANG_FD_VARIABLE: str(its_hang)},
                file_actions=[(os.POSIX_SPAWN_DUP2, its_stdin, 0), (os.POSIX_SPAWN_DUP2, its_stdout, 1)],
                setpgroup=0,
            )
        except OSError:
            for fd in (self.stdin_fd, self.stdout_fd, self.hang_fd):
                os.close(fd)
            raise
        finally:
            for fd in (its_stdin, its_stdout, its_hang):
                os.close(fd)
        self.outgoing: Outgoing | None = Outgoing(self.stdin_fd)
        self.incoming = LineCutter()

    def ended(self) -> int | None:
        """The status of its end, once; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return status if pid == self.pid else None

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        _quietly(os.kill, self.pid, number)

    def kill(self) -> None:
        """Kill it and everything that it has started and that is still in its group."""
        self.killed = True
        _quietly(os.killpg, self.pid, signal.SIGKILL)

    def close_stdin(self) -> None:
        """Let it see the end of its input."""
        if self.outgoing is not None:
            os.close(self.outgoing.fd)
            self.outgoing.is_closed = True
            self.outgoing = None

    def close(self) -> None:
        """Close what is left of its pipes."""
        self.close_stdin()
        os.close(self.stdout_fd)
        os.close(self.hang_fd)


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
            log=self._log,
        )
        self._poll = select.poll()
        self._events: dict[int, int] = {}
        self._handlers: dict[int, Callable[[float], None]] = {}
        self._incoming = LineCutter()
        self._passing: Outgoing | None = None
        """Where the rest of a long line goes; it may be the pipe of a server that is dead by now."""
        self._client = Outgoing(1)
        self._client_left = False
        self._input_ended = False
        self._server: ServerProcess | None = None
        self._due_at = 0.0
        self._due_changed = True
        self._backlog = False
        self._start_at = _NEVER
        self._down_since: float | None = None
        self._stopping: str | None = None
        self._interrupted_at = self._term_at = self._kill_at = _NEVER
        self._exit_code: int | None = None
        self._code_after_giving_up: int | None = None

    def run(self) -> int:
        """Serve the client; returns the exit code."""
        blocking = {fd: os.get_blocking(fd) for fd in (0, 1)}
        for fd in (0, 1):
            if _is_pipe(fd):
                os.set_blocking(fd, False)  # noqa: FBT003
                _enlarge(fd)
        try:
            self._watch_signals()
            self._start_at = time.monotonic()
            self._start_when_due(self._start_at)
            self._watch(0, select.POLLIN, self._read_client)
            self._watch(1, 0, self._client_does_not_read)
            while self._exit_code is None:
                self._turn()
            self._say_last_words()
        finally:
            for fd, value in blocking.items():
                _quietly(os.set_blocking, fd, value)
        return self._exit_code

    # ---- the loop --------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        due_s = self._due_at - time.monotonic()
        ready = self._poll.poll(None if due_s == _NEVER else max(0.0, due_s) * 1000 + 1)
        now = time.monotonic()
        for fd, event in ready:
            handler = self._handlers.get(fd)  # gone, if an event before this one has ended the server
            if handler is not None and event != select.POLLOUT:  # for which the next line is there
                handler(now)
        self._write(now)
        if now >= self._due_at or self._session.due_changed or self._due_changed:
            self._act_in_time(now)
            self._write(now)

    def _act_in_time(self, now: float) -> None:
        session, server = self._session, self._server
        session.tick(now, may_ask=not self._client.size and self._passing is None)
        if session.condemned is not None and server is not None and not server.killed:
            self._kill_at = now
        if now >= self._term_at and server is not None:
            self._term_at = _NEVER
            server.signal(signal.SIGTERM)
        if now >= self._kill_at and server is not None:
            self._kill_at = _NEVER
            server.kill()
        if session.state is State.DOWN and server is None and self._start_at == _NEVER:
            self._start_at = now  # somebody has asked again, long after the server was given up
        self._start_when_due(now)
        session.due_changed = self._due_changed = False
        wait_s = session.wait_s(now)
        due_at = _NEVER if wait_s is None else now + wait_s
        self._due_at = min(due_at, self._term_at, self._kill_at, self._start_at)

    def _write(self, now: float) -> None:
        if self._session.to_server or self._backlog or (self._server and self._server.outgoing and self._server.outgoing.size):
            self._write_to_server(now)
        if self._session.to_client or self._backlog:
            self._write_to_client(now)

    def _write_to_server(self, now: float) -> None:
        server, session = self._server, self._session
        if server is None or server.outgoing is None:
            return
        lines, session.to_server = session.to_server, []
        try:
            server.outgoing.write(lines)
        except OSError:
            self._server_does_not_read(now)
        if server.outgoing.size or self._backlog or self._input_ended:
            self._adjust()
            if self._input_ended and not server.outgoing.size:
                self._close_stdin(server)

    def _write_to_client(self, now: float) -> None:
        lines, self._session.to_client = self._session.to_client, []
        try:
            self._client.write(lines)
        except OSError:
            self._client_does_not_read(now)
        if self._client.size or self._backlog:
            self._adjust()

    def _adjust(self) -> None:
        """Look only for what something can be done about: what waits for room is not read any further."""
        waiting = 0 if self._server is None or self._server.outgoing is None else self._server.outgoing.size
        self._backlog = bool(self._client.size or waiting)
        self._expect(1, select.POLLOUT if self._client.size else 0)
        server = self._server
        if server is not None:
            self._expect(server.stdout_fd, select.POLLIN if self._client.size < _ENOUGH_BYTES else 0)
            if server.outgoing is not None:
                self._expect(server.outgoing.fd, select.POLLOUT if server.outgoing.size else 0)
        self._expect(0, select.POLLIN if waiting < _ENOUGH_BYTES else 0)

    def _watch(self, fd: int, events: int, handler: Callable[[float], None]) -> None:
        self._handlers[fd] = handler
        self._events[fd] = events
        self._poll.register(fd, events)

    def _expect(self, fd: int, events: int) -> None:
        if self._events.get(fd, events) != events:
            self._events[fd] = events
            self._poll.modify(fd, events)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            del self._events[fd]
            self._poll.unregister(fd)

    # ---- the client ------------------------------------------------------------------------------------------------

    def _read_client(self, now: float) -> None:
        for _ in range(_CHUNKS_AT_ONCE):
            chunk = _read(0)
            if chunk is None:
                return
            if not chunk:
                self._end_of_input(now)
                return
            self._take_in(chunk, now)
            if len(chunk) < _CHUNK_BYTES:
                return

    def _take_in(self, chunk: bytes, now: float) -> None:
        if self._passing is not None:
            piece, separator, chunk = chunk.partition(b"\n")
            self._passing.write_piece(piece + separator)
            if separator:
                self._passing = None
            if not chunk:
                return
        for line in self._incoming.feed(chunk):
            self._session.client_line(line, now)
        beginning = self._incoming.long_beginning()
        if beginning is None or self._server is None or self._server.outgoing is None:
            return
        if self._session.lets_pass(beginning):
            self._write(now)  # what comes before it
            self._passing = self._server.outgoing
            for piece in self._incoming.take():
                self._passing.write_piece(piece)

    def _end_of_input(self, now: float) -> None:
        self._unwatch(0)
        if rest := self._incoming.rest():
            self._session.client_line(rest + b"\n", now)
        self._write(now)
        self._leave(now, "the client closed stdin")

    def _client_does_not_read(self, now: float) -> None:
        self._unwatch(1)
        self._client_left = True
        self._leave(now, "the client closed stdout")

    def _leave(self, now: float, reason: str) -> None:
        """The client is gone: the server sees the end of its input, and has little time."""
        self._stop(now, reason, term_s=_EOF_TERM_S, kill_s=_EOF_KILL_S)
        self._input_ended = True
        if self._server is not None and self._server.outgoing is not None and not self._server.outgoing.size:
            self._close_stdin(self._server)

    def _close_stdin(self, server: ServerProcess) -> None:
        self._unwatch(server.stdin_fd)
        server.close_stdin()

    # ---- the server ------------------------------------------------------------------------------------------------

    def _start_when_due(self, now: float) -> None:
        if now < self._start_at:
            return
        self._start_at = _NEVER
        try:
            self._server = server = ServerProcess(self._command, now)
        except OSError as error:
            self._log("error", "the server cannot be started", error=str(error))
            self._after_the_end(now, 0.0, "crash", str(error))
            return
        self._kill_at = _NEVER
        self._watch(server.stdout_fd, select.POLLIN, self._read_server)
        self._watch(server.hang_fd, select.POLLIN, self._read_stacks)
        self._watch(server.stdin_fd, 0, self._server_does_not_read)
        self._session.server_started(now)
        self._log("debug", "the server is started", pid=server.pid)

    def _server_does_not_read(self, now: float) -> None:
        """It has ended, which SIGCHLD says as well, or is of no use any more."""
        if self._server is not None:
            self._unwatch(self._server.stdin_fd)
            self._kill_at = min(self._kill_at, now + _CLOSED_S)
            self._due_changed = True

    def _read_server(self, now: float) -> None:
        server = self._server
        if server is None:
            return
        for _ in range(_CHUNKS_AT_ONCE):
            chunk = _read(server.stdout_fd)
            if chunk is None:
                return
            if not chunk:
                self._unwatch(server.stdout_fd)
                self._kill_at = min(self._kill_at, now + _CLOSED_S)
                self._due_changed = True
                return
            for line in server.incoming.feed(chunk):
                self._server_line(line, now)
            if len(chunk) < _CHUNK_BYTES:
                return

    def _server_line(self, line: Line, now: float) -> None:
        if not self._session.server_line(line, now):
            self._log_stray(line)
        if self._down_since is not None and self._session.state is State.LIVE:
            self._log("info", "the server is back", down_s=round(now - self._down_since, 3))
            self._down_since = None

    def _log_stray(self, line: Line) -> None:
        begin = line if isinstance(line, bytes) else line.ends()
        if text := begin[:_STRAY_BYTES].decode(errors="replace").strip():
            self._log("warning", f"printed to stdout: {text}")

    def _read_stacks(self, _: float) -> None:
        """It hangs, and is about to end itself."""
        server = self._server
        if server is None:
            return
        chunk = _read(server.hang_fd)
        if chunk:
            server.hung = True
            self._log.write(chunk)
        elif chunk is not None:
            self._unwatch(server.hang_fd)

    def _look_for_the_end(self, now: float) -> None:
        server = self._server
        status = None if server is None else server.ended()
        if server is None or status is None:
            return
        server.kill()  # what it leaves behind
        for _ in range(_CHUNKS_AT_ONCE):  # what it said before its end counts
            self._read_server(now) if server.stdout_fd in self._handlers else None
            self._read_stacks(now) if server.hang_fd in self._handlers else None
        if rest := server.incoming.rest():
            self._server_line(rest + b"\n", now)
        ending = Ending(status, hung=server.hung, condemned=self._session.condemned)
        unsent = [] if server.outgoing is None else server.outgoing.unsent()
        self._log(
            "info" if self._stopping else "warning",
            "the server has ended",
            cause=ending.cause,
            exit_code=ending.exit_code,
            reason=ending.text,
            lived_s=round(now - server.started_at, 3),
            calls_in_flight=self._session.calls_in_flight,
        )
        self._session.server_ended(now, ending.text, unsent=unsent)
        for fd in (server.stdin_fd, server.stdout_fd, server.hang_fd):
            self._unwatch(fd)
        server.close()
        self._server = None
        self._term_at = self._kill_at = _NEVER
        if self._stopping is not None:
            self._finish(now, 0 if ending.exit_code in (0, -signal.SIGTERM) else 1)
            return
        self._after_the_end(now, now - server.started_at, ending.cause, ending.text)

    def _after_the_end(self, now: float, lived_s: float, cause: str, text: str) -> None:
        if self._down_since is None:
            self._down_since = now
        if cause == "clean exit" and self._config.clean_exit == "stop":
            self._finish(now, 0)
        elif cause == "configuration":
            self._give_up(now, "The server cannot start: its settings are wrong, see its log.", EXIT_CONFIGURATION)
        elif self._session.fatal is not None:
            self._give_up(now, f"The server is not the one that it was: {self._session.fatal}.", 1)
        elif (wait_s := self._policy.next_wait_s(now, lived_s=lived_s, asked=cause == "memory")) is None:
            why = f"The server ends again and again, the last time with {text}; see its log."
            self._give_up(now, why, 1, try_again_s=self._policy.may_try_again_s(now))
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
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)  # noqa: FBT003
        os.set_blocking(write_end, False)  # noqa: FBT003
        numbers = [signal.SIGCHLD, signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it on purpose
            numbers.append(signal.SIGHUP)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        self._signal_fd = read_end
        self._watch(read_end, select.POLLIN, self._read_signals)

    def _read_signals(self, now: float) -> None:
        for number in _read(self._signal_fd) or b"":
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
        if self._stopping is None:
            self._stop(now, signal.Signals(number).name, term_s=0.0, kill_s=self._config.shutdown_grace_s + _CLEANUP_S)

    def _stop(self, now: float, reason: str, *, term_s: float, kill_s: float) -> None:
        """Begin to stop, or do it sooner than a reason before this one wanted."""
        if self._stopping is None:
            self._stopping = reason
            self._term_at = now + term_s
            self._log("info", "stopping", reason=reason)
        self._kill_at = min(self._kill_at, now + kill_s)
        self._due_changed = True
        self._start_at = _NEVER
        if self._session.state is not State.LIVE:
            self._session.give_up(now, "The server is being stopped.", try_again_s=None)
            self._term_at = now
        if self._server is None:
            self._finish(now, self._code_after_giving_up or 0)

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


class StderrLog:
    """JSON lines on stderr as the server's own; what nobody reads is dropped, because nothing here may block.

    Args:
        level: The lowest one that is written.
    """

    def __init__(self, level: str) -> None:
        self._lowest = _LEVELS.index(level) if level in _LEVELS else 1

    def __call__(self, level: str, event: str, **fields: object) -> None:
        """Write one event."""
        if _LEVELS.index(level) < self._lowest:
            return
        seconds = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"
        line = {"time": stamp, "level": level, "event": event, "logger": __name__, **fields}
        self.write(json.dumps(line, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n")

    def write(self, data: bytes) -> None:
        """Write bytes, as many as there is room for."""
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        for begin in range(0, len(data), select.PIPE_BUF):  # what a pipe that polls writable takes without blocking
            if not any(event & select.POLLOUT for _, event in poll.poll(0)):
                return
            _quietly(os.write, 2, data[begin : begin + select.PIPE_BUF])


def _read(fd: int) -> bytes | None:
    """What is there; empty at the end, None where nothing is there yet."""
    try:
        return os.read(fd, _CHUNK_BYTES)
    except BlockingIOError:
        return None
    except OSError as error:
        return None if error.errno == errno.EINTR else b""


def _write(fd: int, data: bytes) -> int:
    """Write what there is room for; how much that was."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0


def _pipe() -> tuple[int, int]:
    read_end, write_end = os.pipe()
    _enlarge(write_end)
    return read_end, write_end


def _enlarge(fd: int) -> None:
    """Long lines pass in fewer steps."""
    if sys.platform == "linux":
        _quietly(fcntl.fcntl, fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _is_pipe(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _quietly(function: Callable[..., object], *arguments: object) -> None:
    """Call what may fail because the other side is gone."""
    try:
        function(*arguments)
    except OSError:
        return
