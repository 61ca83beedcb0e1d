"""How an answer says that it was not made for its call (R50).

Programs find it in `_meta` and, where the tool's output is an object, in the property `provenance`; a model that would
otherwise take an old answer for a new one reads it in a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where an answer comes from: `reason` is set when it stands in for one that could not be made."""

    source: Literal["cache", "fallback"]
    stale: bool = False
    age_s: float | None = None
    reason: str | None = None

    def as_data(self) -> dict[str, Any]:
        """What `_meta` and the property hold."""
        data: dict[str, Any] = {"source": self.source, "stale": self.stale}
        if self.age_s is not None:
            data["age_s"] = round(self.age_s, 1)
        if self.reason is not None:
            data["reason"] = self.reason
        return data

    def sentence(self) -> str | None:
        """The same for a model; None where there is nothing to be careful about."""
        if self.stale:
            now = "A new one is being made." if self.reason is None else f"None can be made now: {self.reason}"
            return f"This answer is stale: it was made {self.age_s:.0f} s ago. {now}"
        return None if self.reason is None else f"This is the answer of a fallback, which may know less: {self.reason}"


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


def label(result: CallToolResult, provenance: Provenance, output_schema: Schema) -> CallToolResult:
    """A copy of `result` that says where it comes from, for a tool that has this schema without the property."""
    data, sentence = provenance.as_data(), provenance.sentence()
    structured = result.structured_content
    if structured is not None and _has_properties(output_schema):
        structured = {**structured, PROPERTY: data}
    notes = [] if sentence is None else [TextContent(type="text", text=sentence)]
    return result.model_copy(
        update={
            "content": [*result.content, *notes],
            "structured_content": structured,
            "meta": {**(result.meta or {}), META: data},
        }
    )


def stands_in(result: CallToolResult | InputRequiredResult) -> bool:
    """Whether the tool failed, and `result` is what was answered instead (R62)."""
    data = (result.meta or {}).get(META)
    return isinstance(data, dict) and "reason" in data


def _has_properties(schema: Schema) -> TypeGuard[dict[str, Any]]:
    """False for a mapping, too: there the property would be one more of its items."""
    return schema is not None and "properties" in schema
