"""The size of results: rule R7."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    TextContent,
    TextResourceContents,
)
from reliability.errors import ToolFailure
from reliability.output_limit import limit_output

NOTICE_BYTES = 150
_texts = st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=200), max_size=6)


def result(*texts: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text) for text in texts])


@given(texts=_texts, max_bytes=st.integers(0, 500))
def test_r7_text_is_cut_to_the_limit_and_stays_valid_utf_8(texts: list[str], max_bytes: int) -> None:
    whole = result(*texts)
    size = sum(len(text.encode()) for text in texts)
    limited = limit_output(whole, max_bytes)
    if size <= max_bytes:
        assert limited is whole
        return
    (block,) = limited.content
    assert isinstance(block, TextContent)
    kept, _, notice = block.text.rpartition("\n\n[Truncated:")
    assert len(kept.encode()) <= max_bytes  # which also says that it can be encoded
    assert len(notice.encode()) <= NOTICE_BYTES
    assert "\n".join(texts).startswith(kept)
    assert len(kept.encode()) > max_bytes - 4  # no more than the cut character is lost


def test_r7_the_notice_says_how_much_is_missing() -> None:
    (block,) = limit_output(result("x" * 5000), 1000).content
    assert isinstance(block, TextContent)
    assert block.text.endswith("\n\n[Truncated: the first 1,000 of 5,000 bytes are shown. Ask for less at once.]")


def test_r7_bytes_are_counted_not_characters() -> None:
    assert limit_output(result("ä" * 10), 20).content == result("ä" * 10).content
    (block,) = limit_output(result("ä" * 10), 19).content
    assert isinstance(block, TextContent)
    assert block.text.startswith("ä" * 9 + "\n\n[")


def test_r7_a_result_that_is_an_error_stays_an_error_and_keeps_its_meta() -> None:
    whole = CallToolResult(content=[TextContent(type="text", text="x" * 100)], is_error=True, _meta={"a": 1})
    limited = limit_output(whole, 10)
    assert limited.is_error
    assert limited.meta == {"a": 1}


def test_r7_a_result_within_the_limit_is_not_copied() -> None:
    whole = result("hello")
    assert limit_output(whole, 5) is whole


BLOB = base64.b64encode(b"x" * 1000).decode()


@pytest.mark.parametrize(
    "block",
    [
        ImageContent(type="image", data=BLOB, mime_type="image/png"),
        AudioContent(type="audio", data=BLOB, mime_type="audio/wav"),
        EmbeddedResource(type="resource", resource=BlobResourceContents(uri="a://b", blob=BLOB)),
        EmbeddedResource(type="resource", resource=TextResourceContents(uri="a://b", text="x" * 1000)),
    ],
)
def test_r7_what_cannot_be_cut_is_refused_with_its_size_and_the_limit(
    block: ImageContent | AudioContent | EmbeddedResource,
) -> None:
    whole = CallToolResult(content=[TextContent(type="text", text="x"), block])
    with pytest.raises(ToolFailure, match=r"too large: 1,\d{3} bytes, and the limit is 500\. Ask for less"):
        limit_output(whole, 500)
    assert limit_output(whole, 5000) is whole


@pytest.mark.parametrize("text", ["small", "x" * 2000])
def test_r7_structured_content_is_refused_rather_than_cut(text: str) -> None:
    whole = CallToolResult(content=[TextContent(type="text", text=text)], structured_content={"a": "x" * 2000})
    with pytest.raises(ToolFailure, match="too large"):
        limit_output(whole, 1000)
    assert limit_output(whole, 5000) is whole


def test_r7_many_tiny_parts_are_not_a_way_around_the_limit() -> None:
    limited = limit_output(result(*["x"] * 20_000), 1000)
    assert len(limited.model_dump_json()) < 5000


def test_r7_text_that_cannot_be_encoded_is_refused_or_made_harmless_before_it_is_sent() -> None:
    try:
        limited = limit_output(result("caf\udce9"), 1000)  # a file name in Latin-1, by surrogateescape
    except ToolFailure:
        return
    limited.model_dump_json()
