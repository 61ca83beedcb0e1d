"""Render and update production-grade MCP servers."""

__version__ = "0.5.0"
