"""What an arena keeps its bytes in, behind one interface, and the plainest form of it."""

from typing import Protocol

from synerdiff.latents.description import TransportOffer


class ArenaMemory(Protocol):
    """Room for the latents of each slot. The arena calls it under its own lock, and only with slots of its own."""

    def store(self, index: int, epoch: int, data: memoryview) -> None:
        """Copy `data` (one dimension of bytes, at most a slot long) into the slot, then publish it under `epoch`."""

    def withdraw(self, index: int) -> None:
        """Unpublish the slot: whoever reads it from now on finds nothing."""

    def load(self, index: int, epoch: int) -> bytes | None:
        """A copy of what was published under `epoch`, or None when that is no longer (or not yet) there."""

    def offers(self) -> tuple[TransportOffer, ...]:
        """The ways that other processes may reach this memory, best first."""

    def close(self) -> None:
        """Withdraw everything and give the memory back. Calling it again does nothing."""


class ProcessMemory:
    """Memory that no other process can reach: readers fall back to bytes over gRPC."""

    def __init__(self) -> None:
        self._published: dict[int, tuple[int, bytes]] = {}

    def store(self, index: int, epoch: int, data: memoryview) -> None:
        """See ArenaMemory."""
        self._published[index] = (epoch, bytes(data))

    def withdraw(self, index: int) -> None:
        """See ArenaMemory."""
        self._published.pop(index, None)

    def load(self, index: int, epoch: int) -> bytes | None:
        """See ArenaMemory."""
        published_epoch, data = self._published.get(index, (0, b""))
        return data if published_epoch == epoch else None

    def offers(self) -> tuple[TransportOffer, ...]:
        """None: see the class."""
        return ()

    def close(self) -> None:
        """See ArenaMemory."""
        self._published.clear()
