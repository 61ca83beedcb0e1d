"""What answers when a tool cannot: its last good answer, or another function (R48 to R52).

    @tool(read_only=True, fallback=stale_cache(ttl_s=60, max_stale_s=3600))
    @tool(read_only=True, fallback=instead(scan_patterns))

Only the failure of a dependency and a timeout lead to it, never wrong arguments, an unexpected error or a cancellation.
The tool is stopped a little before the call's deadline, so that the other answer still arrives in time.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import anyio
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult, InputRequiredResult

from .answer_cache import AnswerCache
from .cache import CacheConfig
from .cache_store import CacheStore
from .deadlines import cleanup, leaving
from .errors import DeadlineExceeded, DependencyError, ReliabilityError, cause_of
from .masking import tool_errors
from .output_limit import limit_output
from .provenance import label, with_provenance

logger = logging.getLogger(__name__)

Result = CallToolResult | InputRequiredResult
_STALE_RESERVE_S = 0.25
_CLOSE_S = 5


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """What a tool's author wants; made by `stale_cache` and `instead`."""

    cache: CacheConfig | None = None
    chosen: frozenset[str] = frozenset()
    """The fields of `cache` that the author chose; the server's settings are for the others."""
    function: Callable[..., Any] | None = None
    reserve_s: float

    def __post_init__(self) -> None:
        if not self.reserve_s > 0:
            raise ValueError(f"reserve_s must be greater than 0, not {self.reserve_s!r}.")

    def completed(self, defaults: CacheConfig) -> Fallback:
        """The same with `defaults` for what the author did not choose.

        Raises:
            ValueError: They do not fit what the author chose.
        """
        if self.cache is None:
            return self
        return replace(self, cache=replace(defaults, **{name: getattr(self.cache, name) for name in self.chosen}))


def stale_cache(
    *,
    ttl_s: float | None = None,
    revalidate_s: float | None = None,
    max_stale_s: float | None = None,
    max_entries: int | None = None,
    otherwise: Callable[..., Any] | None = None,
    reserve_s: float = 5,
) -> Fallback:
    """Remember good answers: serve them again while they are fresh, and later when the tool fails.

    For tools that only read, and whose answers depend on nothing but the arguments and the authenticated client: so
    such a tool cannot ask a person in the middle of a call (`ctx.elicit` raises); only its result may be a question.
    What is None is as in the server's settings: 60 s, 3600 s and 1000 answers unless they say otherwise.

    Args:
        ttl_s: Age in seconds up to which an answer is fresh; 0 asks the tool every time.
        revalidate_s: Age up to which a stale answer is served at once, while a new one is made in the background;
            `ttl_s` by default, so never.
        max_stale_s: Age up to which a stale answer is served when the tool fails (R50).
        max_entries: Answers that are kept, of at most 10 MB together (R49).
        otherwise: What answers when no stale answer is left; see `instead`.
        reserve_s: See `instead`.

    Raises:
        ValueError: The ages do not rise, or a bound is not greater than zero.
    """
    numbers: dict[str, Any] = {"ttl_s": ttl_s, "revalidate_s": revalidate_s}
    numbers |= {"max_stale_s": max_stale_s, "max_entries": max_entries}
    chosen = {name: number for name, number in numbers.items() if number is not None}
    return Fallback(cache=CacheConfig(**chosen), chosen=frozenset(chosen), function=otherwise, reserve_s=reserve_s)


def instead(function: Callable[..., Any], *, reserve_s: float = 5) -> Fallback:
    """Let `function` answer when the tool fails.

    Args:
        function: Takes the tool's arguments, or some of them, and returns the same type; `async` or ordinary.
        reserve_s: Seconds of the call's time that are kept for it, at most half of them.

    Raises:
        ValueError: `reserve_s` is not greater than zero.
    """
    return Fallback(function=function, reserve_s=reserve_s)


class ToolFallback:
    """The fallback of one tool at work.

    Args:
        tool: The tool.
        declared: What its author wants.
        function: The declared function as a tool.
        timeout_s: The tool's limit, in seconds.
        max_output_bytes: Largest result.
        store: Where answers outlive the process.

    Raises:
        ValueError: The function does not fit the tool, or the tool returns a field called `provenance`.
    """

    def __init__(
        self,
        tool: Tool,
        declared: Fallback,
        function: Tool | None,
        *,
        timeout_s: float,
        max_output_bytes: int,
        store: CacheStore | None,
    ) -> None:
        self.output_schema = with_provenance(tool.output_schema)
        """What the tool advertises."""
        self.answers: AnswerCache | None = None
        self._tool = tool
        self._function = function
        self._reserve_s = declared.reserve_s
        self._max_output_bytes = max_output_bytes
        if function is not None:
            _refuse_misfit(tool, function)
        if declared.cache is not None:
            self.answers = AnswerCache(
                tool, declared.cache, timeout_s=timeout_s, max_output_bytes=max_output_bytes, store=store
            )

    async def call(
        self, arguments: dict[str, Any], context: Context[Any, Any], work: Callable[[], Awaitable[Result]]
    ) -> Result:
        """What the tool answers, which `work` makes, or what is answered in its place.

        Raises:
            DependencyError: The tool failed, and there is no other answer.
            DeadlineExceeded: Likewise.
            Exception: Whatever else the tool raised.
        """
        key = None if self.answers is None else self.answers.key(arguments, context)
        try:
            with leaving(self._time_kept_s(key)):
                return await (work() if self.answers is None or key is None else self.answers.fetch(key, work))
        except (DependencyError, DeadlineExceeded) as error:
            answer = None if self.answers is None or key is None else await self.answers.stale(key, error)
            answer = answer or await self._substitute(arguments, context, error)
            if answer is None:
                raise
            about = {"kind": error.kind, "text": error.text, "cause": cause_of(error)}
            logger.warning("fallback served", extra=about)
            return answer

    def drain(self) -> None:
        """Make nothing in the background from now on (R68)."""
        if self.answers is not None:
            self.answers.cache.drain()

    def _time_kept_s(self, key: bytes | None) -> float:
        if self._function is not None:
            return self._reserve_s
        return _STALE_RESERVE_S if self.answers is not None and key is not None and self.answers.may_have(key) else 0

    async def _substitute(
        self, arguments: dict[str, Any], context: Context[Any, Any], error: ReliabilityError
    ) -> CallToolResult | None:
        if self._function is None:
            return None
        try:
            with tool_errors():
                answer = await self._function.run(arguments, context, convert_result=True)
            if not isinstance(answer, CallToolResult) or answer.is_error:
                return None
            answer = limit_output(answer, self._max_output_bytes)
        except Exception as second:
            unexpected = None if isinstance(second, ReliabilityError) else second
            logger.warning("fallback failed", exc_info=unexpected, extra={"text": str(second)})
            return None
        return label(answer, self._tool.output_schema, source="fallback", reason=error.text)


async def serve_fallbacks(fallbacks: Iterable[ToolFallback], store: CacheStore | None) -> None:
    """What fallbacks do beside the calls: restore and store answers. When cancelled, end what is being made."""
    caches = [fallback.answers for fallback in fallbacks if fallback.answers is not None]
    try:
        async with anyio.create_task_group() as tasks:
            for answers in caches:
                tasks.start_soon(answers.restore)
            await (anyio.sleep_forever() if store is None else store.run())
    finally:
        with cleanup(_CLOSE_S, what="ending the calls of caches"):
            async with anyio.create_task_group() as tasks:
                for answers in caches:
                    tasks.start_soon(answers.cache.aclose)


def _refuse_misfit(tool: Tool, function: Tool) -> None:
    unknown = function.parameters["properties"].keys() - tool.parameters["properties"].keys()
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"The fallback of the tool {tool.name!r} has parameters that the tool lacks: {names}.")
    if _untitled(tool.output_schema) != _untitled(function.output_schema):
        raise ValueError(f"The fallback of the tool {tool.name!r} must return the same type as the tool.")


def _untitled(schema: dict[str, Any] | None) -> dict[str, Any]:
    """Without the title, which may hold the function's name."""
    return {key: value for key, value in (schema or {}).items() if key != "title"}
