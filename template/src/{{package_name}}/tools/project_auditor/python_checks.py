"""Looks for problems in the syntax tree of a Python file.

Each check is a generator; add one to `CHECKS`, and its rule to `RULES`.
"""

import ast
import itertools
import re
from collections.abc import Callable, Iterator

from .files import SourceFile
from .findings import Finding
from .python_tree import (
    BLOCKS,
    Definition,
    Function,
    Tree,
    called_name,
    dotted,
    length,
    parameters,
    public,
)

MAX_COMPLEXITY = 10
MAX_FUNCTION_LINES = 60
MAX_NESTING = 4
MAX_PARAMETERS = 10

LEAVING = (ast.Return, ast.Raise, ast.Break, ast.Continue)
HOLDERS = (*BLOCKS, ast.FunctionDef, ast.AsyncFunctionDef, ast.ExceptHandler, ast.match_case)
"""What statements can be in, and be left from."""
MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
BLOCKING = {
    "time.sleep": "anyio.sleep",
    "os.system": "run_program",
    **{f"subprocess.{name}": "run_program" for name in ("run", "call", "check_call", "check_output")},
    "urllib.request.urlopen": "an asynchronous client",
    **{f"requests.{name}": "an asynchronous client" for name in ("get", "post", "put", "patch", "delete", "request")},
}
DANGEROUS = {
    "eval": "runs whatever the text says",
    "exec": "runs whatever the text says",
    "os.system": "gives its text to a shell",
    "pickle.load": "runs whatever the data says",
    "pickle.loads": "runs whatever the data says",
    "yaml.unsafe_load": "runs whatever the text says",
    "tempfile.mktemp": "lets somebody else create the file first",
}
DEBUGGING = {"breakpoint", "pdb.set_trace", "ipdb.set_trace"}
LOGGING = {"exception", "error", "warning", "critical", "print_exc", "format_exc"}

_QUOTED_TYPE = re.compile(r"[\w\[\]., |]{1,200}")


def check(tree: Tree, file: SourceFile) -> Iterator[Finding]:
    """Everything that is found. Tests need neither docstrings nor types; an `__init__.py` imports for others."""
    for look in CHECKS if file.is_test else CHECKS + DOCUMENTATION_CHECKS:
        if look is not dead_imports or not file.name.endswith("__init__.py"):
            yield from look(tree)


def large_functions(tree: Tree) -> Iterator[Finding]:
    """Functions that are too much to hold in mind."""
    for function in tree.functions:
        line, name = function.lineno, f"{function.name}()"
        if (ways := tree.complexity(function)) > MAX_COMPLEXITY:
            yield Finding(line, "complexity", f"{name} has {ways} ways through it")
        if (lines := length(function)) > MAX_FUNCTION_LINES:
            yield Finding(line, "long-function", f"{name} has {lines} lines")
        if (taken := len(parameters(function))) > MAX_PARAMETERS:
            yield Finding(line, "many-parameters", f"{name} takes {taken} parameters")
        deepest, at = max(tree.nesting(function), default=(0, 0))
        if deepest > MAX_NESTING:
            yield Finding(at, "deep-nesting", f"{name} is nested {deepest} blocks deep")


def mutable_defaults(tree: Tree) -> Iterator[Finding]:
    """Defaults that one call changes for all later ones."""
    for function in tree.functions:
        for default in filter(None, [*function.args.defaults, *function.args.kw_defaults]):
            if isinstance(default, MUTABLE) or called_name(default) in {"list", "dict", "set", "bytearray"}:
                text = f"all calls of {function.name}() share the default `{ast.unparse(default)[:40]}`"
                yield Finding(default.lineno, "mutable-default", text)


def swallowed_errors(tree: Tree) -> Iterator[Finding]:
    """Handlers that catch everything and neither raise, log nor look at it."""
    for node in tree.nodes:
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _is_handled(node):
            caught = f"except {ast.unparse(node.type)}" if node.type else "except:"
            yield Finding(node.lineno, "swallowed-error", f"`{caught}` hides every error, programming errors included")


def _is_broad(caught: ast.expr | None) -> bool:
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(name is None or dotted(name) in {"Exception", "BaseException"} for name in names)


def _is_handled(handler: ast.ExceptHandler) -> bool:
    nodes = [node for statement in handler.body for node in ast.walk(statement)]
    return any(
        isinstance(node, ast.Raise)
        or (isinstance(node, ast.Name) and node.id == handler.name)
        or called_name(node).rpartition(".")[2] in LOGGING
        for node in nodes
    )


def risky_calls(tree: Tree) -> Iterator[Finding]:
    """Calls that run text or data as a program, and breakpoints."""
    for node in tree.nodes:
        if isinstance(node, ast.Call) and (name := dotted(node.func)):
            if why := DANGEROUS.get(name):
                yield Finding(node.lineno, "dangerous-call", f"{name}() {why}")
            if any(keyword.arg == "shell" and ast.unparse(keyword.value) == "True" for keyword in node.keywords):
                yield Finding(node.lineno, "dangerous-call", f"{name}(shell=True) gives its text to a shell")
            if name in DEBUGGING:
                yield Finding(node.lineno, "debugging", f"{name}() stops the program")


def blocking_calls(tree: Tree) -> Iterator[Finding]:
    """Calls in asynchronous functions during which nothing else can go on."""
    for function in tree.functions:
        for node in tree.own_nodes(function) if isinstance(function, ast.AsyncFunctionDef) else ():
            if isinstance(node, ast.Call) and (instead := BLOCKING.get(dotted(node.func))):
                text = f"{dotted(node.func)}() in `async def {function.name}` stops the event loop; use {instead}"
                yield Finding(node.lineno, "blocking-call", text)


def unreachable_code(tree: Tree) -> Iterator[Finding]:
    """Statements after one that leaves the block."""
    holders = (node for node in tree.nodes if isinstance(node, HOLDERS))
    blocks = (getattr(holder, name, []) for holder in holders for name in ("body", "orelse", "finalbody"))
    for statement, following in itertools.chain.from_iterable(map(itertools.pairwise, blocks)):
        if isinstance(statement, LEAVING):
            yield Finding(following.lineno, "unreachable", "nothing gets here")


def duplicate_definitions(tree: Tree) -> Iterator[Finding]:
    """Functions and classes that a later one of the same name replaces."""
    for scope in (node for node in tree.nodes if isinstance(node, ast.Module | ast.ClassDef)):
        seen: dict[str, int] = {}
        for node in scope.body:
            if isinstance(node, Definition) and not node.decorator_list:  # a decorator may keep both
                if node.name in seen:
                    text = f"{node.name} replaces the one of line {seen[node.name]}"
                    yield Finding(node.lineno, "duplicate-definition", text)
                seen[node.name] = node.lineno


def star_imports(tree: Tree) -> Iterator[Finding]:
    """Imports that do not say what they bring."""
    for node in tree.nodes:
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            yield Finding(node.lineno, "star-import", f"`{ast.unparse(node)}`")


def dead_imports(tree: Tree) -> Iterator[Finding]:
    """Imports that nothing uses. `import x as x` says that it is on purpose."""
    used = set(_used_names(tree))
    for node in tree.nodes:
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                if name not in used and alias.asname != alias.name and name != "*":
                    yield Finding(node.lineno, "dead-import", f"{name} is not used")


def _used_names(tree: Tree) -> Iterator[str]:
    """Names that are read, those in quoted types and in `__all__` included."""
    for node in tree.nodes:
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _QUOTED_TYPE.fullmatch(node.value):
            yield from re.findall(r"\w+", node.value)


def missing_docstrings(tree: Tree) -> Iterator[Finding]:
    """Public things that do not say what they are for."""
    if tree.module.body and not ast.get_docstring(tree.module, clean=False):
        yield Finding(1, "missing-docstring", "the module")
    for node in public(tree.module):
        if not ast.get_docstring(node, clean=False):
            yield Finding(node.lineno, "missing-docstring", node.name)


def missing_types(tree: Tree) -> Iterator[Finding]:
    """Public functions of which the caller has to guess what they take and return."""
    for node in public(tree.module):
        if isinstance(node, Function):
            untyped = [parameter.arg for parameter in parameters(node) if parameter.annotation is None]
            if node.returns is None and node.name != "__init__":
                untyped.append("what it returns")
            if untyped:
                yield Finding(node.lineno, "missing-types", f"{node.name}(): {', '.join(untyped[:5])}")


Check = Callable[[Tree], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    large_functions,
    mutable_defaults,
    swallowed_errors,
    risky_calls,
    blocking_calls,
    unreachable_code,
    duplicate_definitions,
    star_imports,
    dead_imports,
)
DOCUMENTATION_CHECKS: tuple[Check, ...] = (missing_docstrings, missing_types)
