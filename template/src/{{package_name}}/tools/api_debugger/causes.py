"""Rules that explain a failed call: probable causes, and what to try next.

Each rule is a generator of hints; add one to `RULES`, the most certain first.
"""

import base64
import difflib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .calls import Call
from .memory import DebuggerMemory
from .openapi import Operation, path_of
from .statuses import BY_STATUS, NO_ANSWER, Hint

_ERROR_NAME = re.compile(r"\b([A-Z]\w{0,60}(?:Error|Exception))\b(?::\s{0,3}([^\n<\"\\]{1,150}))?")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A call and how it failed, with what is known about the API."""

    call: Call
    status: int
    """0 when there was no answer."""
    headers: dict[str, str]
    """Of the answer, with names in lower case."""
    body: str
    error: str
    """What went wrong when there was no answer."""
    memory: DebuggerMemory

    @property
    def operation(self) -> Operation | None:
        """What the documents say about the call."""
        return self.memory.operation(self.call.method, self.call.url)

    @property
    def path(self) -> str:
        """The path of the URL."""
        return path_of(self.call.url)

    def fields(self) -> dict[str, Any]:
        """The body, when it is a JSON object."""
        try:
            body = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return body if isinstance(body, dict) else {}


def explain(failure: Failure) -> list[Hint]:
    """Every hint that the rules give, the most certain first."""
    found = [hint for rule in RULES for hint in rule(failure)]
    return list(dict.fromkeys(found)) or [
        Hint("Nothing known fits.", "Compare with a call that works, one difference at a time.")
    ]


def no_answer(failure: Failure) -> Iterator[Hint]:
    """Why nothing came back."""
    if not failure.status:
        yield from (hint for words, hint in NO_ANSWER if re.search(words, failure.error, re.IGNORECASE))


def named_fields(failure: Failure) -> Iterator[Hint]:
    """Validation errors that name the fields: FastAPI's `detail`, and `errors` as many others have."""
    if failure.status in (400, 422):
        fields = failure.fields()
        problems: list[Any] = next((fields[k] for k in ("detail", "errors") if isinstance(fields.get(k), list)), [])
        for problem in problems[:8]:
            if isinstance(problem, dict):
                place = next((problem[k] for k in ("loc", "field", "path", "pointer") if problem.get(k)), "?")
                place = ".".join(map(str, place)) if isinstance(place, list) else place
                text = next((problem[k] for k in ("msg", "message", "detail") if problem.get(k)), "wrong")
                yield Hint(f"`{place}` is refused: {str(text)[:200]}.", f"Correct `{place}`.")


def missing_parts(failure: Failure) -> Iterator[Hint]:
    """What the call lacks according to the document."""
    if failure.operation and 400 <= failure.status < 500:
        url = urlsplit(failure.call.url)
        sent = {f"query {name}" for name, _ in parse_qsl(url.query, keep_blank_values=True)}
        sent |= {f"header {name.lower()}" for name in failure.call.headers}
        sent |= {"body"} if failure.call.body is not None else set()
        for required in failure.operation.required:
            if required not in sent and required.lower() not in sent and not required.startswith("cookie"):
                yield Hint(f"The required {required} is missing.", f"Send the {required}.")


def wrong_type(failure: Failure) -> Iterator[Hint]:
    """A body without a type, or not of the type that the document wants."""
    body, sent = failure.call.body, failure.call.content_type
    if body is None or failure.status not in (400, 415, 422):
        return
    accepted = failure.operation.content_types if failure.operation else ()
    if accepted and sent not in accepted:
        wanted = " or ".join(accepted)
        yield Hint(
            f"The body is sent as {sent or 'no type'}; the API takes {wanted}.", f"Set Content-Type to {wanted}."
        )
    elif not sent:
        yield Hint("The body has no Content-Type.", "Send `Content-Type: application/json`, or whatever it is.")


def broken_json(failure: Failure) -> Iterator[Hint]:
    """A text that should be JSON."""
    if isinstance(failure.call.body, str) and "json" in failure.call.content_type:
        try:
            json.loads(failure.call.body)
        except ValueError as error:
            yield Hint(f"The body is not JSON: {error}.", "Repair the body's JSON.")


def credentials(failure: Failure) -> Iterator[Hint]:
    """Credentials: none, expired, wrong, or too weak."""
    sent = [value for name in ("authorization", "x-api-key", "cookie") if (value := failure.call.header(name))]
    late_s = max(map(_expired_s, sent), default=0)
    if failure.status in (401, 403) and late_s:
        yield Hint(f"The token expired {late_s / 60:.0f} minutes ago.", "Get a new token.")
    if failure.status == 401:
        wanted = failure.headers.get("www-authenticate")
        what = f" The server wants: {wanted}." if wanted else ""
        if sent:
            text = f"The credentials are wrong, expired, or for another environment.{what}"
            yield Hint(text, "Get new ones, and check that they belong to this host.")
        else:
            yield Hint(
                f"No credentials were sent.{what}", "Send an Authorization header, or what the API wants instead."
            )
    elif failure.status == 403:
        yield Hint("The caller is known, but may not do this.", "Check roles and scopes, and whose the resource is.")


def _expired_s(credential: str) -> float:
    """Seconds since a JSON web token expired; 0 for all else. Its signature is of no interest here."""
    try:
        claims = credential.rpartition(" ")[2].split(".")[1]
        return max(0, time.time() - float(json.loads(base64.urlsafe_b64decode(claims + "=="))["exp"]))
    except (ValueError, LookupError, TypeError):
        return 0


def throttled(failure: Failure) -> Iterator[Hint]:
    """When to come back."""
    after = failure.headers.get("retry-after", "")
    wait = f"Wait {after}{' s' if after.isdigit() else ''}" if after else "Wait a while"
    if failure.status == 429:
        limits = ", ".join(f"{k}: {v}" for k, v in failure.headers.items() if re.search("rate-?limit", k))
        yield Hint(
            f"Too many calls.{f' The server says: {limits}.' if limits else ''}", f"{wait}, then call less often."
        )
    elif after:
        yield Hint("The server asks for patience.", f"{wait} before the next try.")


def redirected(failure: Failure) -> Iterator[Hint]:
    """Where it went."""
    if location := 300 <= failure.status < 400 and failure.headers.get("location"):
        step = "Call that URL; a redirect to a login page means that credentials are missing."
        yield Hint(f"The server sends the caller on to {location}.", step)


def unknown_path(failure: Failure) -> Iterator[Hint]:
    """Paths that do not exist, and those that are probably meant."""
    if failure.status == 404 and failure.operation:
        text = "The path is documented, so what its identifiers name does not exist, or not for this caller."
        yield Hint(text, "List the collection, and take an identifier from there.")
    elif failure.status == 404:
        if similar := difflib.get_close_matches(failure.path, failure.memory.paths(), n=3, cutoff=0.5):
            yield Hint("The documents know no such path.", f"Did you mean {' or '.join(similar)}?")
        other = failure.path.rstrip("/") if failure.path.endswith("/") else failure.path + "/"
        text = "A slash, a prefix such as /api/v1 or the host may be wrong."
        yield Hint(text, f"Try {other or '/'!r} and the API's base URL.")


def wrong_method(failure: Failure) -> Iterator[Hint]:
    """Methods that the path does take."""
    known = ", ".join(sorted({operation.method for operation in failure.memory.operations_at(failure.call.url)}))
    allowed = failure.headers.get("allow") or known
    if failure.status in (404, 405) and allowed and failure.call.method not in allowed:
        yield Hint(f"This path takes {allowed}, not {failure.call.method}.", f"Use {allowed}.")


def in_the_body(failure: Failure) -> Iterator[Hint]:
    """What a body gives away: an exception, a page where data was expected, an error under a good status."""
    if found := _ERROR_NAME.findall(failure.body):
        name, text = found[-1]
        yield Hint(
            f"The server names {name}{f': {text.strip()}' if text else ''}.", f"Look for {name} in its log and code."
        )
    if "text/html" in failure.headers.get("content-type", "") and "html" not in (failure.call.header("accept") or ""):
        text = "The answer is an HTML page: from a proxy, a login page or another application."
        yield Hint(text, "Check host and path; look at the page's title.")
    if 200 <= failure.status < 300 and {"error", "errors"} & failure.fields().keys():
        yield Hint("The status says success, but the body reports an error.", "Believe the body.")


def by_status(failure: Failure) -> Iterator[Hint]:
    """What a status means by itself."""
    if failure.status in BY_STATUS:
        yield BY_STATUS[failure.status]


def others(failure: Failure) -> Iterator[Hint]:
    """Whether the endpoint fails for others, too."""
    for log, endpoint in failure.memory.logged(failure.call.method, failure.call.url):
        share = endpoint.share(5)
        seen = f"In the logs {log!r} {share:.0%} of {endpoint.calls} calls failed with 5xx"
        if share >= 0.5:
            yield Hint(f"{seen}: it is broken for everybody.", "Find out what was changed or failed when this began.")
        elif failure.status >= 500:
            yield Hint(f"{seen}: so it is this input, or something new.", "Compare with a logged call that works.")


RULES: tuple[Callable[[Failure], Iterator[Hint]], ...] = (
    no_answer,
    named_fields,
    missing_parts,
    wrong_type,
    broken_json,
    credentials,
    throttled,
    redirected,
    in_the_body,
    wrong_method,
    unknown_path,
    others,
    by_status,
)
