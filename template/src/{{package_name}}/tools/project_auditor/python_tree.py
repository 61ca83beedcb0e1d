"""The syntax tree of a Python file, walked once."""

import ast
import warnings
from collections.abc import Iterator

from .findings import Finding

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef

BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_CLAUSES = (ast.ExceptHandler, ast.Match, ast.match_case)
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.comprehension, ast.match_case)


class Tree:
    """A file that could be parsed. The tree is walked once: that takes longer than to parse it."""

    def __init__(self, module: ast.Module) -> None:
        self.module = module
        self.nodes: list[ast.AST] = [module]
        self._children: dict[ast.AST, list[ast.AST]] = {}
        for node in self.nodes:  # grows on the way
            children = [child for name in node._fields for child in _nodes(getattr(node, name, None))]
            self._children[node] = children
            self.nodes += children
        self.functions = [node for node in self.nodes if isinstance(node, Function)]
        """Methods and nested functions included."""

    def own_nodes(self, scope: ast.AST) -> Iterator[ast.AST]:
        """What is below a node without what belongs to functions and classes within it."""
        waiting = [scope]
        while waiting:
            for node in self._children[waiting.pop()]:
                yield node
                if not isinstance(node, _SCOPES):
                    waiting.append(node)

    def complexity(self, function: Function) -> int:
        """The number of ways through a function (McCabe); functions within it count for themselves."""
        ways = 1
        for node in self.own_nodes(function):
            if isinstance(node, ast.BoolOp):
                ways += len(node.values) - 1
            else:
                ways += isinstance(node, _BRANCHES)
        return ways

    def nesting(self, function: Function) -> Iterator[tuple[int, int]]:
        """The depth and the line of every block in a function."""
        waiting: list[tuple[ast.AST, int]] = [(function, 0)]
        while waiting:
            node, depth = waiting.pop()
            for child in self._children[node]:
                if isinstance(child, BLOCKS):
                    # An `elif` is an `if` in the `else` of another one, and nobody sees it as deeper.
                    is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and [child] == node.orelse
                    inner = depth + (not is_elif)
                    yield inner, child.lineno
                    waiting.append((child, inner))
                elif isinstance(child, _CLAUSES):
                    waiting.append((child, depth))


def _nodes(value: object) -> list[ast.AST]:
    if isinstance(value, ast.AST):
        return [value]
    return [item for item in value if isinstance(item, ast.AST)] if isinstance(value, list) else []


def parse(text: str) -> Tree | Finding:
    """The tree, or what keeps the file from having one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Tree(ast.parse(text))
    except SyntaxError as error:
        return Finding(error.lineno or 1, "syntax-error", error.msg)
    except (ValueError, RecursionError, MemoryError) as error:
        return Finding(1, "syntax-error", f"cannot be parsed: {error}")


def length(function: Function) -> int:
    """Lines of a function, its decorators not included."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


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
