"""Latents by arena address, from any worker, over the best transport to it."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from synerdiff.latents import cuda_ipc
from synerdiff.latents.cuda_driver import CudaClone
from synerdiff.latents.description import ArenaDescription, TransportUnusable
from synerdiff.latents.transports import HOST_TRANSPORTS, LatentsReader, TransportChoice, open_arena
from synerdiff.plans import SlotRef
from synerdiff.rpc import open_channel
from synerdiff.tls import BadTlsFiles, ClientTls
from synerdiff.v1 import stages_pb2, stages_pb2_grpc
from synerdiff.wire.stages import arena_description_from_pb, slot_ref_to_pb

CALL_TIMEOUT_S = 5.0
IDLE_S = 300.0


class ArenaUnreachable(Exception):
    """The arena's owner does not answer, and no other transport reaches it."""


@dataclass(frozen=True)
class Latents:
    """One slot's bytes of `dtype` [channels, height / factor, width / factor], in host memory or a CudaClone's."""

    data: memoryview | CudaClone
    dtype: str

    def host(self) -> memoryview:
        """The bytes in host memory, wherever they are. Raises DriverError."""
        return self.data.host() if isinstance(self.data, CudaClone) else self.data


class RemoteArena:
    """The arena behind one address. A worker that restarts there has a new arena, which is found by its id."""

    def __init__(self, address: str, channel: grpc.aio.Channel, choice: TransportChoice) -> None:
        self._address = address
        self._channel = channel
        self._choice = choice
        self._stub = stages_pb2_grpc.LatentsArenaStub(channel)
        self._opening = asyncio.Lock()
        self._description: ArenaDescription | None = None
        self._reader: LatentsReader | None = None

    @property
    def transport(self) -> str:
        """The transport in use; empty before the first read."""
        return self._reader.transport if self._reader else ""

    async def describe(self) -> ArenaDescription:
        """The arena that is there now. Raises ArenaUnreachable."""
        try:
            pb = await self._stub.Describe(stages_pb2.DescribeArenaRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._unreachable(error) from error
        return arena_description_from_pb(pb)

    async def read(self, slots: Sequence[SlotRef]) -> list[Latents | None]:
        """The latents of each slot, in order; None when stale. Raises ArenaUnreachable."""
        while True:
            description, reader = await self._current({slot.arena_id for slot in slots})
            here = [slot for slot in slots if slot.arena_id == description.arena_id]
            try:
                found = dict(zip(here, await reader.read(here), strict=True))
            except TransportUnusable as error:
                await self._do_without(reader, str(error))
                continue
            return [Latents(data, description.dtype) if (data := found.get(slot)) else None for slot in slots]

    async def _current(self, wanted: set[str]) -> tuple[ArenaDescription, LatentsReader]:
        """The known arena or, when `wanted` has another one, the arena that is there now."""
        async with self._opening:
            if self._description is None or self._reader is None or wanted - {self._description.arena_id}:
                description = await self.describe()
                if self._reader is None or self._description != description:
                    self._let_go()
                    self._reader = await open_arena(description, self._fetch, self._choice)
                    self._description = description
            assert self._description is not None
            return self._description, self._reader

    async def _do_without(self, broken: LatentsReader, reason: str) -> None:
        """Read the same arena over another transport from now on, unless another reader has switched already."""
        async with self._opening:
            if self._reader is broken and self._description is not None:
                failed = {broken.transport: reason}
                broken.close()
                self._reader = None
                self._reader = await open_arena(self._description, self._fetch, self._choice, failed)

    async def _fetch(self, slots: Sequence[SlotRef]) -> list[bytes | None]:
        request = stages_pb2.ReadLatentsRequest(slots=[slot_ref_to_pb(slot) for slot in slots])
        try:
            response = await self._stub.Read(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._unreachable(error) from error
        if [latents.slot for latents in response.slots] != list(request.slots):
            raise ArenaUnreachable(f"the arena at {self._address} answered for other slots than were asked for")
        return [latents.data or None for latents in response.slots]

    def _unreachable(self, error: grpc.aio.AioRpcError) -> ArenaUnreachable:
        return ArenaUnreachable(f"the arena at {self._address} does not answer: {error.code().name}: {error.details()}")

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._description = self._reader = None

    async def close(self) -> None:
        """Close the arena's reader and the connection."""
        self._let_go()
        await self._channel.close()


class ArenaClient:
    """Reads from any number of arenas, and closes those that have not been used in a while."""

    def __init__(
        self,
        choice: TransportChoice = HOST_TRANSPORTS,
        *,
        tls: ClientTls | None = None,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._choice = choice
        if cuda_ipc.TRANSPORT in choice.names and choice.cuda_device is not None:
            cuda_ipc.prepare(choice.cuda_device)
        self._tls = tls
        self._idle_s = idle_s
        self._clock = clock
        self._arenas: dict[str, RemoteArena] = {}
        self._last_use: dict[str, float] = {}

    async def read(self, address: str, slots: Sequence[SlotRef]) -> list[Latents | None]:
        """Each slot's latents in the arena at `address`, in order; None when stale. Raises ArenaUnreachable."""
        await self._close_idle()
        if address not in self._arenas:
            self._arenas[address] = RemoteArena(address, self._connect(address), self._choice)
        self._last_use[address] = self._clock()
        return await self._arenas[address].read(slots)

    def _connect(self, address: str) -> grpc.aio.Channel:
        try:
            return open_channel(address, tls=self._tls)
        except BadTlsFiles as error:
            raise ArenaUnreachable(f"the arena at {address} cannot be called: {error}") from error

    def transports(self) -> Counter[str]:
        """How many arenas are read over each transport just now."""
        return Counter(arena.transport for arena in self._arenas.values() if arena.transport)

    async def close(self) -> None:
        """Close every arena."""
        for address in list(self._arenas):
            await self._forget(address)

    async def _close_idle(self) -> None:
        now = self._clock()
        for address in [a for a, used in self._last_use.items() if now - used > self._idle_s]:
            await self._forget(address)

    async def _forget(self, address: str) -> None:
        del self._last_use[address]
        await self._arenas.pop(address).close()
