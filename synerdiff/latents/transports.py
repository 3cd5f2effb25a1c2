"""The choice of a transport to an arena: each offer in turn, proved before its use, and inline when none works."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from synerdiff.latents import cuda_ipc, shared_memory
from synerdiff.latents.cuda_driver import CudaClone
from synerdiff.latents.description import ArenaDescription, TransportOffer, TransportUnusable
from synerdiff.plans import SlotRef
from synerdiff.telemetry import get_logger

log = get_logger("latents")

FetchInline = Callable[[Sequence[SlotRef]], Awaitable[list[bytes | None]]]


@dataclass(frozen=True)
class TransportChoice:
    """The transports a process may use, best first, and the number of the CUDA device it computes on, if any."""

    names: tuple[str, ...]
    cuda_device: int | None


HOST_TRANSPORTS = TransportChoice((cuda_ipc.TRANSPORT, shared_memory.TRANSPORT), cuda_device=None)
"""What a process without a GPU may use: all that there are."""


class LatentsReader(Protocol):
    """A reader's hold on one arena."""

    @property
    def transport(self) -> str:
        """The name of the transport in use."""

    async def read(self, slots: Sequence[SlotRef]) -> Sequence[memoryview | CudaClone | None]:
        """A copy of each slot's latents, in order; None when stale. Raises TransportUnusable: another may work."""

    def close(self) -> None:
        """Close the arena."""


"""Asks the owner for slots' bytes; None for a stale slot. Raises what the call raises."""


class InlineReader:
    """Latents inside gRPC messages, which works on any network. See LatentsReader."""

    transport = "inline"

    def __init__(self, fetch: FetchInline) -> None:
        self._fetch = fetch

    async def read(self, slots: Sequence[SlotRef]) -> list[memoryview | None]:
        """A memoryview of each slot's bytes."""
        return [None if data is None else memoryview(bytearray(data)) for data in await self._fetch(slots)]

    def close(self) -> None:
        """Nothing is held."""


class _UntilOpened:
    """Reads over one transport until a better one, slow to open, is there. See LatentsReader."""

    def __init__(self, now: LatentsReader, awaited: cuda_ipc.CudaIpcReader) -> None:
        self._now = now
        self._awaited: cuda_ipc.CudaIpcReader | None = awaited

    @property
    def transport(self) -> str:
        return self._now.transport

    async def read(self, slots: Sequence[SlotRef]) -> Sequence[memoryview | CudaClone | None]:
        if self._awaited is not None and self._awaited.opened:
            self._now.close()
            self._now, self._awaited = self._awaited, None
            log.info("latents transport opened late", transport=self.transport)
        return await self._now.read(slots)

    def close(self) -> None:
        self._now.close()
        if self._awaited is not None:
            self._awaited.close()


async def open_arena(
    arena: ArenaDescription, fetch_inline: FetchInline, choice: TransportChoice, failed: Mapping[str, str] | None = None
) -> LatentsReader:
    """The first proved offer in `choice`'s order, without those in `failed`; else inline. Logs the choice."""
    reasons = dict(failed or {})
    reader: LatentsReader = InlineReader(fetch_inline)
    awaited: cuda_ipc.CudaIpcReader | None = None
    for offer in _in_order(arena.offers, choice, reasons):
        try:
            if offer.transport == cuda_ipc.TRANSPORT:
                reader = await cuda_ipc.CudaIpcReader.open(offer, arena, choice.cuda_device)
            else:
                reader = shared_memory.SharedMemoryReader(offer, arena)
            break
        except TransportUnusable as error:
            reasons[offer.transport] = str(error)
            awaited = error.reader if isinstance(error, cuda_ipc.StillOpening) else awaited
    if awaited is not None:
        reader = _UntilOpened(reader, awaited)
    log.info("latents transport chosen", arena_id=arena.arena_id, transport=reader.transport, failed=reasons)
    return reader


def _in_order(
    offers: Sequence[TransportOffer], choice: TransportChoice, reasons: dict[str, str]
) -> list[TransportOffer]:
    """The offers to try, best first; notes the reasons against the others."""
    for offer in offers:
        if offer.transport not in HOST_TRANSPORTS.names:
            reasons.setdefault(offer.transport, "not known to this version")
        elif offer.transport not in choice.names:
            reasons.setdefault(offer.transport, "not among this process's latents_transports")
    wanted = [offer for offer in offers if offer.transport not in reasons]
    return sorted(wanted, key=lambda offer: choice.names.index(offer.transport))
