"""The three health endpoints of an HTTP server (R9, R16): without authentication and Host check, as probes need it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .server import ReliableServer

_OK, _UNAVAILABLE = 200, 503


def add_probes(server: ReliableServer[Any]) -> None:
    """Add `/livez` (restart it?), `/readyz` (send calls to it?) and `/healthz` (what is wrong?) to the server."""

    async def livez(request: Request) -> Response:
        return JSONResponse({"live": True})  # only a process that is alive can say so; no dependency takes part (R13)

    async def readyz(request: Request) -> Response:
        ready = server.health.report().ready
        return JSONResponse({"ready": ready}, _OK if ready else _UNAVAILABLE)

    async def healthz(request: Request) -> Response:
        report = await server.health.fresh_report()
        return JSONResponse(asdict(report), _OK if report.ready else _UNAVAILABLE)

    for endpoint in (livez, readyz, healthz):
        server.custom_route(f"/{endpoint.__name__}", methods=["GET"])(endpoint)
