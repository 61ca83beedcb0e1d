"""One life of a supervised server: how it is started, and how it ended (R31)."""

from __future__ import annotations

import os
import signal

from .process_contract import EXIT_CONFIGURATION, EXIT_MEMORY, HANG_FD
from .rpc_lines import LineCutter
from .supervisor_pipes import Outgoing, new_pipe, quietly

_GUARDIAN = "trap '' HUP INT TERM; read -r line; sleep 1.8 2>/dev/null || sleep 2; kill -KILL 0"
"""What a POSIX shell and its oldest `sleep` understand; 0 is the group that it is in itself."""


class SupervisedServer:
    """A process in a group that it shares with its guardian, and three pipes.

    Args:
        command: The program and its arguments.
        now: The time.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, command: list[str], now: float) -> None:
        self.started_at = now
        self.hung = False
        """It has written its stacks."""
        self.killed = False
        self.wants_restart = False
        (its_stdin, stdin_fd), (self.stdout_fd, its_stdout), (self.hang_fd, its_hang) = _new_pipes(3)
        for fd in (its_stdin, its_stdout, stdin_fd, self.stdout_fd, self.hang_fd):
            os.set_blocking(fd, False)  # noqa: FBT003 - the server reads its end in its event loop
        self.stdin = Outgoing(stdin_fd)
        self.lines = LineCutter()
        self._guardian = _Guardian()
        try:
            os.set_inheritable(its_hang, True)  # noqa: FBT003
            self.pid = os.posix_spawn(
                command[0],
                command,
                {**os.environ, HANG_FD: str(its_hang)},
                file_actions=[(os.POSIX_SPAWN_DUP2, its_stdin, 0), (os.POSIX_SPAWN_DUP2, its_stdout, 1)],
                setpgroup=self._guardian.pid,
            )
        except OSError:
            self.close()
            raise
        finally:
            for fd in (its_stdin, its_stdout, its_hang):
                os.close(fd)
        self._group = self._guardian.pid or self.pid

    def ended(self) -> int | None:
        """Its exit code, negative for a signal, once; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid == self.pid else None

    def terminate(self) -> None:
        """Ask the process alone to end."""
        quietly(os.kill, self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill it and everything that it has started and that is still in its group."""
        self.killed = True
        quietly(os.killpg, self._group, signal.SIGKILL)

    def close(self) -> None:
        """Close what is left of its pipes, when it has ended."""
        self._guardian.dismiss()
        self.stdin.close()
        os.close(self.stdout_fd)
        os.close(self.hang_fd)


def _new_pipes(number: int) -> list[tuple[int, int]]:
    pipes: list[tuple[int, int]] = []
    try:
        while len(pipes) < number:
            pipes.append(new_pipe())
    except OSError:
        for fd in (end for ends in pipes for end in ends):
            os.close(fd)
        raise
    return pipes


class _Guardian:
    """Leads a server's process group, and kills it two seconds after its supervisor has been killed.

    Nothing in the group can notice that by itself. A shell that waits for the end of its input is the smallest program
    that can do it. It starts before the server, so that there is never a server without one; where there is no shell,
    or no descriptor is left for it, a server still ends with its own input.
    """

    def __init__(self) -> None:
        self.pid = 0
        """Of the process and of its group; 0: there is none."""
        self._fd: int | None = None
        try:
            its_stdin, self._fd = os.pipe()
        except OSError:
            return
        command = ["/bin/sh", "-c", _GUARDIAN, "guardian"]
        files = [
            (os.POSIX_SPAWN_DUP2, its_stdin, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        try:
            self.pid = os.posix_spawn(command[0], command, os.environ, file_actions=files, setpgroup=0)
        except OSError:
            pass
        finally:
            os.close(its_stdin)

    def dismiss(self) -> None:
        """Nobody is left to be killed."""
        if self.pid:
            quietly(os.kill, self.pid, signal.SIGKILL)
            quietly(os.waitpid, self.pid, 0)
            self.pid = 0
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Ending:
    """How a server ended.

    Args:
        exit_code: As of `SupervisedServer.ended`.
        hung: It was seen to hang.
        condemned: Why it was killed by its supervisor, if it was.
        wanted: It wanted to be restarted.
    """

    def __init__(
        self, exit_code: int, *, hung: bool = False, condemned: str | None = None, wanted: bool = False
    ) -> None:
        self.exit_code = exit_code
        if hung or (condemned or "").startswith("hung"):
            self.cause, self.text = "hang", condemned or "it hung"
        elif condemned is not None:
            self.cause, self.text = "useless", condemned
        elif exit_code == EXIT_MEMORY or (exit_code == 0 and wanted):
            self.cause, self.text = "memory", "it had become too large"
        elif exit_code < 0:
            self.cause, self.text = "killed" if exit_code == -signal.SIGKILL else "crash", _signal_name(-exit_code)
        else:
            self.cause = {0: "clean exit", EXIT_CONFIGURATION: "configuration"}.get(exit_code, "crash")
            self.text = f"exit code {exit_code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
