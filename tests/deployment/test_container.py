"""The image of a project with everything, in a real Docker Engine: rules R65 to R68."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
import tomllib
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from tests.deployment.callers import HARDENED, Caller, free_port, give_token, published, until
from tests.deployment.conftest import build, lock
from tests.deployment.readme import commands, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.deployment.docker_engine import Engine
    from tests.render.conftest import Renderer

pytestmark = pytest.mark.timeout(900)
"""Whichever test is the first waits for the engine and the image, for minutes on a busy machine."""

HEALTH = "{{.State.Health.Status}}"
QUICK = ["--health-interval", "1s", "--health-timeout", "3s", "--health-retries", "2"]
"""The health check of the image is made for years, and not for a test."""
DESCRIPTION = "Say \"hi\", \\n 'x' ${HOME} $(id) `id` <b>&amp; %s {0} é 漢字 \\"

INSTALLED = """
import importlib.metadata, json
print(json.dumps({one.metadata["Name"].lower().replace("_", "-"): one.version
                  for one in importlib.metadata.distributions(path=["/app/lib/python3.13/site-packages"])}))
"""
UNCOMPILED = """
import importlib.util, os, sys
import my_server.app, my_server.reliability.http_server, my_server.reliability.stdio_server
files = {str(getattr(module, "__file__", "")) for module in list(sys.modules.values())}
files = {file for file in files if file.endswith(".py")}
print(len(files), [file for file in files if not os.path.exists(importlib.util.cache_from_source(file))])
"""
WRITABLE = (
    "find / -xdev -writable -not -type l -not -path '/dev/*' -not -path '/proc/*' -not -path '/sys/*' 2>/dev/null"
)


@pytest.fixture(scope="module")
def tokens(engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the file of the tokens, and one that is in it."""
    file = tmp_path_factory.mktemp("secrets") / "http_tokens"
    return file, give_token(engine, image, file)


@pytest.fixture
def server(engine: Engine, image: str, tokens: tuple[Path, str]) -> Iterator[tuple[str, Caller]]:
    """Run the image as it should be run, with a quicker health check; yield the container and its caller."""
    caller = Caller(free_port(), tokens[1])
    with engine.container(*HARDENED, *QUICK, *published(caller.port, tokens[0]), image) as container:
        caller.wait()
        yield container, caller


# ---- What is in the image -------------------------------------------------------------------------------------------


def test_the_image_says_what_it_is_and_how_it_runs(
    engine: Engine, image: str, report: Callable[[str], None]
) -> None:  # R65, R66
    (found,) = json.loads(engine("image", "inspect", image))
    config = found["Config"]
    assert (config["User"], config["Entrypoint"], config["Cmd"]) == ("10001:10001", ["my-server"], ["http"])
    second = 1_000_000_000
    assert config["Healthcheck"] == {
        "Test": ["CMD", "my-server", "probe"],
        "Interval": 30 * second,
        "Timeout": 5 * second,
        "StartPeriod": 10 * second,
        "Retries": 3,
    }
    assert config["Labels"]["org.opencontainers.image.title"] == "my-server"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "MIT"
    history = engine("history", "--format", "{{.Size}} {{.CreatedBy}}", image).splitlines()
    own = [line for line in history if not line.startswith("0B")]
    report(f"image {found['Size'] / 1e6:.0f} MB, {len(found['RootFS']['Layers'])} layers: {'; '.join(own)}")


def test_the_image_holds_what_the_lock_file_says_and_no_more(engine: Engine, image: str, project: Path) -> None:  # R65
    installed = json.loads(engine("run", "--rm", "--entrypoint", "python3", image, "-c", INSTALLED))
    locked = {
        one["name"]: one["version"]
        for one in tomllib.loads((project / "uv.lock").read_text())["package"]
        if "version" in one
    }
    assert installed.pop("my-server") == "0.1.0"
    assert installed == {name: locked[name] for name in installed}
    assert "mcp" in installed
    assert not {"pytest", "ruff", "mypy", "pip", "uv", "hatchling"} & set(installed)


def test_everything_that_is_imported_is_compiled(engine: Engine, image: str) -> None:
    count, missing = engine("run", "--rm", "--entrypoint", "python3", image, "-c", UNCOMPILED).split(maxsplit=1)
    assert missing == "[]"
    assert int(count) > 300


def test_the_user_can_change_nothing_but_its_directories(engine: Engine, image: str) -> None:  # R65
    found = engine("run", "--rm", "--entrypoint", "sh", image, "-c", f"{WRITABLE} || true").splitlines()
    assert set(found) <= {"/tmp", "/var/tmp", "/run/lock", "/data"}  # noqa: S108
    assert (
        engine("run", "--rm", "--entrypoint", "id", image) == "uid=10001(server) gid=10001(server) groups=10001(server)"
    )


def test_certificates_are_there(engine: Engine, image: str) -> None:  # R65
    code = "import ssl; print(len(ssl.create_default_context().get_ca_certs()))"
    assert int(engine("run", "--rm", "--entrypoint", "python3", image, "-c", code)) > 50


def test_secrets_and_history_never_reach_the_builder(engine: Engine, project: Path, tmp_path: Path) -> None:  # R65
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (tmp_path / ".dockerignore").write_bytes((project / ".dockerignore").read_bytes())
    for name in (
        ".env",
        ".git/config",
        "secrets/database_url",
        "tests/test.py",
        "src/x/__pycache__/y.pyc",
        "src/x/y.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for name in ("pyproject.toml", "uv.lock", "README.md", "LICENSE"):
        (tmp_path / name).write_text("x")
    engine("build", "--quiet", "--output", tmp_path / "sent", tmp_path)
    sent = {path.relative_to(tmp_path / "sent").as_posix() for path in (tmp_path / "sent").rglob("*") if path.is_file()}
    assert sent == {"pyproject.toml", "uv.lock", "README.md", "LICENSE", "src/x/y.py"}


def test_without_a_lock_file_nothing_is_built(engine: Engine, image: str, project: Path, tmp_path: Path) -> None:  # R65
    directory = shutil.copytree(project, tmp_path / "my-server", ignore=shutil.ignore_patterns("uv.lock"))
    done = engine.attempt("build", "--network", "host", "--progress", "plain", directory, timeout_s=120)
    assert done.returncode != 0
    assert "uv.lock" in done.stderr


def test_labels_hold_whatever_was_answered(engine: Engine, render: Renderer, tmp_path: Path) -> None:
    text = (render(preset="full", description=DESCRIPTION, author_name=DESCRIPTION[:90]) / "Dockerfile").read_text()
    (label,) = re.findall(r"^LABEL (?:.*\\\n)*.*\n", text, re.MULTILINE)
    (tmp_path / "Dockerfile").write_text(f"FROM scratch\n{label}")
    identity = engine("build", "--quiet", tmp_path)
    labels = json.loads(engine("image", "inspect", "--format", "{{json .Config.Labels}}", identity))
    assert labels["org.opencontainers.image.description"] == DESCRIPTION
    assert labels["org.opencontainers.image.authors"] == DESCRIPTION[:90]


# ---- How it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["stdio", "supervise"])
async def test_it_serves_a_client_at_its_pipes(engine: Engine, image: str, mode: str) -> None:  # R67, R70
    name = f"trial-{mode}"
    arguments = ["run", "--interactive", "--rm", "--name", name, *HARDENED, *QUICK, image, mode]
    parameters = StdioServerParameters(command="docker", args=arguments, env=engine.environment)
    with anyio.fail_after(60):
        async with Client(parameters, mode="auto") as client:
            result = await client.call_tool("echo", {"text": "hello"})
            assert result.content[0].text == "hello"  # type: ignore[union-attr]
            await anyio.to_thread.run_sync(lambda: engine.until(name, HEALTH, "healthy", within_s=15))
    assert engine.attempt("inspect", name).returncode != 0  # it ends with its client, and leaves nothing behind


def test_it_serves_over_http_those_who_have_a_token(
    server: tuple[str, Caller], report: Callable[[str], None], engine: Engine
) -> None:  # R65, R70
    container, caller = server
    assert caller.call("echo", text="hello") == "hello"
    assert Caller(caller.port).post("echo", text="hello").status_code == 401
    healthy_s = engine.until(container, HEALTH, "healthy", within_s=15)
    memory = engine("stats", "--no-stream", "--format", "{{.MemUsage}}", container)
    report(f"healthy {healthy_s:.1f} s after it was ready, with a check each second; memory {memory}")


def test_a_blocked_loop_makes_it_unhealthy_and_then_it_is_healthy_again(
    engine: Engine, server: tuple[str, Caller], report: Callable[[str], None]
) -> None:  # R66
    container, caller = server
    engine.until(container, HEALTH, "healthy", within_s=15)
    blocked = threading.Thread(target=caller.post, args=("block_the_loop",), kwargs={"seconds": 20})
    blocked.start()
    unhealthy_s = engine.until(container, HEALTH, "unhealthy", within_s=19)
    blocked.join()
    healthy_s = engine.until(container, HEALTH, "healthy", within_s=15)
    said = [one["Output"] for one in json.loads(engine("inspect", "--format", "{{json .State.Health.Log}}", container))]
    report(f"unhealthy after {unhealthy_s:.1f} s, healthy {healthy_s:.1f} s after the end of the call")
    assert any(line.startswith(("unhealthy: ", "Health check exceeded")) for line in said), said


def test_one_that_hangs_for_good_is_started_again(
    engine: Engine, image: str, tokens: tuple[Path, str], report: Callable[[str], None]
) -> None:  # R66, R70
    caller = Caller(free_port(), tokens[1])
    limit = ["--restart", "unless-stopped", "--env", "MY_SERVER_HANG_TIMEOUT_S=2"]
    with engine.container(*HARDENED, *QUICK, *limit, *published(caller.port, tokens[0]), image) as container:
        caller.wait()
        begin = time.monotonic()
        blocked = threading.Thread(target=lambda: _outcome(caller, "block_the_loop", seconds=600))
        blocked.start()
        engine.until(container, "{{.RestartCount}}", "1", within_s=15)
        blocked.join()
        caller.wait()
        report(f"serves again {time.monotonic() - begin:.1f} s after its loop was blocked for good, limit 2 s")
        assert caller.call("echo", text="again") == "again"


def test_a_stop_lets_the_call_in_flight_finish(
    engine: Engine, server: tuple[str, Caller], report: Callable[[str], None]
) -> None:  # R68
    container, caller = server
    answers: list[Any] = []
    call = threading.Thread(target=lambda: answers.append(_outcome(caller, "sleep", seconds=8)))
    call.start()
    until(lambda: caller.is_calling("sleep"))
    begin = time.monotonic()
    stopping = threading.Thread(target=engine, args=("stop", "--time", "20", container))
    stopping.start()
    until(lambda: caller.status("readyz") != 200 or not call.is_alive(), every_s=0.02)
    assert call.is_alive(), "it was ready until the call ended"
    call.join()
    stopping.join()
    report(f"stopped after {time.monotonic() - begin:.1f} s, a call of 8 s included")
    assert answers == ["slept"]
    assert engine("inspect", "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}", container) == "0 false"


def test_the_commands_of_the_readme_run(engine: Engine, image: str, project: Path, tmp_path: Path) -> None:  # R65, R67
    """As they stand there, but for the port, which may be taken, and the network of the builder."""
    directory, port = tmp_path / "my-server", free_port()
    shutil.copytree(project, directory)
    build_it, as_child, secrets, as_service = (
        block.replace("docker build", "docker build --network host").replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        for block in commands(directory, "Container")
    )
    run(build_it, directory, engine.environment, timeout_s=120)
    run(as_child, directory, engine.environment, timeout_s=60)
    run(secrets, directory, engine.environment, timeout_s=60)
    try:
        said = run(as_service, directory, engine.environment, timeout_s=60)
        assert "\nready\n" in said
        assert '"event": "ready"' in said
        assert Caller(port).status("readyz") == 200
    finally:
        engine("rm", "--force", "my-server")


def test_data_outlives_the_container(engine: Engine, render: Renderer, tmp_path: Path) -> None:  # R65
    """A server for one client, whose notes are in a volume: the one directory that it writes to."""
    directory = tmp_path / "keeper"
    render.fresh(directory, preset="stdio", project_name="keeper", api_url="")
    lock(directory)
    image = build(engine, directory, "keeper:trial")
    run = ["run", "--interactive", "--rm", *HARDENED, "--volume", "keeper-trial:/data", image]
    try:
        anyio.run(_save, StdioServerParameters(command="docker", args=run, env=engine.environment))
        anyio.run(_read, StdioServerParameters(command="docker", args=run, env=engine.environment))
    finally:
        engine("volume", "rm", "--force", "keeper-trial")


async def _save(parameters: StdioServerParameters) -> None:
    with anyio.fail_after(60):
        async with Client(parameters, mode="auto") as client:
            saved = await client.call_tool("save_note", {"title": "a", "text": "kept"})
            assert not saved.is_error, saved


async def _read(parameters: StdioServerParameters) -> None:
    with anyio.fail_after(60):
        async with Client(parameters, mode="auto") as client:
            (found,) = (await client.read_resource("notes://a")).contents
            assert found.text == "kept"  # type: ignore[union-attr]


def _outcome(caller: Caller, tool: str, **arguments: object) -> object:
    """Return a call's text, or the kind of its failure."""
    try:
        return caller.call(tool, **arguments)
    except Exception as error:  # noqa: BLE001 - it is what the test looks at
        return type(error).__name__
