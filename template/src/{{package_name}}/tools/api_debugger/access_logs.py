"""Reads logs of HTTP requests, as HAR or as JSON lines, and sums them up by endpoint."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic_core import from_json

from .openapi import path_of

MAX_REQUESTS = 100_000
MAX_ENDPOINTS = 500
OTHER = "other endpoints"

METHOD = ("method", "http_method", "request_method", "verb", "request.method", "http.method", "http.request.method")
URL = (
    *("url", "path", "uri", "request_uri", "endpoint", "route", "target", "request.url", "request.path", "request.uri"),
    *("http.url", "http.target", "http.route", "url.path", "url.full"),
)
STATUS = (
    "status",
    "status_code",
    "statusCode",
    "code",
    "response.status",
    "http.status_code",
    "http.response.status_code",
)
DURATION = (
    *(
        "duration_ms",
        "latency_ms",
        "elapsed_ms",
        "response_time_ms",
        "responseTime",
        "time_ms",
        "duration_s",
        "latency_s",
    ),
    *("request_time", "duration", "latency", "elapsed", "response_time", "took"),
)
IN_SECONDS = {"duration_s", "latency_s", "request_time"}
WITH_UNIT = {*IN_SECONDS, "responseTime"} | {name for name in DURATION if name.endswith("_ms")}

_LENGTH = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s?(ns|us|µs|ms|s)")
_MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_VARIABLE = re.compile(r"\d+|[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{16,}|(?=.*\d)[\w-]{20,}", re.IGNORECASE)


class Request(NamedTuple):
    """One logged request."""

    method: str
    url: str
    status: int
    duration_ms: float | None


@dataclass
class Endpoint:
    """The requests of one method and path."""

    statuses: Counter[int] = field(default_factory=Counter)
    durations_ms: list[float] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """All of them."""
        return self.statuses.total()

    def share(self, hundred: int) -> float:
        """The share of statuses of this hundred: 5 for 5xx."""
        return sum(n for status, n in self.statuses.items() if status // 100 == hundred) / self.calls

    def percentile_ms(self, percent: float) -> float:
        """The duration that `percent` of the requests did not exceed; 0 when none is known."""
        ordered = sorted(self.durations_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0

    def __str__(self) -> str:
        statuses = ", ".join(f"{n} x {status}" for status, n in sorted(self.statuses.items()))
        text = f"{self.calls} call{'s' * (self.calls > 1)} ({statuses})"
        if self.durations_ms:
            text += ", " + ", ".join(f"p{p} {self.percentile_ms(p):.3g} ms" for p in (50, 95, 99))
        return text


@dataclass
class LogSummary:
    """What the logs say, by endpoint."""

    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    """Entries that were not understood, by the reason."""
    notes: set[str] = field(default_factory=set)
    """What had to be guessed."""

    def add(self, request: Request, name: str) -> None:
        """Count a request for the endpoint `name`."""
        if name not in self.endpoints and len(self.endpoints) >= MAX_ENDPOINTS:
            name = OTHER
        endpoint = self.endpoints.setdefault(name, Endpoint())
        endpoint.statuses[request.status] += 1
        if request.duration_ms is not None:
            endpoint.durations_ms.append(request.duration_ms)


def summarise(text: str, name_of: Callable[[Request], str]) -> LogSummary:
    """Sum up logs: a HAR document, or one JSON object a line; `name_of` says which endpoint a request belongs to."""
    summary = LogSummary()
    for number, entry in enumerate(_entries(text)):
        if number >= MAX_REQUESTS:
            summary.skipped[f"beyond {MAX_REQUESTS:,} requests"] += 1
        elif not isinstance(entry, dict):
            summary.skipped["not a JSON object"] += 1
        elif request := _request(entry, summary.notes):
            summary.add(request, name_of(request))
        else:
            summary.skipped["without a URL or a status"] += 1
    return summary


def endpoint_of(request: Request) -> str:
    """The method and the path, with `{}` in place of numbers, identifiers and the like."""
    parts = path_of(request.url).split("/")
    return f"{request.method} " + "/".join("{}" if _VARIABLE.fullmatch(part) else part for part in parts)


def _entries(text: str) -> Iterator[Any]:
    try:
        whole = from_json(text)
    except ValueError:
        whole = None
    entries = _at(whole, "log.entries") if isinstance(whole, dict) else whole
    if isinstance(entries, list):
        yield from entries
    else:
        yield from (_parsed(line) for line in text.splitlines() if line.strip())


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _request(entry: dict[str, Any], notes: set[str]) -> Request | None:
    method = next((v for v in _values(entry, METHOD) if isinstance(v, str)), "GET")
    url = next((v for v in _values(entry, URL) if isinstance(v, str)), None)
    status = next((int(v) for v in _values(entry, STATUS) if re.fullmatch("[1-5][0-9]{2}", str(v))), None)
    if url is None or status is None:
        return None
    return Request(method.upper()[:10], url[:2_000], status, _duration_ms(entry, notes))


def _duration_ms(entry: dict[str, Any], notes: set[str]) -> float | None:
    if isinstance(entry.get("timings"), dict) and isinstance(entry.get("time"), int | float):
        return float(entry["time"])  # HAR
    for name in DURATION:
        value = _at(entry, name)
        if isinstance(value, str) and (length := _LENGTH.fullmatch(value)):
            return float(length[1]) * _MILLISECONDS[length[2]]
        if isinstance(value, int | float):
            if name not in WITH_UNIT:
                notes.add(f"`{name}` names no unit and was taken for milliseconds")
            return float(value) * (1000 if name in IN_SECONDS else 1)
    return None


def _values(entry: dict[str, Any], names: tuple[str, ...]) -> Iterator[Any]:
    return (_at(entry, name) for name in names)


def _at(entry: dict[str, Any], name: str) -> Any:
    """`entry["a.b"]`, or `entry["a"]["b"]`."""
    if name in entry:
        return entry[name]
    value: Any = entry
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
