"""Asking a person in the middle of a call (R44).

In the handshake era a tool may stop and ask: `await ctx.elicit(...)`, a parameter with the SDK's `Resolve`, or a
request for sampling, which a person approves. However long the answer takes, that is not the tool's slowness. So the
session that a call gets from its context tells the pipeline while it asks; a tool's author does nothing.

In the modern era nothing waits: the tool's result is the question (`InputRequiredResult`), which ends the call, and the
client's next call brings the answer and has a deadline of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, TypeVar

from mcp.server.session import ServerSession
from mcp_types import ServerRequest
from pydantic import BaseModel

ResultT = TypeVar("ResultT", bound=BaseModel)

_TO_A_PERSON = frozenset({"elicitation/create", "sampling/createMessage"})
answer_is_shared: ContextVar[bool] = ContextVar("answer_is_shared", default=False)
"""Whether the answer is made for everybody who asks for it now or later, as with a cache."""


class AskingSession(ServerSession):
    """The SDK's session of one request, through whose `send_request` every question goes.

    Args:
        session: The session that the SDK made.
        asking: Called for each question; the answer is awaited within what it returns.
    """

    def __init__(self, session: ServerSession, asking: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        vars(self).update(vars(session))
        self._asking = asking

    async def send_request(
        self, request: ServerRequest, result_type: type[ResultT], *args: Any, **kwargs: Any
    ) -> ResultT:
        """As in `ServerSession`.

        Raises:
            DeadlineExceeded: A person was asked, and did not answer in time.
            RuntimeError: A person was to be asked for an answer that others get as well.
        """
        if request.method not in _TO_A_PERSON:
            return await super().send_request(request, result_type, *args, **kwargs)
        if answer_is_shared.get():
            raise RuntimeError("A tool with a cache cannot ask a person: its answer is for other callers, too.")
        async with self._asking():
            return await super().send_request(request, result_type, *args, **kwargs)
