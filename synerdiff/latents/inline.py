"""The transport that works on any network: latents inside gRPC messages."""

from collections.abc import Awaitable, Callable, Sequence

from synerdiff.plans import SlotRef

FetchInline = Callable[[Sequence[SlotRef]], Awaitable[list[bytes | None]]]
"""Asks the owner for slots' bytes; None for a stale slot. Raises what the call raises."""


class InlineReader:
    """Reads an arena by asking its owner."""

    transport = "inline"

    def __init__(self, fetch: FetchInline) -> None:
        self._fetch = fetch

    async def read(self, slots: Sequence[SlotRef]) -> list[memoryview | None]:
        """See LatentsReader."""
        return [None if data is None else memoryview(bytearray(data)) for data in await self._fetch(slots)]

    def close(self) -> None:
        """See LatentsReader."""
