"""The syntax tree of a Python file, walked once."""

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from .findings import Finding

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.comprehension, ast.match_case)


@dataclass(frozen=True)
class Tree:
    """A file that could be parsed."""

    module: ast.Module
    nodes: list[ast.AST]
    functions: list[Function]
    """Methods and nested functions included."""


def parse(text: str) -> Tree | Finding:
    """The tree, or what keeps the file from having one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(text)
    except SyntaxError as error:
        return Finding(error.lineno or 1, "syntax-error", error.msg)
    except (ValueError, RecursionError, MemoryError) as error:
        return Finding(1, "syntax-error", f"cannot be parsed: {error}")
    nodes = list(ast.walk(module))
    return Tree(module, nodes, [node for node in nodes if isinstance(node, Function)])


def complexity(function: Function) -> int:
    """The number of ways through a function (McCabe); functions within it count for themselves."""
    nodes = list(own_nodes(function))
    operators = sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))
    return 1 + operators + sum(isinstance(node, _BRANCHES) for node in nodes)


def length(function: Function) -> int:
    """Lines of a function, its decorators not included."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def nesting(node: ast.AST, depth: int = 0) -> Iterator[tuple[int, int]]:
    """The depth and the line of every block in a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _BLOCKS):
            # An `elif` is an `if` in the `else` of another one, and nobody sees it as deeper.
            is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and [child] == node.orelse
            inner = depth + (not is_elif)
            yield inner, child.lineno
            yield from nesting(child, inner)
        elif not isinstance(child, _SCOPES):
            yield from nesting(child, depth)


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """What is below a node without what belongs to functions and classes within it."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, _SCOPES):
            yield from own_nodes(node)


def parameters(function: Function) -> list[ast.arg]:
    """Every parameter but `self` and `cls`."""
    of = function.args
    found = [*of.posonlyargs, *of.args, of.vararg, *of.kwonlyargs, of.kwarg]
    return [parameter for parameter in found if parameter and parameter.arg not in ("self", "cls")]


def public(scope: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """Functions and classes that others may use, with the methods of the latter."""
    for node in scope.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def called_name(node: ast.AST) -> str:
    """`a.b` for a call of `a.b()`, empty for everything else."""
    return dotted(node.func) if isinstance(node, ast.Call) else ""


def dotted(node: ast.expr | None) -> str:
    """`a.b.c` for names and attributes of names, empty for everything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
