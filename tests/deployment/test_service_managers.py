"""systemd, supervisord and PM2, which really run a server with the files of a project: rules R68 to R70.

systemd is the first process of a machine within this one, where the commands of the README are run as they stand.
supervisord and PM2 need no root; their tests change the paths of the files alone, and numbers that are made for years.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xmlrpc.client
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx2
import psutil
import pytest
from reliability.service_notify import _WATCHDOGS_PER_LIMIT
from reliability.shutdown import CLEANUP_S

from tests.deployment.callers import Caller, free_port, until
from tests.deployment.conftest import TRIALS, lock
from tests.deployment.machine import Machine, install_systemd, machine
from tests.deployment.readme import commands, run
from tests.deployment.stand_ins import registry_settings
from tests.support_npm import installed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.render.conftest import Renderer
    from tests.support_npm import Node

if sys.platform == "win32":
    pytest.skip("these service managers are not Windows'", allow_module_level=True)

LIMIT_S = 40
INSTALL_S = 240
PRESETS: list[dict[str, Any]] = [
    {"preset": "full"},
    {"preset": "http", "deployment": ["systemd", "supervisord", "pm2"]},
    {"preset": "http", "deployment": ["systemd", "supervisord", "pm2"], "storage": "sqlite", "authentication": "none"},
]
UNIT = "/etc/systemd/system/my-server.service"
UV = {"UV_LINK_MODE": "copy", "UV_PYTHON_DOWNLOADS": "never"}
EXPOSURE = 3.0
"""What `systemd-analyze security` may find, of 10."""
SCRIPT = """\
#!{python}
import sys

sys.path.insert(0, {source!r})
from my_server.__main__ import main

main()
"""
"""The console script of an environment that borrows the dependencies of this one."""


NOTES = """\
import sqlite3
print(sqlite3.connect("/var/lib/my-server/data.db").execute("SELECT text FROM notes").fetchall())
"""


class Manager(Protocol):
    """What runs the server."""

    caller: Caller

    def change(self, old: str, new: str) -> None:
        """Change the file that says how the server is run."""

    def start(self, **settings: object) -> None:
        """Start the server with these settings, without waiting for it."""

    def stop(self) -> None:
        """Stop the server, and wait for its end."""

    def pid(self) -> int:
        """Return the server's number as the manager knows it; 0 while there is none."""

    def starts(self) -> int:
        """Return how often the server was started."""

    def signal(self, number: int) -> None:
        """Send a signal to the server's first process."""

    def is_given_up(self) -> bool:
        """Whether the server has ended, and will not be started again."""

    def log(self) -> list[dict[str, Any]]:
        """Return what the server has logged."""

    def stray(self) -> str:
        """Return what the server has written beside its log."""


# ---- supervisord ----------------------------------------------------------------------------------------------------

MAIN = """\
[supervisord]
nodaemon=true
logfile={directory}/supervisord.log
pidfile={directory}/supervisord.pid

[unix_http_server]
file={directory}/socket

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{directory}/socket

[include]
files={directory}/program.conf
"""


class Supervisord:
    """supervisord, in the foreground."""

    def __init__(self, project: Path, token: str, directory: Path) -> None:
        self.caller = Caller(free_port(), token)
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._text = (project / "deploy/supervisord/my-server.conf").read_text()
        self.change("/opt/my-server", str(project))
        self.change("/var/lib/my-server", str(directory))
        self.change("/var/log/my-server", str(directory))
        self.change("/etc/my-server", str(project / "secrets"))
        self.change("user=my-server", f"user={psutil.Process().username()}")
        self.change("startsecs=10", "startsecs=1")
        self.change("startretries=10", "startretries=1")
        (directory / "main.conf").write_text(MAIN.format(directory=directory))

    def change(self, old: str, new: str) -> None:
        assert old in self._text, old
        self._text = self._text.replace(old, new)

    def start(self, **settings: object) -> None:
        lines = "".join(f'    MY_SERVER_{name}="{value}",\n' for name, value in settings.items())
        text = self._text.replace("environment=\n", f"environment=\n{lines}")
        (self._directory / "program.conf").write_text(text)
        self._process = subprocess.Popen(
            [_program("supervisord"), "--configuration", self._directory / "main.conf"],
            env={**_environment(HTTP_PORT=self.caller.port), "PATH": _path()},  # there it finds memmon
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        self._ask().stopProcess("my-server")

    def _ask(self) -> Any:
        from supervisor.xmlrpc import SupervisorTransport  # here, because Windows has none

        transport = SupervisorTransport(serverurl=f"unix://{self._directory}/socket")
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def pid(self) -> int:
        return int(self._ask().getProcessInfo("my-server")["pid"])

    def starts(self) -> int:
        return (self._directory / "supervisord.log").read_text().count("spawned: 'my-server'")

    def signal(self, number: int) -> None:
        os.kill(self.pid(), number)

    def is_running(self) -> bool:
        """Whether the server counts as started; one that ends sooner for a second time is given up."""
        return self._is("RUNNING")

    def is_given_up(self) -> bool:
        return self._is("FATAL", "EXITED", "STOPPED")

    def _is(self, *states: str) -> bool:
        with contextlib.suppress(OSError):  # it has hardly begun
            return self._ask().getProcessInfo("my-server")["statename"] in states
        return False

    def log(self) -> list[dict[str, Any]]:
        return _lines(self._directory / "server.log")

    def stray(self) -> str:
        return (self._directory / "stdout.log").read_text()

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(LIMIT_S)


# ---- PM2 ------------------------------------------------------------------------------------------------------------


class Pm2:
    """PM2, with a daemon of its own."""

    def __init__(self, project: Path, token: str, node: Node, home: Path) -> None:
        self.caller = Caller(free_port(), token)
        self._project = project
        self._ecosystem = project / "deploy/pm2/ecosystem.config.cjs"
        self._original = self._text = self._ecosystem.read_text()
        own = {"PM2_HOME": home, "PM2_WORKER_INTERVAL": 500, "PM2_DISABLE_VERSION_CHECK": "true", "PATH": node.path}
        self._variables = {name: str(value) for name, value in own.items()}
        shutil.rmtree(project / "logs", ignore_errors=True)

    def change(self, old: str, new: str) -> None:
        assert old in self._text, old
        self._text = self._text.replace(old, new)

    def variables(self, **settings: object) -> dict[str, str]:
        """Return the environment in which PM2 finds its daemon, and what the server gets of it."""
        return {**_environment(HTTP_PORT=self.caller.port, **settings), **self._variables}

    def __call__(self, *arguments: object, **settings: object) -> str:
        done = subprocess.run(
            [shutil.which("pm2", path=self._variables["PATH"]) or "pm2", *map(str, arguments)],
            env=self.variables(**settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, **settings: object) -> None:
        self._ecosystem.write_text(self._text)
        self("start", self._ecosystem, **settings)

    def stop(self) -> None:
        self("stop", "my-server")

    def _about(self) -> dict[str, Any]:
        said = self("jlist")
        (found,) = json.loads(said[said.index("[{") :])
        return dict(found)

    def pid(self) -> int:
        file = Path(self._variables["PM2_HOME"], "pids", "my-server-0.pid")
        return int(file.read_text() or 0) if file.exists() else 0

    def starts(self) -> int:
        return 1 + int(self._about()["pm2_env"]["restart_time"])

    def signal(self, number: int) -> None:
        os.kill(self.pid(), number)

    def is_given_up(self) -> bool:
        about = self._about()
        waits_for_nobody = about["pm2_env"]["status"] == "waiting restart" and about["pm2_env"]["exit_code"] == 2
        return about["pm2_env"]["status"] in ("stopped", "errored") or waits_for_nobody

    def log(self) -> list[dict[str, Any]]:
        return _lines(self._project / "logs" / "server.log")

    def stray(self) -> str:
        return (self._project / "logs" / "stdout.log").read_text()

    def close(self) -> None:
        self._ecosystem.write_text(self._original)
        self("kill")


# ---- systemd --------------------------------------------------------------------------------------------------------


class Systemd:
    """The service in the machine."""

    def __init__(self, machine: Machine, port: int, token: str) -> None:
        self.caller = Caller(port, token)
        self.machine = machine
        self._since = machine("date +%s.%N").strip()

    def change(self, old: str, new: str) -> None:
        text = self.machine(f"cat {UNIT}")
        assert old in text, old
        self.machine(f"cat >{UNIT} <<'END'\n{text.replace(old, new)}END\nsystemctl daemon-reload")

    def start(self, **settings: object) -> None:
        chosen = {"HTTP_PORT": self.caller.port, **settings}
        lines = "".join(f"MY_SERVER_{name}={value}\n" for name, value in chosen.items())
        self.machine(f"cat >/etc/my-server/settings.env <<'END'\n{lines}END\nsystemctl start --no-block my-server")

    def stop(self) -> None:
        self.machine("systemctl stop my-server")

    def show(self, *names: str) -> dict[str, str]:
        """Return properties of the service."""
        lines = self.machine(f"systemctl show my-server --property {','.join(names)}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def pid(self) -> int:
        return int(self.show("MainPID")["MainPID"])

    def starts(self) -> int:
        return 1 + int(self.show("NRestarts")["NRestarts"])

    def signal(self, number: int) -> None:
        self.machine(f"kill -{number} {self.pid()}")

    def is_given_up(self) -> bool:
        shown = self.show("ActiveState", "Job")
        return shown["ActiveState"] in ("failed", "inactive") and not int(shown.get("Job") or 0)

    def log(self) -> list[dict[str, Any]]:
        said = self.machine(f"journalctl --identifier my-server --since @{self._since} --output cat --no-pager")
        return [json.loads(line) for line in said.splitlines() if line.startswith("{")]

    def stray(self) -> str:
        said = self.machine(f"journalctl --identifier my-server --since @{self._since} --output cat --no-pager")
        return "".join(line for line in said.splitlines() if not line.startswith("{"))

    def close(self) -> None:
        unit = "/opt/my-server/deploy/systemd/my-server.service"
        self.machine(f"systemctl stop my-server; cp {unit} {UNIT}; systemctl daemon-reload; systemctl reset-failed")


# ---- Projects and managers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(render: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with everything but a database server, its lock file, and the tools of the tests."""
    directory = tmp_path_factory.mktemp("services") / "my-server"
    render.fresh(directory, preset="full", storage="sqlite", authentication="token")
    (directory / "src/my_server/tools/trials.py").write_text(TRIALS)
    lock(directory)
    return directory


@pytest.fixture(scope="module")
def borrowing(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the project with an environment that borrows the dependencies of this one, and a token."""
    directory = tmp_path_factory.mktemp("borrowing") / "my-server"
    shutil.copytree(project, directory)
    script = directory / ".venv/bin/my-server"
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT.format(python=sys.executable, source=str(directory / "src")))
    script.chmod(0o755)
    made = subprocess.run([script, "token", "trial"], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    (directory / "secrets").mkdir()
    (directory / "secrets/http_tokens").write_text(made.stdout)
    return directory, made.stderr.split()[-1]


@pytest.fixture(scope="module")
def node() -> Node:
    """Return PM2 and its Node."""
    return installed("pm2", {"pm2": "^7.0.4"})


@pytest.fixture(scope="module")
def origin(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with the release of the project that the README names."""
    directory = tmp_path_factory.mktemp("origin") / "my-server"
    shutil.copytree(project, directory)
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        [*identity, "commit", "--quiet", "--message", "Start"],
        ["tag", "v0.1.0"],
    ):
        subprocess.run(["git", *command], cwd=directory, check=True)
    return directory


@pytest.fixture(scope="module")
def service(project: Path, origin: Path) -> Iterator[tuple[Machine, int, str]]:
    """Run the commands of the README; return the machine on which the service runs, its port, and a token."""
    with machine({**os.environ, **UV, **registry_settings(), "PATH": _path()}) as made:
        install, another_version = (
            block.replace("https://git.example.com/my-server.git", f"file://{origin}")
            for block in commands(project, "On the machine itself")
        )
        (token,) = re.findall(r"mcp_[\w-]+", made(install, timeout_s=INSTALL_S))
        port = free_port()
        made(f"echo MY_SERVER_HTTP_PORT={port} >/etc/my-server/settings.env")
        (deploy,) = commands(project, "systemd")
        said = made(deploy.replace(":8000", f":{port}"))
        assert "active (running)" in said
        made(another_version, timeout_s=INSTALL_S)
        yield made, port, token


@pytest.fixture(params=["supervisord", "pm2", "systemd"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """Return one of the managers after the other; it does not run the server yet."""
    with contextlib.ExitStack() as stack:
        made: Supervisord | Pm2 | Systemd
        if request.param == "systemd":
            made = request.getfixturevalue("systemd")
        else:
            project, token = request.getfixturevalue("borrowing")
            if request.param == "supervisord":
                made = Supervisord(project, token, tmp_path)
            else:
                home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pm2-")))  # a socket's path is short
                made = Pm2(project, token, request.getfixturevalue("node"), home)
            stack.callback(made.close)
        yield made


@pytest.fixture
def systemd(service: tuple[Machine, int, str]) -> Iterator[Systemd]:
    """Return systemd; it does not run the server yet."""
    made = Systemd(*service)
    made.close()
    yield made
    made.close()


# ---- What every manager does ----------------------------------------------------------------------------------------


def test_a_server_that_has_ended_is_started_again_and_one_that_is_stopped_is_not(manager: Manager) -> None:  # R68, R70
    manager.start()
    until(lambda: has_started(manager, 1))
    first = manager.pid()
    manager.signal(signal.SIGKILL)
    until(lambda: has_started(manager, 2))
    second = manager.pid()
    with contextlib.suppress(httpx2.HTTPError):
        manager.caller.post("leave", code=75)
    until(lambda: has_started(manager, 3))
    assert len({first, second, manager.pid(), 0}) == 4
    assert manager.starts() == 3
    stop_with_a_call_in_flight(manager)
    assert manager.stray() == ""


def test_a_stop_waits_for_the_workers(manager: Manager) -> None:  # R68
    manager.start(HTTP_WORKERS=2)
    until(lambda: len(events(manager, "ready")) == 3)  # the parent's, too
    stop_with_a_call_in_flight(manager)
    assert manager.starts() == 1
    assert not [line for line in manager.log() if line["level"] in ("warning", "error")]


def stop_with_a_call_in_flight(manager: Manager) -> None:
    """Have the manager stop the server while a call runs, which must get its answer."""
    answers: list[Any] = []
    call = threading.Thread(target=lambda: answers.append(manager.caller.call("sleep", seconds=4)))
    call.start()
    until(lambda: manager.caller.is_calling("sleep"))
    manager.stop()
    call.join()
    assert answers == ["slept"]
    assert manager.is_given_up()
    assert {line["reason"] for line in events(manager, "stopping")} <= {"SIGTERM", "SIGINT"}
    assert manager.caller.status("livez") == 0


def test_a_wrong_setting_is_not_tried_for_ever(manager: Manager) -> None:
    manager.start(TOOL_TIMEOUT_S=-1)
    until(manager.is_given_up)
    tries = manager.starts()
    assert tries == (2 if isinstance(manager, Supervisord) else 1)
    assert manager.stray().count("TOOL_TIMEOUT_S") == (tries if isinstance(manager, Systemd) else 0)
    time.sleep(1)
    assert manager.starts() == tries


@pytest.mark.parametrize("manager", ["supervisord", "pm2"], indirect=True)
def test_a_server_that_outgrows_the_managers_limit_is_restarted(manager: Manager) -> None:  # R69
    if isinstance(manager, Supervisord):
        manager.change("TICK_60", "TICK_5")
    manager.change("512M", "200M")
    manager.start()
    manager.caller.wait()
    first = manager.pid()
    assert manager.caller.call("leak", megabytes=150) == "leaked"
    until(lambda: manager.pid() not in (0, first))
    manager.caller.wait()
    assert len(events(manager, "stopping")) == 1  # in order


# ---- Only systemd ---------------------------------------------------------------------------------------------------


def test_systemd_ends_a_server_whose_loop_is_stuck_and_starts_it_again(systemd: Systemd) -> None:  # R70
    systemd.change("WatchdogSec=75", "WatchdogSec=2")
    systemd.start()
    systemd.caller.wait()
    with contextlib.suppress(httpx2.HTTPError):
        systemd.caller.post("block_the_loop", seconds=25)
    until(lambda: systemd.starts() == 2)
    systemd.caller.wait()
    assert "in block" in systemd.stray()  # where it was stuck


def test_systemd_gives_the_server_nothing_but_what_it_needs(systemd: Systemd) -> None:
    systemd.machine("echo secret-of-the-api | install -m 600 /dev/stdin /etc/my-server/api_token")
    systemd.change("\n#LoadCredential", "\nLoadCredential")
    systemd.change("#Environment=MY_SERVER_API", "Environment=MY_SERVER_API")
    systemd.start()
    systemd.caller.wait()
    about = systemd.machine(f"cat /proc/{systemd.pid()}/status")
    status = dict(line.split(":", 1) for line in about.splitlines())
    assert int(status["Uid"].split()[0]) > 1000
    assert int(status["CapEff"], 16) == 0
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    environment = systemd.machine(f"tr '\\0' '\\n' </proc/{systemd.pid()}/environ")
    assert "MY_SERVER_API_TOKEN_FILE=/run/credentials/" in environment
    assert "secret" not in environment


def test_systemd_keeps_the_data_and_lets_tokens_be_changed(systemd: Systemd) -> None:
    systemd.start()
    systemd.caller.wait()
    systemd.caller.call("save_note", title="a", text="kept")
    systemd.machine("systemctl restart my-server")
    systemd.caller.wait()
    found = systemd.machine(f"/usr/bin/python3 - <<'END'\n{NOTES}END")
    assert found == "[('kept',)]\n"
    said = systemd.machine("/opt/my-server/.venv/bin/my-server token bob | tee -a /etc/my-server/http_tokens")
    bob = Caller(systemd.caller.port, re.findall(r"mcp_[\w-]+", said)[0])
    until(lambda: bob.post("sleep", seconds=0).status_code == 200)


# ---- What the files say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", PRESETS, ids=lambda answers: "-".join(map(str, answers.values())))
def test_systemd_finds_nothing_wrong_with_the_unit(render: Renderer, tmp_path: Path, answers: dict[str, Any]) -> None:
    install_systemd()
    unit = tmp_path / "my-server.service"
    text = (render(**answers) / "deploy/systemd/my-server.service").read_text()
    unit.write_text(text.replace("/opt/my-server/.venv/bin/my-server", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    exposure = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    found = re.search(r"Overall exposure level for my-server.service: ([\d.]+)", exposure.stdout)
    assert found is not None, exposure.stderr
    assert float(found[1]) < EXPOSURE


def test_every_manager_waits_longer_than_the_server_needs(project: Path, node: Node) -> None:  # R68
    """SHUTDOWN_GRACE_S is 10, and workers get 3 seconds more for their parent."""
    needed_s = 10 + CLEANUP_S + 3
    unit, program = (configparser.RawConfigParser(strict=False) for _ in range(2))
    unit.read(project / "deploy/systemd/my-server.service")
    program.read(project / "deploy/supervisord/my-server.conf")
    (application,) = ecosystem(project, node)
    assert float(unit["Service"]["TimeoutStopSec"]) > needed_s
    assert float(program["program:my-server"]["stopwaitsecs"]) > needed_s
    assert application["kill_timeout"] > needed_s * 1000


def test_the_servers_own_limit_of_a_hang_comes_before_the_watchdog(project: Path) -> None:
    """HANG_TIMEOUT_S is 30, and the last sign of life before a hang may be old by then."""
    unit = configparser.RawConfigParser(strict=False)
    unit.read(project / "deploy/systemd/my-server.service")
    assert float(unit["Service"]["WatchdogSec"]) / _WATCHDOGS_PER_LIMIT > 1.1 * 30


def test_pm2_gets_the_values_of_the_playbook(project: Path, node: Node) -> None:
    (application,) = ecosystem(project, node)
    assert application["script"] == str(project / ".venv/bin/my-server")
    wanted = {"autorestart": True, "watch": False, "max_memory_restart": "512M", "min_uptime": "10s"}
    assert wanted.items() <= application.items()
    assert (application["instances"], application["exec_mode"], application["max_restarts"]) == (1, "fork", 10)


# ---- The README -----------------------------------------------------------------------------------------------------


def test_the_commands_of_the_readme_run_with_supervisord(project: Path, systemd: Systemd) -> None:
    """With a user of the server's name, of which the machine of the other tests has none."""
    on = systemd.machine
    on("rm -rf /var/lib/my-server /var/lib/private/my-server")
    on("sed -i 's/startsecs=10/startsecs=1/' /opt/my-server/deploy/supervisord/my-server.conf")
    port = systemd.caller.port
    (script,) = commands(project, "supervisord")
    text = MAIN.format(directory="/run").replace("/run/program.conf", "/etc/supervisor/conf.d/*.conf")
    on(f"mkdir -p /etc/supervisor/conf.d && cat >/etc/supervisor/supervisord.conf <<'END'\n{text}END")
    on(f"MY_SERVER_HTTP_PORT={port} supervisord >/dev/null 2>&1 & until supervisorctl pid; do sleep 0.1; done")
    try:
        said = on(script.replace(":8000", f":{port}"))
        assert '"ready"' in said
        assert on("supervisorctl restart my-server", timeout_s=LIMIT_S).endswith("my-server: started\n")
        assert on("stat --format %U /proc/$(supervisorctl pid my-server)") == "my-server\n"
    finally:
        on("supervisorctl shutdown; while [ -e /run/supervisord.pid ]; do sleep 0.1; done; userdel my-server")


def test_the_commands_of_the_readme_run_with_pm2(origin: Path, node: Node, tmp_path: Path) -> None:
    directory = tmp_path / "my-server"
    subprocess.run(["git", "clone", "--quiet", origin, directory], check=True)
    deploy, another_version = commands(directory, "PM2")
    with tempfile.TemporaryDirectory(prefix="pm2-") as home:
        pm2 = Pm2(directory, "", node, Path(home))
        variables = {**pm2.variables(), **UV, **registry_settings()}
        variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), node.path])
        try:
            said = run(deploy.replace(":8000", f":{pm2.caller.port}"), directory, variables, timeout_s=INSTALL_S)
            assert '"ready"' in said
            run(another_version, directory, variables, timeout_s=INSTALL_S)
            pm2.caller.wait()
        finally:
            pm2.close()


# ---- Helpers --------------------------------------------------------------------------------------------------------


def events(manager: Manager, event: str) -> list[dict[str, Any]]:
    """Return the lines of the log with this event."""
    return [line for line in manager.log() if line["event"] == event]


def has_started(manager: Manager, times: int) -> bool:
    """Whether the server was ready so often, and the manager takes it for started."""
    is_running = manager.is_running() if isinstance(manager, Supervisord) else True
    return is_running and len(events(manager, "ready")) == times


def ecosystem(project: Path, node: Node) -> list[dict[str, Any]]:
    """Return the applications of the file for PM2."""
    script = f"console.log(JSON.stringify(require({json.dumps(str(project / 'deploy/pm2/ecosystem.config.cjs'))})))"
    done = node.run("--input-type=commonjs", "--eval", script)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout)["apps"])


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{")]


def _environment(**settings: object) -> dict[str, str]:
    """Return this environment with these settings."""
    return {**os.environ, **{f"MY_SERVER_{name}": str(value) for name, value in settings.items()}}


def _program(name: str) -> str:
    found = shutil.which(name, path=_path())
    assert found is not None, name
    return found


def _path() -> str:
    """Return the search path, with the programs of the test's own environment first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])
