"""What keeps this server alive in production. Replaced as a whole by every update of the template: do not edit.

One module per idea; its docstring says what it is for. These are the names that tools and `app.py` use. They are
loaded when they are first asked for, because the protocol's pipes must be claimed before anything else is imported.
"""

TYPE_CHECKING = False  # of `typing`, which is not imported: the supervisor passes through here, and stays small
if TYPE_CHECKING:
    from .chaos import Chaos
    from .circuit_breaker import CircuitBreaker
    from .circuit_breaker_config import CircuitBreakerConfig
    from .configuration import ConfigurationError, load_settings, unknown_variables
    from .deadlines import cleanup, deadline, leaving, paused, remaining_s, require_s
    from .declarations import prompt, resource, tool
    from .dependency import Dependency, DependencyLimits
    from .dependency_group import DependencyGroup
    from .errors import (
        CircuitOpen,
        ConnectionBroken,
        ConstraintViolated,
        DeadlineExceeded,
        DependencyBusy,
        DependencyError,
        DependencyFailed,
        DependencyTimeout,
        HostNotAllowed,
        NotEnoughTime,
        Overloaded,
        ReliabilityError,
        ShuttingDown,
        ToolFailure,
    )
    from .fallback import instead, stale_cache
    from .health import Check, Unhealthy, memory_check
    from .retry import RetryConfig
    from .server import Limits, ReliableServer

_HOMES = {
    "chaos": ("Chaos",),
    "circuit_breaker": ("CircuitBreaker",),
    "circuit_breaker_config": ("CircuitBreakerConfig",),
    "configuration": ("ConfigurationError", "load_settings", "unknown_variables"),
    "deadlines": ("cleanup", "deadline", "leaving", "paused", "remaining_s", "require_s"),
    "declarations": ("prompt", "resource", "tool"),
    "dependency": ("Dependency", "DependencyLimits"),
    "dependency_group": ("DependencyGroup",),
    "errors": (
        "CircuitOpen",
        "ConnectionBroken",
        "ConstraintViolated",
        "DeadlineExceeded",
        "DependencyBusy",
        "DependencyError",
        "DependencyFailed",
        "DependencyTimeout",
        "HostNotAllowed",
        "NotEnoughTime",
        "Overloaded",
        "ReliabilityError",
        "ShuttingDown",
        "ToolFailure",
    ),
    "fallback": ("instead", "stale_cache"),
    "health": ("Check", "Unhealthy", "memory_check"),
    "retry": ("RetryConfig",),
    "server": ("Limits", "ReliableServer"),
}

__all__ = [
    "Chaos",
    "Check",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitOpen",
    "ConfigurationError",
    "ConnectionBroken",
    "ConstraintViolated",
    "DeadlineExceeded",
    "Dependency",
    "DependencyBusy",
    "DependencyError",
    "DependencyFailed",
    "DependencyGroup",
    "DependencyLimits",
    "DependencyTimeout",
    "HostNotAllowed",
    "Limits",
    "NotEnoughTime",
    "Overloaded",
    "ReliabilityError",
    "ReliableServer",
    "RetryConfig",
    "ShuttingDown",
    "ToolFailure",
    "Unhealthy",
    "cleanup",
    "deadline",
    "instead",
    "leaving",
    "load_settings",
    "memory_check",
    "paused",
    "prompt",
    "remaining_s",
    "require_s",
    "resource",
    "stale_cache",
    "tool",
    "unknown_variables",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
