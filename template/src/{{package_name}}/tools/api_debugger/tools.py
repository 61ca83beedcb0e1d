"""The tools of the API debugger."""

import functools
import json
from typing import Annotated, Literal
from urllib.parse import urlsplit

import anyio.to_thread
from mcp.server.mcpserver import Context
from pydantic import AfterValidator, BaseModel, Field, JsonValue

from ...app import App
from ...reliability import ToolFailure, tool
from ...reliability.http_response import HttpResponse, HttpStatusError
from .access_logs import LogSummary, summarise
from .calls import Call, curl
from .causes import Failure, explain
from .memory import DebuggerMemory, memory_of
from .openapi import ApiDocument, NotOpenApi, parse

MAX_DOCUMENT_BYTES = 5_000_000
MAX_LOG_BYTES = 10_000_000
MAX_HEADER_CHARACTERS = 300
MAX_EXPLAINED_CHARACTERS = 100_000

Method = Literal["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"]


def _http_url(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError("must begin with http:// or https:// and name a host")
    return url


Url = Annotated[str, Field(max_length=8_000, description="With scheme and query"), AfterValidator(_http_url)]
Headers = Annotated[dict[str, str], Field(max_length=50, description="Of the request")]
Body = Annotated[JsonValue, Field(description="Text is sent as it is, anything else as JSON")]
Source = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(max_length=100, description="To remember it by; what has the same name is replaced")]


class ApiAnswer(BaseModel):
    """What the API answered."""

    status: int
    reason: str
    duration_ms: float
    headers: dict[str, str]
    body: JsonValue
    """JSON as data, other text as text."""
    body_bytes: int
    notes: list[str]
    """What is remarkable about the answer."""


@tool(name="test-api", title="Test an API", destructive=True, open_world=True)
async def call_api(
    ctx: Context[App],
    url: Url,
    method: Method = "GET",
    headers: Headers = {},  # noqa: B006 - validated, and so copied, for each call
    body: Body = None,
    timeout_s: Annotated[float, Field(gt=0, le=20)] = 10,
    max_body_characters: Annotated[int, Field(ge=0, le=50_000)] = 8_000,
) -> ApiAnswer:
    """Send one HTTP request and show the answer: status, headers, body, duration.

    It is sent exactly once, redirects are not followed, and every status is an answer, 5xx included. A host that fails
    too often is left alone for a while.
    """
    app, call = ctx.request_context.lifespan_context, Call(method=method, url=url, headers=headers, body=body)
    content = json.dumps(body) if not isinstance(body, str | None) else body
    try:
        response = await app.debugger_http.request(
            method,
            url,
            headers=call.all_headers(),
            content=content,
            idempotent=False,
            follow_redirects=False,
            timeout_s=timeout_s,
        )
    except HttpStatusError as error:  # the breaker has counted it; whoever debugs wants to see it
        response = error.response
    shown, is_cut = _shown_body(response, max_body_characters)
    return ApiAnswer(
        status=response.status,
        reason=response.reason,
        duration_ms=round(response.elapsed_s * 1000, 1),
        headers={name: value[:MAX_HEADER_CHARACTERS] for name, value in response.headers.items()},
        body=shown,
        body_bytes=len(response.content),
        notes=[
            *([f"The first {max_body_characters:,} characters of the body are shown."] if is_cut else []),
            *_notes(call, response, memory_of(app)),
        ],
    )


def _shown_body(response: HttpResponse, limit: int) -> tuple[JsonValue, bool]:
    if b"\0" in response.content[:1000]:
        return f"({response.headers.get('content-type', 'binary data')})", False
    text = response.text
    if len(text) > limit:
        return text[:limit], True
    try:
        return json.loads(text), False
    except (ValueError, RecursionError):
        return text, False


def _notes(call: Call, response: HttpResponse, memory: DebuggerMemory) -> list[str]:
    notes = []
    if response.status >= 500 or response.status == 429:
        notes.append(f"Counted as a failure of {response.dependency!r}; after too many, calls are refused for a while.")
    operation = memory.operation(call.method, call.url)
    if operation is None:
        return [*notes, "No loaded document knows this operation."] if memory.documents else notes
    known = [s for s in (str(response.status), f"{response.status // 100}XX", "default") if s in operation.statuses]
    if not known:
        notes.append(f"{operation.method} {operation.path} documents no status {response.status}.")
    elif response.status >= 400:
        notes.append(f"The document says about {known[0]}: {operation.statuses[known[0]]}")
    return notes


class ApiSummary(BaseModel):
    """What was read of a document."""

    title: str
    version: str
    servers: list[str]
    operations: int
    shown: list[str]
    """`METHOD path: summary (statuses, needs)`."""


@tool(name="load_openapi", title="Load an OpenAPI document", idempotent=True, open_world=True)
async def load_openapi(
    ctx: Context[App],
    source: Annotated[Source, Field(description="A URL, a file in an allowed directory, or the document itself: JSON")],
    only: Annotated[str, Field(max_length=100, description="Show only operations that contain this")] = "",
    limit: Annotated[int, Field(ge=0, le=500)] = 50,
    name: Name = "",
) -> ApiSummary:
    """Read an OpenAPI document (JSON) and list its operations. The other tools use it from then on.

    All clients of this server share what is loaded: nothing secret belongs there.
    """
    app = ctx.request_context.lifespan_context
    if source.lstrip().startswith("{") or "\n" in source:
        text: str | bytes = source
    elif source.startswith(("http://", "https://")):
        response = await app.debugger_http.get(source)
        if response.status != 200:
            raise ToolFailure(f"The answer has status {response.status} ({response.reason}).")
        text = response.content
    else:
        read = functools.partial(app.paths.read, source, max_bytes=MAX_DOCUMENT_BYTES)
        text = await anyio.to_thread.run_sync(read)
    try:
        document = await anyio.to_thread.run_sync(parse, text)
    except NotOpenApi as error:
        raise ToolFailure(str(error)) from None
    memory_of(app).remember_document(name or document.title, document)
    return _summary(document, only, limit)


def _summary(document: ApiDocument, only: str, limit: int) -> ApiSummary:
    found = [text for text in map(str, document.operations) if only.lower() in text.lower()]
    return ApiSummary(
        title=document.title,
        version=document.version,
        servers=document.servers,
        operations=len(document.operations),
        shown=found[:limit],
    )


class LogReport(BaseModel):
    """What the logs say."""

    requests: int
    endpoints: list[str]
    """`METHOD path: calls (statuses), percentiles`; those with most failures first."""
    not_shown: int
    skipped: dict[str, int]
    notes: list[str]


@tool(name="ingest_logs", title="Read logs", idempotent=True)
def ingest_logs(
    ctx: Context[App],
    source: Annotated[Source, Field(description="A file in an allowed directory, or the logs themselves")],
    limit: Annotated[int, Field(ge=1, le=200)] = 25,
    name: Name = "",
) -> LogReport:
    """Sum up logs of HTTP requests by endpoint: statuses and how long they took. `explain_failure` uses them, too.

    Takes HAR, as browsers export it, and one JSON object a line, as most servers log. All clients of this server share
    what is loaded.
    """
    app = ctx.request_context.lifespan_context
    is_text = source.lstrip()[:1] in ("{", "[")
    text = source if is_text else app.paths.read(source, max_bytes=MAX_LOG_BYTES).decode(errors="replace")
    summary = summarise(text, memory_of(app).endpoint_name)
    if not summary.endpoints:
        raise ToolFailure(f"No request was found in it. {_reasons(summary)}")
    memory_of(app).remember_logs(name or ("text" if is_text else source), summary)
    ordered = sorted(summary.endpoints.items(), key=lambda item: (-item[1].share(5), -item[1].share(4), -item[1].calls))
    return LogReport(
        requests=sum(endpoint.calls for endpoint in summary.endpoints.values()),
        endpoints=[f"{endpoint}: {figures}" for endpoint, figures in ordered[:limit]],
        not_shown=max(0, len(ordered) - limit),
        skipped=dict(summary.skipped),
        notes=sorted(summary.notes),
    )


def _reasons(summary: LogSummary) -> str:
    return "; ".join(f"{number} entries: {why}" for why, number in summary.skipped.most_common(3))


class Explanation(BaseModel):
    """Why a call may have failed, the most certain cause first."""

    causes: list[str]
    next_steps: list[str]
    documented: str
    """What the loaded documents say about the operation."""
    logged: list[str]
    """What the loaded logs say about it."""


@tool(name="explain_failure", title="Explain a failure", read_only=True)
def explain_failure(
    ctx: Context[App],
    method: Method,
    url: Url,
    status: Annotated[int | None, Field(ge=100, le=599, description="None when there was no answer")] = None,
    headers: Annotated[dict[str, str], Field(max_length=100, description="Of the answer")] = {},  # noqa: B006
    body: Annotated[JsonValue, Field(description="Of the answer")] = None,
    error: Annotated[str, Field(max_length=2_000, description="What went wrong when there was no answer")] = "",
    request_headers: Headers = {},  # noqa: B006
    request_body: Body = None,
) -> Explanation:
    """Tell why a call probably failed and what to try next, from the answer, the loaded documents and the loaded logs."""
    memory = memory_of(ctx.request_context.lifespan_context)
    hints = explain(
        Failure(
            call=Call(method=method, url=url, headers=request_headers, body=request_body),
            status=status or 0,
            headers={name.lower(): value for name, value in headers.items()},
            body=(body if isinstance(body, str) else json.dumps(body))[:MAX_EXPLAINED_CHARACTERS],
            error=error,
            memory=memory,
        )
    )
    operation = memory.operation(method, url)
    return Explanation(
        causes=[hint.cause for hint in hints],
        next_steps=list(dict.fromkeys(hint.step for hint in hints)),
        documented=str(operation) if operation else "",
        logged=[f"{log}: {endpoint}" for log, endpoint in memory.logged(method, url)],
    )


@tool(name="make_repro", title="Make a curl command", read_only=True)
def make_repro(method: Method, url: Url, headers: Headers = {}, body: Body = None) -> str:  # noqa: B006
    """Write a call as a curl command that can be shown to others: secrets in URL, headers and body become variables."""
    command, variables = curl(Call(method=method, url=url, headers=headers, body=body))
    return f"# Set {', '.join(variables)} to the secrets that were removed.\n{command}" if variables else command
