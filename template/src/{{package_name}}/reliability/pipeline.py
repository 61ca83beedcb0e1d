"""The way of a call: metrics and log context, then the total deadline, then load shedding, then the work.

Every tool, resource and prompt goes through `Pipeline.run`, so that their authors write none of it (R44, R59, R64).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mcp.server.mcpserver.exceptions import ResourceNotFoundError
from mcp.shared.exceptions import MCPError

from .cancellation import is_cancelled
from .deadlines import Deadline, deadline, paused
from .errors import DeadlineExceeded, DependencyError, DependencyTimeout, Overloaded, ToolFailure, cause_of
from .health import Check, check_of
from .load_shedding import LoadShedder
from .logs import log_context
from .metrics import CallMetrics, Outcome

logger = logging.getLogger(__name__)

T = TypeVar("T")
_process = secrets.token_hex(4)
_numbers = itertools.count(1)
_ALLOWANCE_S = 1.0
_EXPECTED = frozenset({Outcome.OK, Outcome.FALLBACK, Outcome.TOOL_ERROR, Outcome.CANCELLED})
"""Outcomes that need nobody's attention; the others show the client a reference, which the log must hold."""


class _Place:
    """One of the places of calls in flight; `is_held` is false while it is lent to others, and at the end."""

    __slots__ = ("is_held", "is_over")

    def __init__(self) -> None:
        self.is_held = True
        self.is_over = False


_place: ContextVar[_Place | None] = ContextVar("place", default=None)
"""A call within a call (a tool that reads a resource) shares its place; waiting for a second one could be for ever."""


@dataclass(slots=True)
class Call:
    """One call on its way. `reference` finds its log lines: it is shown to the client when the call fails (R52)."""

    name: str
    """The registered name, `unknown`, or the method for resources and prompts."""
    request_id: str
    timeout_s: float
    reference: str = field(default_factory=lambda: f"{_process}-{next(_numbers)}")


class Pipeline:
    """Runs calls; see the module.

    Args:
        metrics: Counts every call by its outcome.
        load_shedder: Bounds the calls in flight.
        answer_timeout_s: Longest wait for a person's answer, in seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        metrics: CallMetrics,
        load_shedder: LoadShedder,
        answer_timeout_s: float = 300,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = metrics
        self.load_shedder = load_shedder
        self._answer_timeout_s = answer_timeout_s
        self._clock = clock
        self._running: set[Deadline] = set()
        self._lent = 0

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Around a question to a person: the call's clock stands still, and others use its place (R44, R59).

        Raises:
            DeadlineExceeded: The answer took longer than `answer_timeout_s`.
        """
        place = self._lend()
        try:
            with paused(), deadline(self._answer_timeout_s, what="The answer to a question"):
                yield
        finally:
            if place is not None:
                await self._take_back(place)

    def _lend(self) -> _Place | None:
        """The place that is now free for others; None if the call keeps it, because many questions are open already."""
        place = _place.get()
        if place is None or not place.is_held or self._lent == self.load_shedder.max_queued:
            return None
        place.is_held = False
        self._lent += 1
        self.load_shedder.release()
        return place

    async def _take_back(self, place: _Place) -> None:
        self._lent -= 1
        await self.load_shedder.reacquire()  # a call that is cancelled goes on without
        place.is_held = True
        if place.is_over:  # a task that the call left behind has asked
            self._give_back(place)

    def _give_back(self, place: _Place) -> None:
        if place.is_held:
            place.is_held = False
            self.load_shedder.release()

    @property
    def calls(self) -> int:
        """Calls on their way now."""
        return len(self._running)

    def overdue(self) -> int:
        """Calls that were cancelled at their deadline and have not ended: their tools swallow the cancellation."""
        return sum(limit.overdue_s() > _ALLOWANCE_S for limit in self._running)

    async def run(
        self,
        call: Call,
        work: Callable[[], Awaitable[T]],
        *,
        outcome_of: Callable[[T], Outcome] = lambda _: Outcome.OK,
        always_admit: bool = False,
    ) -> T:
        """Do `work` within the limits.

        Args:
            call: What is called.
            work: The call itself.
            outcome_of: How a returned result counts.
            always_admit: Never shed it, nor count it as load: for health checks.

        Raises:
            DeadlineExceeded: The call took longer than `call.timeout_s`.
            Overloaded: It was refused.
            Exception: Whatever `work` raised.
        """
        context = log_context.set({"request_id": call.request_id, "tool": call.name, "reference": call.reference})
        self.metrics.started(call.name)
        started = self._clock()
        limit = deadline(call.timeout_s)
        self._running.add(limit)
        outcome = Outcome.ERROR
        about: dict[str, Any] = {}
        try:
            with limit:
                result = await (work() if always_admit or _place.get() else self._admit(work))
            outcome = outcome_of(result)
            return result
        except asyncio.CancelledError as error:
            if is_cancelled(error):
                outcome = Outcome.CANCELLED
                raise
            logger.exception("call failed unexpectedly")
            raise RuntimeError("something that the call awaited was cancelled") from error
        except Exception as error:
            outcome, about = _outcome_of_failure(error)
            raise
        finally:
            self._running.remove(limit)
            duration_s = self._clock() - started
            self.metrics.finished(call.name, outcome, duration_s)
            level = logging.INFO if outcome in _EXPECTED else logging.WARNING
            if logger.isEnabledFor(level):
                about.update(outcome=outcome, duration_ms=round(duration_s * 1000, 3))
                logger.log(level, "call", extra=about)
            log_context.reset(context)

    async def _admit(self, work: Callable[[], Awaitable[T]]) -> T:
        await self.load_shedder.acquire()
        place = _Place()
        token = _place.set(place)
        try:
            return await work()
        finally:
            _place.reset(token)
            place.is_over = True
            self._give_back(place)


def _outcome_of_failure(error: Exception) -> tuple[Outcome, dict[str, Any]]:
    """How a call that raised counts, and what its log line says of it; what its author did not foresee has one more."""
    match error:
        case DeadlineExceeded():
            return Outcome.TIMEOUT, {}
        case Overloaded():
            return Outcome.REJECTED, {}
        case ToolFailure() | MCPError() | ResourceNotFoundError():
            return Outcome.TOOL_ERROR, {}
        case DependencyError(dependency=dependency, kind=kind, text=text):  # without a traceback: it may be every call
            about = {"dependency": dependency, "kind": kind, "text": text, "cause": cause_of(error)}
            return Outcome.TIMEOUT if isinstance(error, DependencyTimeout) else Outcome.ERROR, about
    logger.error("call failed unexpectedly", exc_info=error)
    return Outcome.ERROR, {}


def overdue_check(pipeline: Pipeline) -> Check:
    """Degraded while tools ignore the end of their deadline: nothing but a restart frees their places."""

    def trouble() -> str | None:
        overdue = pipeline.overdue()
        return f"{overdue} calls go on after their deadline: their tools swallow the cancellation" if overdue else None

    return check_of("calls", trouble, well="every call ends in time")
