"""The socket on which an HTTP server listens."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import time

BACKLOG = 2048
"""Connections that wait until somebody accepts them."""
_RETRY_S = 0.05


def listen(host: str, port: int, *, patience_s: float = 0) -> socket.socket:
    """A listening socket.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        patience_s: How long a port may be taken before that is an error, in seconds.

    Raises:
        OSError: The address does not exist here, or the port is taken or not permitted.
        OverflowError: It is no port.
        UnicodeError: It is no host.
    """
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    give_up = time.monotonic() + patience_s
    while True:
        # The protocol is spelled out, because asyncio turns Nagle's delay (40 ms an answer) off only where it is.
        listener = socket.socket(family, kind, socket.IPPROTO_TCP)
        try:
            if os.name == "posix":  # elsewhere the option would let two servers share the port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE or time.monotonic() >= give_up:
                raise
            time.sleep(_RETRY_S)
        else:
            return listener


class SharedListener(socket.socket):
    """A socket on which several processes listen, each of which is to accept one connection at a time.

    asyncio accepts as many at once as the backlog says, with which it calls `listen` first: one process would take all
    of a burst. So it is told a small number, and the socket keeps the large one.
    """

    def listen(self, backlog: int = BACKLOG, /) -> None:
        """Leave it as it is: it listens already."""


def is_wildcard(host: str) -> bool:
    """Whether it stands for every address of the machine."""
    if host == "*":  # to the resolver too, where it is asked for a port
        return True
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def bracketed(host: str) -> str:
    """The host as it is written before a port."""
    return f"[{host}]" if ":" in host else host
