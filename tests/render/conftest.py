"""Rendering for tests: by Copier's public API, without `unsafe`, once for each set of answers."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import copier
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Every question that changes which files exist or what is in them, with all values; client files do not depend on each
# other. (The preset changes no file by itself: a test says so.)
OPTIONS: dict[str, list[Any]] = {
    "license": ["MIT", "Apache-2.0", "BSD-3-Clause", "none"],
    "transports": [["stdio"], ["http"], ["stdio", "http"]],
    "watchdog": [True, False],
    "storage": ["none", "sqlite", "postgres"],
    "api_url": ["", "https://api.example.com/v1"],
    "examples": [[], ["notes"], ["api-debugger"], ["project-auditor"]],
    "metrics": [[], ["prometheus"], ["prometheus", "grafana"]],
    "authentication": ["none", "token", "oauth"],
    "deployment": [
        [],
        ["container"],
        ["container", "compose"],
        ["container", "kubernetes", "pm2"],
        ["systemd", "supervisord"],
    ],
    "clients": [[], ["claude-code", "cursor"], ["vscode"]],
    "ci": ["github", "gitlab", "none"],
    "author_email": ["", "someone@example.com"],
}
# Combinations that a question refuses; `test_questions.py` says why.
IMPOSSIBLE: list[dict[str, Any]] = [
    {"transports": ["stdio"], name: value}
    for name, values in [
        ("metrics", OPTIONS["metrics"][1:]),
        ("authentication", ["token", "oauth"]),
        ("deployment", OPTIONS["deployment"][2:]),
    ]
    for value in values
]

_LEFT_BEHIND = shutil.ignore_patterns("__pycache__", ".*_cache", ".DS_Store")


class Renderer:
    """Renders a template directory, each set of answers once."""

    def __init__(self, template: Path, target: Path) -> None:
        self._template = template
        self._target = target
        self._done: dict[str, Path] = {}

    def __call__(self, **answers: Any) -> Path:
        """Return the project for these answers. It is shared: copy it before changing it."""
        key = json.dumps(answers, sort_keys=True)
        if key not in self._done:
            destination = self._target / f"project-{len(self._done)}"
            self.fresh(destination, **answers)
            self._done[key] = destination
        return self._done[key]

    def fresh(self, destination: Path, **answers: Any) -> None:
        """Render into a directory of the caller's."""
        copier.run_copy(
            str(self._template),
            destination,
            data=answers,
            defaults=True,
            overwrite=True,
            quiet=True,
            settings=copier.Settings(),
        )


@pytest.fixture(autouse=True)
def no_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared projects stay as they were rendered, also when their code is run."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


@pytest.fixture(scope="session")
def template(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the template out of the checkout: without git, Copier renders what is there, and not the latest tag."""
    directory = tmp_path_factory.mktemp("template")
    copy_template(root, directory)
    return directory


@pytest.fixture(scope="session")
def render(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    """Return the cached renderer."""
    return Renderer(template, tmp_path_factory.mktemp("rendered"))


@pytest.fixture
def project(render: Renderer, tmp_path: Path) -> Callable[..., Path]:
    """Render into a copy that the test may change."""
    numbers = itertools.count()

    def copy(**answers: Any) -> Path:
        return Path(shutil.copytree(render(**answers), tmp_path / f"copy-{next(numbers)}"))

    return copy


@pytest.fixture(scope="session")
def every_pair(render: Renderer) -> list[Path]:
    """Render a set of projects in which every value of every option meets every value of every other one."""
    return [render(**answers) for answers in pairs(OPTIONS, IMPOSSIBLE)]


def copy_template(root: Path, directory: Path) -> None:
    """Copy what makes up the template, and nothing that tools left behind in it."""
    shutil.copy(root / "copier.yml", directory)
    shutil.copytree(root / "template", directory / "template", ignore=_LEFT_BEHIND)


_Place = tuple[str, int]
"""An option and the index of one of its values."""


def pairs(options: dict[str, list[Any]], impossible: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield few sets of answers that hold every possible pair of values (a greedy covering array, always the same)."""
    places = [(name, index) for name, values in options.items() for index in range(len(values))]
    refused = {frozenset((name, options[name].index(value)) for name, value in pair.items()) for pair in impossible}
    missing = {frozenset(pair) for pair in itertools.combinations(places, 2) if pair[0][0] != pair[1][0]} - refused
    while missing:
        row = dict(min(missing, key=sorted))
        for name, values in options.items():
            if name not in row:
                row[name] = max(range(len(values)), key=lambda i: _gain((name, i), row, missing, refused))
        missing -= {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
        yield {name: options[name][row[name]] for name in options}


def _gain(place: _Place, row: dict[str, int], missing: set[frozenset[_Place]], refused: set[frozenset[_Place]]) -> int:
    new = [frozenset([place, other]) for other in row.items()]
    return -1 if refused.intersection(new) else len(missing.intersection(new))
