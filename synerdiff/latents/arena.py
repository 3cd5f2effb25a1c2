"""The owner's side of a latents arena: slots that tasks hold from their first step until their image is stored.

A slot's life is free -> held -> written -> free. Its epoch rises each time it changes hands, so a SlotRef names one
holder for good: with an older one nothing can be read, written or released any more.
"""

import threading
import uuid
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from synerdiff.latents.description import ELEMENT_BYTES, ArenaDescription
from synerdiff.latents.memory import ArenaMemory, ProcessMemory
from synerdiff.latents.shared_memory import SharedArenaMemory, sweep_stale_files
from synerdiff.plans import SlotRef
from synerdiff.shared_files import SHARED_MEMORY_DIRECTORY
from synerdiff.telemetry import get_logger

log = get_logger("latents")


class ArenaFull(RuntimeError):
    """Every slot is held."""


class StaleSlot(RuntimeError):
    """The slot has changed hands since the SlotRef was given out, or belongs to another arena."""


class SlotState(Enum):
    """Where a slot stands in its life."""

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
        """How many slots there are in all."""
        return len(self._slots)

    @property
    def free_slots(self) -> int:
        """How many slots nobody holds."""
        with self._lock:
            return len(self._free)

    def acquire(self) -> SlotRef:
        """Take a free slot.

        Raises:
            ArenaFull: no slot is free, or the arena is closed.
        """
        with self._lock:
            if not self._free:
                raise ArenaFull(f"all {len(self._slots)} slots of the latents arena are held")
            index = self._free.pop()
            slot = self._slots[index]
            slot.epoch += 1
            slot.state = SlotState.HELD
            return SlotRef(self.arena_id, index, slot.epoch)

    def write(self, ref: SlotRef, data: bytes | bytearray | memoryview) -> None:
        """Put finished latents into a slot, once: from then on readers may have them.

        `data` is C-contiguous [channels, height / factor, width / factor] in the arena's dtype.

        Raises:
            StaleSlot: the slot has changed hands.
            ValueError: the slot was written before, or the data are empty, too long or not whole elements.
        """
        view = memoryview(data).cast("B")
        if not 0 < len(view) <= self.slot_bytes or len(view) % ELEMENT_BYTES[self.dtype]:
            raise ValueError(
                f"latents of {len(view)} bytes: a slot takes 1 to {self.slot_bytes}, of whole {self.dtype}"
            )
        with self._lock:
            slot = self._current(ref)
            if slot is None:
                raise StaleSlot(f"slot {ref.index} has moved on from epoch {ref.epoch}")
            if slot.state is SlotState.WRITTEN:
                raise ValueError(f"slot {ref.index} of epoch {ref.epoch} was written before")
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
        """What readers in other processes need to find this arena."""
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

    def _current(self, ref: SlotRef) -> _Slot | None:
        if ref.arena_id != self.arena_id or not 0 <= ref.index < len(self._slots):
            return None
        slot = self._slots[ref.index]
        return slot if slot.epoch == ref.epoch and slot.state is not SlotState.FREE else None


def create_arena(slots: int, slot_bytes: int, dtype_name: str, directory: Path = SHARED_MEMORY_DIRECTORY) -> Arena:
    """An arena in shared memory or, where that cannot be had, in this process's own, with a warning that says why.

    `dtype_name` is "float32", "bfloat16" or "float16". Files that dead workers left in `directory` are swept first.

    Raises:
        ValueError: a size below 1 or an unknown dtype.
    """
    if slots < 1 or slot_bytes < 1:
        raise ValueError(f"slots={slots}, slot_bytes={slot_bytes}: both must be at least 1")
    if dtype_name not in ELEMENT_BYTES:
        raise ValueError(f"dtype_name={dtype_name!r}: must be one of {', '.join(ELEMENT_BYTES)}")
    memory: ArenaMemory
    try:
        swept = sweep_stale_files(directory)
        if swept:
            log.info("swept latents arenas of dead processes", files=[path.name for path in swept])
        memory = SharedArenaMemory(slots, slot_bytes, directory)
    except OSError as error:
        log.warning("no shared memory for latents; they will travel inside gRPC messages", reason=str(error))
        memory = ProcessMemory()
    return Arena(slots, slot_bytes, dtype_name, memory)
