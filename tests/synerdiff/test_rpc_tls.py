"""TLS: the right client gets in, a plain or unknown one does not, and health stays readable on its own port."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from synerdiff.rpc import ClientTls, ServerTls, ServiceHost, open_channel, serving

PEM = Path(__file__).parent / "tls"
SERVER = ServerTls(PEM / "server.pem", PEM / "server.key")
MUTUAL = ServerTls(PEM / "server.pem", PEM / "server.key", client_ca=PEM / "ca.pem")
ANONYMOUS = ClientTls(ca=PEM / "ca.pem")
NAMED = ClientTls(ca=PEM / "ca.pem", certificate=PEM / "client.pem", key=PEM / "client.key")


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


@pytest.mark.parametrize("host", [MUTUAL], indirect=True)
async def test_a_client_without_one_does_not_where_one_is_asked_for(host: ServiceHost) -> None:
    assert not await gets_in(host.address, ANONYMOUS)


@pytest.mark.parametrize("host", [SERVER], indirect=True)
async def test_it_does_where_none_is_asked_for(host: ServiceHost) -> None:
    assert await gets_in(host.address, ANONYMOUS)
    assert not await gets_in(host.address, ClientTls()), "the system's CAs do not know this server"


async def test_plaintext_is_for_the_health_port_alone(host: ServiceHost) -> None:
    assert not await gets_in(host.address, None)
    assert await gets_in(host.health_address, None)


async def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.pem"):
        await ServiceHost(tls=ServerTls(PEM / "absent.pem", PEM / "server.key")).start("127.0.0.1:0")
