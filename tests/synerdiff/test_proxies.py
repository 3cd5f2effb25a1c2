"""A proxy in the environment: never between the processes of a deployment, and named where a client fails by it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from synerdiff.client import AsyncClient
from synerdiff.errors import Unavailable
from synerdiff.proxies import proxy_to
from synerdiff.rpc import ServiceHost, open_channel, serving
from tests.waiting import HANG_S

NOBODY = "http://user:secret@127.0.0.1:9"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", NOBODY)
    monkeypatch.setenv("no_proxy", "")


@pytest.fixture
async def host() -> AsyncIterator[ServiceHost]:
    host = ServiceHost()
    await host.start("127.0.0.1:0")
    await host.set_ready(True)
    yield host
    await host.drain(0)


async def test_processes_of_a_deployment_reach_each_other_past_the_proxy(host: ServiceHost) -> None:
    async with open_channel(host.address) as channel:
        assert await serving(channel, timeout_s=HANG_S)


async def test_so_does_a_client_of_the_same_machine(host: ServiceHost) -> None:
    async with AsyncClient(host.address, patience_s=0.1) as client:
        with pytest.raises(Exception, match="Method not found") as caught:  # it is answered
            await client.models()
        assert not isinstance(caught.value, Unavailable)


async def test_a_client_of_another_machine_names_the_proxy_it_fails_by() -> None:
    async with AsyncClient("192.0.2.1:50051", patience_s=0.2) as client:
        with pytest.raises(Unavailable, match=r"through the proxy http://127\.0\.0\.1:9 of \$http_proxy") as caught:
            await asyncio.wait_for(client.models(), HANG_S)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "target", ["127.0.0.1:1", "localhost:1", "[::1]:1", "dns:///127.8.9.1:1", "unix:/tmp/socket", "0.0.0.0:1"]
)
def test_this_machine_is_never_reached_through_a_proxy(target: str) -> None:
    assert proxy_to(target) == ""


@pytest.mark.parametrize("target", ["10.1.2.3:1", "dns:///gpu.example.com:1", "[2001:db8::1]:1"])
def test_others_are_unless_excepted(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_to(target) == "http://127.0.0.1:9 of $http_proxy"
    monkeypatch.setenv("grpc_proxy", "http://elsewhere:3128")
    assert proxy_to(target) == "http://elsewhere:3128 of $grpc_proxy"
    monkeypatch.setenv("no_proxy", "10.1.0.0/16, .example.com, 2001:db8::1")
    assert proxy_to(target) == ""
