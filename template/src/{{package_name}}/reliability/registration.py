"""Makes an SDK's server of what an author has declared: tools, resources and prompts, each under a name of its own.

What is registered here is bounded: a function that blocks runs in a thread, and a tool has its time limit and, when it
is declared so, its fallback. How a call goes through these is the business of `server`.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mcp.server import MCPServer
from mcp.server.mcpserver.prompts import Prompt
from mcp.server.mcpserver.tools import Tool
from mcp_types import Tool as AdvertisedTool
from mcp_types import ToolAnnotations

from .declarations import PromptDeclaration, ResourceDeclaration, ToolDeclaration, declaration_of
from .metrics import CallMetrics
from .parts import Parts
from .worker_threads import WorkerThreads

if TYPE_CHECKING:
    from .cache import CacheConfig
    from .cache_store import CacheStore
    from .fallback import Fallback, ToolFallback
    from .server import Limits

AppT = TypeVar("AppT")


class RegisteringServer(MCPServer[AppT], Generic[AppT]):
    """See the module.

    Args:
        name: The server's name for its clients.
        limits: Of threads, calls and answers.
        metrics: Where each tool gets a series of its own.
        parts: Where each tool's cache is shown.
        cache: Numbers of `stale_cache()` that a tool's author did not choose.
        answers: Where the answers of tools with a cache outlive the process.
        kwargs: Passed on to `MCPServer`.
    """

    def __init__(
        self,
        name: str,
        *,
        limits: Limits,
        metrics: CallMetrics,
        parts: Parts,
        cache: CacheConfig | None,
        answers: CacheStore | None,
        **kwargs: Any,
    ) -> None:
        self.limits = limits
        self.metrics = metrics
        self.parts = parts
        self._cache = cache
        self._answers = answers
        self._timeouts_s: dict[str, float] = {}
        self._fallbacks: dict[str, ToolFallback] = {}
        self._names: dict[str, set[str]] = {"tool": set(), "resource": set(), "prompt": set()}
        super().__init__(name, **kwargs)

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
            self.parts.add("cache", fallback.answers.cache)

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

    async def list_tools(self) -> list[AdvertisedTool]:
        """As in `MCPServer`; the output of a tool with a fallback may say where it comes from."""
        tools = await super().list_tools()
        return [
            one.model_copy(update={"output_schema": self._fallbacks[one.name].output_schema})
            if one.name in self._fallbacks
            else one
            for one in tools
        ]
