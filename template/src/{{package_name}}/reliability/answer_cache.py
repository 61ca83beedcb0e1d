"""The answers of one tool, by arguments and client (R49, R51).

They are kept as the JSON that goes over the wire: so their size is known, they can be stored as they are, and nobody
can change the answer of a later caller.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import principal_components
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult, InputRequiredResult

from .cache import CacheConfig, Entry, StaleCache
from .cache_store import CacheStore
from .errors import ReliabilityError
from .provenance import label
from .questions import answer_is_shared

Result = CallToolResult | InputRequiredResult
_RESTORE_PATIENCE_S = 0.2


class AnswerCache:
    """See the module.

    Args:
        tool: Whose answers they are.
        config: See `CacheConfig`.
        timeout_s: Limit for an answer that is made in the background, in seconds.
        max_output_bytes: The server's; what was stored under another limit is not used.
        store: Where answers outlive the process.
    """

    def __init__(
        self,
        tool: Tool,
        config: CacheConfig,
        *,
        timeout_s: float,
        max_output_bytes: int,
        store: CacheStore | None,
    ) -> None:
        self.cache: StaleCache[bytes] = StaleCache(
            tool.name, config, size_of=len, timeout_s=timeout_s, on_kept=self._store_behind
        )
        self._defaults = {n: p["default"] for n, p in tool.parameters["properties"].items() if "default" in p}
        self._output_schema = tool.output_schema
        self._store = store
        self._namespace = f"{tool.name} {_digest(tool.parameters, tool.output_schema, max_output_bytes).hex()}"
        self._restored = anyio.Event()

    def key(self, arguments: dict[str, Any], context: Context[Any, Any]) -> bytes | None:
        """The same for equal arguments of the same client; None where an answer belongs to this call alone."""
        if context.input_responses or context.request_state:
            return None  # it goes on with a conversation
        token = get_access_token()
        client = None if token is None else (*principal_components(token), sorted(token.scopes))
        try:
            return _digest(client, {**self._defaults, **arguments})
        except (TypeError, ValueError, RecursionError):  # not JSON: it comes from within this process
            return None

    async def fetch(self, key: bytes, work: Callable[[], Awaitable[Result]]) -> Result:
        """An answer that is fresh, or that is being renewed, or that `work` makes for this call or makes already."""
        own: Result | None = None
        asked_at = self.cache.clock()

        async def make() -> bytes:
            nonlocal own
            answer_is_shared.set(True)  # in the context of the flight, which ends with it
            own = await work()
            return _encode(own)

        try:
            entry = await self.cache.fetch(key, make)
        except _NotRemembered:
            return own or await work()  # nor is such an answer shared
        if own is not None:
            return own
        answer = _decode(entry.value)
        return answer if entry.made_at >= asked_at else self._labelled(answer, entry)

    async def stale(self, key: bytes, error: ReliabilityError) -> CallToolResult | None:
        """What is remembered, although it is stale, because of `error`."""
        if self._store is not None and not self._restored.is_set():
            with anyio.move_on_after(_RESTORE_PATIENCE_S):
                await self._restored.wait()
        entry = self.cache.stale(key)
        return None if entry is None else self._labelled(_decode(entry.value), entry, error)

    def may_have(self, key: bytes) -> bool:
        """Whether `stale` may find something."""
        return self.cache.stale(key) is not None or (self._store is not None and not self._restored.is_set())

    async def restore(self) -> None:
        """Take over what an earlier process has stored."""
        if self._store is not None:
            for stored in await self._store.load(self._namespace, limit=self.cache.config.max_entries):
                with suppress(ValueError):  # a file may hold anything
                    _decode(stored.value)
                    self.cache.restore(stored.key, stored.value, stored.age_s)
                await checkpoint()  # decoding a thousand takes a while
            self._restored.set()

    def _labelled(
        self, answer: CallToolResult, entry: Entry[bytes], error: ReliabilityError | None = None
    ) -> CallToolResult:
        age_s = self.cache.age_s(entry)
        stale = error is not None or age_s >= self.cache.config.ttl_s
        reason = None if error is None else error.text
        return label(answer, self._output_schema, source="cache", stale=stale, age_s=age_s, reason=reason)

    def _store_behind(self, key: Hashable, value: bytes) -> None:
        if self._store is not None and isinstance(key, bytes):
            self._store.put(self._namespace, key, value, keep_s=self.cache.config.max_stale_s)


class _NotRemembered(ReliabilityError):
    """The tool's answer is no success, or waits for the client's input (R51)."""


def _encode(answer: Result) -> bytes:
    if not isinstance(answer, CallToolResult) or answer.is_error:
        raise _NotRemembered("The answer is not a success.")
    try:
        return answer.model_dump_json(by_alias=True, exclude_none=True).encode()
    except ValueError:
        raise _NotRemembered("The answer is not JSON.") from None


def _decode(value: bytes) -> CallToolResult:
    return CallToolResult.model_validate_json(value)


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()
