"""Tokens that somebody gave out by hand, known by their hashes in a file (R70).

A line is `NAME:HASH`, the SHA-256 of a token in hexadecimal; `#` begins a comment. `SERVER token NAME` makes both. A
token holds 256 random bits, so nobody finds it by trying hashes, and a hash that is slow on purpose would only cost
every call its time; tokens shorter than ours are refused, so that no password takes their place. Two lines with one
name are two tokens of the same client: that is how one is replaced.

The file is looked at again while the server runs: a line that is added or taken away counts within a second or so. A
line that is not understood counts as none; where the whole file cannot be read, what was read last stays valid. To shut
everybody out, empty it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import anyio
from mcp.server.auth.provider import AccessToken

from .authentication import InvalidToken
from .configuration import ConfigurationError
from .worker_threads import WorkerThreads

logger = logging.getLogger(__name__)

_PREFIX = "mcp_"
"""Tells people, scanners of repositories and our own log what it is."""
_RANDOM_BYTES = 32
_SHORTEST = 43
"""Characters of so many bytes."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_LINE = re.compile(rf"(?P<name>{_NAME.pattern}):(?P<digest>[0-9A-Fa-f]{{64}})")
_MAX_FILE_BYTES = 100_000
"""About a thousand tokens: each is compared with."""
_LOOK_AGAIN_S = 1.0
_PATIENCE_S = 1.0


class Entry(NamedTuple):
    """One line of the file."""

    name: str
    digest: bytes


class StaticTokens:
    """The tokens of a file.

    Args:
        path: The file.
        clock: Monotonic seconds.

    Raises:
        ConfigurationError: It cannot be read, or a line of it is not understood.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._is_lost = False
        self._reading = WorkerThreads(1, queue_timeout_s=_PATIENCE_S, what="The file of tokens")
        """On a file system that hangs, one thread and no more; and one that other work cannot take."""
        self._look_again_at = clock() + _LOOK_AGAIN_S
        try:
            self._stamp, text = _read(path)
        except OSError as error:
            raise ConfigurationError(f"The file of tokens '{path}' cannot be read: {error.strerror}.") from None
        self._entries, wrong = _parse(text)
        if wrong:
            raise ConfigurationError(f"The file of tokens '{path}' has lines that are not NAME:HASH: {_listed(wrong)}.")
        if not self._entries:
            logger.warning("there are no tokens: nobody can call", extra={"path": str(path)})

    async def verify_token(self, token: str) -> AccessToken:
        """Whose token it is. Takes as long for one that nobody has as for any other.

        Raises:
            InvalidToken: It is in no line of the file.
        """
        if self._clock() >= self._look_again_at and not self._reading.busy:
            self._look_again_at = self._clock() + _LOOK_AGAIN_S  # first: one request looks, and the others go on
            with anyio.move_on_after(_PATIENCE_S) as look:
                await self._reading.run(self._read_again)
            if look.cancelled_caught:
                self._complain("it takes too long")
        name = self._name_of(token)
        if name is None or len(token) < _SHORTEST:
            raise InvalidToken("unknown token")
        return AccessToken(token="", client_id=name, scopes=[])  # nobody needs the token itself any more

    def _name_of(self, token: str) -> str | None:
        digest, found = _digest(token), None
        for entry in self._entries:  # all of them: how long it takes must not tell which one it was
            if hmac.compare_digest(digest, entry.digest):
                found = entry.name
        return found

    def _read_again(self) -> None:
        try:
            is_new = _stamp_of(os.stat(self._path)) != self._stamp
            if is_new:
                self._stamp, text = _read(self._path)
        except OSError as error:
            self._complain(error.strerror)
            return
        self._is_lost = False
        if not is_new:
            return
        self._entries, wrong = _parse(text)
        logger.info("the tokens were read again", extra={"tokens": len(self._entries)})
        if wrong:
            logger.error("lines of the file of tokens are not NAME:HASH", extra={"lines": wrong})

    def _complain(self, why: str | None) -> None:
        if not self._is_lost:
            logger.error(
                "the file of tokens cannot be read: those that are known stay valid",
                extra={"path": str(self._path), "error": why},
            )
        self._is_lost = True


_Stamp = tuple[int, int, int]


def _stamp_of(status: os.stat_result) -> _Stamp:
    """What changes when the file does, also when another one takes its place."""
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> tuple[_Stamp, str]:
    with path.open("rb") as file:
        stamp = _stamp_of(os.fstat(file.fileno()))
        data = file.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise OSError(0, f"it is longer than {_MAX_FILE_BYTES} bytes")
    return stamp, data.decode("utf-8-sig", errors="replace")  # some editors begin a file with a mark


def _parse(text: str) -> tuple[list[Entry], list[int]]:
    """The entries, and the numbers of the lines that are none."""
    entries, wrong = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        meant = line.partition("#")[0].strip()
        if found := _LINE.fullmatch(meant):
            entries.append(Entry(found["name"], bytes.fromhex(found["digest"])))
        elif meant:
            wrong.append(number)
    return entries, wrong


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (" and more" if len(numbers) > 5 else "")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def make_token(name: str) -> tuple[str, str]:
    """A new token, and the line that makes it known.

    Raises:
        ValueError: The name is not one.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("A name has up to 64 letters, digits and . _ @ -, and begins with a letter or a digit.")
    token = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    return token, f"{name}:{_digest(token).hex()}"


def token_command(program: str, arguments: list[str]) -> NoReturn:
    """`SERVER token NAME`: the line goes to stdout, to be appended to the file, and the token to the terminal.

    Exit codes: 0, or 2 for wrong arguments.
    """
    try:
        (name,) = arguments
        token, line = make_token(name)
    except ValueError as error:
        reason = str(error) if len(arguments) == 1 else "Give the token's holder one name."
        sys.stderr.write(f"{program} token: {reason}\nusage: {program} token NAME >> FILE\n")
        raise SystemExit(2) from None
    sys.stderr.write(f"The token of {name}, shown this once:\n{token}\n")
    sys.stderr.flush()
    sys.stdout.write(f"{line}\n")
    raise SystemExit(0)
