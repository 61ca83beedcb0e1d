"""The health endpoints of an HTTP server and its figures (R9, R16, R63).

They have neither authentication nor a Host check: orchestrators and Prometheus ask by the address of the container.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from typing import Any

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
        report = await server.health.fresh_report()
        return JSONResponse(asdict(report), _OK if report.ready else _UNAVAILABLE)

    for endpoint in (livez, readyz, healthz):
        server.custom_route(f"/{endpoint.__name__}", methods=["GET"])(endpoint)


def add_metrics(server: ReliableServer[Any]) -> None:
    """Add `/metrics`, for Prometheus; what that takes is imported at the first scrape."""
    loading = anyio.Lock()
    exporters: list[Any] = []

    async def metrics(request: Request) -> Response:
        async with loading:
            if not exporters:  # in a thread: the import takes a tenth of a second
                module = await anyio.to_thread.run_sync(import_module, f"{__package__}.prometheus")
                exporters.append(module.Exporter(server))
        return Response(await exporters[0].exposition(), media_type=_PROMETHEUS)

    server.custom_route("/metrics", methods=["GET"])(metrics)
