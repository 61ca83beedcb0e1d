"""An HTTP API on this machine that misbehaves when it is told to, and counts who asks it."""

import json
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

SECRET = "upstream-secret"
"""Part of every body that goes with a failure: no client of the server may see it."""


class Upstream:
    """Answers every request with `{"number": N}`, N being how many it has answered, until `fail` is called."""

    def __init__(self) -> None:
        self.requests = 0
        """How many arrived."""
        self.answered = 0
        self._fault = ""
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener = self._listen(0)
        self.port = int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.fail("dead")

    def fail(self, fault: str) -> None:
        """Misbehave from now on: "dead", or one of `FAULTS`."""
        self.recover()
        self._changed, self._fault = threading.Event(), fault
        if fault == "dead":
            self._close(self._listener)
            for connection in self._open_connections():
                self._close(connection)

    def recover(self) -> None:
        """Behave again; what hangs is let go."""
        was_dead, self._fault = self._fault == "dead", ""
        self._changed.set()
        if was_dead:
            self._listener = self._listen(self.port)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=200)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # it was closed
            while True:
                connection, _ = listener.accept()
                with self._lock:
                    self._connections.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as stream:
            while _read_head(stream.readline):
                with self._lock:
                    self.requests += 1
                if self._fault:
                    return FAULTS.get(self._fault, _reset)(connection, self._changed)
                with self._lock:
                    self.answered += 1
                    body = json.dumps({"number": self.answered}).encode()
                connection.sendall(_response(200, body))
        with self._lock:
            self._connections.discard(connection)
        return None

    def _open_connections(self) -> list[socket.socket]:
        with self._lock:
            return list(self._connections)

    @staticmethod
    def _close(closed: socket.socket) -> None:
        with suppress(OSError):
            closed.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
        closed.close()


def _read_head(readline: Callable[[], bytes]) -> bool:
    """Read a request without a body; whether there was one."""
    lines = iter(readline, b"")
    return any(line == b"\r\n" for line in lines)


def _response(status: int, body: bytes, length: int | None = None) -> bytes:
    announced = len(body) if length is None else length
    return (
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {announced}\r\n\r\n".encode() + body
    )


def _fail(connection: socket.socket, changed: threading.Event) -> None:
    connection.sendall(_response(500, f'{{"detail": "{SECRET}"}}'.encode()))


def _hang(connection: socket.socket, changed: threading.Event) -> None:
    changed.wait()


def _reset(connection: socket.socket, changed: threading.Event) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends RST


def _trickle(connection: socket.socket, changed: threading.Event) -> None:
    for byte in _response(200, b'{"number": 1' + b" " * 10_000 + b"}"):
        connection.sendall(bytes([byte]))
        if changed.wait(0.05):
            return


def _send_rubbish(connection: socket.socket, changed: threading.Event) -> None:
    connection.sendall(b"\x00\xff SSH-2.0-" + SECRET.encode() + b"\r\n\r\n" * 100)


def _cut(connection: socket.socket, changed: threading.Event) -> None:
    connection.sendall(_response(200, b'{"number"', length=1000))


FAULTS: dict[str, Callable[[socket.socket, threading.Event], None]] = {
    "failing": _fail,
    "silent": _hang,
    "resetting": _reset,
    "trickling": _trickle,
    "rubbish": _send_rubbish,
    "cut off": _cut,
}
"""What happens to a request, by name; the connection is closed afterwards."""
