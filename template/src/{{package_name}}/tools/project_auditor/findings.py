"""What can be found, how much it weighs, and the form in which it is reported."""

from enum import StrEnum
from typing import NamedTuple


class Severity(StrEnum):
    """How bad it is; the worst first."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Finding(NamedTuple):
    """One finding: what is wrong where. The file is added by whoever looks at several of them."""

    line: int
    rule: str
    text: str


RULES = {
    "syntax-error": Severity.ERROR,
    "merge-conflict": Severity.ERROR,
    "secret": Severity.ERROR,
    "duplicate-definition": Severity.WARNING,
    "mutable-default": Severity.WARNING,
    "swallowed-error": Severity.WARNING,
    "blocking-call": Severity.WARNING,
    "dangerous-call": Severity.WARNING,
    "unreachable": Severity.WARNING,
    "debugging": Severity.WARNING,
    "complexity": Severity.WARNING,
    "long-function": Severity.WARNING,
    "deep-nesting": Severity.WARNING,
    "many-parameters": Severity.WARNING,
    "long-file": Severity.WARNING,
    "dead-import": Severity.WARNING,
    "star-import": Severity.WARNING,
    "todo": Severity.NOTE,
    "missing-types": Severity.NOTE,
    "missing-docstring": Severity.NOTE,
}
"""Every rule, the most important first."""

ORDER = {rule: place for place, rule in enumerate(RULES)}
