"""Latents in device memory that the owner exports once and readers on the same GPU map (CUDA IPC).

Torn or stale bytes never get to a reader:

- The owner writes bytes only while the slot is unpublished, and an epoch never comes back. Each of its steps (bytes,
  then the table's entry; or the entry's withdrawal, then anything else) has ended on the device before the next begins.
- A reader reads the entry, clones the bytes into memory of its own, and reads the entry again, and each of these, too,
  has ended before the next begins. Bytes of a later holder in the clone would mean that the withdrawal was over before
  the second look, which would not have found the entry unchanged.

The memory is never freed while the process lives, since that is undefined while a reader has it mapped: `close`
withdraws every slot, and the process's end gives the memory back.

This has run against a stand-in for the CUDA driver only. It has never been run on a GPU: see tests/gpu.
"""

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from synerdiff.host import boot_id
from synerdiff.latents import cuda_layout
from synerdiff.latents.cuda_driver import (
    HANDLE_BYTES,
    INVALID_CONTEXT,
    ClonePool,
    CudaClone,
    CudaDevice,
    CudaUnavailable,
    DeviceThread,
    DriverError,
)
from synerdiff.latents.description import ArenaDescription, TransportOffer, TransportUnusable
from synerdiff.latents.memory import DeviceSpan
from synerdiff.plans import SlotRef
from synerdiff.telemetry import get_logger

TRANSPORT = "cuda_ipc"

OPEN_TIMEOUT_S = 0.5
"""How long opening may take: with the choice of the next transport it stays under a second."""

READ_TIMEOUT_S = 5.0
"""How long reading a batch may take, behind whatever else the device does."""

T = TypeVar("T")


class StillOpening(TransportUnusable):
    """Opening takes longer than the timeout. It goes on: `reader.opened` is done when it ends, if ever."""

    def __init__(self, reason: str, reader: "CudaIpcReader") -> None:
        super().__init__(reason)
        self.reader = reader


log = get_logger("latents")


class CudaArenaMemory:
    """The owner's side. See DeviceMemory for the methods; all may raise DriverError once the device has failed.

    Raises TransportUnusable where there is no such device or no room on it, or its memory cannot be exported.
    """

    def __init__(self, slots: int, slot_bytes: int, device_ordinal: int) -> None:
        self._layout = cuda_layout.CudaLayout(slots, slot_bytes)
        self._pattern = secrets.token_bytes(cuda_layout.PATTERN_BYTES)
        self._epoch = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._device = whole_gpu(device_ordinal)
        try:
            self._base = self._device.allocate(self._layout.total_bytes)
        except DriverError as error:
            raise TransportUnusable(f"no {self._layout.total_bytes} bytes of device memory: {error}") from error
        try:
            table = self._layout.data(0) - cuda_layout.HEADER_BYTES
            self._device.copy_in(self._base, self._layout.header(self._epoch, self._pattern) + bytes(table))
            self._handle = self._device.export(self._base)
        except DriverError as error:
            self._device.free(self._base)
            raise TransportUnusable(f"device memory cannot be exported: {error}") from error
        self._closed = False

    def store(self, index: int, epoch: int, data: memoryview | DeviceSpan) -> None:
        """See DeviceMemory."""
        place = self._base + self._layout.data(index)
        if isinstance(data, DeviceSpan):
            self._device.copy([(place, data.pointer, len(data))])
        else:
            self._device.copy_in(place, data)
        self._publish(index, cuda_layout.Entry(epoch, len(data), self._pattern))

    def fetch(self, span: DeviceSpan) -> memoryview:
        """See DeviceMemory."""
        return memoryview(self._device.copy_out(span.pointer, len(span)))

    def withdraw(self, index: int) -> None:
        """See ArenaMemory."""
        self._publish(index, cuda_layout.WITHDRAWN)

    def load(self, index: int, epoch: int) -> bytes | None:
        """See ArenaMemory. The arena's lock keeps the slot as it is meanwhile."""
        table = self._device.copy_out(self._base + self._layout.entry(index), self._layout.entries_bytes(1))
        [entry] = self._layout.entries(table)
        if entry.epoch != epoch:
            return None
        return bytes(self._device.copy_out(self._base + self._layout.data(index), entry.length))

    def offers(self) -> tuple[TransportOffer, ...]:
        """See ArenaMemory."""
        offer = TransportOffer(
            TRANSPORT,
            self._pattern,
            boot_id(),
            os.getpid(),
            cuda_handle=self._handle,
            gpu_uuid=self._device.uuid,
            uid=os.geteuid(),
            epoch=self._epoch,
        )
        return (offer,)

    def close(self) -> None:
        """See ArenaMemory; of the memory itself, the module."""
        if self._closed:
            return
        self._closed = True
        try:
            for index in range(self._layout.slots):
                self.withdraw(index)
        except DriverError as error:
            log.warning("the device failed; what was in its latents arena is gone", reason=str(error))

    def _publish(self, index: int, entry: cuda_layout.Entry) -> None:
        self._device.copy_in(self._base + self._layout.entry(index), entry.pack())


class CudaIpcReader:
    """A reader's side of an offer: one mapping, for as long as the arena is read. Made by `open`.

    `device` is where the memory was opened: copies lie there, and so the reader's own work has to run there.
    """

    transport = TRANSPORT

    def __init__(self, offer: TransportOffer, arena: ArenaDescription, device_ordinal: int) -> None:
        self._offer = offer
        self._arena = arena
        self._layout = cuda_layout.CudaLayout(arena.slots, arena.slot_bytes)
        self._device_ordinal = device_ordinal
        self._thread = DeviceThread("cuda-ipc")
        self._mapping: int | None = None
        self.opened = False

    @classmethod
    async def open(cls, offer: TransportOffer, arena: ArenaDescription, device_ordinal: int | None) -> "CudaIpcReader":
        """A reader on the CUDA device `device_ordinal`, None if this process uses none.

        Raises TransportUnusable where the offer does not reach its arena; StillOpening after OPEN_TIMEOUT_S, and the
        caller then has a reader to close.
        """
        ordinal = _check_without_driver(offer, device_ordinal)
        reader = cls(offer, arena, ordinal)
        try:
            await reader._on_thread(reader._open, OPEN_TIMEOUT_S, "the arena's memory was not opened")
        except BaseException as error:
            if isinstance(error.__cause__, TimeoutError):
                raise StillOpening(str(error), reader) from error
            reader.close()
            raise
        return reader

    async def read(self, slots: Sequence[SlotRef]) -> list[CudaClone | None]:
        """See LatentsReader: the copies are in device memory."""
        return await self._on_thread(lambda: self._clone(slots), READ_TIMEOUT_S, "the device copied nothing")

    def close(self) -> None:
        """See LatentsReader. Earlier reads still get their answer."""
        self._thread.end(self._unmap)

    async def _on_thread(self, work: Callable[[], T], timeout_s: float, overdue: str) -> T:
        try:
            return await self._thread.run(work, timeout_s)
        except TimeoutError as error:
            raise TransportUnusable(f"{overdue} within {timeout_s:g} s") from error
        except DriverError as error:
            raise TransportUnusable(self._explained(error)) from error

    def _open(self) -> None:
        device = whole_gpu(self._device_ordinal)
        if device.uuid != self._offer.gpu_uuid:
            raise TransportUnusable(
                f"the arena is on another GPU, {self._offer.gpu_uuid}; this process is on {device.uuid}"
            )
        self._device = device
        self._clones = ClonePool(device, self._arena.slot_bytes)
        self._mapping = device.open_exported(self._offer.cuda_handle)
        header = self._layout.header(self._offer.epoch, self._offer.pattern)
        if device.copy_out(self._mapping, len(header)) != header:
            raise TransportUnusable("the memory opened does not hold the pattern offered")
        self.opened = True

    def _clone(self, slots: Sequence[SlotRef]) -> list[CudaClone | None]:
        """A whole clone of each slot, or None; the module explains why none is torn."""
        if self._mapping is None:
            return [None] * len(slots)
        before = self._published(slots)
        clones = {slot: self._clones.take(entry.length) for slot, entry in before.items()}
        self._device.copy(
            (clone.pointer, self._mapping + self._layout.data(slot.index), len(clone)) for slot, clone in clones.items()
        )
        after = self._published(clones)
        return [clones[slot] if slot in after and after[slot] == before[slot] else None for slot in slots]

    def _published(self, slots: "Sequence[SlotRef] | dict[SlotRef, CudaClone]") -> dict[SlotRef, cuda_layout.Entry]:
        """The entries of those slots that are published under their SlotRef's epoch."""
        assert self._mapping is not None
        here = [s for s in slots if s.arena_id == self._arena.arena_id and 0 <= s.index < self._arena.slots]
        if not here:
            return {}
        first, last = min(slot.index for slot in here), max(slot.index for slot in here)
        size_bytes = self._layout.entries_bytes(last - first + 1)
        entries = self._layout.entries(self._device.copy_out(self._mapping + self._layout.entry(first), size_bytes))
        return {slot: entry for slot in here if self._shows(slot, entry := entries[slot.index - first])}

    def _shows(self, slot: SlotRef, entry: cuda_layout.Entry) -> bool:
        fits = 0 < entry.length <= self._arena.slot_bytes
        return fits and entry.epoch == slot.epoch and entry.pattern == self._offer.pattern

    def _unmap(self) -> None:
        mapping, self._mapping = self._mapping, None
        if mapping is None:
            return
        try:
            self._device.close_exported(mapping)
            self._clones.close()
        except DriverError as error:
            log.warning("latents arena not closed", arena_id=self._arena.arena_id, reason=str(error))

    def _explained(self, error: DriverError) -> str:
        if error.code != INVALID_CONTEXT:
            return str(error)
        pids = f"owner and reader both have the process id {os.getpid()}" if self._offer.pid == os.getpid() else ""
        cause = pids or f"the owner's process id is {self._offer.pid}, this one's {os.getpid()}"
        return f"{error}: {cause}; CUDA IPC needs two that differ: set shareProcessNamespace: true in the pod"


def _check_without_driver(offer: TransportOffer, device_ordinal: int | None) -> int:
    """The device on which to open the offer. Raises TransportUnusable where that is known to fail, or to hang."""
    if device_ordinal is None:
        raise TransportUnusable("this process does not compute on a GPU")
    if offer.boot_id != boot_id():
        raise TransportUnusable("the arena is on another host")
    if offer.uid != os.geteuid():
        users = f"the arena belongs to user {offer.uid}, this process runs as user {os.geteuid()}"
        raise TransportUnusable(f"{users}; give both pods the same runAsUser")
    if len(offer.cuda_handle) != HANDLE_BYTES:
        raise TransportUnusable(f"a handle of {len(offer.cuda_handle)} bytes: CUDA's have {HANDLE_BYTES}")
    return device_ordinal


def prepare(device_ordinal: int) -> None:
    """Load the driver, in a thread, before an arena has to open within its timeout. A failure shows again then."""

    def ready() -> None:
        with contextlib.suppress(TransportUnusable):
            whole_gpu(device_ordinal)

    threading.Thread(target=ready, name="cuda-ipc-prepare", daemon=True).start()


@cache
def whole_gpu(device_ordinal: int) -> CudaDevice:
    """The device. Raises TransportUnusable where its memory cannot be exported or opened."""
    try:
        device = CudaDevice(device_ordinal)
    except CudaUnavailable as error:
        raise TransportUnusable(str(error)) from error
    if device.is_mig:
        raise TransportUnusable(f"{device.name} ({device.uuid}) is a MIG slice, and MIG has no CUDA IPC")
    return device
