"""A worker that does what a test says: `child_worker.py PLANS DIRECTORY`.

PLANS is JSON: what the worker of each number does. It writes what it hears to the file NUMBER in the directory, and
asks and shares as soon as there is a file "go".
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

number, listener, link = map(int, os.environ["_MCP_SERVER_WORKER"].split())
plan = json.loads(sys.argv[1]).get(str(number), {})
own = socket.socket(fileno=link)
heard = Path(sys.argv[2], str(number))


saying = threading.Lock()


def say(**message: object) -> None:
    with saying:
        own.sendall(json.dumps(message).encode() + b"\n")


def beat() -> None:
    with suppress(ConnectionError):  # what is said to a parent that is gone
        while True:
            say(kind="state", reason=plan.get("reason", ""))
            time.sleep(0.1)


def note(text: str) -> None:
    with heard.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


if plan.get("ignores_term"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif not plan.get("is_killed_by_term"):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(plan.get("exit_at_end", 0)))
note(f"started {os.getpid()} key {os.environ.get('KEY')}")
if "exits_at_once" in plan:
    os._exit(plan["exits_at_once"])
if "exits_while" in plan and Path(sys.argv[2], plan["exits_while"]).exists():
    os._exit(2)
if plan.get("never_serves"):
    time.sleep(60)
if "babble" in plan:
    own.sendall(b"no json\n[1]\n" + b"x" * 300_000 + b"\n")
say(kind="state", reason=plan.get("reason", ""))
if "exits" in plan:
    os._exit(plan["exits"])
while ("asks" in plan or "shares" in plan) and not Path(sys.argv[2], "go").exists():
    time.sleep(0.005)
is_first = heard.read_text(encoding="utf-8").count("started") == 1
for what in plan.get("asks", []) if is_first or not plan.get("asks_once") else []:
    say(kind="ask", question=len(what), what=what, limit_s=plan.get("limit_s", 5))
if "shares" in plan:
    say(kind="share", body=plan["shares"])
if plan.get("is_silent"):
    time.sleep(60)
threading.Thread(target=beat, daemon=True).start()

with suppress(ConnectionError):
    for line in own.makefile("rb"):
        note(line.decode().strip())
        message = json.loads(line)
        if message["kind"] == "ask" and not plan.get("gives_no_answer"):
            say(kind="answer", question=message["question"], body=f"{message['what']} of {number}")
        if message["kind"] == "ask" and plan.get("dies_when_asked"):
            os._exit(1)
note("orphaned")
