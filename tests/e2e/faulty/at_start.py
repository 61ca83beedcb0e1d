"""What goes wrong when a server starts, as a test has planned it; copied into a generated project.

The directory named by FAULTS holds the plan: one word for each life of the server, the last one for all later lives.
Each life leaves a line with its process id in the file `lives`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

STDOUT = 100
"""A copy of the real stdout, such as a careless library may have made."""
_EXIT = "exit-"


def begin() -> str:
    """Note this life, and do what is planned for it, before anything else is imported; returns the plan."""
    if "FAULTS" not in os.environ or sys.argv[1:] == ["supervise"]:
        return "well"
    os.dup2(1, STDOUT)
    directory = Path(os.environ["FAULTS"])
    with (directory / "lives").open("a") as lives:
        lives.write(f"{os.getpid()}\n")
    number = len((directory / "lives").read_text().split())
    plan = (directory / "plan").read_text().split()
    planned = plan[min(number, len(plan)) - 1]
    if planned.startswith(_EXIT):
        os._exit(int(planned.removeprefix(_EXIT)))
    elif planned == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif planned == "prints":
        os.write(1, b"printed by an import\nand half a line without an end" + b"." * 100_000 + b"\n\xff\xfe\x00\n")
    elif planned == "slow":
        time.sleep(2)
    elif planned == "never-answers":
        time.sleep(600)
    return planned


PLANNED = begin()
