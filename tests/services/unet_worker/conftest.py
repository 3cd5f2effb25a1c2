import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest

from services.unet_worker.denoiser import Denoiser, StepOutcome
from services.unet_worker.service import add_services
from services.unet_worker.stage import largest_slot_bytes
from services.unet_worker.tasks import DenoisingTask
from services.unet_worker.worker import UnetWorker
from synerdiff.latents.arena import Arena
from synerdiff.latents.memory import ProcessMemory
from synerdiff.models.family import UnetSide
from synerdiff.rpc import ServiceHost, open_channel
from tests.waiting import HANG_S

SLOTS = 3


@dataclass(frozen=True)
class ServedWorker:
    """A worker on a port of this machine, in this process."""

    worker: UnetWorker
    arena: Arena
    channel: grpc.aio.Channel


@asynccontextmanager
async def served_worker(side: UnetSide, threads: int) -> AsyncIterator[ServedWorker]:
    """A worker of three slots behind real gRPC."""
    arena = Arena(SLOTS, largest_slot_bytes(side, 64), "float32", ProcessMemory())
    worker = UnetWorker("unet-test", side, arena, threads=threads)
    host = ServiceHost()
    add_services(host, worker)
    worker.start()
    worker.address = await host.start("127.0.0.1:0")
    try:
        async with open_channel(worker.address) as channel:
            yield ServedWorker(worker, arena, channel)
    finally:
        await host.drain(grace_s=0)
        await worker.close()


@pytest.fixture
async def served(tiny_side: UnetSide) -> AsyncIterator[ServedWorker]:
    """A worker whose steps keep to one core."""
    async with served_worker(tiny_side, threads=1) as worker:
        yield worker


class Gate:
    """Holds the device thread inside a UNet call until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    async def wait_until_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, HANG_S)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, step = Gate(), Denoiser.step

    def gated(denoiser: Denoiser, tasks: Sequence[DenoisingTask], skipping: Sequence[bool]) -> StepOutcome:
        gate.reached.set()
        assert gate.open.wait(HANG_S)
        return step(denoiser, tasks, skipping)

    monkeypatch.setattr(Denoiser, "step", gated)
    yield gate
    gate.open.set()
