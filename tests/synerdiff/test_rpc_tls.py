"""TLS: the right client gets in, a plain or unknown one does not, and health stays readable on its own port."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from synerdiff.rpc import ServiceHost, open_channel, serving
from synerdiff.tls import WORKER_NAME, BadTlsFiles, ClientTls, ServerTls, check_pem_files

PEM = Path(__file__).parent / "tls"
SERVER = ServerTls(PEM / "server.pem", PEM / "server.key")
MUTUAL = replace(SERVER, client_ca=PEM / "ca.pem")
WORKER = ServerTls(PEM / "worker.pem", PEM / "worker.key", client_ca=PEM / "ca.pem")
ANONYMOUS = ClientTls(ca=PEM / "ca.pem")
NAMED = replace(ANONYMOUS, certificate=PEM / "client.pem", key=PEM / "client.key")
STRANGER = replace(ANONYMOUS, certificate=PEM / "stranger.pem", key=PEM / "stranger.key")
DECEIVED = replace(NAMED, ca=PEM / "other-ca.pem")


@pytest.fixture(params=[SERVER, MUTUAL], ids=["server", "mutual"])
async def host(request: pytest.FixtureRequest) -> AsyncIterator[ServiceHost]:
    host = ServiceHost(tls=request.param)
    await host.start("127.0.0.1:0", "127.0.0.1:0")
    await host.set_ready(True)
    yield host
    await host.drain(0)


async def gets_in(address: str, tls: ClientTls | None) -> bool:
    async with open_channel(address, tls=tls) as channel:
        return await serving(channel)


async def test_a_client_with_a_certificate_gets_in(host: ServiceHost) -> None:
    assert await gets_in(host.address, NAMED)
    assert not await gets_in(host.address, DECEIVED), "the server is of another CA than the one it trusts"


@pytest.mark.parametrize("host", [MUTUAL], indirect=True)
async def test_a_client_without_one_does_not_where_one_is_asked_for(host: ServiceHost) -> None:
    assert not await gets_in(host.address, ANONYMOUS)
    assert not await gets_in(host.address, STRANGER)


@pytest.mark.parametrize("host", [SERVER], indirect=True)
async def test_it_does_where_none_is_asked_for(host: ServiceHost) -> None:
    assert await gets_in(host.address, ANONYMOUS)
    assert not await gets_in(host.address, ClientTls()), "the system's CAs do not know this server"


@pytest.mark.parametrize("host", [WORKER], indirect=True)
async def test_a_worker_is_known_by_the_name_all_workers_have_and_not_by_its_address(host: ServiceHost) -> None:
    assert await gets_in(host.address, replace(NAMED, server_name=WORKER_NAME))
    assert not await gets_in(host.address, NAMED)


@pytest.mark.parametrize("host", [MUTUAL], indirect=True)
async def test_no_other_process_passes_for_a_worker(host: ServiceHost) -> None:
    assert not await gets_in(host.address, replace(NAMED, server_name=WORKER_NAME))


async def test_plaintext_is_for_the_health_port_alone(host: ServiceHost) -> None:
    assert not await gets_in(host.address, None)
    assert await gets_in(host.health_address, None)


async def test_a_certificate_renewed_on_disk_is_served_from_then_on(tmp_path: Path) -> None:
    tls = ServerTls(tmp_path / "tls.crt", tmp_path / "tls.key")

    def put(certificate: str, key: str) -> None:
        shutil.copy(PEM / certificate, tls.certificate)
        shutil.copy(PEM / key, tls.key)

    put("server.pem", "server.key")
    host = ServiceHost(tls=tls)
    address = await host.start("127.0.0.1:0")
    await host.set_ready(True)
    of_the_other = ClientTls(ca=PEM / "other-ca.pem")
    assert await gets_in(address, ANONYMOUS)
    put("stranger.pem", "server.key")
    assert await gets_in(address, ANONYMOUS), "a pair that does not fit leaves the last one in force"
    put("stranger.pem", "stranger.key")
    assert await gets_in(address, of_the_other)
    assert not await gets_in(address, ANONYMOUS)
    await host.drain(0)


@pytest.mark.parametrize(
    ("certificate", "key", "ca", "named"),
    [
        ("absent.pem", "server.key", "ca.pem", "absent.pem: No such file"),
        ("server.pem", "worker.key", "ca.pem", "server.pem and .*worker.key are no certificate and its key"),
        ("README.md", "server.key", "ca.pem", "README.md and"),
        ("server.pem", "server.key", "README.md", "README.md is no CA certificate"),
    ],
)
async def test_files_that_cannot_serve_are_named(certificate: str, key: str, ca: str, named: str) -> None:
    tls = ServerTls(PEM / certificate, PEM / key, client_ca=PEM / ca)
    with pytest.raises(BadTlsFiles, match=named):
        await ServiceHost(tls=tls).start("127.0.0.1:0")
    with pytest.raises(BadTlsFiles, match=named):
        check_pem_files(tls.certificate, tls.key, tls.client_ca)
