"""What a name leads to (R7): a resolver that lies, changes its mind or hangs, and TLS for the name that was asked."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import httpcore2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from reliability.allowed_hosts import AllowedHosts
from reliability.errors import ConnectionBroken, DependencyFailed, DependencyTimeout
from reliability.http_client import HttpClient, HttpLimits
from reliability.http_transport import CheckedTransport

from tests.http.conftest import serving
from tests.http.support import SHORT, api, flat

if TYPE_CHECKING:
    from pathlib import Path

    from tests.http.conftest import Server
    from tests.support_proxy import FaultProxy

pytestmark = pytest.mark.anyio


class Names:
    """A resolver that answers what the test says: one list after the other, the last again and again."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def client(port: int, names: Any, *hosts: str, limits: HttpLimits = SHORT, **transport: Any) -> HttpClient:
    allowed = AllowedHosts(*hosts)
    return HttpClient(
        api(),
        base_url=f"http://api.test:{port}",
        allowed_hosts=allowed,
        limits=limits,
        transport=CheckedTransport(allowed, limits, resolve=names, **transport),
    )


async def test_a_name_is_asked_at_its_address_and_under_its_name(server: Server) -> None:
    names = Names(["127.0.0.1"])
    async with client(server.port, names, f"http://api.test:{server.port}") as http:
        assert (await http.get("items")).status == 200
        assert (await http.get("items")).status == 200
    assert names.asked == [("api.test", server.port)]  # once for a connection
    assert server.headers["host"] == f"api.test:{server.port}"


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["0.0.0.0"],  # noqa: S104
        ["64:ff9b::7f00:1"],
        ["10.0.0.1", "169.254.169.254"],
        [],
    ],
)
async def test_r7_a_public_name_that_leads_inside_is_not_connected_to(proxy: FaultProxy, addresses: list[str]) -> None:
    names = Names(addresses)
    async with client(proxy.port, names, "http://*:*") as http:
        with pytest.raises(DependencyFailed, match="has an address that must not be asked") as caught:
            await http.get("items")
        await flat(http, proxy, connections=0)
    assert not caught.value.retryable
    assert proxy.accepted == 0


async def test_r7_a_name_that_changes_its_mind_gains_nothing(proxy: FaultProxy) -> None:
    """DNS rebinding: the first look-up is public, every further one leads inside."""
    names = Names(["192.0.2.1"], ["127.0.0.1"])
    public = AllowedHosts("http://*:*")
    public.permits_address = lambda host, port, address: address == "192.0.2.1"  # type: ignore[method-assign]
    transport = CheckedTransport(public, SHORT, resolve=names)
    http = HttpClient(api(), base_url=f"http://api.test:{proxy.port}", allowed_hosts=public, transport=transport)
    connected: list[str] = []
    network = transport._pool._network_backend._network  # type: ignore[attr-defined]

    async def connect_tcp(host: str, *_: object) -> Any:
        connected.append(host)
        raise httpcore2.ConnectError

    network.connect_tcp = connect_tcp
    async with http:
        with pytest.raises(ConnectionBroken):
            await http.get("items")
        assert (len(names.asked), connected) == (1, ["192.0.2.1"])  # asked once: what was checked is connected to
        with pytest.raises(DependencyFailed, match="must not be asked"):
            await http.get("items")
    assert connected == ["192.0.2.1"]
    assert proxy.accepted == 0


async def test_an_address_inside_among_others_is_left_out(server: Server, proxy: FaultProxy) -> None:
    names = Names(["169.254.169.254", "127.0.0.1"])
    async with client(server.port, names, f"http://api.test:{server.port}") as http:
        assert (await http.get("items")).status == 200


async def test_an_address_that_refuses_is_not_the_last_word(server: Server) -> None:
    names = Names(["127.0.0.2", "::1", "127.0.0.1"])  # the server listens at the last one
    async with client(server.port, names, f"http://api.test:{server.port}") as http:
        assert (await http.get("items")).status == 200


async def test_r47_addresses_that_do_not_answer_share_the_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = CheckedTransport(AllowedHosts("http://api.test:*"), SHORT, resolve=Names(["10.0.0.1", "127.0.0.1"]))
    network = transport._pool._network_backend._network  # type: ignore[attr-defined]
    connect_tcp, limits = network.connect_tcp, []

    async def one_is_dead(host: str, port: int, timeout: float, *rest: Any) -> Any:  # noqa: ASYNC109
        limits.append(timeout)
        if host == "10.0.0.1":
            await anyio.sleep(timeout)
            raise httpcore2.ConnectTimeout
        return await connect_tcp(host, port, timeout, *rest)

    monkeypatch.setattr(network, "connect_tcp", one_is_dead)
    base = f"http://api.test:{server.port}"
    async with HttpClient(api(), base_url=base, transport=transport, limits=SHORT) as http:
        assert (await http.get("items")).status == 200
    assert limits[0] == pytest.approx(0.25, abs=0.05)
    assert 0 < limits[1] <= 0.25


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), socket.gaierror(-3, "try again")])
async def test_a_name_that_does_not_exist_is_the_dependencys_failure(error: Exception) -> None:
    async with client(80, Names(error), "http://api.test") as http:
        with pytest.raises(ConnectionBroken, match="its name could not be looked up"):
            await http.get("items")
        await flat(http, connections=0)


async def test_r47_a_name_server_that_hangs_ends_in_time() -> None:
    async def hang(host: str, port: int) -> list[str]:
        await anyio.sleep_forever()
        raise AssertionError

    async with client(80, hang, "http://api.test") as http:
        with pytest.raises(DependencyTimeout, match=r"within 0\.5 s"):
            await http.get("items")
        await flat(http, connections=0)


async def test_names_are_looked_up_as_the_system_does(server: Server) -> None:
    base = f"http://localhost:{server.port}"
    async with HttpClient(api(), base_url=base) as http:
        assert (await http.get("items")).status == 200


async def test_r47_look_ups_that_hang_hold_a_bounded_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    over, running = threading.Event(), set[int]()

    def getaddrinfo(*_: object, **__: object) -> list[Any]:
        running.add(threading.get_ident())
        over.wait(10)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    limits = HttpLimits(connect_timeout_s=0.1)
    try:
        async with HttpClient(api(max_concurrent=100), base_url="http://api.test", limits=limits) as http:

            async def call() -> None:
                with pytest.raises(DependencyTimeout):
                    await http.get("items")

            began = time.monotonic()
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(call)
            assert time.monotonic() - began < 5
            assert len(running) == 32
            await flat(http, connections=0)
    finally:
        over.set()


# TLS


def certificate(directory: Path, name: str, *, days: int = 1) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=9))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, private = directory / f"{name}.pem", directory / f"{name}.key"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, private


@pytest.mark.parametrize(
    ("name", "days", "is_trusted", "problem"),
    [
        ("api.test", 1, True, ""),
        ("api.test", 1, False, "has a certificate that is not trusted"),
        ("other.test", 1, True, "has a certificate that is not trusted"),
        ("api.test", -1, True, "has a certificate that is not trusted"),
    ],
)
async def test_r7_tls_is_for_the_name_although_the_address_is_connected_to(
    tmp_path: Path, name: str, days: int, is_trusted: bool, problem: str
) -> None:
    pem, key = certificate(tmp_path, name, days=days)
    trusted = ssl.create_default_context(cafile=pem if is_trusted else None)
    seen: list[str | None] = []

    def note(_: object, server_name: str | None, __: object) -> None:
        seen.append(server_name)

    async with serving(ssl_certfile=pem, ssl_keyfile=key, on_server_name=note) as server:
        base = f"https://api.test:{server.port}"
        hosts = AllowedHosts(base)
        transport = CheckedTransport(hosts, SHORT, ssl_context=trusted, resolve=Names(["127.0.0.1"]))
        async with HttpClient(api(), base_url=base, transport=transport, limits=SHORT) as http:
            if problem:
                with pytest.raises(DependencyFailed, match=problem) as caught:
                    await http.get("items")
                assert not caught.value.retryable
            else:
                assert (await http.get("items")).status == 200
                assert server.headers["host"] == f"api.test:{server.port}"
            await flat(http, connections=0 if problem else 1)
    assert seen == ["api.test"]


async def test_a_private_certificate_is_trusted_by_the_usual_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, key = certificate(tmp_path, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    async with (
        serving(ssl_certfile=pem, ssl_keyfile=key) as server,
        HttpClient(api(), base_url=f"https://localhost:{server.port}", limits=SHORT) as http,
    ):
        assert (await http.get("items")).status == 200


async def test_a_server_without_tls_is_the_dependencys_failure(server: Server) -> None:
    base = f"https://127.0.0.1:{server.port}"
    async with HttpClient(api(), base_url=base, limits=SHORT) as http:
        with pytest.raises(ConnectionBroken, match="no encryption could be agreed upon"):
            await http.get("items")
        await flat(http, connections=0)
