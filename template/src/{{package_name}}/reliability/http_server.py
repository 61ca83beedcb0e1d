"""Serves any number of clients over streamable HTTP.

What the SDK's own runner lacks and this one has: Host and Origin are checked on every address, by exact match;
connections that send their request too slowly are closed; SIGTERM stops accepting, lets calls in flight finish within
the grace period and then really ends; the port is taken before anything starts, with a clear word when it cannot be.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import anyio
import uvicorn
from mcp.server.transport_security import TransportSecuritySettings
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .configuration import ConfigurationError
from .entrance import Entrance
from .http_requests import HANG_UP, RequestGate
from .listener import BACKLOG, bracketed, is_wildcard, listen
from .logs import OncePerSecond
from .probes import add_metrics, add_probes
from .process_contract import EXIT_CONFIGURATION
from .process_guards import guarded
from .server import ReliableServer
from .shutdown import Shutdown, end_process
from .workers_link import Worker

logger = logging.getLogger(__name__)

PATH = "/mcp"
_REQUEST_TIMEOUT_S = 20.0
"""Time from a request's first byte to its last, and from a connection's beginning to its first request."""
_SESSION_IDLE_S = 300.0
_DEFAULT_PORT = 80
_END_S = 1
"""Time for the answers of calls that the end of the grace period ended; then uvicorn drops them, with a traceback."""
_LINGER_S = 3.0
"""Time for clients to turn to other workers, when this one leaves alone."""
_MAX_HEAD_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """How to serve over HTTP.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        allowed_hosts: Host headers that are accepted beside the loopback names and `host` itself.
        allowed_origins: Browser origins that are accepted; requests without an Origin always are.
        stateless: Every request stands alone, so that clients notice neither a restart nor another replica.
        json_response: Answer with plain JSON. Faster, but progress notifications need the stream that it replaces.
        max_request_bytes: Largest request body.
        max_connections: Open connections; one more gets status 503.
        metrics: Whether Prometheus may read the server's figures at `/metrics`.
        grace_s: Seconds that calls in flight get after SIGTERM or SIGINT.
        delay_s: Seconds before that in which calls are still taken, so that a load balancer notices the end.
        heartbeat_path: File for the heartbeat, for `my-server probe`; none by default.
        entrance: Who may call, and how often.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: list[str] = field(default_factory=list)
    allowed_origins: list[str] = field(default_factory=list)
    stateless: bool = True
    json_response: bool = True
    max_request_bytes: int = 10_000_000
    max_connections: int = 1_000
    metrics: bool = False
    grace_s: float = 10
    delay_s: float = 0
    heartbeat_path: Path | None = None
    entrance: Entrance = field(default_factory=Entrance)


def run_http(server: ReliableServer[Any], options: HttpOptions, worker: Worker | None = None) -> NoReturn:
    """Serve until the process is told to stop, clean up, and end the process.

    Args:
        server: What to serve.
        options: See `HttpOptions`.
        worker: This process as one of several that listen on the same socket.
    """
    try:
        listener = listen(options.host, options.port) if worker is None else worker.listener
        options.entrance.check(options.host, listener.getsockname()[0])
    except ConfigurationError as error:
        logger.error("refused: %s", error)  # noqa: TRY400 - nobody needs the traceback
        end_process(EXIT_CONFIGURATION)
    except (OSError, OverflowError, UnicodeError) as error:
        logger.error("cannot listen: %s", error, extra={"host": options.host, "port": options.port})  # noqa: TRY400
        end_process(EXIT_CONFIGURATION)
    try:
        exit_code = anyio.run(partial(_serve, server, options, listener, worker))
    except (Exception, SystemExit):
        logger.exception("the server failed")
        end_process(1)
    end_process(exit_code)


async def _serve(
    server: ReliableServer[Any], options: HttpOptions, listener: socket.socket, worker: Worker | None
) -> int:
    port = listener.getsockname()[1]
    whole = None
    if worker is not None:
        from .workers_figures import WholeService  # here, because most servers are one process

        whole = WholeService(server, worker)
        whole.join()
    add_probes(server)
    if options.metrics:
        add_metrics(server, whole.exposition if whole else None)
    app = server.streamable_http_app(
        streamable_http_path=PATH,
        json_response=options.json_response,
        stateless_http=options.stateless,
        max_request_body_size=options.max_request_bytes,
        session_idle_timeout=None if options.stateless else _SESSION_IDLE_S,
        transport_security=TransportSecuritySettings(
            allowed_hosts=allowed_host_headers(options.host, port, options.allowed_hosts),
            allowed_origins=options.allowed_origins,
        ),
    )
    gate = RequestGate(
        app,
        path=PATH,
        stateless=options.stateless,
        max_request_bytes=options.max_request_bytes,
        max_connections=options.max_connections,
        connections=lambda: len(http.server_state.connections),
    )
    limit = options.entrance.buckets()
    config = uvicorn.Config(
        options.entrance.before(gate, limit),
        http=ImpatientProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        backlog=BACKLOG if worker is None else 1,
        timeout_graceful_shutdown=math.ceil(options.grace_s) + _END_S,
    )
    logging.getLogger("uvicorn.error").addFilter(OncePerSecond())  # it warns of malformed requests, whoever sends them
    http = _Server(config)
    delay_s = options.delay_s if worker is None else max(_LINGER_S, options.delay_s)
    shutdown = Shutdown(grace_s=options.grace_s, delay_s=delay_s)

    async def stop_when_asked() -> None:
        await shutdown.requested.wait()
        server.health.draining = True
        gate.close_connections()
        if worker is not None and await worker.stops_alone():
            http.stop_accepting()  # others do; those that are connected here already get time to turn to them
            with anyio.move_on_after(_LINGER_S):
                await worker.all_stop.wait()
        else:
            await anyio.sleep(options.delay_s)
        server.drain()
        gate.stop_waiting()
        http.should_exit = True
        await anyio.sleep(options.grace_s)
        gate.end()

    if is_wildcard(options.host) and not options.allowed_hosts:
        logger.warning("only loopback Host headers are accepted; name others in the setting HTTP_ALLOWED_HOSTS")
    with shutdown.watching():
        async with guarded(
            server,
            shutdown,
            is_restarted=True,
            heartbeat_path=options.heartbeat_path if worker is None else None,
            address=(options.host, port),
        ) as tasks:
            tasks.start_soon(stop_when_asked)
            if worker is None:
                logger.info("listening", extra={"url": f"http://{bracketed(options.host)}:{port}{PATH}"})
            else:
                tasks.start_soon(_report, worker, server, shutdown)
                if whole and limit:
                    tasks.start_soon(whole.share_spending, limit)
            await http.serve(sockets=[listener])
    shutdown.cleaned_up()
    return shutdown.exit_code


async def _report(worker: Worker, server: ReliableServer[Any], shutdown: Shutdown) -> None:
    """Tell the parent how this worker is, as soon as it serves and knows that; without a parent, stop."""
    worker.on_orphaned = partial(shutdown.request, "the parent process is gone")
    await worker.connect()
    await server.ready.wait()
    await server.health.fresh_report()
    await worker.report(server.health.failures)


def allowed_host_headers(host: str, port: int, extra: list[str]) -> list[str]:
    """Every Host header to accept, spelled out: a wildcard would be matched by prefix.

    The address itself unless it stands for all of them, the loopback names, and `extra` with and without the port.
    """
    own = ["127.0.0.1", "localhost", "[::1]", *([] if is_wildcard(host) else [bracketed(host)])]
    accepted = {f"{name}:{port}" for name in own}
    if port == _DEFAULT_PORT:  # a client leaves it out
        accepted.update(own)
    for name in (name.removesuffix(":*") for name in extra):
        accepted.update({name} if _has_port(name) else {name, f"{name}:{port}"})
    return sorted(accepted)


def _has_port(name: str) -> bool:
    return name.rpartition(":")[2].isdigit() and ":" in name


class _Server(uvicorn.Server):
    """Leaves the signals to `Shutdown`; uvicorn would act on them too, and raise them again at the end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    def stop_accepting(self) -> None:
        """Leave new connections to others that listen on the same socket, and keep those that there are."""
        for listening in getattr(self, "servers", ()):  # there are none before it has started
            listening.close()


class ImpatientProtocol(HttpToolsProtocol):
    """Closes a connection whose request does not arrive in time or has endless headers; uvicorn would wait for ever."""

    _deadline: asyncio.TimerHandle | None = None
    _is_in_head = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The client has until the deadline to send a whole request."""
        super().connection_made(transport)
        self._await_client()

    def data_received(self, data: bytes) -> None:
        """The deadline stands until the request is complete, however many pieces it comes in."""
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The request's headers are too large.")
        incomplete = self.cycle is None or self.cycle.response_complete or self.cycle.more_body
        if not incomplete:
            self._stop_waiting()
        elif self._deadline is None:
            self._await_client()

    def on_message_begin(self) -> None:
        """Headers are counted from here on."""
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """And up to here: what follows is the body."""
        self._is_in_head = False
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to wait for, and nobody waits for the answer any more."""
        self._stop_waiting()
        super().connection_lost(exc)
        if self.cycle is not None and not self.cycle.response_complete and HANG_UP in self.cycle.scope:
            cast("dict[str, Any]", self.cycle.scope)[HANG_UP]()

    def on_response_complete(self) -> None:
        """Between two requests the keep-alive limit applies, not this one."""
        self._stop_waiting()
        super().on_response_complete()

    def _await_client(self) -> None:
        self._deadline = self.loop.call_later(_REQUEST_TIMEOUT_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
