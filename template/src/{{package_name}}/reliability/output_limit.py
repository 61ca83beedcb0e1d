"""Caps the size of what is sent to a client (R7).

A model cannot use a 20 MB answer: clients cut it, or fail on it, and the memory is spent all the same.
"""

from __future__ import annotations

from mcp_types import CallToolResult, TextContent
from pydantic_core import to_json

from .errors import ToolFailure


def limit_output(result: CallToolResult, max_bytes: int) -> CallToolResult:
    """`result` itself when it is small enough, otherwise with its text cut and a notice of how much is missing.

    Args:
        result: What the tool returned.
        max_bytes: Limit in bytes of UTF-8, all parts together.

    Raises:
        ToolFailure: It is too large and cannot be cut without breaking it: structured or binary content.
    """
    size = sum(size_of_block(block) for block in result.content)
    if result.structured_content is not None:  # the SDK sends it twice, as text and as data; it counts once
        size = max(size, len(to_json(result.structured_content, fallback=str)))
    if size <= max_bytes:
        return result
    if result.structured_content is not None or not all(isinstance(b, TextContent) for b in result.content):
        refuse_oversize(size, max_bytes)
    text = "\n".join(block.text for block in result.content if isinstance(block, TextContent))
    kept = text.encode()[:max_bytes].decode(errors="ignore")
    notice = f"\n\n[Truncated: the first {max_bytes:,} of {size:,} bytes are shown. Ask for less at once.]"
    return result.model_copy(update={"content": [TextContent(type="text", text=kept + notice)]})


def refuse_oversize(size: int, max_bytes: int) -> None:
    """Let what is within the limit pass.

    Raises:
        ToolFailure: `size` is more than `max_bytes`.
    """
    if size > max_bytes:
        raise ToolFailure(
            f"The result is too large: {size:,} bytes, and the limit is {max_bytes:,}. Ask for less at once."
        )


def size_of_block(block: object) -> int:
    """Bytes of a content block's own data; its envelope is not counted."""
    contents = getattr(block, "resource", block)
    data = next((v for a in ("text", "data", "blob") if isinstance(v := getattr(contents, a, None), str)), "")
    return size_of_text(data)


def size_of_text(text: str | bytes) -> int:
    """Bytes of UTF-8.

    Raises:
        ToolFailure: The text cannot be sent: it holds half a character, as names from a foreign file system may.
    """
    if isinstance(text, bytes) or text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise ToolFailure("The result holds text that is not valid Unicode (a lone surrogate).") from None
