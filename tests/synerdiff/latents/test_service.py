"""The owner's gRPC face of an arena."""

import asyncio
import threading

import pytest

from synerdiff.latents.arena import Arena
from synerdiff.latents.memory import ProcessMemory
from synerdiff.plans import SlotRef
from synerdiff.rpc import open_channel
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire.stages import slot_ref_to_pb
from tests.services.worker_processes import served_arena
from tests.waiting import HANG_S


async def test_latents_are_copied_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    arena, read = Arena(1, 4, "float32", ProcessMemory()), Arena.read
    copying, go_on = threading.Event(), threading.Event()
    slot = arena.acquire()
    arena.write(slot, b"data")

    def slow(arena: Arena, ref: SlotRef) -> bytes | None:
        copying.set()
        assert go_on.wait(HANG_S)
        return read(arena, ref)

    monkeypatch.setattr(Arena, "read", slow)
    async with served_arena(arena) as address, open_channel(address) as channel:
        stub = stages_pb2_grpc.LatentsArenaStub(channel)
        reading = asyncio.create_task(_read(stub, slot))
        assert await asyncio.to_thread(copying.wait, HANG_S)
        # Answered while the other call copies: on the event loop it would be answered after it, or never.
        assert (await stub.Describe(stages_pb2.DescribeArenaRequest(), timeout=HANG_S)).slots == 1
        assert not reading.done()
        go_on.set()
        assert await reading == b"data"


async def _read(stub: stages_pb2_grpc.LatentsArenaStub, slot: SlotRef) -> bytes:
    reply = await stub.Read(stages_pb2.ReadLatentsRequest(slots=[slot_ref_to_pb(slot)]), timeout=HANG_S)
    data: bytes = reply.slots[0].data
    return data
