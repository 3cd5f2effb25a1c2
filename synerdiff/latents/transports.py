"""The choice of a way to an arena: each offer in turn, proved before it is trusted, and inline when none holds."""

from collections.abc import Callable, Sequence
from typing import Protocol

from synerdiff.latents import shared_memory
from synerdiff.latents.description import ArenaDescription, TransportOffer, TransportUnusable
from synerdiff.latents.inline import FetchInline, InlineReader
from synerdiff.plans import SlotRef
from synerdiff.telemetry import get_logger

log = get_logger("latents")


class LatentsReader(Protocol):
    """A reader's hold on one arena."""

    @property
    def transport(self) -> str:
        """The name of the transport in use."""

    async def read(self, slots: Sequence[SlotRef]) -> list[memoryview | None]:
        """The latents of each slot, in order: a writable copy, or None when the slot is stale."""

    def close(self) -> None:
        """Let go of the arena."""


# A transport is a constructor that proves the offer or raises TransportUnusable.
_TRANSPORTS: dict[str, Callable[[TransportOffer, ArenaDescription], LatentsReader]] = {
    shared_memory.TRANSPORT: shared_memory.SharedMemoryReader,
}


def open_arena(arena: ArenaDescription, fetch_inline: FetchInline) -> LatentsReader:
    """The first of the arena's offers that proves itself, or inline. Logs the choice and why others failed."""
    failed: dict[str, str] = {}
    for offer in arena.offers:
        transport = _TRANSPORTS.get(offer.transport)
        if transport is None:
            failed[offer.transport] = "not known to this version"
            continue
        try:
            reader = transport(offer, arena)
        except TransportUnusable as error:
            failed[offer.transport] = str(error)
        else:
            break
    else:
        reader = InlineReader(fetch_inline)
    log.info("latents transport chosen", arena_id=arena.arena_id, transport=reader.transport, failed=failed)
    return reader
