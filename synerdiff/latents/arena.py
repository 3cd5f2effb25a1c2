"""The owner's side of a latents arena: slots that tasks hold from their first step until their image is stored.

A slot's life is free -> held -> written -> free. Its epoch rises each time it changes hands, so a SlotRef names one
holder for good: with an older one nothing can be read, written or released any more.
"""

import threading
import uuid
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from synerdiff.host import SHARED_MEMORY_DIRECTORY
from synerdiff.latents import cuda_ipc, shared_memory
from synerdiff.latents.cuda_ipc import CudaArenaMemory
from synerdiff.latents.description import ELEMENT_BYTES, ArenaDescription, TransportUnusable
from synerdiff.latents.memory import (
    ArenaMemory,
    DeviceArray,
    DeviceMemory,
    DeviceSpan,
    MirroredMemory,
    ProcessMemory,
    device_span,
)
from synerdiff.latents.shared_memory import SharedArenaMemory, sweep_stale_files
from synerdiff.latents.transports import HOST_TRANSPORTS, TransportChoice
from synerdiff.plans import SlotRef
from synerdiff.telemetry import get_logger

log = get_logger("latents")


class ArenaFull(RuntimeError):
    """Every slot is held."""


class StaleSlot(RuntimeError):
    """The slot has changed hands since the SlotRef was given out, or belongs to another arena."""


class SlotState(Enum):
    """The state of a slot in its life."""

    FREE = auto()
    HELD = auto()
    WRITTEN = auto()


@dataclass
class _Slot:
    epoch: int = 0
    state: SlotState = SlotState.FREE


class Arena:
    """A fixed number of slots of `slot_bytes` bytes each. All methods may be called from any thread."""

    def __init__(self, slots: int, slot_bytes: int, dtype: str, memory: ArenaMemory) -> None:
        self.arena_id = uuid.uuid4().hex
        self.slot_bytes = slot_bytes
        self.dtype = dtype
        self._memory = memory
        self._slots = [_Slot() for _ in range(slots)]
        self._free = list(reversed(range(slots)))
        self._closed = False
        self._lock = threading.Lock()

    @property
    def slots(self) -> int:
        """The number of slots."""
        return len(self._slots)

    @property
    def free_slots(self) -> int:
        """The number of free slots."""
        with self._lock:
            return len(self._free)

    @property
    def on_device(self) -> bool:
        """Whether the slots are in device memory, so that `write` takes data on the device."""
        return isinstance(self._memory, DeviceMemory)

    def acquire(self) -> SlotRef:
        """Take a free slot. Raises ArenaFull where no slot is free, or the arena is closed."""
        with self._lock:
            if not self._free:
                raise ArenaFull(f"all {len(self._slots)} slots of the latents arena are held")
            index = self._free.pop()
            slot = self._slots[index]
            slot.epoch += 1
            slot.state = SlotState.HELD
            return SlotRef(self.arena_id, index, slot.epoch)

    def write(self, ref: SlotRef, data: bytes | bytearray | memoryview | DeviceArray) -> None:
        """Put finished latents into a slot, once: from then on readers may read them.

        `data` is C-contiguous [channels, height / factor, width / factor] in the arena's dtype. On the arena's device
        it is one dimension of bytes, and the stream that has written them is synchronised. Raises StaleSlot where the
        slot has changed hands; ValueError where the slot was written before, or the data are empty, too long, not whole
        elements, or on another device than the arena; DriverError where the device failed.
        """
        view = self._view(data)
        size = len(view)
        if not 0 < size <= self.slot_bytes or size % ELEMENT_BYTES[self.dtype]:
            raise ValueError(f"latents of {size} bytes: a slot takes 1 to {self.slot_bytes}, of whole {self.dtype}")
        with self._lock:
            slot = self._current(ref)
            if slot is None:
                raise StaleSlot(f"slot {ref.index} has moved on from epoch {ref.epoch}")
            if slot.state is SlotState.WRITTEN:
                raise ValueError(f"slot {ref.index} of epoch {ref.epoch} was written before")
            if isinstance(view, DeviceSpan):
                assert isinstance(self._memory, DeviceMemory)
                self._memory.store(ref.index, ref.epoch, view)
            else:
                self._memory.store(ref.index, ref.epoch, view)
            slot.state = SlotState.WRITTEN

    def read(self, ref: SlotRef) -> bytes | None:
        """A copy of a slot's latents, or None when it is stale or not written."""
        with self._lock:
            slot = self._current(ref)
            if slot is None or slot.state is not SlotState.WRITTEN:
                return None
            return self._memory.load(ref.index, ref.epoch)

    def release(self, ref: SlotRef) -> None:
        """Free a slot. A stale reference changes nothing, so releasing twice does no harm."""
        with self._lock:
            slot = self._current(ref)
            if slot is None:
                return
            # Withdrawn first: nobody may find the old epoch once the next holder can write.
            self._memory.withdraw(ref.index)
            slot.state = SlotState.FREE
            self._free.append(ref.index)

    def describe(self) -> ArenaDescription:
        """The offer by which readers in other processes find this arena."""
        return ArenaDescription(self.arena_id, len(self._slots), self.slot_bytes, self.dtype, self._memory.offers())

    def close(self) -> None:
        """Make every slot stale and give the memory back. Calling it again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._free.clear()
            for slot in self._slots:
                slot.state = SlotState.FREE
            self._memory.close()

    def _view(self, data: bytes | bytearray | memoryview | DeviceArray) -> memoryview | DeviceSpan:
        if isinstance(data, bytes | bytearray | memoryview):
            return memoryview(data).cast("B")
        if not self.on_device:
            raise ValueError("latents on a device, for an arena in host memory")
        return device_span(data)

    def _current(self, ref: SlotRef) -> _Slot | None:
        if ref.arena_id != self.arena_id or not 0 <= ref.index < len(self._slots):
            return None
        slot = self._slots[ref.index]
        return slot if slot.epoch == ref.epoch and slot.state is not SlotState.FREE else None


def create_arena(
    slots: int,
    slot_bytes: int,
    dtype_name: str,
    directory: Path = SHARED_MEMORY_DIRECTORY,
    choice: TransportChoice = HOST_TRANSPORTS,
) -> Arena:
    """An arena that can be read over those transports of `choice` that this machine supports.

    A warning names each missing one with the reason; bytes inside gRPC messages always work. Memory on a GPU comes
    with a copy in shared memory, unless `choice` leaves `shm` out. `dtype_name` is "float32", "bfloat16" or "float16".
    Files that dead workers left in `directory` are swept first. Raises ValueError: a size below 1, an unknown dtype.
    """
    if slots < 1 or slot_bytes < 1:
        raise ValueError(f"slots={slots}, slot_bytes={slot_bytes}: both must be at least 1")
    if dtype_name not in ELEMENT_BYTES:
        raise ValueError(f"dtype_name={dtype_name!r}: must be one of {', '.join(ELEMENT_BYTES)}")
    device = _device_memory(slots, slot_bytes, choice)
    shared = _shared_memory(slots, slot_bytes, directory, choice)
    if device and shared:
        return Arena(slots, slot_bytes, dtype_name, MirroredMemory(device, shared))
    return Arena(slots, slot_bytes, dtype_name, device or shared or ProcessMemory())


def _device_memory(slots: int, slot_bytes: int, choice: TransportChoice) -> CudaArenaMemory | None:
    if cuda_ipc.TRANSPORT not in choice.names or choice.cuda_device is None:
        return None
    try:
        return CudaArenaMemory(slots, slot_bytes, choice.cuda_device)
    except TransportUnusable as error:
        log.warning("no device memory for latents; they will leave the GPU on their way", reason=str(error))
        return None


def _shared_memory(slots: int, slot_bytes: int, directory: Path, choice: TransportChoice) -> SharedArenaMemory | None:
    if shared_memory.TRANSPORT not in choice.names:
        return None
    try:
        swept = sweep_stale_files(directory)
        if swept:
            log.info("swept latents arenas of dead processes", files=[path.name for path in swept])
        return SharedArenaMemory(slots, slot_bytes, directory)
    except OSError as error:
        log.warning("no shared memory for latents; they will travel inside gRPC messages", reason=str(error))
        return None
