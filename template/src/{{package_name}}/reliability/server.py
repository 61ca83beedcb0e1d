"""The SDK's server, with everything around a call that production needs.

`ReliableServer` is used like the SDK's `MCPServer`. It overrides three public methods (`call_tool`, `read_resource`,
`get_prompt`), and those are the only way to a tool, a resource or a prompt: so nothing can be forgotten. How these come
to be there is the business of `registration`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import anyio
from mcp.server import MCPServer
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolResult,
    GetPromptResult,
    InputRequiredResult,
)
from pydantic import AnyUrl

from .built_in_tools import BUILT_IN, HEALTH, Metrics, built_in_tools
from .errors import ToolFailure
from .health import Check, HealthMonitor, HealthReport
from .load_shedding import LoadShedder
from .masking import (
    failed_result,
    prompt_errors,
    public_error,
    public_text,
    resource_errors,
    tool_errors,
    unknown_name,
)
from .metrics import CallMetrics, Outcome, RefusedRequests
from .output_limit import limit_output, refuse_oversize, size_of_block, size_of_text
from .parts import Part, Parts
from .pipeline import Call, Pipeline, overdue_check
from .provenance import stands_in
from .questions import AskingSession
from .registration import RegisteringServer

if TYPE_CHECKING:
    from .cache import CacheConfig
    from .cache_store import CacheStore
    from .chaos import Chaos
    from .dependency import Dependency, DependencyLimits
    from .dependency_group import DependencyGroup

logger = logging.getLogger(__name__)

AppT = TypeVar("AppT")
DependencyT = TypeVar("DependencyT", "Dependency", "DependencyGroup")

RESOURCES, PROMPTS = "resources/read", "prompts/get"
"""The names under which all resources, and all prompts, are counted."""
_LONGEST_SHOWN_NAME = 100


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Every limit of a server.

    Args:
        tool_timeout_s: Total time of one call, in seconds; shorter than the patience of the clients (R45).
        max_concurrent_calls: Calls in flight at the same time.
        max_queued_calls: Calls that may wait for a place.
        queue_timeout_s: Longest wait for a place, in seconds.
        answer_timeout_s: Longest wait for a person's answer to a tool's question, in seconds; it is not part of
            `tool_timeout_s`.
        max_output_bytes: Largest result, in bytes.
        health_interval_s: Seconds between health checks in the background.
        health_check_timeout_s: Limit of one health check, in seconds.
        hang_timeout_s: How long the event loop may be stuck before the process is ended, in seconds. More than
            `tool_timeout_s`, because by then every call is lost anyway, and less than the patience of the clients.
        memory_hard_limit_mb: Resident memory in MB (10^6 bytes) above which the process is restarted between calls.
    """

    tool_timeout_s: float = 25
    max_concurrent_calls: int = 32
    max_queued_calls: int = 64
    queue_timeout_s: float = 5
    answer_timeout_s: float = 300
    max_output_bytes: int = 100_000
    health_interval_s: float = 30
    health_check_timeout_s: float = 5
    hang_timeout_s: float = 30
    memory_hard_limit_mb: float = 512


class ReliableServer(RegisteringServer[AppT], Generic[AppT]):
    """An MCP server whose calls are bounded, counted, logged and masked.

    Args:
        name: The server's name for its clients.
        version: The server's own version (R8).
        lifespan: Opens what the tools need and closes it again; its value is the tools' `lifespan_context`.
        limits: See `Limits`.
        checks: Health checks beside those that dependencies add.
        chaos: Faults to inject into the dependencies, for a rehearsal.
        cache: Numbers of `stale_cache()` that a tool's author did not choose.
        answers_path: A file in which the answers of tools with a cache outlive the process; none by default.
        kwargs: Passed on to `MCPServer`.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str,
        lifespan: Callable[[ReliableServer[AppT]], AbstractAsyncContextManager[AppT]],
        limits: Limits,
        checks: Iterable[Check] = (),
        chaos: Chaos | None = None,
        cache: CacheConfig | None = None,
        answers_path: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.limits = limits
        self.ready = asyncio.Event()
        """Set as soon as the lifespan has begun and calls are served."""
        self.load_shedder = LoadShedder(
            max_concurrent=limits.max_concurrent_calls,
            max_queued=limits.max_queued_calls,
            queue_timeout_s=limits.queue_timeout_s,
        )
        self.refused_requests = RefusedRequests()
        """Of HTTP; whoever refuses them counts them here."""
        metrics, parts = CallMetrics(), Parts()
        self._chaos = chaos
        self.health = HealthMonitor(
            name=name,
            version=version,
            interval_s=limits.health_interval_s,
            timeout_s=limits.health_check_timeout_s,
            calls=lambda: (self.load_shedder.in_flight, self.load_shedder.queued),
            parts=parts,
        )
        self.ask_health: Callable[[], Awaitable[HealthReport]] = self.health.fresh_report
        """Asks how the whole service is; where that is several processes, `workers_figures` takes its place."""
        self.ask_metrics: Callable[[], Awaitable[Metrics]] = self.own_metrics
        """The same for the figures."""
        for check in checks:
            self.health.add(check)
        self._pipeline = Pipeline(
            metrics=metrics, load_shedder=self.load_shedder, answer_timeout_s=limits.answer_timeout_s
        )
        self.health.add(overdue_check(self._pipeline))
        self._open = lifespan
        super().__init__(
            name,
            limits=limits,
            metrics=metrics,
            parts=parts,
            cache=cache,
            answers=None if answers_path is None else self._open_answers(answers_path),
            version=version,
            lifespan=self._run_lifespan,
            **kwargs,
        )
        for method in (RESOURCES, PROMPTS):
            self.metrics.register(method)
        self._add_built_in_tools()

    @property
    def calls_in_flight(self) -> int:
        """Calls that have begun and not ended, those included that wait: for a place, or for a person."""
        return self._pipeline.calls

    def drain(self) -> None:
        """Refuse new calls and report "not ready", because the process is about to stop (R68)."""
        self.load_shedder.drain()
        self.health.draining = True
        for fallback in self._fallbacks.values():
            fallback.drain()

    def dependency(
        self,
        name: str,
        limits: DependencyLimits | None = None,
        *,
        critical: bool = False,
        is_failure: Callable[[Exception], bool] | None = None,
    ) -> Dependency:
        """A new dependency, which reports its health and its figures by itself; see `Dependency`.

        Raises:
            ValueError: The name is taken.
        """
        from .dependency import Dependency  # here, because a server may have none

        return self._report(Dependency(name, limits, critical=critical, is_failure=is_failure, chaos=self._chaos))

    def dependency_group(
        self,
        name: str,
        limits: DependencyLimits | None = None,
        *,
        critical: bool = False,
        is_failure: Callable[[Exception], bool] | None = None,
    ) -> DependencyGroup:
        """New dependencies that are alike, such as the hosts that a tool asks; see `DependencyGroup`.

        Raises:
            ValueError: The name is taken.
        """
        from .dependency_group import DependencyGroup

        return self._report(DependencyGroup(name, limits, critical=critical, is_failure=is_failure, chaos=self._chaos))

    def _report(self, made: DependencyT) -> DependencyT:
        self.health.add(made.check())
        self.parts.add("dependency", made)
        return made

    def watch(self, part: Part, *, kind: Literal["pool", "cache"] = "pool") -> None:
        """Show the statistics of a pool or a cache in the health report and the metrics."""
        self.parts.add(kind, part)

    def _open_answers(self, path: str | os.PathLike[str]) -> CacheStore:
        from .cache_store import CacheStore

        store = CacheStore(path)
        self.health.add(store.check())
        return store

    def _add_built_in_tools(self) -> None:
        for function in built_in_tools(self):
            self.register(function)
        patience_s = self.limits.health_check_timeout_s + 2  # a check that hangs is an answer, too
        self._timeouts_s[HEALTH] = max(self.limits.tool_timeout_s, patience_s)

    async def own_metrics(self) -> Metrics:
        """The figures of this process."""
        return Metrics(
            uptime_s=self.health.uptime_s(),
            calls=self.metrics.statistics(),
            dependencies=self.parts.statistics("dependency"),
            pools=self.parts.statistics("pool"),
            caches=self.parts.statistics("cache"),
            refused_requests=replace(self.refused_requests),
        )

    @asynccontextmanager
    async def _run_lifespan(self, _: MCPServer[AppT]) -> AsyncIterator[AppT]:
        async with self._open(self) as app, anyio.create_task_group() as background:
            if self._chaos is not None:
                self._chaos.announce([part.name for part in self.parts.of("dependency")])
            background.start_soon(self.health.run)
            if self._fallbacks:
                background.start_soon(self._serve_fallbacks)
            logger.info("ready", extra={"server": self.name, "version": self.version})
            self.ready.set()
            try:
                yield app
            finally:
                background.cancel_scope.cancel()

    async def _serve_fallbacks(self) -> None:
        from .fallback import serve_fallbacks

        await serve_fallbacks(self._fallbacks.values(), self._answers)

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[AppT, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool within the limits. Whatever goes wrong in it becomes a result with `is_error` (R4, R52).

        Raises:
            MCPError: A protocol error that the tool raised on purpose.
        """
        timeout_s = self._timeouts_s.get(name, self.limits.tool_timeout_s)
        call = self._begin(self.metrics.label(name), context, timeout_s)
        try:
            return await self._pipeline.run(
                call,
                lambda: self._call_tool(name, arguments, context),
                outcome_of=_outcome_of,
                always_admit=name in BUILT_IN,
            )
        except MCPError:
            raise
        except Exception as error:
            failure = public_error(error, f"The tool {name[:_LONGEST_SHOWN_NAME]!r}")
            return failed_result(failure, call.reference)

    async def read_resource(
        self, uri: AnyUrl | str, context: Context[AppT, Any] | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        """Read a resource within the limits.

        Raises:
            ResourceError: It failed; the text is safe to show.
        """
        call = self._begin(RESOURCES, context, self.limits.tool_timeout_s)
        try:
            return await self._pipeline.run(call, lambda: self._read_resource(uri, context))
        except (MCPError, ResourceNotFoundError):
            raise
        except Exception as error:
            raise ResourceError(public_text(public_error(error, "The resource"), call.reference)) from None

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Context[AppT, Any] | None = None
    ) -> GetPromptResult | InputRequiredResult:
        """Render a prompt within the limits.

        Raises:
            MCPError: It is unknown, its arguments are wrong, or it failed; the text is safe to show.
        """
        call = self._begin(PROMPTS, context, self.limits.tool_timeout_s)
        try:
            return await self._pipeline.run(call, lambda: self._get_prompt(name, arguments, context))
        except MCPError:
            raise
        except Exception as error:
            failure = public_error(error, "The prompt")
            code = INVALID_PARAMS if isinstance(failure, ToolFailure) else INTERNAL_ERROR
            raise MCPError(code=code, message=public_text(failure, call.reference)) from None

    def _begin(self, name: str, context: Context[AppT, Any] | None, timeout_s: float) -> Call:
        if context is None:  # called from a test, or by another tool without its context
            return Call(name, "", timeout_s)
        request = context.request_context
        if not isinstance(request.session, AskingSession):  # it is, when one tool calls another
            request.session = AskingSession(request.session, self._pipeline.asking)
        return Call(name, str(request.request_id)[:_LONGEST_SHOWN_NAME], timeout_s)

    async def _call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[AppT, Any] | None
    ) -> CallToolResult | InputRequiredResult:
        if name not in self._names["tool"]:
            raise unknown_name("tool", name, self._names["tool"])
        fallback = self._fallbacks.get(name)
        if fallback is None:
            return await self._run_tool(name, arguments, context)
        context = context or Context(mcp_server=self)
        return await fallback.call(arguments, context, lambda: self._run_tool(name, arguments, context))

    async def _run_tool(
        self, name: str, arguments: dict[str, Any], context: Context[AppT, Any] | None
    ) -> CallToolResult | InputRequiredResult:
        with tool_errors():
            result = await super().call_tool(name, arguments, context)
        if isinstance(result, CallToolResult) and name not in BUILT_IN:
            return limit_output(result, self.limits.max_output_bytes)
        return result

    async def _read_resource(
        self, uri: AnyUrl | str, context: Context[AppT, Any] | None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        with resource_errors():
            contents = await super().read_resource(uri, context)
        if isinstance(contents, InputRequiredResult):
            return contents
        contents = list(contents)
        refuse_oversize(sum(size_of_text(part.content) for part in contents), self.limits.max_output_bytes)
        return contents

    async def _get_prompt(
        self, name: str, arguments: dict[str, Any] | None, context: Context[AppT, Any] | None
    ) -> GetPromptResult | InputRequiredResult:
        if name not in self._names["prompt"]:
            raise unknown_name("prompt", name, self._names["prompt"])
        with prompt_errors():
            rendered = await super().get_prompt(name, arguments, context)
        if isinstance(rendered, GetPromptResult):
            refuse_oversize(sum(size_of_block(m.content) for m in rendered.messages), self.limits.max_output_bytes)
        return rendered

    @property
    def lowlevel(self) -> Server[AppT]:
        """The SDK's low-level server, which a transport runs."""
        return self._lowlevel_server


def _outcome_of(result: CallToolResult | InputRequiredResult) -> Outcome:
    if isinstance(result, CallToolResult) and result.is_error:
        return Outcome.TOOL_ERROR
    return Outcome.FALLBACK if stands_in(result) else Outcome.OK
