"""The decorators with which tools, resources and prompts are declared.

They only attach a description to the function: it stays callable and testable as it is, and nothing is registered by
an import. `ReliableServer.include` reads the descriptions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from .fallback import Fallback

_F = TypeVar("_F", bound=Callable[..., Any])
_ATTRIBUTE = "__mcp_declaration__"


@dataclass(frozen=True, kw_only=True)
class ToolDeclaration:
    """See `tool`."""

    name: str
    title: str | None
    read_only: bool
    destructive: bool
    idempotent: bool
    open_world: bool
    timeout_s: float | None
    max_threads: int
    fallback: Fallback | None


@dataclass(frozen=True, kw_only=True)
class ResourceDeclaration:
    """See `resource`."""

    uri: str
    name: str
    title: str | None
    mime_type: str


@dataclass(frozen=True, kw_only=True)
class PromptDeclaration:
    """See `prompt`."""

    name: str
    title: str | None


Declaration = ToolDeclaration | ResourceDeclaration | PromptDeclaration


def tool(
    *,
    name: str | None = None,
    title: str | None = None,
    read_only: bool = False,
    destructive: bool = False,
    idempotent: bool = False,
    open_world: bool = False,
    timeout_s: float | None = None,
    max_threads: int = 8,
    fallback: Fallback | None = None,
) -> Callable[[_F], _F]:
    """Declare a tool. Its docstring is what the model reads; its types are the input and output schemas.

    The function may be `async`, or ordinary: then it runs in a worker thread, and blocks nobody.

    Args:
        name: The tool's name; the function's by default.
        title: A name for people.
        read_only: It changes nothing.
        destructive: It may delete or overwrite.
        idempotent: Calling it twice with the same arguments is like calling it once.
        open_world: It reaches beyond this process: the network, other programs.
        timeout_s: A limit in seconds that is shorter than the server's.
        max_threads: How many calls of an ordinary function may run at once, so that a hanging one cannot use up the
            threads of the others.
        fallback: What answers when a dependency fails or time runs out: `stale_cache(...)` or `instead(function)`.

    Raises:
        ValueError: `timeout_s` or `max_threads` is not greater than zero, or a tool that does more than read has a
            cache.
    """
    if timeout_s is not None and not timeout_s > 0:  # not "<= 0": that would let NaN pass
        raise ValueError(f"timeout_s must be greater than 0, not {timeout_s!r}.")
    if max_threads < 1:
        raise ValueError(f"max_threads must be at least 1, not {max_threads!r}.")
    if fallback is not None and fallback.cache is not None and not read_only:
        raise ValueError("Only a tool with read_only=True can have a cache: a remembered answer changes nothing.")
    return lambda function: _declare(
        function,
        ToolDeclaration(
            name=name or function.__name__,
            title=title,
            read_only=read_only,
            destructive=destructive,
            idempotent=idempotent or read_only,
            open_world=open_world,
            timeout_s=timeout_s,
            max_threads=max_threads,
            fallback=fallback,
        ),
    )


def resource(
    uri: str, *, name: str | None = None, title: str | None = None, mime_type: str = "text/plain"
) -> Callable[[_F], _F]:
    """Declare a resource; `{parts}` of the URI are the function's parameters."""
    return lambda function: _declare(
        function, ResourceDeclaration(uri=uri, name=name or function.__name__, title=title, mime_type=mime_type)
    )


def prompt(*, name: str | None = None, title: str | None = None) -> Callable[[_F], _F]:
    """Declare a prompt; the function returns its text."""
    return lambda function: _declare(function, PromptDeclaration(name=name or function.__name__, title=title))


def declaration_of(value: object) -> Declaration | None:
    """The declaration that a decorator attached to `value`, if any."""
    found = getattr(value, _ATTRIBUTE, None)
    return found if isinstance(found, ToolDeclaration | ResourceDeclaration | PromptDeclaration) else None


def _declare(function: _F, declaration: Declaration) -> _F:
    setattr(function, _ATTRIBUTE, declaration)
    return function
