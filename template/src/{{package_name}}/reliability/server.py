"""The SDK's server, with everything around a call that production needs.

`ReliableServer` is used like the SDK's `MCPServer`. It overrides three public methods (`call_tool`, `read_resource`,
`get_prompt`), and those are the only way to a tool, a resource or a prompt: so nothing can be forgotten.
"""

from __future__ import annotations

import inspect
import logging
import os
import pkgutil
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import anyio
from mcp.server import MCPServer
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.server.mcpserver.prompts import Prompt
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolResult,
    GetPromptResult,
    InputRequiredResult,
    ToolAnnotations,
)
from mcp_types import Tool as AdvertisedTool
from pydantic import AnyUrl

from .declarations import PromptDeclaration, ResourceDeclaration, ToolDeclaration, declaration_of, tool
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
from .metrics import CallMetrics, CallStatistics, Outcome
from .output_limit import limit_output, refuse_oversize, size_of_block, size_of_text
from .parts import Part, Parts
from .pipeline import Call, Pipeline, overdue_check
from .provenance import stands_in
from .questions import AskingSession
from .worker_threads import WorkerThreads

if TYPE_CHECKING:
    from .cache import CacheConfig
    from .cache_store import CacheStore
    from .chaos import Chaos
    from .dependency import Dependency, DependencyLimits
    from .dependency_group import DependencyGroup
    from .fallback import Fallback, ToolFallback

logger = logging.getLogger(__name__)

AppT = TypeVar("AppT")
DependencyT = TypeVar("DependencyT", "Dependency", "DependencyGroup")

_HEALTH, _METRICS = "health-check", "get-metrics"
_BUILT_IN = frozenset({_HEALTH, _METRICS})
RESOURCES, PROMPTS = "resources/read", "prompts/get"
"""The names under which all resources, and all prompts, are counted."""
_LONGEST_SHOWN_NAME = 100


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The answer of `get-metrics`."""

    uptime_s: float
    calls: list[CallStatistics]
    dependencies: list[Any]
    """`DependencyStatistics`; a group of dependencies gives one for each member."""
    pools: list[Any]
    caches: list[Any]


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
    """

    tool_timeout_s: float = 25
    max_concurrent_calls: int = 32
    max_queued_calls: int = 64
    queue_timeout_s: float = 5
    answer_timeout_s: float = 300
    max_output_bytes: int = 100_000
    health_interval_s: float = 30
    health_check_timeout_s: float = 5


class ReliableServer(MCPServer[AppT], Generic[AppT]):
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
        self.load_shedder = LoadShedder(
            max_concurrent=limits.max_concurrent_calls,
            max_queued=limits.max_queued_calls,
            queue_timeout_s=limits.queue_timeout_s,
        )
        self.metrics = CallMetrics()
        self.parts = Parts()
        self._chaos = chaos
        self.health = HealthMonitor(
            name=name,
            version=version,
            interval_s=limits.health_interval_s,
            timeout_s=limits.health_check_timeout_s,
            calls=lambda: (self.load_shedder.in_flight, self.load_shedder.queued),
            parts=self.parts,
        )
        for check in checks:
            self.health.add(check)
        self._pipeline = Pipeline(
            metrics=self.metrics, load_shedder=self.load_shedder, answer_timeout_s=limits.answer_timeout_s
        )
        self.health.add(overdue_check(self._pipeline))
        self._timeouts_s: dict[str, float] = {}
        self._fallbacks: dict[str, ToolFallback] = {}
        self._cache = cache
        self._answers = None if answers_path is None else self._open_answers(answers_path)
        self._names: dict[str, set[str]] = {"tool": set(), "resource": set(), "prompt": set()}
        self._open = lifespan
        super().__init__(name, version=version, lifespan=self._run_lifespan, **kwargs)
        for method in (RESOURCES, PROMPTS):
            self.metrics.register(method)
        self._add_built_in_tools()

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
        from .circuit_breaker import is_dependency_failure  # here, because a server may have none
        from .dependency import Dependency, DependencyLimits

        return self._watch_dependency(
            Dependency(
                name,
                limits or DependencyLimits(),
                critical=critical,
                is_failure=is_failure or is_dependency_failure,
                chaos=self._chaos,
            )
        )

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
        from .circuit_breaker import is_dependency_failure
        from .dependency import DependencyLimits
        from .dependency_group import DependencyGroup

        return self._watch_dependency(
            DependencyGroup(
                name,
                limits or DependencyLimits(),
                critical=critical,
                is_failure=is_failure or is_dependency_failure,
                chaos=self._chaos,
            )
        )

    def _watch_dependency(self, made: DependencyT) -> DependencyT:
        self.health.add(made.check())
        self.parts.add("dependency", made)
        return made

    def watch(self, part: Part, *, kind: Literal["pool", "cache"] = "pool") -> None:
        """Show the statistics of a pool or a cache in the health report and the metrics."""
        self.parts.add(kind, part)

    def include(self, package: ModuleType) -> None:
        """Register everything that `package` and the modules below it declare with `@tool`, `@resource`, `@prompt`.

        Raises:
            ValueError: A name is taken (R1).
        """
        found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        for module in (package, *(import_module(info.name) for info in found)):
            for value in list(vars(module).values()):  # registering may add names to it
                if inspect.isfunction(value) and value.__module__ == module.__name__:
                    self.register(value)

    def register(self, function: Callable[..., Any]) -> None:
        """Register one declared function; one without a declaration is left alone.

        Raises:
            ValueError: Its name is taken (R1).
        """
        match declaration_of(function):
            case ToolDeclaration() as declared:
                self._register_tool(function, declared)
            case ResourceDeclaration() as declared:
                self._refuse_duplicate("resource", declared.uri)
                self.resource(
                    declared.uri,
                    name=declared.name,
                    title=declared.title,
                    description=inspect.getdoc(function),
                    mime_type=declared.mime_type,
                )(self._in_thread(function, f"The resource {declared.uri!r}"))
            case PromptDeclaration() as declared:
                self.prompt(declared.name, declared.title, inspect.getdoc(function))(
                    self._in_thread(function, f"The prompt {declared.name!r}")
                )
            case None:
                pass

    def _register_tool(self, function: Callable[..., Any], declared: ToolDeclaration) -> None:
        returns = inspect.get_annotations(function, eval_str=True).get("return")
        structured = False if returns is str else None  # the SDK would send a plain text twice
        self._timeouts_s[declared.name] = min(declared.timeout_s or float("inf"), self.limits.tool_timeout_s)
        self.add_tool(
            self._in_thread(function, f"The tool {declared.name!r}", declared.max_threads),
            name=declared.name,
            title=declared.title,
            description=inspect.getdoc(function) or "",
            annotations=ToolAnnotations(
                read_only_hint=declared.read_only,
                destructive_hint=declared.destructive,
                idempotent_hint=declared.idempotent,
                open_world_hint=declared.open_world,
            ),
            structured_output=structured,
        )
        if declared.fallback is not None:
            told = Tool.from_function(function, declared.name, structured_output=structured)
            self._add_fallback(told, declared.fallback, structured)

    def _add_fallback(self, told: Tool, declared: Fallback, structured: bool | None) -> None:
        from .fallback import ToolFallback  # here, because a server may have none

        if self._cache is not None:
            try:
                declared = declared.completed(self._cache)
            except ValueError as error:
                raise ValueError(f"The tool {told.name!r} and the server's settings do not fit: {error}") from None
        other = None
        if declared.function is not None:
            threaded = self._in_thread(declared.function, f"The fallback of the tool {told.name!r}")
            other = Tool.from_function(threaded, structured_output=structured)
        fallback = self._fallbacks[told.name] = ToolFallback(
            told,
            declared,
            other,
            timeout_s=self._timeouts_s[told.name],
            max_output_bytes=self.limits.max_output_bytes,
            store=self._answers,
        )
        if fallback.answers is not None:
            self.watch(fallback.answers.cache, kind="cache")

    def _open_answers(self, path: str | os.PathLike[str]) -> CacheStore:
        from .cache_store import CacheStore

        store = CacheStore(path)
        self.health.add(store.check())
        return store

    def add_tool(self, fn: Callable[..., Any], name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """As in `MCPServer`, for tools without a declaration; they get the limits, too.

        Raises:
            ValueError: The name is taken (R1).
        """
        name = name or fn.__name__
        self._refuse_duplicate("tool", name)
        self.metrics.register(name)
        super().add_tool(self._in_thread(fn, f"The tool {name!r}"), name, *args, **kwargs)

    def add_prompt(self, prompt: Prompt) -> None:
        """As in `MCPServer`.

        Raises:
            ValueError: The name is taken (R1).
        """
        self._refuse_duplicate("prompt", prompt.name)
        super().add_prompt(prompt)

    def _in_thread(self, function: Callable[..., Any], what: str, max_threads: int = 8) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):
            return function
        return WorkerThreads(max_threads, queue_timeout_s=self.limits.queue_timeout_s, what=what).wrap(function)

    def _refuse_duplicate(self, kind: str, name: str) -> None:
        if name in self._names[kind]:
            raise ValueError(f"Two {kind}s are called {name!r}; rename one of them.")
        self._names[kind].add(name)

    def _add_built_in_tools(self) -> None:
        @tool(name=_HEALTH, title="Health check", read_only=True)
        async def health_check() -> HealthReport:
            """Tell whether this server and what it depends on are well."""
            return await self.health.fresh_report()

        @tool(name=_METRICS, title="Metrics", read_only=True)
        async def get_metrics() -> Metrics:
            """Show how many calls were made since the start, how they ended, how long they took, and what they used."""
            return Metrics(
                uptime_s=self.health.uptime_s(),
                calls=self.metrics.statistics(),
                dependencies=self.parts.statistics("dependency"),
                pools=self.parts.statistics("pool"),
                caches=self.parts.statistics("cache"),
            )

        for function in (health_check, get_metrics):
            self.register(function)
        patience_s = self.limits.health_check_timeout_s + 1  # a check that hangs is an answer, too
        self._timeouts_s[_HEALTH] = max(self.limits.tool_timeout_s, patience_s)

    @asynccontextmanager
    async def _run_lifespan(self, _: MCPServer[AppT]) -> AsyncIterator[AppT]:
        async with self._open(self) as app, anyio.create_task_group() as background:
            if self._chaos is not None:
                self._chaos.announce([part.name for part in self.parts.of("dependency")])
            background.start_soon(self.health.run)
            if self._fallbacks:
                background.start_soon(self._serve_fallbacks)
            logger.info("ready", extra={"server": self.name, "version": self.version})
            try:
                yield app
            finally:
                background.cancel_scope.cancel()

    async def _serve_fallbacks(self) -> None:
        from .fallback import serve_fallbacks

        await serve_fallbacks(self._fallbacks.values(), self._answers)

    async def list_tools(self) -> list[AdvertisedTool]:
        """As in `MCPServer`; the output of a tool with a fallback may say where it comes from."""
        tools = await super().list_tools()
        return [
            one.model_copy(update={"output_schema": self._fallbacks[one.name].output_schema})
            if one.name in self._fallbacks
            else one
            for one in tools
        ]

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
                always_admit=name in _BUILT_IN,
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
        if isinstance(result, CallToolResult) and name not in _BUILT_IN:
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
