"""Reads an OpenAPI (3) or Swagger (2) document, as far as it helps to debug a call."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import from_json

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
MAX_OPERATIONS = 3_000
MAX_REFERENCES = 20
PLACES = ("query", "header", "cookie", "formData")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    """With the server's base path and `{parameters}`."""
    name: str
    summary: str
    required: tuple[str, ...]
    """Parameters that a call must have, such as `query page`, and `body`."""
    content_types: tuple[str, ...]
    statuses: dict[str, str]
    """What each status means."""
    secured: bool

    def fits(self, path: str) -> bool:
        """Whether a URL's path is one of this operation; a part with a parameter in it fits everything."""
        wanted, parts = self.path.split("/"), path.split("/")
        pairs = zip(wanted, parts, strict=False)
        return len(wanted) == len(parts) and all(w == part or (part and "{" in w) for w, part in pairs)

    def __str__(self) -> str:
        text = f"{self.method} {self.path}"
        if self.summary or self.name:
            text += f": {self.summary or self.name}"
        needs = f", needs {', '.join(self.required)}" if self.required else ""
        return f"{text} ({', '.join(self.statuses) or 'no statuses'}{needs}{', secured' if self.secured else ''})"


@dataclass(frozen=True, kw_only=True)
class ApiDocument:
    """What is remembered of a document."""

    title: str
    version: str
    servers: list[str]
    operations: list[Operation]

    def find(self, method: str, url: str) -> Operation | None:
        """The operation that a call belongs to; fixed paths come before those with parameters."""
        matching = [operation for operation in self.at(url) if operation.method == method.upper()]
        return min(matching, key=lambda operation: operation.path.count("{"), default=None)

    def at(self, url: str) -> list[Operation]:
        """Every operation of the URL's path."""
        path = path_of(url)
        return [operation for operation in self._by_length.get(path.count("/"), []) if operation.fits(path)]

    @cached_property
    def _by_length(self) -> dict[int, list[Operation]]:
        """The operations by the number of parts of their paths: logs ask for thousands of paths."""
        found: defaultdict[int, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            found[operation.path.count("/")].append(operation)
        return found


def path_of(url: str) -> str:
    """The path of a URL, without its query; logs hold anything in place of URLs."""
    try:
        return urlsplit(url).path or "/"
    except ValueError:
        return url


class NotOpenApi(ValueError):
    """The text is not a document that can be read; the reason is for the person who gave it."""


def parse(text: str | bytes) -> ApiDocument:
    """Read a document.

    Raises:
        NotOpenApi: It is not one.
    """
    try:
        document = from_json(text)
    except ValueError as error:
        hint = " YAML is not read: most frameworks serve the document as /openapi.json, too."
        raise NotOpenApi(f"This is not JSON: {error}.{hint}") from None
    if not isinstance(document, dict) or not isinstance(document.get("paths"), dict):
        raise NotOpenApi("This is not an OpenAPI document: it has no `paths`.")
    info = _mapping(document.get("info"))
    servers = _servers(document)
    base = path_of(servers[0]).rstrip("/") if servers else ""
    return ApiDocument(
        title=str(info.get("title", "untitled"))[:200],
        version=str(info.get("version", ""))[:50],
        servers=servers,
        operations=[_operation(document, base, *found) for found in _operations(document)],
    )


def _servers(document: dict[str, Any]) -> list[str]:
    if document.get("swagger"):
        return [f"{document.get('host', '')}{document.get('basePath', '')}"]
    servers = document.get("servers")
    return [str(_mapping(server).get("url", "")) for server in servers[:10]] if isinstance(servers, list) else []


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Path, method, the operation, and what is common to all operations of the path."""
    left = MAX_OPERATIONS
    for path, item in document["paths"].items():
        common = _resolved(document, item)
        for method in METHODS:
            if isinstance(common.get(method), dict) and left > 0:
                left -= 1
                yield path, method, common[method], common


def _operation(
    document: dict[str, Any], base: str, path: str, method: str, raw: dict[str, Any], common: dict[str, Any]
) -> Operation:
    parameters = [_resolved(document, p) for p in [*_list(common.get("parameters")), *_list(raw.get("parameters"))]]
    body = _resolved(document, raw.get("requestBody"))
    statuses = {str(s): _resolved(document, r) for s, r in _mapping(raw.get("responses")).items()}
    return Operation(
        method=method.upper(),
        path=base + path,
        name=str(raw.get("operationId", ""))[:100],
        summary=str(raw.get("summary") or raw.get("description") or "").partition("\n")[0][:100],
        required=(
            *(f"{p.get('in')} {p.get('name')}" for p in parameters if p.get("required") and p.get("in") in PLACES),
            *(["body"] if body.get("required") else []),
        ),
        content_types=tuple(_mapping(body.get("content"))) or tuple(map(str, _list(raw.get("consumes")))),
        statuses={status: str(response.get("description", ""))[:200] for status, response in statuses.items()},
        secured=bool(raw.get("security", document.get("security"))),
    )


def _resolved(document: dict[str, Any], value: Any) -> dict[str, Any]:
    """What a `$ref` within the document leads to; others are not followed."""
    for _ in range(MAX_REFERENCES):
        reference = _mapping(value).get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        value = document
        for key in reference[2:].split("/"):
            value = _mapping(value).get(key.replace("~1", "/").replace("~0", "~"))
    return _mapping(value)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
