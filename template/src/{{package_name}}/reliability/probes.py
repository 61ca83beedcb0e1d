"""The health endpoints of an HTTP server and its figures (R9, R16, R63).

They have neither authentication nor a Host check: orchestrators and Prometheus ask by the address of the container.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from importlib import import_module
from typing import Any, cast

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .server import ReliableServer

_OK, _UNAVAILABLE = 200, 503
_OPEN = ("/livez", "/readyz", "/healthz", "/metrics")
WELL_KNOWN = "/.well-known/"
_PROMETHEUS = "text/plain; version=0.0.4"
"""The format that every Prometheus reads."""


def is_open(path: str) -> bool:
    """Whether a path is for everybody: the probes, the figures, and what a client reads before it has a token."""
    return path in _OPEN or path.startswith(WELL_KNOWN)


def add_probes(server: ReliableServer[Any]) -> None:
    """Add `/livez` (restart it?), `/readyz` (send calls to it?) and `/healthz` (what is wrong?) to the server."""

    async def livez(request: Request) -> Response:
        return JSONResponse({"live": True})  # only a process that is alive can say so; no dependency takes part (R13)

    async def readyz(request: Request) -> Response:
        reason = server.health.unready_because()
        return JSONResponse({"ready": not reason, "reason": reason}, _UNAVAILABLE if reason else _OK)

    async def healthz(request: Request) -> Response:
        report = await server.ask_health()
        return JSONResponse(asdict(report), _OK if report.ready else _UNAVAILABLE)

    for endpoint in (livez, readyz, healthz):
        server.custom_route(f"/{endpoint.__name__}", methods=["GET"])(endpoint)


class LazyExporter:
    """`prometheus.Exporter`, which is imported at the first scrape.

    Args:
        server: Whose figures are exported.
        worker: Which of several processes this is.
    """

    def __init__(self, server: ReliableServer[Any], worker: int | None = None) -> None:
        self._server = server
        self._worker = worker
        self._loading = anyio.Lock()
        self._exporter: Any = None

    async def exposition(self) -> bytes:
        """All figures of this process, as Prometheus reads them."""
        async with self._loading:
            if self._exporter is None:  # in a thread: the import takes a tenth of a second
                module = await anyio.to_thread.run_sync(import_module, f"{__package__}.prometheus")
                self._exporter = module.Exporter(self._server, self._worker)
        return cast(bytes, await self._exporter.exposition())


def add_metrics(server: ReliableServer[Any], exposition: Callable[[], Awaitable[bytes]] | None = None) -> None:
    """Add `/metrics`, for Prometheus.

    Args:
        server: Where it is added.
        exposition: Gives the figures of the whole service, where that is more than the server.
    """
    expose = exposition or LazyExporter(server).exposition

    async def metrics(request: Request) -> Response:
        return Response(await expose(), media_type=_PROMETHEUS)

    server.custom_route("/metrics", methods=["GET"])(metrics)
