"""A small template with a history of releases, and what the tests do with git."""

from __future__ import annotations

import os
import stat
import subprocess
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from mcp_scaffold import pack

if TYPE_CHECKING:
    from pathlib import Path

DATE = "2026-01-02T03:04:05Z"

COPIER_YML = r"""
    _min_copier_version: "9.19.1"
    _subdirectory: template
    _answers_file: .copier-answers.yml
    _exclude:
      - "{% if _copier_operation == 'update' %}/src/*/tools{% endif %}"
      - "{% if license == 'none' %}/LICENSE{% endif %}"

    preset:
      type: str
      help: What kind of server? The preset sets the defaults of the questions below.
      choices: [stdio, http]
      default: stdio
    project_name:
      type: str
      help: What is the server called?
      default: my-server
      validator: >-
        {% if not project_name | regex_search('^[a-z][a-z0-9]*(-[a-z0-9]+)*$') %}"{{ project_name }}" must be lower
        case letters, digits and single hyphens.{% endif %}
    package_name:
      type: str
      when: false
      default: "{{ project_name | replace('-', '_') }}"
    questionnaire:
      type: int
      ask: false
      default: 1
    author_name:
      type: str
      help: Who writes it?
      default: Somebody
    author_email:
      type: str
      help: Which address?
      default: ""
    license:
      type: str
      help: Under which licence?
      choices: {MIT licence: MIT, Apache licence: Apache-2.0, nothing: none}
      default: MIT
    transports:
      type: str
      multiselect: true
      help: How do clients reach it?
      choices: [stdio, http]
      default: "{{ [preset] }}"
      validator: "{% if not transports %}At least one transport is needed.{% endif %}"
    port:
      type: int
      help: Which port?
      default: 8000
      when: "{{ 'http' in transports }}"
"""

FILES = {
    "{{ _copier_conf.answers_file }}.jinja": "{{ _copier_answers | to_nice_yaml }}",
    "pyproject.toml.jinja": """\
        [project]
        name = "{{ project_name }}"
        version = "0.0.1"
        requires-python = ">=3.11"

        [project.scripts]
        {{ project_name }} = "{{ package_name }}:main"
        """,
    "README.md.jinja": "# {{ project_name }}\n\nBy {{ author_name }}.\n",
    "LICENSE": "A licence.\n",
    "limits.txt": "one\ntwo\nthree\nfour\nfive\nsix\nseven\n",
    "retired.txt": "It goes away in 0.2.0.\n",
    "logo.bin": "\0old logo\n",
    "check.sh": "#!/bin/sh\n",
    "src/{{ package_name }}/__init__.py": "",
    "src/{{ package_name }}/core.py": "LIMIT = 1\n\n\ndef main() -> None:\n    pass\n",
    "src/{{ package_name }}/tools/hello.py": 'HELLO = "hello"\n',
}


def write_tree(root: Path, files: dict[str, str]) -> None:
    """Write files given as text by relative path."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), newline="\n")


def git(where: Path, *arguments: str, **env: str) -> str:
    """Run git, as somebody, at a fixed time."""
    identity = {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Test"), ("EMAIL", "test@example.com"), ("DATE", DATE))
    }
    environment = {**os.environ, **identity, **env}
    command = ["git", *arguments]
    result = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def commit_all(where: Path, message: str) -> str:
    """Commit everything; return the commit."""
    git(where, "add", "--all")
    git(where, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(where, "rev-parse", "HEAD")


def set_version(checkout: Path, version: str) -> str:
    """Set the version in the checkout and commit it."""
    write_tree(checkout, {pack.VERSION_FILE: f'"""A package."""\n\n__version__ = "{version}"\n'})
    return commit_all(checkout, f"Version {version}")


def make_history(checkout: Path) -> dict[str, str]:
    """Make a checkout with the releases 0.1.0 and 0.2.0 and the unreleased 0.3.0.dev0; return commits by version."""
    checkout.mkdir(parents=True)
    git(checkout, "init", "--quiet", "--initial-branch=main")
    write_tree(checkout, {".gitattributes": "* text=auto eol=lf\n*.bin -text\n", "README.md": "Not in the bundle.\n"})
    write_tree(checkout, {"copier.yml": COPIER_YML, **{f"template/{name}": text for name, text in FILES.items()}})
    (checkout / "template" / "check.sh").chmod(0o755)
    commits = {version: set_version(checkout, version) for version in ("0.1.0.dev0", "0.1.0", "0.2.0.dev0")}
    template = checkout / "template"
    (template / "retired.txt").unlink()
    write_tree(
        template,
        {
            "limits.txt": FILES["limits.txt"].replace("one", "ONE"),
            "logo.bin": "\0new logo\n",
            "src/{{ package_name }}/core.py": FILES["src/{{ package_name }}/core.py"].replace("1", "2"),
            "src/{{ package_name }}/tools/hello.py": "HELLO = 'from 0.2.0'\n",
            "added.txt": "New in 0.2.0.\n",
        },
    )
    commits["0.2.0"] = set_version(checkout, "0.2.0")
    commits["0.3.0.dev0"] = set_version(checkout, "0.3.0.dev0")
    write_tree(template, {"unreleased.txt": "New in 0.3.0.\n"})
    commit_all(checkout, "Work on 0.3.0")
    return commits


@dataclass(frozen=True)
class Ran:
    """What a run of the command line left: exit code, stdout and stderr."""

    code: int
    out: str
    err: str


def content(root: Path) -> dict[str, bytes]:
    """Every file of a project but git's, with its executable bit."""
    return {
        f"{path.relative_to(root).as_posix()}{' x' if path.stat().st_mode & stat.S_IXUSR else ''}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(root).parts
    }


def recorded(project: Path) -> dict[str, Any]:
    """What the project records of its template and answers."""
    found: dict[str, Any] = yaml.safe_load((project / ".copier-answers.yml").read_text())
    return found
