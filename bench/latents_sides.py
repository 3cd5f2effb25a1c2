"""An owner and a reader of latents as processes that may be killed.

`python -m bench.latents_sides ROLE SETTINGS` reads JSON lines on stdin and answers each; `free` gives one answer.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from bench.command import lines_of_stdin
from synerdiff.latents.arena import create_arena
from synerdiff.latents.client import ArenaClient, ArenaUnreachable, Latents, RemoteArena
from synerdiff.latents.cuda_driver import CudaClone, CudaDevice
from synerdiff.latents.cuda_ipc import TRANSPORT, CudaIpcReader, whole_gpu
from synerdiff.latents.service import LatentsArenaServicer
from synerdiff.latents.transports import TransportChoice
from synerdiff.plans import SlotRef
from synerdiff.rpc import ServiceHost, open_channel
from synerdiff.telemetry import configure_logging
from synerdiff.v1 import stages_pb2_grpc

Answer = dict[str, Any]

LATENTS_ARENA = "synerdiff.v1.LatentsArena"
DTYPE = "float16"


def content(seed: int, size_bytes: int) -> bytes:
    """The content of a transfer of that seed: no two alike."""
    return random.Random(seed).randbytes(size_bytes)


class OwnerSide:
    """An arena behind gRPC, as a UNet worker has it."""

    def __init__(self, slots: int, slot_bytes: int, choice: TransportChoice) -> None:
        self._arena = create_arena(slots, slot_bytes, DTYPE, choice=choice)
        self._host = ServiceHost()
        servicer = LatentsArenaServicer(self._arena)
        self._host.add(LATENTS_ARENA, stages_pb2_grpc.add_LatentsArenaServicer_to_server, servicer)
        self._source: CudaClone | None = None
        if self._arena.on_device:
            device = CudaDevice(choice.cuda_device or 0)
            self._device, self._source = device, CudaClone(device, device.allocate(slot_bytes), slot_bytes)

    async def start(self, listen: str) -> Answer:
        """Serve. The answer names the address."""
        return {"address": await self._host.start(listen)}

    async def write(self, seed: int) -> Answer:
        """Take a slot and fill it: from device memory when there is some, every third time from host memory."""
        slot = self._arena.acquire()
        data = content(seed, self._arena.slot_bytes)
        if self._source and seed % 3:
            self._device.copy_in(self._source.pointer, data)
            self._arena.write(slot, self._source)
        else:
            self._arena.write(slot, data)
        return {"slot": asdict(slot)}

    async def release(self, slot: Answer) -> Answer:
        self._arena.release(SlotRef(**slot))
        return {}

    async def count(self) -> Answer:
        return {"free_slots": self._arena.free_slots}

    async def close(self) -> None:
        """As a worker ends."""
        await self._host.drain(0)
        self._arena.close()


class ReaderSide:
    """An ArenaClient, as a VAE worker has it."""

    def __init__(self, slot_bytes: int, choice: TransportChoice) -> None:
        self._slot_bytes = slot_bytes
        self._choice = choice
        self._client = ArenaClient(choice)

    async def start(self, listen: str) -> Answer:
        """Nothing to serve; the driver is there before anything is read, as in a worker that has warmed up."""
        if TRANSPORT in self._choice.names and self._choice.cuda_device is not None:
            whole_gpu(self._choice.cuda_device)
        return {"address": ""}

    async def read(self, address: str, slot: Answer, seed: int) -> Answer:
        """Read a slot: "whole", "torn" or "none", by which transport and in how many ms; or "unreachable"."""
        started = time.perf_counter()
        try:
            [latents] = await self._client.read(address, [SlotRef(**slot)])
        except ArenaUnreachable as error:
            return {"outcome": "unreachable", "reason": str(error)}
        read_ms = (time.perf_counter() - started) * 1000
        transport = next(iter(self._client.transports()), "")  # none while another read opens the next arena
        return {"outcome": self._outcome(latents, seed), "transport": transport, "read_ms": read_ms}

    def _outcome(self, latents: Latents | None, seed: int) -> str:
        if latents is None:
            return "none"
        return "whole" if bytes(latents.host()) == content(seed, self._slot_bytes) else "torn"

    async def time_open(self, address: str, times: int) -> Answer:
        """Open the arena by CUDA IPC again and again: the ms of each."""
        await self._client.close()
        channel = open_channel(address)
        try:
            arena = await RemoteArena(address, channel, self._choice).describe()
        finally:
            await channel.close()
        [offer] = [offer for offer in arena.offers if offer.transport == TRANSPORT]
        open_ms = []
        for _ in range(times):
            started = time.perf_counter()
            reader = await CudaIpcReader.open(offer, arena, self._choice.cuda_device)
            open_ms.append((time.perf_counter() - started) * 1000)
            reader.close()
            await asyncio.sleep(0.02)  # it closes on a thread of its own
        return {"open_ms": open_ms}

    async def forget(self) -> Answer:
        """Close every arena, and wait until that has happened."""
        await self._client.close()
        await asyncio.sleep(0.2)
        return {}

    async def close(self) -> None:
        """As a worker ends."""
        await self._client.close()


async def be_a_side(role: str, settings: Answer) -> None:
    """One of the killable processes: it answers each JSON line on stdin; "free": one answer alone."""
    configure_logging("latents", "warning")
    choice = TransportChoice(tuple(settings["transports"]), settings["cuda_device"])
    if role == "free":
        _say({"free_bytes": CudaDevice(settings["cuda_device"]).free_bytes()})
        return
    slot_bytes = settings["slot_bytes"]
    side = OwnerSide(settings["slots"], slot_bytes, choice) if role == "owner" else ReaderSide(slot_bytes, choice)
    _say(await side.start(settings["listen"]))
    commands: set[asyncio.Task[None]] = set()
    async for line in lines_of_stdin():
        asked = json.loads(line)
        number, method = asked.pop("number"), getattr(side, asked.pop("command"))
        commands.add(answering := asyncio.create_task(_answer(number, method, asked)))
        answering.add_done_callback(commands.discard)
    await side.close()


async def _answer(number: int, method: Callable[..., Awaitable[Answer]], arguments: Answer) -> None:
    try:
        _say({"number": number, **await method(**arguments)})
    except Exception as error:
        _say({"number": number, "error": f"{type(error).__name__}: {error}"})


def _say(answer: Answer) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(be_a_side(sys.argv[1], json.loads(sys.argv[2])))
