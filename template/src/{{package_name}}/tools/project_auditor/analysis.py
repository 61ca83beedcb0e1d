"""The program that reads and parses the files: `python -m ...analysis TASK DIRECTORY SECONDS`, JSON on stdout.

It runs in a process of its own, because a parser holds Python's lock for as long as a file takes, and may run out of
stack. It needs nothing but the standard library.
"""

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .figures import figures_of
from .files import SourceFile, Sources
from .findings import RULES, Finding, Severity
from .mapping import map_tests
from .patterns import scan
from .python_checks import check
from .python_tree import parse

MAX_FINDINGS_OF_A_RULE = 200


def audit(sources: Sources, look: Callable[[SourceFile], Iterable[Finding]]) -> dict[str, Any]:
    """Every finding of `look` in every file, with what was looked at."""
    files: Counter[str] = Counter()
    lines = 0
    rules: Counter[str] = Counter()
    by_file: Counter[str] = Counter()
    findings: defaultdict[str, list[tuple[str, int, str]]] = defaultdict(list)
    for file in sources:
        files[file.language] += 1
        lines += len(file.lines)
        for line, rule, text in look(file):
            rules[rule] += 1
            by_file[file.name] += RULES[rule] is not Severity.NOTE
            if len(findings[rule]) < MAX_FINDINGS_OF_A_RULE:
                findings[rule].append((file.name, line, text))
    return {
        "files": dict(files.most_common()),
        "lines": lines,
        "skipped": dict(sources.skipped),
        "rules": dict(rules),
        "worst_files": {name: n for name, n in by_file.most_common(8) if n > 1},
        "findings": findings,
    }


def look_closely(file: SourceFile) -> Iterator[Finding]:
    """Python by its syntax tree, everything else by patterns; a line that says `noqa` is left alone."""
    lines = file.lines
    for finding in _look(file):
        if "noqa" not in lines[finding.line - 1 : finding.line][0]:
            yield finding


def _look(file: SourceFile) -> Iterator[Finding]:
    if file.language != "Python":
        yield from scan(file)
        return
    yield from scan(file, by_language=False)
    tree = parse(file.text)
    if isinstance(tree, Finding):
        yield tree
        return
    try:
        yield from check(tree, file)
    except RecursionError:  # a defect of one file must not keep the others from being looked at
        yield Finding(1, "syntax-error", "is nested too deeply to be checked")


def main(task: str, directory: str, seconds: str) -> None:
    """Do one task within its time, and print its answer."""
    sources = Sources(Path(directory), until=time.monotonic() + float(seconds))
    match task:
        case "audit":
            answer: Any = audit(sources, look_closely)
        case "figures":
            answer = {"files": [figures_of(file)._asdict() for file in sources], "skipped": sources.skipped}
        case "tests":
            answer = map_tests(sources) | {"skipped": sources.skipped}
        case _:
            raise SystemExit(f"There is no task {task!r}.")
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
