"""Images for a machine that cannot reach their registry: the same programs, out of Debian's packages.

A stand-in has the name of the image, and of its interface what the tests and the generated files use: the paths, users,
ports and environment variables. Images that are here or can be pulled are taken as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.deployment.debian import RELEASE, mirror

if TYPE_CHECKING:
    from tests.deployment.docker_engine import Engine

PYTHON = "python:3.13-slim"
POSTGRES = "postgres:17"
PROMETHEUS = "prom/prometheus:v3.5.0"
HAPROXY = "haproxy:3.2"

_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_BUILD_S = 240
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    # The certificates of this machine, which are in the image, are those that reach the registry of packages.
    "SSL_CERT_FILE": _CERTIFICATES,
    "PIP_CERT": _CERTIFICATES,
}

# The official image keeps Python in /usr/local, and brings neither bytecode nor setuptools.
_PYTHON_HOOKS = (
    'rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED',
    'for name in python python3 python3.13; do ln -s /usr/bin/python3.13 "$1/usr/local/bin/$name"; done',
    'for name in pip pip3; do ln -s /usr/bin/pip "$1/usr/local/bin/$name"; done',
    'find "$1/usr/lib/python3.13" -name "*.pyc" -delete',
    f'cp {_CERTIFICATES} "$1{_CERTIFICATES}"',
)
_NO_DOCUMENTS = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")

_SERVICES = f"""\
FROM {PYTHON} AS services
RUN groupadd --gid 999 postgres && useradd --uid 999 --gid 999 --home-dir /var/lib/postgresql postgres \\
    && apt-get update -qq \\
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \\
        -o Dpkg::Options::=--force-unsafe-io haproxy postgresql-17 prometheus >/dev/null

FROM services AS postgres
COPY --chmod=755 postgres.sh /usr/local/bin/docker-entrypoint.sh
RUN rm -rf /var/lib/postgresql/* /var/run/postgresql \\
    && install -d -o 999 -g 999 -m 1777 /var/lib/postgresql/data /var/run/postgresql
ENV PATH=$PATH:/usr/lib/postgresql/17/bin PGDATA=/var/lib/postgresql/data
VOLUME /var/lib/postgresql/data
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]

FROM services AS prometheus
RUN install -d -o 65534 -g 65534 /prometheus
USER nobody
VOLUME /prometheus
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]

FROM services AS haproxy
USER haproxy
CMD ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
"""

_POSTGRES = """\
#!/bin/sh
# What the official image does for a new database, with the variables that the compose file uses.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth-local=trust \\
        --auth-host=scram-sha-256 --encoding=utf8 >/dev/null
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl --silent --wait --options="-c listen_addresses=''" start
    createdb --host=/var/run/postgresql --username="$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --silent --wait --mode=fast stop
fi
exec "$@" -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
"""


def provide_python(engine: Engine) -> None:
    """Make sure of the base image."""
    if not _can_be_had(engine, PYTHON):
        _make_python(engine)


def provide_services(engine: Engine) -> None:
    """Make sure of the images of the programs beside the server; the base image is there already."""
    wanted = {POSTGRES: "postgres", PROMETHEUS: "prometheus", HAPROXY: "haproxy"}
    missing = {name: target for name, target in wanted.items() if not _can_be_had(engine, name)}
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "Dockerfile").write_text(_SERVICES)
        Path(directory, "postgres.sh").write_text(_POSTGRES)
        for name, target in missing.items():
            engine(
                *("build", "--quiet", "--network", "host", *proxies(), "--target", target, "--tag", name, directory),
                timeout_s=_BUILD_S,
            )


def proxies() -> list[str]:
    """Return the arguments that let a build use the proxies of this machine."""
    names = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    return [part for name in names if name in os.environ for part in ("--build-arg", name)]


def _can_be_had(engine: Engine, image: str) -> bool:
    return engine.has(image) or engine.attempt("pull", "--quiet", image, timeout_s=_BUILD_S).returncode == 0


def _make_python(engine: Engine) -> None:
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory, "base.tar")
        done = subprocess.run(
            [
                *("mmdebstrap", "--quiet", "--variant=minbase"),
                "--include=python3,python3-venv,python3-pip,ca-certificates",
                *(f"--dpkgopt=path-exclude={pattern}" for pattern in _NO_DOCUMENTS),
                *(f"--customize-hook={hook}" for hook in _PYTHON_HOOKS),
                *(RELEASE, str(archive), mirror()),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=_BUILD_S,
        )
        assert done.returncode == 0, done.stderr
        variables = [
            f"ENV {name}={json.dumps(value)}" for name, value in {**_ENVIRONMENT, **registry_settings()}.items()
        ]
        changes = [part for change in ['CMD ["python3"]', *variables] for part in ("--change", change)]
        engine("import", *changes, archive, PYTHON, timeout_s=_BUILD_S)


def registry_settings() -> dict[str, str]:
    """Return the variables by which pip and uv find packages here; none where they need no help."""
    names = ("PIP_INDEX_URL", "PIP_TRUSTED_HOST", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INSECURE_HOST")
    found = {name: os.environ[name] for name in names if os.environ.get(name)}
    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    if configured.returncode == 0:
        found.setdefault("PIP_INDEX_URL", configured.stdout.strip())
    if "PIP_INDEX_URL" in found and "UV_INDEX_URL" not in found:
        found.setdefault("UV_DEFAULT_INDEX", found["PIP_INDEX_URL"])
    return found
