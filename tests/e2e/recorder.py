"""Stands between a client and a server and keeps each line, the client's after a "<": `recorder.py FILE COMMAND...`."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import IO


def pass_on(source: IO[bytes], target: IO[bytes], mark: bytes) -> None:
    for line in source:
        with LOCK:
            RECORD.write(mark + line)
        target.write(line)
        target.flush()
    target.close()


LOCK = threading.Lock()
with (
    Path(sys.argv[1]).open("wb", buffering=0) as RECORD,
    subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server,
):
    assert server.stdin is not None
    assert server.stdout is not None
    threading.Thread(target=pass_on, args=(sys.stdin.buffer, server.stdin, b"<"), daemon=True).start()
    pass_on(server.stdout, sys.stdout.buffer, b">")
sys.exit(server.returncode)
