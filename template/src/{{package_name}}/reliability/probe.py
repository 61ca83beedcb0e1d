"""Asks the running server how it is, from a process of its own: for a container's HEALTHCHECK, and for people (R66).

    my-server probe [stdio|http] [--live] [--timeout SECONDS]

Over HTTP it asks the server itself, over stdio it reads the file of its heartbeat. It starts every few seconds on every
machine, so that it imports as little as it can: neither the SDK nor the settings, whose variables it reads by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time

TYPE_CHECKING = False  # of `typing`, which takes as long to import as everything else here
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

HEALTHY, UNHEALTHY, WRONG = 0, 1, 2
_BEATS_MISSED = 3
_MAX_BYTES = 65_536
_OK = 200
_LOOPBACK = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask one that is everywhere
_DEFAULT_HOST, _DEFAULT_PORT = "127.0.0.1", "8000"
_MAX_PORT = 65_535
_MAX_PID = 2**31 - 1
_MAX_TIMEOUT_S = 3_600


class Sick(Exception):
    """The server is not as it should be; the text says why."""


class Misused(Exception):
    """The arguments or settings are wrong, so that nothing can be said about the server."""


def probe(name: str, *, prefix: str, transports: Sequence[str], arguments: Sequence[str]) -> NoReturn:
    """Print one line and end the process: exit code 0 for a healthy server, 1 for another, 2 for wrong arguments.

    Args:
        name: The program's name.
        prefix: How the names of its settings begin.
        transports: Those that it has, the default first.
        arguments: The command line after `probe`.
    """
    chosen = _parser(name, prefix, transports).parse_args(arguments)
    given = {variable.upper(): text for variable, text in os.environ.items() if text}
    settings = {variable.removeprefix(prefix): text for variable, text in given.items() if variable.startswith(prefix)}
    try:
        verdict = examine(settings, chosen.transport, transports[0], live=chosen.live, timeout_s=chosen.timeout)
    except Sick as problem:
        _end(UNHEALTHY, f"unhealthy: {problem}")
    except Misused as problem:
        print(f"{name}: {prefix}{problem}", file=sys.stderr)  # noqa: T201
        sys.exit(WRONG)
    _end(HEALTHY, verdict)


def _parser(name: str, prefix: str, transports: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"{name} probe", description="Ask the running server how it is.")
    parser.add_argument(
        "transport",
        nargs="?",
        choices=transports,
        help=f"how to ask; without it by {prefix}HEARTBEAT_PATH if that is set, else over {transports[0]}",
    )
    parser.add_argument("--live", action="store_true", help="whether it lives, not whether it is ready for calls")
    parser.add_argument("--timeout", type=_seconds, default=4.0, help="seconds for its answer (default: %(default)g)")
    return parser


def _seconds(text: str) -> float:
    if not 0 < (seconds := float(text)) <= _MAX_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and up to {_MAX_TIMEOUT_S}")
    return seconds


def _end(code: int, line: str) -> NoReturn:
    try:
        print(" ".join(line.split())[:500], flush=True)  # noqa: T201
    except OSError:  # nobody reads it; the exit code says enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def examine(settings: Mapping[str, str], transport: str | None, default: str, *, live: bool, timeout_s: float) -> str:
    """What is well with the server.

    Args:
        settings: The settings that are set, by their names without the prefix.
        transport: How to ask; None: by the heartbeat if there should be one, and over HTTP if it names an address.
        default: How to ask where there should be none.
        live: Whether it is enough that the server lives.
        timeout_s: Seconds for its answer.

    Raises:
        Sick: It is not well.
        Misused: A setting is wrong, or is missing; begins with its name.
    """
    path = settings.get("HEARTBEAT_PATH")
    transport = transport or (None if path else default)
    if transport == "http":
        return ask(*_address(settings), live=live, timeout_s=timeout_s)
    if path is None:
        raise Misused("HEARTBEAT_PATH is not set: without it nobody but its client can tell how a stdio server is.")
    beat = read_beat(os.path.expanduser(path), live=live)
    if transport is None and beat["address"]:
        return ask(*beat["address"], live=live, timeout_s=timeout_s)
    return "live" if live else "ready"


def _address(settings: Mapping[str, str]) -> tuple[str, int]:
    port = settings.get("HTTP_PORT", _DEFAULT_PORT)
    if not port.isdecimal() or not 0 < int(port) <= _MAX_PORT:
        raise Misused(f"HTTP_PORT={port!r} is no port that can be asked.")
    host = settings.get("HTTP_HOST", _DEFAULT_HOST)
    try:
        host.encode("idna")  # as the look-up of its address does
    except UnicodeError:
        raise Misused(f"HTTP_HOST={host!r} is no host that can be asked.") from None
    return host, int(port)


def read_beat(path: str, *, live: bool, now: float | None = None) -> dict[str, Any]:
    """The latest heartbeat in the file.

    Args:
        path: The file.
        live: Whether a server counts that is not ready.
        now: Monotonic seconds.

    Raises:
        Sick: There is none, it is too old, or the server is not ready.
    """
    try:
        beat = _checked(json.loads(_text_of(path)))
        age_s = (time.monotonic() if now is None else now) - beat["monotonic_s"]
        is_fresh = age_s <= _BEATS_MISSED * beat["beat_s"]
        pid, reason = beat["pid"], beat["reason"]
    except OSError as error:
        raise Sick(f"no heartbeat in {path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise Sick(f"{path} holds no heartbeat") from None
    if _is_gone(pid):
        raise Sick(f"the process {pid} is gone")
    if age_s < 0:  # of the future: the clock began anew
        raise Sick("the last heartbeat is from before the last start of the machine")
    if not is_fresh:
        raise Sick(f"the last heartbeat is {age_s:.0f} s old")
    if reason and not live:
        raise Sick(reason)
    return beat


def _text_of(path: str) -> bytes:
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("no file: reading it may never end")
    with open(path, "rb") as file:
        return file.read(_MAX_BYTES)


def _checked(beat: dict[str, Any]) -> dict[str, Any]:
    """What is of the form that a server writes."""
    pid, reason, address = beat["pid"], beat["reason"], beat["address"]
    if not isinstance(pid, int) or not 0 < pid <= _MAX_PID or not isinstance(reason, str):
        raise ValueError("no process")
    if address is not None:
        host, port = address
        if not isinstance(host, str) or not isinstance(port, int) or not 0 < port <= _MAX_PORT:
            raise ValueError("no address")
    return beat


def _is_gone(pid: int) -> bool:
    if os.name != "posix":
        return False  # elsewhere there is no harmless way to ask
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def ask(host: str, port: int, *, live: bool, timeout_s: float) -> str:
    """Ask over HTTP, within `timeout_s` seconds in all once the server is reached.

    The name is looked up for as long as the system takes, and each of its addresses is tried for that time.

    Raises:
        Sick: It does not answer, or the answer is no.
    """
    try:
        status, body = _get(_LOOPBACK.get(host, host), port, "/livez" if live else "/readyz", timeout_s)
    except TimeoutError:
        raise Sick(f"no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise Sick(f"port {port} does not answer ({error.strerror or error})") from None
    except ValueError:
        raise Sick(f"what answers on port {port} is no HTTP server") from None
    if status != _OK:
        raise Sick(_reason(body) or f"status {status}")
    return "live" if live else "ready"


def _get(host: str, port: int, path: str, timeout_s: float) -> tuple[int, bytes]:
    until = time.monotonic() + timeout_s
    with socket.create_connection((host, port), timeout=timeout_s) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while len(answer) < _MAX_BYTES:
            connection.settimeout(max(0.001, until - time.monotonic()))
            chunk = connection.recv(_MAX_BYTES)
            if not chunk:
                break
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    version, _, rest = head.partition(b" ")
    if not version.startswith(b"HTTP/1."):
        raise ValueError("no HTTP")
    return int(rest[:3]), body


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["reason"])
    except (ValueError, KeyError, TypeError):
        return ""
