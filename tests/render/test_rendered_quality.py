"""Rendered projects pass their own tools as rendered, become a wheel that runs, and document their true settings."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.render.conftest import Renderer

SETTINGS = """
import json
from my_server.settings import Settings
prefix = Settings.env_prefix
print(json.dumps({
    prefix.upper() + name.upper(): field.get_default(call_default_factory=True)
    for name, field in Settings.model_fields.items()
}, default=lambda value: value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)))
"""

CALL = """
import os
import anyio
from garden.app import create_server
from garden.reliability import load_settings
from garden.settings import Settings
from mcp import Client
from production_helpers.upstream import Upstream

async def main(url):
    os.environ["GARDEN_API_URL"] = url
    async with Client(create_server(load_settings(Settings))) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        result = await client.call_tool("add", {"first": 2, "second": 3})
        print(result.structured_content["result"])
        print((await client.call_tool("page_status", {"path": "a"})).structured_content["status"])
        if "add_in_database" in names:
            result = await client.call_tool("add_in_database", {"first": 2, "second": 3})
            print(result.structured_content["result"])

with Upstream() as upstream:
    anyio.run(main, upstream.url)
"""


EXTREMES = """
from annotated_types import Ge, Gt, Le
from my_server.app import create_server
from my_server.settings import Settings

BESIDE = {
    ("breaker_window_calls", 1): {"breaker_min_calls": 1},
    ("breaker_min_calls", 10_000): {"breaker_window_calls": 10_000},
    ("cache_max_stale_s", 0): {"cache_ttl_s": 0},
    ("memory_hard_limit_mb", 1e-9): {"memory_soft_limit_mb": 1e-9},
    ("cache_ttl_s", 604_800): {"cache_max_stale_s": 604_800},
}
VALUE = {Ge: lambda bound: bound.ge, Gt: lambda bound: bound.gt + 1e-9, Le: lambda bound: bound.le}
tried = 0
for name, field in Settings.model_fields.items():
    for bound in field.metadata:
        if type(bound) in VALUE:
            value = VALUE[type(bound)](bound)
            create_server(Settings.model_validate({name: value, **BESIDE.get((name, value), {})}))
            tried += 1
print(tried)
"""


def test_ruff_finds_nothing_in_any_project(every_pair: list[Path]) -> None:
    run(sys.executable, "-m", "ruff", "check", "--no-cache", *every_pair)
    run(sys.executable, "-m", "ruff", "format", "--check", "--no-cache", *every_pair)


@pytest.mark.parametrize(
    "words",
    [
        {"project_name": "x"},
        {
            "project_name": "long-name" * 5,
            "package_name": "p" * 50,
            "description": "Wörter " * 42,
            "api_url": "https://" + "long-name" * 5 + ".example.com/" + "path" * 30,
        },
        {"description": 'Say "hi", \\n \'x\' {{ 7 * 7 }} # % """ \\', "author_name": 'Ada "C" \\ Lovelace'},
    ],
    ids=["short", "long", "hostile"],
)
def test_ruff_finds_nothing_whatever_the_words_are(render: Renderer, words: dict[str, str]) -> None:
    project = render(preset="full", **words)
    run(sys.executable, "-m", "ruff", "check", "--no-cache", project)
    run(sys.executable, "-m", "ruff", "format", "--check", "--no-cache", project)


def test_strict_mypy_finds_nothing_in_any_project(root: Path, every_pair: list[Path]) -> None:
    """Answers that change no Python file cannot change the verdict: each different source is checked once."""
    different = {fingerprint(project): project for project in every_pair}
    assert len(different) >= 3
    for project in different.values():
        run(sys.executable, "-m", "mypy", "--cache-dir", root / ".mypy_cache" / "rendered", cwd=project)


@pytest.mark.parametrize("preset", ["stdio", "full"])
def test_the_wheel_runs(render: Renderer, preset: str, tmp_path: Path) -> None:
    project = render(preset=preset, author_name='Ada "Countess" Lovelace', author_email="ada@example.com")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, project)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {name.split("/")[0] for name in names} == {"my_server", "my_server-0.1.0.dist-info"}
        assert "my_server/py.typed" in names
        assert "my_server-0.1.0.dist-info/licenses/LICENSE" in names
        (entry,) = re.findall(
            r"^my-server = (.+):(.+)$", archive.read(names[names.index(_entries(names))]).decode(), re.MULTILINE
        )
        archive.extractall(tmp_path / "site")
    assert entry == ("my_server.__main__", "main")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    # What the console script does, word for word.
    script = "import sys; sys.argv[0] = 'my-server'; from my_server.__main__ import main; sys.exit(main())"
    assert run(sys.executable, "-c", script, "--version", env=environment).strip() == "my-server 0.1.0"


def test_the_documented_settings_are_the_real_ones(every_pair: list[Path]) -> None:
    different = {(project / ".env.example").read_bytes(): project for project in every_pair}
    assert len(different) >= 10
    for project in different.values():
        check_documented_settings(project)


@pytest.mark.parametrize("storage", ["sqlite", "postgres"])
def test_every_setting_can_be_as_small_and_as_large_as_it_says(render: Renderer, storage: str) -> None:
    project = render(preset="full", storage=storage)
    assert int(run(sys.executable, "-c", EXTREMES, env={**os.environ, "PYTHONPATH": str(project / "src")})) > 50


def check_documented_settings(project: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(project / "src")}
    real = {
        name: documented(value)
        for name, value in json.loads(run(sys.executable, "-c", SETTINGS, env=environment)).items()
    }
    example = (project / ".env.example").read_text(encoding="utf-8")
    assert dict(re.findall(r"^#(MY_SERVER_\w+)=(.*)$", example, re.MULTILINE)) == real
    readme = (project / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(MY_SERVER_\w+)` \| (?:`(.*?)`)? ?\|", readme, re.MULTILINE)
    assert dict(rows) == real


@pytest.mark.parametrize("storage", ["sqlite", "none"])
def test_the_tools_of_the_readme_work(project: Callable[..., Path], storage: str) -> None:
    directory = project(project_name="garden", storage=storage)
    examples = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == (2 if storage == "none" else 3)
    for example in examples:
        (name,) = re.findall(r"ave this as `(.+?)`", example)
        (directory / name).write_text(example, encoding="utf-8")
    run(sys.executable, "-m", "ruff", "check", "--no-cache", directory)
    run(sys.executable, "-m", "ruff", "format", "--check", "--no-cache", directory)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(directory / "src"), str(directory / "tests")]),
        "GARDEN_DATABASE_PATH": str(directory / "data.db"),
    }
    called = run(sys.executable, "-c", CALL, env=environment)
    assert called.split() == ["5.0", "200", *(["5"] if storage != "none" else [])]


def documented(value: object) -> str:
    """Write a default as a person would write it into the environment."""
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def fingerprint(project: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([*project.rglob("*.py"), *project.glob("*.ini")]):
        digest.update(path.relative_to(project).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _entries(names: list[str]) -> str:
    return next(name for name in names if name.endswith("/entry_points.txt"))


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed; its whole output is the message of a failure."""
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=240
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
