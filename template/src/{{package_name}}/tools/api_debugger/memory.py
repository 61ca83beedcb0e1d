"""What the tools remember of an API: documents and logs, a bounded number of each."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakKeyDictionary

from ...app import App
from .access_logs import Endpoint, LogSummary, Request, endpoint_of
from .openapi import ApiDocument, Operation

MAX_REMEMBERED = 8

T = TypeVar("T")


@dataclass
class DebuggerMemory:
    """The latest documents and logs, by the names that they were given."""

    documents: OrderedDict[str, ApiDocument] = field(default_factory=OrderedDict)
    logs: OrderedDict[str, LogSummary] = field(default_factory=OrderedDict)

    def remember_document(self, name: str, document: ApiDocument) -> None:
        """Keep it in place of an older one of its name; the oldest is forgotten."""
        _put(self.documents, name, document)

    def remember_logs(self, name: str, summary: LogSummary) -> None:
        """Likewise."""
        _put(self.logs, name, summary)

    def operation(self, method: str, url: str) -> Operation | None:
        """What the documents, the latest first, say about a call."""
        found = (document.find(method, url) for document in reversed(self.documents.values()))
        return next(filter(None, found), None)

    def operations_at(self, url: str) -> list[Operation]:
        """Every documented operation of the URL's path."""
        return [operation for document in self.documents.values() for operation in document.at(url)]

    def paths(self) -> set[str]:
        """Every documented path."""
        return {operation.path for document in self.documents.values() for operation in document.operations}

    def endpoint_name(self, request: Request) -> str:
        """The endpoint that a logged request belongs to: as the documents name it, or by the look of its path."""
        operation = self.operation(request.method, request.url)
        return f"{operation.method} {operation.path}" if operation else endpoint_of(request)

    def logged(self, method: str, url: str) -> Iterator[tuple[str, Endpoint]]:
        """What the logs say about the endpoint of a call, with the logs' names."""
        request = Request(method, url, 0, None)
        names = {self.endpoint_name(request), endpoint_of(request)}
        for log, summary in self.logs.items():
            yield from ((log, summary.endpoints[name]) for name in names if name in summary.endpoints)


def _put(kept: OrderedDict[str, T], name: str, value: T) -> None:
    kept[name] = value
    kept.move_to_end(name)
    while len(kept) > MAX_REMEMBERED:
        kept.popitem(last=False)


_memories: WeakKeyDictionary[App, DebuggerMemory] = WeakKeyDictionary()


def memory_of(app: App) -> DebuggerMemory:
    """The memory of a running server; it ends with it."""
    return _memories.setdefault(app, DebuggerMemory())
