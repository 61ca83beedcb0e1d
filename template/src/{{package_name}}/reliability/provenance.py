"""How an answer says that it was not made for its call (R50).

Programs find it in `_meta` and, where the tool's output is an object, in the property `provenance`; a model that would
otherwise take an old answer for a new one reads it in a sentence.
"""

from __future__ import annotations

from typing import Any, Literal, TypeGuard

from mcp_types import CallToolResult, InputRequiredResult, TextContent

Schema = dict[str, Any] | None
PROPERTY = "provenance"
META = "reliability/provenance"
_SCHEMA = {
    "type": "object",
    "description": "Where the answer comes from, when it was not made for this call.",
    "properties": {
        "source": {"enum": ["cache", "fallback"]},
        "stale": {"type": "boolean", "description": "Whether it is older than it should be."},
        "age_s": {"type": "number", "description": "Seconds since it was made; of answers from the cache."},
        "reason": {"type": "string", "description": "Why the tool itself could not answer."},
    },
    "required": ["source", "stale"],
}


def with_provenance(output_schema: Schema) -> Schema:
    """The schema with the optional property, where it describes an object with properties.

    Raises:
        ValueError: There is such a property already.
    """
    if not _has_properties(output_schema):
        return output_schema
    if PROPERTY in output_schema["properties"]:
        raise ValueError(f"A tool with a fallback cannot return a field called {PROPERTY!r}; rename it.")
    return {**output_schema, "properties": {**output_schema["properties"], PROPERTY: _SCHEMA}}


def label(
    result: CallToolResult,
    output_schema: Schema,
    *,
    source: Literal["cache", "fallback"],
    stale: bool = False,
    age_s: float | None = None,
    reason: str | None = None,
) -> CallToolResult:
    """A copy of `result` that says where it comes from.

    Args:
        result: The answer.
        output_schema: The tool's, without the property.
        source: Where it comes from.
        stale: Whether it is older than it should be.
        age_s: Seconds since it was made, of one from the cache.
        reason: Why the tool itself could not answer, if it could not.
    """
    known = {"source": source, "stale": stale, "age_s": age_s and round(age_s, 1), "reason": reason}
    data = {key: value for key, value in known.items() if value is not None}
    text = _warning(stale, age_s, reason)
    structured = result.structured_content
    if structured is not None and _has_properties(output_schema):
        structured = {**structured, PROPERTY: data}
    return result.model_copy(
        update={
            "content": [*result.content, TextContent(type="text", text=text)] if text else result.content,
            "structured_content": structured,
            "meta": {**(result.meta or {}), META: data},
        }
    )


def stands_in(result: CallToolResult | InputRequiredResult) -> bool:
    """Whether the tool failed, and `result` is what was answered instead (R62)."""
    data = (result.meta or {}).get(META)
    return isinstance(data, dict) and "reason" in data


def _warning(stale: bool, age_s: float | None, reason: str | None) -> str:
    """The same for a model; empty where there is nothing to be careful about."""
    if stale:
        now = "A new one is being made." if reason is None else f"None can be made now: {reason}"
        return f"This answer is stale: it was made {age_s:.0f} s ago. {now}"
    return f"This is the answer of a fallback, which may know less: {reason}" if reason else ""


def _has_properties(schema: Schema) -> TypeGuard[dict[str, Any]]:
    """False for a mapping, too: there the property would be one more of its items."""
    return schema is not None and "properties" in schema
