"""What watches the process from inside while it serves, the same over every transport."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup

from .hang_detection import HangDetector, descriptor_for_stacks
from .memory_limit import MemoryLimit
from .process_contract import EXIT_MEMORY, HANG_FD, RESTART_REQUEST
from .server import Limits, ReliableServer
from .shutdown import Shutdown

logger = logging.getLogger(__name__)

_ANSWER_S = 10.0
"""A supervisor that has not acted on it by then, when every call in flight has ended, will not."""


def is_supervised() -> bool:
    """Whether the supervisor for stdio started this process. To be asked before `guarded`."""
    return HANG_FD in os.environ


@asynccontextmanager
async def guarded(
    server: ReliableServer[Any],
    shutdown: Shutdown,
    *,
    is_restarted: bool,
    heartbeat_path: Path | None = None,
    address: tuple[str, int] | None = None,
) -> AsyncIterator[TaskGroup]:
    """A task group for what serves. With it begin, and with the body end, the guards of the process.

    Args:
        server: Its limits say when the guards act.
        shutdown: How they stop the process.
        is_restarted: Whether somebody starts the process again that asks for it. If not, the hard memory limit does not
            apply: a large server is worth more than none.
        heartbeat_path: File for the heartbeat, which tells others that the server is well; none by default.
        address: Where the server can be asked over HTTP, for the heartbeat.
    """
    limits = server.limits
    restart = partial(shutdown.request, exit_code=EXIT_MEMORY)
    supervised, descriptor = is_supervised(), descriptor_for_stacks()
    with ExitStack() as beats:
        beats.enter_context(HangDetector(limits.hang_timeout_s, descriptor=descriptor).watching())
        if heartbeat_path is not None:
            from .heartbeat import Heartbeat  # here, because few processes are asked to

            heartbeat = Heartbeat(heartbeat_path, reason=server.health.unready_because, address=address)
            beats.enter_context(heartbeat.beating())
        async with anyio.create_task_group() as tasks:
            if is_restarted:
                memory = MemoryLimit(
                    limits.memory_hard_limit_mb,
                    is_busy=lambda: server.calls_in_flight > 0,
                    restart=partial(_ask_supervisor, descriptor, limits, restart) if supervised else restart,
                    patience_s=limits.tool_timeout_s,  # every call that runs then has ended
                )
                tasks.start_soon(_run_when_ready, server, memory)
            if "NOTIFY_SOCKET" in os.environ:
                _notify_service(server, shutdown, tasks)
            yield tasks
            tasks.cancel_scope.cancel()


def _ask_supervisor(descriptor: int, limits: Limits, instead: Callable[[str], None], reason: str) -> None:
    """Have the supervisor close this process's input between two calls: only it can say that none is on its way."""
    logger.warning("a restart is asked for", extra={"reason": reason})
    with suppress(OSError):
        os.write(descriptor, RESTART_REQUEST)
    asyncio.get_running_loop().call_later(limits.tool_timeout_s + _ANSWER_S, instead, reason)


async def _run_when_ready(server: ReliableServer[Any], memory: MemoryLimit) -> None:
    await server.ready.wait()
    await memory.run()


def _notify_service(server: ReliableServer[Any], shutdown: Shutdown, tasks: TaskGroup) -> None:
    from .service_notify import ServiceNotifier  # here, because most processes have no service manager

    notifier = ServiceNotifier.from_environment()
    if notifier is not None:
        tasks.start_soon(notifier.announce, server.ready, shutdown.requested)
        tasks.start_soon(notifier.keep_alive)
