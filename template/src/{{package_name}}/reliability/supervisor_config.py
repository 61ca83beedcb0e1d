"""The settings of the supervisor, read without the libraries that check them in the server (R29, R30)."""

from __future__ import annotations

TYPE_CHECKING = False  # of `typing`, which is not imported: the supervisor is small
if TYPE_CHECKING:
    from collections.abc import Mapping

_OF_THE_SERVER = frozenset({"hang_timeout_s", "shutdown_grace_s", "tool_timeout_s", "log_level"})
"""Its own settings, which concern the supervisor, too."""


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
        tool_timeout_s: Seconds after which no call can be in flight any more.
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
        tool_timeout_s: float = 25.0,
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
        self.tool_timeout_s = tool_timeout_s
        self.log_level = log_level

    @classmethod
    def from_environment(cls, prefix: str, environment: Mapping[str, str]) -> SupervisorConfig:
        """The settings in variables such as `MY_SERVER_WATCHDOG_MAX_RESTARTS`; a wrong one counts as none."""
        config = cls()
        for name, default in vars(config).items():
            own = name not in _OF_THE_SERVER
            text = environment.get(f"{prefix}{'WATCHDOG_' if own else ''}{name.upper()}", "")
            setattr(config, name, _value(text, default))
        return config


def _value(text: str, default: float | str) -> float | str:
    """What a variable says; the default where it says nothing, or what the server will refuse."""
    if isinstance(default, str):
        return text.lower() or default
    try:
        number = type(default)(text)
    except ValueError:
        return default
    return number if 0 <= number < float("inf") else default
