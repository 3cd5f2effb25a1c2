"""The gRPC service of an arena's owner: its offer, and its bytes for readers that cannot map it."""

import asyncio

import grpc

from synerdiff.latents.arena import Arena
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire.stages import arena_description_to_pb, slot_ref_from_pb


class LatentsArenaServicer(stages_pb2_grpc.LatentsArenaServicer):
    """Serves one arena. Copies latents outside the event loop, so reports and probes need not wait."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    async def Describe(
        self, request: stages_pb2.DescribeArenaRequest, context: grpc.aio.ServicerContext
    ) -> stages_pb2.ArenaDescription:
        """The arena and the transports it offers."""
        return arena_description_to_pb(self._arena.describe())

    async def Read(
        self, request: stages_pb2.ReadLatentsRequest, context: grpc.aio.ServicerContext
    ) -> stages_pb2.ReadLatentsResponse:
        """The bytes of the requested slots, in order; none for a stale one."""
        return await asyncio.to_thread(self._read, request)

    def _read(self, request: stages_pb2.ReadLatentsRequest) -> stages_pb2.ReadLatentsResponse:
        return stages_pb2.ReadLatentsResponse(
            slots=[
                stages_pb2.SlotLatents(slot=slot, data=self._arena.read(slot_ref_from_pb(slot)) or b"")
                for slot in request.slots
            ]
        )
