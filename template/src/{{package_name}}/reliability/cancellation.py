"""Tells a cancellation of this task from an exception that only looks like one.

Awaiting something that was itself cancelled, such as a client library's dead background task, raises the same
`CancelledError` as being cancelled. Taken for a cancellation it would end a call without an answer, or a task group.
"""

from __future__ import annotations

import asyncio
import math

import anyio


def is_cancelled(error: BaseException) -> bool:
    """Whether `error` is a cancellation of the current task, by a cancel scope around it or by `Task.cancel`."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return anyio.current_effective_deadline() == -math.inf or (task is not None and task.cancelling() > 0)
