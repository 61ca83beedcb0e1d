"""Looks for problems with regular expressions: in every language, and in Python when its syntax tree is not to be had.

Every repetition in a pattern is bounded or anchored, so that its time is linear in the length of the text.
"""

import re
from collections.abc import Iterator

from .files import SourceFile
from .findings import Finding

MAX_FILE_LINES = 800

EVERYWHERE = [
    ("merge-conflict", r"^[<>]{7} .{0,60}"),
    ("secret", r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----"),
    ("secret", r"(AKIA[0-9A-Z]{16}|gh[pousr]_\w{36,}|glpat-[\w-]{20,}|xox[abps]-[\w-]{20,})"),
    ("todo", r"(#|//|/\*|--|<!--)[ \t]{0,3}(TODO|FIXME|HACK|XXX)\b.{0,80}"),
]
_EMPTY_CATCH = ("swallowed-error", r"\bcatch\s{0,5}(\([^)\n]{0,80}\)\s{0,5})?\{\s{0,80}\}")
_SCRIPT = [
    _EMPTY_CATCH,
    ("dangerous-call", r"(?<![\w.])eval\(|\bnew Function\(|\.innerHTML\s{0,3}=(?!=)"),
    ("debugging", r"^[ \t]*debugger;?[ \t]*$"),
]
BY_LANGUAGE = {
    "Python": [
        ("swallowed-error", r"^[ \t]*except([ \t]+(Base)?Exception)?([ \t]+as[ \t]+\w+)?:\s{0,80}pass\b"),
        ("mutable-default", r"^[ \t]*(async[ \t]+)?def[ \t].{0,200}=[ \t]?(\[\]|\{\}|(list|dict|set)\(\))"),
        ("star-import", r"^from[ \t]+\S+[ \t]+import[ \t]+\*"),
        ("dangerous-call", r"(?<![\w.])(eval|exec|os\.system|pickle\.loads?)\("),
        ("debugging", r"breakpoint\(\)|pdb\.set_trace\(\)"),
    ],
    "JavaScript": _SCRIPT,
    "TypeScript": _SCRIPT,
    "Java": [_EMPTY_CATCH],
    "Kotlin": [_EMPTY_CATCH],
    "C#": [_EMPTY_CATCH],
    "Shell": [("dangerous-call", r"^[ \t]*eval[ \t]|\bcurl\b[^|\n]{0,200}\|[ \t]*(ba)?sh\b")],
}


_ASSIGNED = re.compile(r"[:=][ \t]{0,3}['\"][\w+/=.-]{16,}['\"]")
_SECRET_NAME = re.compile(r"(password|passwd|secret|api_?key|token)['\"]?[ \t]{0,3}$", re.IGNORECASE)


def scan(file: SourceFile, *, by_language: bool = True) -> Iterator[Finding]:
    """Everything that is found in a file; without `by_language` only what a syntax tree does not show."""
    if (lines := len(file.lines)) > MAX_FILE_LINES:
        yield Finding(1, "long-file", f"{lines} lines")
    for rule, pattern in EVERYWHERE + (BY_LANGUAGE.get(file.language, []) if by_language else []):
        for found in re.finditer(pattern, file.text, re.MULTILINE):
            shown = "what looks like a credential" if rule == "secret" else f"`{' '.join(found[0].split())}`"
            yield Finding(_line(file, found), rule, shown)
    for found in _ASSIGNED.finditer(file.text):  # the name before it is looked at last: that is five times as fast
        if _SECRET_NAME.search(file.text[max(0, found.start() - 40) : found.start()]):
            yield Finding(_line(file, found), "secret", "what looks like a credential")


def _line(file: SourceFile, found: re.Match[str]) -> int:
    return file.text.count("\n", 0, found.start()) + 1
