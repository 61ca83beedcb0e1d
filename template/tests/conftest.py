"""Shared by all tests."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests that are marked with `pytest.mark.anyio` are coroutines and run on asyncio."""
    return "asyncio"


# The template's part ends here. Your own fixtures follow below, where updates merge cleanly.
