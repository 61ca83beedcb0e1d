"""How many deliberate mistakes in the reliability core do its tests notice? `python3 tests/mutation.py [MODULE ...]`.

Runs mutmut over a copy in a temporary directory, without arguments over every module below (about an hour and a half
on two cores), and shows the mutants that survived. Needs mutmut beside the `test` extra.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "template" / "src" / "{{package_name}}" / "reliability"

TESTS = {
    "circuit_breaker": ["circuit_breaker*"],
    "circuit_breaker_config": ["circuit_breaker*"],
    "sliding_window": ["sliding_window", "circuit_breaker*"],
    "dependency": ["dependency", "fault_table"],
    "dependency_group": ["dependency"],
    "retry": ["retry*", "dependency"],
    "load_shedding": ["load_shedding", "bulkhead_model"],
    "chaos": ["chaos"],
    "bounds": ["bounds"],
    "deadlines": ["deadlines"],
    "metrics": ["metrics"],
    "single_flight": ["single_flight", "cache*"],
    "cache": ["cache", "cache_model"],
    "cache_store": ["cache_store"],
    "answer_cache": ["answer_cache", "fallback*"],
    "provenance": ["answer_cache", "fallback*"],
    "fallback": ["fallback*"],
    "pool": ["pool*"],
    "allowed_hosts": ["allowed_hosts"],
    "memory_limit": ["memory_limit"],
    "service_notify": ["service_notify"],
    "restart_policy": ["restart_policy"],
    "rpc_lines": ["rpc_lines"],
    "supervisor_session": ["supervisor_session*"],
    "session_memory": ["session_memory", "supervisor_session"],
    "server_questions": ["server_questions", "supervisor_session"],
    "waiting_lines": ["waiting_lines", "supervisor_session"],
}
"""The tests in `tests/unit` that are run for each module."""

CONFTEST = """
from hypothesis import Phase, settings

settings.register_profile("mutation", phases=[Phase.explicit, Phase.generate], database=None)
settings.load_profile("mutation")
"""
"""The first example that fails is enough: making it small would take longer than everything else."""


def main(modules: list[str]) -> int:
    """Mutate the named modules, all of them without a name; 2 for a name that is not in the list."""
    unknown = sorted(set(modules) - TESTS.keys())
    if unknown:
        print(f"There is no list of tests for {', '.join(unknown)}; choose from {', '.join(TESTS)}.", file=sys.stderr)
        return 2
    for module in modules or TESTS:
        with tempfile.TemporaryDirectory(prefix="mutation-") as directory:
            mutate(module, Path(directory))
    return 0


def mutate(module: str, directory: Path) -> None:
    """Run mutmut over one module in `directory`, and print what survived."""
    ignore = shutil.ignore_patterns("__pycache__", ".*_cache")
    shutil.copytree(PACKAGE, directory / "reliability", ignore=ignore)
    shutil.copytree(ROOT / "tests" / "unit", directory / "tests" / "unit", ignore=ignore)
    (directory / "tests" / "conftest.py").write_text(CONFTEST)  # ours looks for the template
    unit = directory / "tests" / "unit"
    files = sorted({str(p.relative_to(directory)) for name in TESTS[module] for p in unit.glob(f"test_{name}.py")})
    (directory / "pyproject.toml").write_text(
        f"""
[tool.mutmut]
source_paths = ["reliability"]
only_mutate = ["reliability/{module}.py"]
also_copy = ["tests"]
pytest_add_cli_args_test_selection = {json.dumps(files)}
pytest_add_cli_args = ["-q", "-x", "-p", "no:cacheprovider", "--timeout=60"]

[tool.pytest.ini_options]
addopts = "--import-mode=importlib"
pythonpath = ["."]
"""
    )
    print(f"== {module}", flush=True)
    mutmut = partial(run_mutmut, directory)
    mutmut("run")
    results = mutmut("results", stdout=subprocess.PIPE).stdout
    for name in re.findall(r"(\S+): survived", results):
        mutmut("show", name)


def run_mutmut(directory: Path, *arguments: str, stdout: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of mutmut."""
    return subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments], cwd=directory, stdout=stdout, text=True, check=False
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
