"""Counts what a source file is made of."""

import re
from typing import NamedTuple

from .files import SourceFile
from .python_tree import Tree, length, parse

_COMMENT = re.compile(r"\s*(#|//|/?\*|--|<!--)")
_DEFINITION = re.compile(r"\b(function|func|fn|def|sub)\s+\w+|=>\s*\{?\s*$|^\s*(public|private|protected)\b.*\)\s*\{")


class Figures(NamedTuple):
    """What one file is made of. Of Python the tree is counted; of other languages what looks like a function is."""

    file: str
    language: str
    lines: int
    code: int
    comments: int
    functions: int
    longest_function: int
    complexity: int
    """Of the most complex function; 0 where that is not known."""


def figures_of(file: SourceFile) -> Figures:
    """Count one file."""
    lines = [line for line in file.lines if line.strip()]
    comments = sum(bool(_COMMENT.match(line)) for line in lines)
    tree = parse(file.text) if file.language == "Python" else None
    if isinstance(tree, Tree):
        longest, ways = (max(map(measure, tree.functions), default=0) for measure in (length, tree.complexity))
        counted = len(tree.functions), longest, ways
    else:
        counted = sum(bool(_DEFINITION.search(line)) for line in lines), 0, 0
    return Figures(file.name, file.language, len(file.lines), len(lines) - comments, comments, *counted)
