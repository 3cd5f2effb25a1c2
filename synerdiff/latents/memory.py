"""The memory of an arena behind one interface, and its simplest kinds."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from synerdiff.latents.description import TransportOffer


class ArenaMemory(Protocol):
    """Room for the latents of each slot. The arena calls it under its own lock, and only with slots of its own."""

    def store(self, index: int, epoch: int, data: memoryview) -> None:
        """Copy `data` (one dimension of bytes, at most a slot long) into the slot, then publish it under `epoch`."""

    def withdraw(self, index: int) -> None:
        """Unpublish the slot: later reads find nothing."""

    def load(self, index: int, epoch: int) -> bytes | None:
        """A copy of the bytes published under `epoch`, or None when they are no longer (or not yet) there."""

    def offers(self) -> tuple[TransportOffer, ...]:
        """The ways that other processes may reach this memory, best first."""

    def close(self) -> None:
        """Withdraw everything and give the memory back. Calling it again does nothing."""


class DeviceArray(Protocol):
    """Anything with bytes on a GPU, such as a torch.uint8 CUDA tensor."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """See Numba's documentation of the CUDA array interface."""


@dataclass(frozen=True)
class DeviceSpan:
    """Bytes in device memory."""

    pointer: int
    size_bytes: int

    def __len__(self) -> int:
        return self.size_bytes


def device_span(array: DeviceArray) -> DeviceSpan:
    """Where an array lies. Raises ValueError unless it is contiguous and of one dimension of unsigned bytes."""
    interface = array.__cuda_array_interface__
    if interface["typestr"] != "|u1" or len(interface["shape"]) != 1 or interface.get("strides"):
        raise ValueError("latents on a device must be handed over as one contiguous dimension of unsigned bytes")
    return DeviceSpan(interface["data"][0], interface["shape"][0])


@runtime_checkable
class DeviceMemory(ArenaMemory, Protocol):
    """Memory on a GPU, which also takes data already on it."""

    def store(self, index: int, epoch: int, data: memoryview | DeviceSpan) -> None:
        """As ArenaMemory's; also finished bytes on the same device: their stream is synchronised."""

    def fetch(self, span: DeviceSpan) -> memoryview:
        """A copy of bytes on the device."""


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


class MirroredMemory:
    """Device memory with a copy for readers out of its reach. See DeviceMemory for the methods."""

    def __init__(self, device: DeviceMemory, host: ArenaMemory) -> None:
        self._device = device
        self._host = host

    def store(self, index: int, epoch: int, data: memoryview | DeviceSpan) -> None:
        """See DeviceMemory."""
        self._host.store(index, epoch, self.fetch(data) if isinstance(data, DeviceSpan) else data)
        self._device.store(index, epoch, data)

    def fetch(self, span: DeviceSpan) -> memoryview:
        """See DeviceMemory."""
        return self._device.fetch(span)

    def withdraw(self, index: int) -> None:
        """See ArenaMemory."""
        self._host.withdraw(index)
        self._device.withdraw(index)

    def load(self, index: int, epoch: int) -> bytes | None:
        """See ArenaMemory. The device is not involved."""
        return self._host.load(index, epoch)

    def offers(self) -> tuple[TransportOffer, ...]:
        """See ArenaMemory."""
        return self._device.offers() + self._host.offers()

    def close(self) -> None:
        """See ArenaMemory."""
        self._host.close()
        self._device.close()
