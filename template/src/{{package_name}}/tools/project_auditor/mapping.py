"""Finds the tests of each source file: by names, and in Python by what the tests import."""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from .files import SourceFile
from .python_tree import Tree, parse

UNTESTABLE = {"Configuration", "SQL"}
_TEST_WORDS = re.compile(r"^tests?[_.-]|[_.-](tests?|spec)$|(?<=[a-z])Tests?$")


def map_tests(files: Iterable[SourceFile]) -> dict[str, Any]:
    """Which tests each source file has, which files have none, and which tests belong to no file."""
    sources: dict[str, int] = {}
    tests: dict[str, set[str]] = {}
    for file in files:
        if file.is_test:
            tests[file.name] = set(imported_modules(file))
        elif file.language not in UNTESTABLE and has_code(file):
            sources[file.name] = len(file.lines)
    mapping = _mapping(sources, tests)
    used = {test for found in mapping.values() for test in found}
    unused = [test for test in tests if test not in used]
    return {
        "sources": len(sources),
        "tests": len(tests),
        "mapping": mapping,
        "untested": {name: sources[name] for name in sorted(sources, key=lambda n: -sources[n]) if name not in mapping},
        "orphans": [test for test in unused if _TEST_WORDS.search(PurePosixPath(test).stem)],  # others help tests
    }


def _mapping(sources: Iterable[str], tests: dict[str, set[str]]) -> dict[str, list[str]]:
    tested = _Tested(sources)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for test, modules in sorted(tests.items()):
        for name in tested.by(test, modules):
            found[name].append(test)
    return dict(sorted(found.items()))


def has_code(file: SourceFile) -> bool:
    """Whether there is anything to test; an `__init__.py` often has nothing."""
    if file.language != "Python":
        return True
    tree = parse(file.text)
    return not isinstance(tree, Tree) or bool(tree.functions)


def imported_modules(file: SourceFile) -> Iterator[str]:
    """What a Python file may mean by its imports: `from a import b` is either `a` or `a.b`."""
    tree = parse(file.text) if file.language == "Python" else None
    package = PurePosixPath(file.name).parts[:-1]
    for node in tree.nodes if isinstance(tree, Tree) else ():
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*parents, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


class _Tested:
    """Tells which sources a test is about."""

    def __init__(self, sources: Iterable[str]) -> None:
        self._by_stem: defaultdict[str, list[str]] = defaultdict(list)
        self._by_module: defaultdict[str, list[str]] = defaultdict(list)
        for name in sources:
            path = PurePosixPath(name)
            self._by_stem[path.stem.lower()].append(name)
            parts = path.parts[:-1] if path.stem == "__init__" else path.with_suffix("").parts
            for start in range(len(parts) if path.suffix == ".py" else 0):
                self._by_module[".".join(parts[start:])].append(name)
        for module in sys.stdlib_module_names & self._by_module.keys():  # `import json` means another one
            del self._by_module[module]

    def by(self, test: str, modules: Iterable[str]) -> set[str]:
        """What it imports, and what it is named after; of several files of a name those that it imports."""
        imported = {name for module in modules for name in self._by_module.get(module, ())}
        named = self._named_alike(test)
        return imported | (named & imported or named)

    def _named_alike(self, test: str) -> set[str]:
        """`test_a.py` tests `a.py`; of several files the ones in the most similar place."""
        path = PurePosixPath(test)
        same = self._by_stem.get(_TEST_WORDS.sub("", path.stem).lower(), [])
        likeness = {name: len({*PurePosixPath(name).parts[:-1]} & {*path.parts}) for name in same}
        return {name for name in same if likeness[name] == max(likeness.values())}
