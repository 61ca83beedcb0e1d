"""A call of an HTTP API, and the shell command that repeats it without its secrets."""

import itertools
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from ...reliability.logs import redact

_JSON = {"Content-Type": "application/json"}
_SECRET_NAME = re.compile(
    r"auth(?!ors?(_|$))|cookie|token(?!s)|secret|passw|pwd|credential|session|signature|^(sig|pass|jwt|otp)$"
    r"|^(api|app|access|client|consumer|private|subscription)?[_-]?key$|-key$",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"(bearer|basic|token|digest|apikey) ", re.IGNORECASE)
_MARK = "\ue000"
"""Stands on both sides of a variable's name in a text that is not quoted yet; of no use to anybody else."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What was sent."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    """Text as it is; anything else as JSON."""

    def header(self, name: str) -> str | None:
        """A header, whatever its case."""
        return next((value for key, value in self.headers.items() if key.lower() == name.lower()), None)

    @property
    def content_type(self) -> str:
        """The type of the body, without parameters; empty when there is none."""
        headers = {name.lower(): value for name, value in self.all_headers().items()}
        return headers.get("content-type", "").partition(";")[0].strip().lower()

    def all_headers(self) -> dict[str, str]:
        """The headers, with the type of a JSON body unless another one is given."""
        is_json = not isinstance(self.body, str | None) and self.header("content-type") is None
        return {**(_JSON if is_json else {}), **self.headers}


def curl(call: Call) -> tuple[str, list[str]]:
    """A command for `sh` that repeats the call, and the variables that stand in for its secrets."""
    command = _Command()
    method = "--head" if call.method == "HEAD" else f"--include --request {call.method}"  # or curl waits for a body
    globbing = ["--globoff"] if set("[]{}") & set(call.url) else []
    words = [f"curl --max-time 30 {method}", *globbing, *command.url(call.url)]
    words += [f"--header {command.header(name, value)}" for name, value in call.all_headers().items()]
    if call.body is not None:
        words.append(f"--data-raw {command.body(call.body)}")
    return " \\\n  ".join(words), list(command.secrets)


class _Command:
    """Quotes the parts of a command, and remembers the variables in it."""

    def __init__(self) -> None:
        self.secrets: dict[str, str] = {}

    def url(self, url: str) -> list[str]:
        parts = urlsplit(url.replace(_MARK, ""))
        login, _, host = parts.netloc.rpartition("@")
        query = "&".join(self._parameter(*piece.partition("=")) for piece in parts.query.split("&"))
        word = _word(f"{parts.scheme}://{host}{redact(parts.path)}{'?' if query else ''}{query}")
        return [f"--user {_word(self._variable('login', login))}", word] if login else [word]

    def header(self, name: str, value: str) -> str:
        if not _is_private(name, value):
            return _word(f"{name}: {value}")
        scheme = _SCHEME.match(value)
        start = scheme[0] if scheme else ""
        return _word(f"{name}: {start}{self._variable(name, value.removeprefix(start))}")

    def body(self, body: Any) -> str:
        try:
            value = json.loads(body) if isinstance(body, str) else body
        except ValueError:  # a form, or text
            return _word(redact("&".join(self._parameter(*piece.partition("=")) for piece in body.split("&"))))
        return _word(json.dumps(self._hidden("", value), ensure_ascii=False))

    def _parameter(self, name: str, equals: str, value: str) -> str:
        plain = unquote(name)
        return f"{name}={self._variable(plain, value)}" if _is_private(plain, value) else name + equals + value

    def _hidden(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._hidden(key, item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._hidden(name, item) for item in value]
        return self._variable(name, value) if isinstance(value, str) and _is_private(name, value) else value

    def _variable(self, name: str, secret: str) -> str:
        """A variable for a secret; different secrets of one name get different ones."""
        wanted = "API_" + re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_").removeprefix("API_")
        names = (wanted if number == 1 else f"{wanted}_{number}" for number in itertools.count(1))
        variable = next(name for name in names if self.secrets.get(name, secret) == secret)
        self.secrets[variable] = secret
        return f"{_MARK}{variable}{_MARK}"


def _is_private(name: str, value: str) -> bool:
    return bool(value) and (_SECRET_NAME.search(name) is not None or redact(value) != value)


def _word(text: str) -> str:
    """One word for the shell: everything literal but the variables."""
    parts = enumerate(text.split(_MARK))
    return "".join(f'"${part}"' if number % 2 else shlex.quote(part) for number, part in parts if part)
