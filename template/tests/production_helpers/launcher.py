"""Runs the real server, `python -m PACKAGE`, with misbehaving tools added to it.

They are imported at the very moment at which the server imports its own tools, so that everything around them, from the
protection of stdout to the end of the process, is what runs in production.
"""

import os
import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

sys.path[0] = str(Path(__file__).parent.parent)  # what `tests` sees, and not the directory of this file

from production_helpers.project import PACKAGE  # noqa: E402


class AddHostileTools(MetaPathFinder):
    """Wraps `create_server` as soon as the module `app` is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The ordinary specification of `app` with a loader that does one thing more."""
        if fullname != f"{PACKAGE}.app":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_wrap(module: ModuleType) -> None:
            load(module)
            hostile_tools = import_module("production_helpers.hostile_tools")
            module.create_server = hostile_tools.with_hostile_tools(module.create_server)  # type: ignore[attr-defined]

        spec.loader.exec_module = load_and_wrap  # type: ignore[method-assign]
        return spec


if __name__ == "__main__":
    if os.environ.get("HOSTILE_START") == "prints" and "supervise" not in sys.argv:
        print("printed before anything is protected", flush=True)  # noqa: T201
    sys.meta_path.insert(0, AddHostileTools())
    runpy.run_module(PACKAGE, run_name="__main__", alter_sys=True)
