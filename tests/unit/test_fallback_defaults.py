"""What a tool's author did not choose for its cache comes from the server's settings."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from reliability.cache import CacheConfig
from reliability.declarations import tool
from reliability.fallback import instead, stale_cache
from reliability.server import Limits, ReliableServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SETTINGS = CacheConfig(ttl_s=10, max_stale_s=100, max_entries=7)


@asynccontextmanager
async def nothing(_: ReliableServer[None]) -> AsyncIterator[None]:
    yield


def test_settings_fill_what_the_author_left_open() -> None:
    assert stale_cache().completed(SETTINGS).cache == SETTINGS
    chosen = stale_cache(ttl_s=0, max_entries=3).completed(SETTINGS).cache
    assert chosen == CacheConfig(ttl_s=0, max_stale_s=100, max_entries=3)


def test_without_settings_the_playbook_s_numbers_apply() -> None:
    assert stale_cache().cache == CacheConfig(ttl_s=60, max_stale_s=3600, max_entries=1000)


def test_settings_that_contradict_the_author_are_refused() -> None:
    with pytest.raises(ValueError, match="ttl_s <= revalidate_s <= max_stale_s"):
        stale_cache(ttl_s=200).completed(SETTINGS)


def test_the_start_stops_with_the_name_of_the_tool_that_settings_contradict() -> None:
    @tool(read_only=True, fallback=stale_cache(ttl_s=200))
    async def look_up() -> str:
        raise NotImplementedError

    server = ReliableServer("x", version="1", lifespan=nothing, limits=Limits(), cache=SETTINGS)
    with pytest.raises(ValueError, match=r"'look_up' .*not 200, None and 100"):
        server.register(look_up)


def test_a_fallback_without_a_cache_has_no_settings() -> None:
    fallback = instead(len)
    assert fallback.completed(SETTINGS) is fallback


def test_the_server_hands_its_settings_on() -> None:
    @tool(read_only=True, fallback=stale_cache(ttl_s=1))
    async def look_up() -> str:
        """Look something up."""
        return "found"

    server = ReliableServer("x", version="1", lifespan=nothing, limits=Limits(), cache=SETTINGS)
    server.register(look_up)
    (cache,) = server.parts.of("cache")
    assert cache.config == CacheConfig(ttl_s=1, max_stale_s=100, max_entries=7)  # type: ignore[attr-defined]
