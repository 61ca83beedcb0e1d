"""Projects, an engine and an image for the tests of what they are deployed with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.deployment.docker_engine import docker_engine
from tests.deployment.programs import own, said
from tests.deployment.stand_ins import provide_python, provide_services, proxies, registry_settings
from tests.render.conftest import Renderer, copy_template

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.deployment.docker_engine import Engine

BUILD_S = 240
TRIALS = '''\
"""Tools with which the tests try the server."""

import os
import time

import anyio

from ..reliability import tool

leaked: list[bytes] = []


@tool(title="Echo", read_only=True)
async def echo(text: str) -> str:
    """Give the text back."""
    return text


@tool(title="Sleep", read_only=True)
async def sleep(seconds: float) -> str:
    """Take so long to answer."""
    await anyio.sleep(seconds)
    return "slept"


@tool(title="Block the event loop")
async def block_the_loop(seconds: float) -> str:
    """Do what no tool must do."""
    time.sleep(seconds)
    return "blocked"


@tool(title="Leak")
async def leak(megabytes: int) -> str:
    """Keep so much memory."""
    leaked.append(os.urandom(1) * megabytes * 1_000_000)
    return "leaked"


@tool(title="Leave")
async def leave(code: int) -> str:
    """End the process at once."""
    os._exit(code)
'''
"""Tools which a project that is tried gets beside its own."""


@pytest.fixture(scope="session")
def render(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    """Return the cached renderer; its projects are shared."""
    template = tmp_path_factory.mktemp("template")
    copy_template(root, template)
    return Renderer(template, tmp_path_factory.mktemp("rendered"))


@pytest.fixture
def anyio_backend() -> str:
    """Return the only backend that the servers run on."""
    return "asyncio"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Return a Docker Engine that has the base image; it ends with the module, because another process waits for it."""
    with docker_engine() as engine:
        provide_python(engine)
        yield engine


@pytest.fixture(scope="module")
def services(engine: Engine) -> Engine:
    """Return the engine when it also has the images of the programs beside the server."""
    provide_services(engine)
    return engine


@pytest.fixture(scope="session")
def project(render: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with everything, its lock file, and the tools of the tests; its callers have tokens."""
    directory = tmp_path_factory.mktemp("containers") / "my-server"
    render.fresh(directory, preset="full", authentication="token")
    (directory / "src" / "my_server" / "tools" / "trials.py").write_text(TRIALS)
    lock(directory)
    return directory


@pytest.fixture(scope="module")
def image(engine: Engine, project: Path) -> str:
    """Return the name of its image."""
    build(engine, project, "my-server:trial")
    return "my-server:trial"


def build(engine: Engine, directory: Path, name: str, *arguments: object) -> str:
    """Build an image, with the network of this machine, and return its identity."""
    command = ("build", "--quiet", "--network", "host", *proxies(), *arguments, "--tag", name, directory)
    return engine(*command, timeout_s=BUILD_S)


def lock(directory: Path) -> None:
    """Make `uv.lock`, as `mcp-scaffold new` does."""
    environment = {**os.environ, **registry_settings()}
    said(own("uv"), "lock", "--quiet", directory=directory, environment=environment, timeout_s=BUILD_S)
