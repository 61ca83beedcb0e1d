"""Finds the source files below a directory: bounded, and never through a symbolic link."""

import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

MAX_FILES = 5_000
MAX_FILE_BYTES = 400_000
MAX_TOTAL_BYTES = 40_000_000
MAX_DEPTH = 24
MAX_LINE_CHARACTERS = 5_000
"""Longer lines are written by programs, not by people."""

LANGUAGES = {
    "Python": (".py", ".pyi"),
    "JavaScript": (".js", ".jsx", ".mjs", ".cjs"),
    "TypeScript": (".ts", ".tsx", ".mts"),
    "Java": (".java",),
    "Kotlin": (".kt", ".kts"),
    "Go": (".go",),
    "Rust": (".rs",),
    "C and C++": (".c", ".h", ".cc", ".cpp", ".hpp"),
    "C#": (".cs",),
    "Ruby": (".rb",),
    "PHP": (".php",),
    "Swift": (".swift",),
    "Shell": (".sh", ".bash"),
    "SQL": (".sql",),
    "Configuration": (".toml", ".yaml", ".yml", ".ini", ".cfg"),
}
LANGUAGE_OF = {suffix: language for language, suffixes in LANGUAGES.items() for suffix in suffixes}
IGNORED_DIRECTORIES = {
    *("node_modules", "bower_components", "vendor", "site-packages", "__pycache__"),
    *("build", "dist", "target", "htmlcov"),
}


@dataclass(frozen=True)
class SourceFile:
    """A file: its name is relative to the directory that was asked for, with `/` on every system."""

    name: str
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Its lines; unlike `str.splitlines`, as editors count them."""
        return self.text.removesuffix("\n").split("\n") if self.text else []

    @property
    def is_test(self) -> bool:
        """Whether its name or its directory says that it is a test."""
        path = PurePosixPath(self.name)
        words = path.stem.lower().replace("-", "_").replace(".", "_").split("_")
        return bool(
            {"test", "tests", "spec", "conftest"} & {words[0], words[-1]}
            or {"test", "tests", "spec", "__tests__"} & set(path.parts[:-1])
            or path.stem.endswith(("Test", "Tests"))
        )


@dataclass
class Sources:
    """The files below `root`. Iterating reads them, one after the other, and counts what is left out, and why.

    It ends early at `until`, in seconds of `time.monotonic`.
    """

    root: Path
    until: float = math.inf
    skipped: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[SourceFile]:
        left = MAX_TOTAL_BYTES
        for number, path in enumerate(self._paths()):
            if number >= MAX_FILES or left <= 0 or time.monotonic() > self.until:
                self.skipped["beyond the limit of files, bytes or time"] += 1
            elif text := self._read(path):
                left -= len(text)
                name = path.relative_to(self.root).as_posix() if path != self.root else path.name
                name = name.encode(errors="replace").decode()  # a name may be no text
                yield SourceFile(name, LANGUAGE_OF[path.suffix.lower()], text)

    def _paths(self) -> Iterator[Path]:
        if self.root.is_file():
            yield self.root
            return
        for directory, directories, names in os.walk(self.root):  # does not follow links
            here = Path(directory)
            deep = len(here.relative_to(self.root).parts) >= MAX_DEPTH
            directories[:] = [] if deep else sorted(d for d in directories if self._is_wanted(here / d))
            yield from (here / n for n in sorted(names) if Path(n).suffix.lower() in LANGUAGE_OF)

    def _is_wanted(self, directory: Path) -> bool:
        return (
            not directory.name.startswith(".")
            and directory.name not in IGNORED_DIRECTORIES
            and not (directory / "pyvenv.cfg").exists()
        )

    def _read(self, path: Path) -> str | None:
        """The text of a file, or None, with the reason counted."""
        try:
            if path.is_symlink() or not path.is_file():
                why = "not an ordinary file"
            elif path.stat().st_size > MAX_FILE_BYTES:
                why = f"larger than {MAX_FILE_BYTES:,} bytes"
            else:
                text = path.read_text(encoding="utf-8-sig")
                if max(map(len, text.split("\n"))) <= MAX_LINE_CHARACTERS:
                    return text
                why = "generated or minified"
        except (OSError, UnicodeDecodeError):
            why = "unreadable, or not UTF-8"
        self.skipped[why] += 1
        return None
