"""Caps the size of a result (R7).

A model cannot use a 20 MB answer: clients cut it, or fail on it, and the memory is spent all the same.
"""

from __future__ import annotations

from mcp_types import CallToolResult, TextContent

from .errors import ToolFailure


def limit_output(result: CallToolResult, max_bytes: int) -> CallToolResult:
    """`result` itself when it is small enough, otherwise with its text cut and a notice of how much is missing.

    Args:
        result: What the tool returned.
        max_bytes: Limit in bytes of UTF-8, all parts together.

    Raises:
        ToolFailure: It is too large and cannot be cut without breaking it: structured or binary content.
    """
    size = sum(_size(block) for block in result.content)
    if size <= max_bytes:
        return result
    if result.structured_content is not None or not all(isinstance(b, TextContent) for b in result.content):
        raise ToolFailure(
            f"The result is too large: {size:,} bytes, and the limit is {max_bytes:,}. Ask for less at once."
        )
    text = "\n".join(block.text for block in result.content if isinstance(block, TextContent))
    kept = text.encode()[:max_bytes].decode(errors="ignore")
    notice = f"\n\n[Truncated: the first {max_bytes:,} of {size:,} bytes are shown. Ask for less at once.]"
    return result.model_copy(update={"content": [TextContent(type="text", text=kept + notice)]})


def _size(block: object) -> int:
    """Bytes of the block's own data; its envelope is not counted."""
    contents = getattr(block, "resource", block)
    data = next((v for a in ("text", "data", "blob") if isinstance(v := getattr(contents, a, None), str)), "")
    return len(data) if data.isascii() else len(data.encode())
