"""Render and update production-grade MCP servers."""

__version__ = "0.2.1"
