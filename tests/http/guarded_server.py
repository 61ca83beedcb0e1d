"""A server over HTTP that asks for a token: `guarded_server.py FILE_OF_TOKENS`. It serves until it is told to stop."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from reliability import Limits, ReliableServer, tool
from reliability.authentication import Authentication
from reliability.entrance import Entrance
from reliability.http_server import HttpOptions, run_http
from reliability.logs import configure_logging
from reliability.oauth_tokens import OAuthConfig, add_metadata
from reliability.static_tokens import StaticTokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

configure_logging("info")


@asynccontextmanager
async def lifespan(server: ReliableServer[None]) -> AsyncIterator[None]:
    yield


@tool()
async def say(words: str) -> str:
    return words


server = ReliableServer("guarded", version="1", lifespan=lifespan, limits=Limits())
server.register(say)
add_metadata(server, OAuthConfig(issuer="https://login.example.com", audience="https://mcp.example.com/mcp"))
asked = Authentication(verifier=StaticTokens(Path(sys.argv[1])), metadata_url="https://mcp.example.com/x")
entrance = Entrance(authentication=asked, trusted_proxies=["127.0.0.1"])
run_http(server, HttpOptions(port=0, max_request_bytes=100_000, metrics=True, entrance=entrance))
