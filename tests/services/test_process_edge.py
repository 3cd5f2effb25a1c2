"""The three services as a platform runs them: settings by environment, mutual TLS, probes in plaintext, SIGTERM."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from synerdiff.client import AsyncClient, ClientTls
from synerdiff.errors import Unavailable
from synerdiff.redis_process import RedisProcess, free_port
from synerdiff.rpc import LIVENESS, READINESS, STARTUP, open_channel, serving
from synerdiff.tls import WORKER_NAME
from tests.waiting import HANG_S

ROOT = Path(__file__).parents[2]
PEM = ROOT / "tests" / "synerdiff" / "tls"
CLIENT = ClientTls(ca=PEM / "ca.pem")
PEER = ClientTls(PEM / "ca.pem", PEM / "client.pem", PEM / "client.key", server_name=WORKER_NAME)

GRACE_S = 2 * HANG_S


@dataclass(frozen=True)
class Service:
    """A running service, its gRPC address and that of its plaintext health."""

    process: asyncio.subprocess.Process
    address: str
    health: str

    async def is_(self, name: str) -> bool:
        """Whether the probe `name` succeeds."""
        async with open_channel(self.health) as channel:
            return await serving(channel, name)

    async def ready(self) -> None:
        async with asyncio.timeout(HANG_S):
            while not await self.is_(READINESS):
                assert self.process.returncode is None, "it ended before it was ready"
                await asyncio.sleep(0.05)

    async def end(self) -> None:
        """Send SIGTERM and wait for a good end, which comes long before the grace is over: nothing is in hand."""
        self.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(self.process.wait(), HANG_S) == 0


def mutual_tls(certificate: str) -> dict[str, str]:
    """Variables for a process with one of the test certificates."""
    return {
        "SYNERDIFF_TLS_CERTIFICATE": str(PEM / f"{certificate}.pem"),
        "SYNERDIFF_TLS_KEY": str(PEM / f"{certificate}.key"),
        "SYNERDIFF_TLS_CA": str(PEM / "ca.pem"),
    }


@contextlib.asynccontextmanager
async def started(command: tuple[str, ...], redis_url: str, settings: Mapping[str, str]) -> AsyncIterator[Service]:
    """A process with `python` before `command`, killed at the end if it is still there."""
    address, health = (f"127.0.0.1:{free_port()}" for _ in range(2))
    environment = {
        **os.environ,
        "SYNERDIFF_REDIS_URL": redis_url,
        "SYNERDIFF_POOL": "edge",
        "SYNERDIFF_LISTEN": address,
        "SYNERDIFF_ADVERTISE": address,
        "SYNERDIFF_HEALTH_LISTEN": health,
        "SYNERDIFF_DRAIN_GRACE_S": str(GRACE_S),
        "SYNERDIFF_LOG_LEVEL": "error",
        **settings,
    }
    process = await asyncio.create_subprocess_exec(sys.executable, *command, cwd=ROOT, env=environment)
    try:
        yield Service(process, address, health)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.timeout(600)
async def test_a_picture_under_mutual_tls_and_an_idle_end(redis_server: RedisProcess) -> None:
    worker = {**mutual_tls("worker"), "SYNERDIFF_THREADS": "1", "SYNERDIFF_MODEL_NAME": "emoji"}
    async with (
        started(("-m", "services.unet_worker"), redis_server.url, worker) as unet,
        started(("-m", "services.vae_worker"), redis_server.url, {**worker, "SYNERDIFF_LATENTS_TRANSPORTS": ""}) as vae,
        started(("-m", "services.scheduler"), redis_server.url, mutual_tls("server")) as scheduler,
    ):
        services = (scheduler, unet, vae)
        await asyncio.gather(*(service.ready() for service in services))
        assert all([await service.is_(name) for service in services for name in (LIVENESS, STARTUP)])

        async with AsyncClient(scheduler.address, tls=CLIENT) as client:
            made = await client.generate("a car", model="emoji", num_inference_steps=2)
        assert made.image.pil.size == (128, 128)

        async with AsyncClient(scheduler.address, tls=ClientTls(PEM / "other-ca.pem"), patience_s=0.2) as deceived:
            with pytest.raises(Unavailable):
                await deceived.models()
        for address in (unet.address, vae.address):
            assert await gets_in(address, PEER)
            assert not await gets_in(address, CLIENT), "without a certificate"
            stranger = replace(PEER, certificate=PEM / "stranger.pem", key=PEM / "stranger.key")
            assert not await gets_in(address, stranger), "with a certificate of another CA"

        for service in (vae, unet, scheduler):
            await service.end()


async def gets_in(address: str, tls: ClientTls) -> bool:
    async with open_channel(address, tls=tls) as channel:
        return await serving(channel, LIVENESS)


# A worker whose model takes for ever to load: no model does that on every machine.
FOR_EVER = (
    "import runpy, sys, time; from synerdiff.worker import process; process.load = lambda *_: time.sleep(600); "
    "module = sys.argv.pop(1); sys.argv = sys.argv[:1]; runpy.run_module(module, run_name='__main__')"
)


async def test_a_worker_that_loads_answers_probes_and_ends_when_told_to(redis_server: RedisProcess) -> None:
    """A VAE worker: until they load, both kinds are the same process."""
    async with started(("-c", FOR_EVER, "services.vae_worker"), redis_server.url, {}) as loading:
        async with asyncio.timeout(HANG_S):
            while not await loading.is_(LIVENESS):
                assert loading.process.returncode is None, "it ended before it answered"
                await asyncio.sleep(0.05)
        assert not await loading.is_(STARTUP)
        assert not await loading.is_(READINESS)
        await loading.end()
