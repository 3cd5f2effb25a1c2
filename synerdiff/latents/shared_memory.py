"""Latents in a file under /dev/shm, mapped by the owner for writing and by readers for reading.

Not multiprocessing.shared_memory: on Python 3.11 its tracker unlinks the owner's segment at the exit of a process that
merely attached to it.

The file is a header, a table of slots and the slots' bytes. A slot of the table holds the epoch under which its bytes
are published (0: not published), their length and their CRC-32. Torn or stale bytes never get to a reader:

- The owner writes bytes only while the slot is unpublished, and an epoch never comes back.
- A reader copies, then checks that the epoch it was asked for was published before and after, and that the CRC-32 of
  its copy is the published one, so nothing rests on the order in which this machine makes stores visible.

The name has boot id and pid for people. The owner holds a lock on the file for as long as it lives.
"""

import fcntl
import mmap
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from synerdiff.host import SHARED_MEMORY_DIRECTORY, boot_id, sweep
from synerdiff.latents.description import ArenaDescription, TransportOffer, TransportUnusable, round_up
from synerdiff.plans import SlotRef

TRANSPORT = "shm"

_NAME_PREFIX = "synerdiff-latents-"
_MAGIC = b"SYNDLATS"
_VERSION = 1
_PATTERN_BYTES = 16
_HEADER = struct.Struct(f"=8sQQQ{_PATTERN_BYTES}s")  # magic, version, slots, slot_bytes, pattern
_TABLE_OFFSET = 64
_WORD = 8
_SLOT_WORDS = 4
_EPOCH, _LENGTH, _CRC = range(3)


class _Layout:
    def __init__(self, slots: int, slot_bytes: int) -> None:
        self.slots = slots
        self.slot_bytes = slot_bytes
        self._stride = round_up(slot_bytes, 64)
        self._data_offset = round_up(_TABLE_OFFSET + slots * _SLOT_WORDS * _WORD, mmap.PAGESIZE)
        self.file_bytes = self._data_offset + slots * self._stride

    def word(self, index: int, field: int) -> int:
        """The number of a slot's table word, counted in words from the start of the file."""
        return _TABLE_OFFSET // _WORD + index * _SLOT_WORDS + field

    def data(self, index: int, length: int) -> slice:
        """The bytes of a slot."""
        start = self._data_offset + index * self._stride
        return slice(start, start + length)


class _Mapping:
    """A mapped arena file as bytes and as machine words; a word is read and written in one piece."""

    def __init__(self, descriptor: int, layout: _Layout, access: int) -> None:
        self.layout = layout
        self._mmap = mmap.mmap(descriptor, layout.file_bytes, access=access)
        self.bytes = memoryview(self._mmap)
        self._table = self.bytes[: layout.word(layout.slots, 0) * _WORD]
        self.words = self._table.cast("Q")

    def load(self, index: int, epoch: int) -> bytearray | None:
        """A whole copy of the bytes published under `epoch`, or None."""
        if not self._publishes(index, epoch):
            return None
        length, crc = (self.words[self.layout.word(index, field)] for field in (_LENGTH, _CRC))
        copy = bytearray(self.bytes[self.layout.data(index, min(length, self.layout.slot_bytes))])
        whole = self._publishes(index, epoch) and len(copy) == length and zlib.crc32(copy) == crc
        return copy if whole else None

    def _publishes(self, index: int, epoch: int) -> bool:
        return epoch != 0 and self.words[self.layout.word(index, _EPOCH)] == epoch

    def close(self) -> None:
        for view in (self.words, self._table, self.bytes):
            view.release()
        self._mmap.close()


class SharedArenaMemory:
    """The owner's side. See ArenaMemory for the methods.

    Raises OSError where the directory cannot be used: missing, not writable or without room for the whole arena.
    """

    def __init__(self, slots: int, slot_bytes: int, directory: Path = SHARED_MEMORY_DIRECTORY) -> None:
        layout = _Layout(slots, slot_bytes)
        self._pattern = secrets.token_bytes(_PATTERN_BYTES)
        self._path, self._descriptor = _create_locked(directory)
        try:
            # Reserved now: a tmpfs that is full at the first touch of a page would kill the process with SIGBUS.
            os.posix_fallocate(self._descriptor, 0, layout.file_bytes)
            self._mapping = _Mapping(self._descriptor, layout, mmap.ACCESS_WRITE)
        except BaseException:
            os.unlink(self._path)
            os.close(self._descriptor)
            raise
        self._mapping.bytes[: _HEADER.size] = _HEADER.pack(_MAGIC, _VERSION, slots, slot_bytes, self._pattern)
        self._closed = False

    def store(self, index: int, epoch: int, data: memoryview) -> None:
        """See ArenaMemory."""
        layout, words = self._mapping.layout, self._mapping.words
        self._mapping.bytes[layout.data(index, len(data))] = data
        words[layout.word(index, _LENGTH)] = len(data)
        words[layout.word(index, _CRC)] = zlib.crc32(data)
        words[layout.word(index, _EPOCH)] = epoch

    def withdraw(self, index: int) -> None:
        """See ArenaMemory."""
        self._mapping.words[self._mapping.layout.word(index, _EPOCH)] = 0

    def load(self, index: int, epoch: int) -> bytes | None:
        """See ArenaMemory."""
        data = self._mapping.load(index, epoch)
        return None if data is None else bytes(data)

    def offers(self) -> tuple[TransportOffer, ...]:
        """See ArenaMemory."""
        return (TransportOffer(TRANSPORT, self._pattern, boot_id(), os.getpid(), str(self._path)),)

    def close(self) -> None:
        """See ArenaMemory. Readers that still have the file mapped find every slot withdrawn."""
        if self._closed:
            return
        self._closed = True
        for index in range(self._mapping.layout.slots):
            self.withdraw(index)
        self._mapping.close()
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


class SharedMemoryReader:
    """A reader's side of an offer. Raises TransportUnusable where the file is not the offered arena's."""

    transport = TRANSPORT

    def __init__(self, offer: TransportOffer, arena: ArenaDescription) -> None:
        if offer.boot_id != boot_id():
            raise TransportUnusable("the arena is on another host")
        self._arena_id = arena.arena_id
        self._layout = _Layout(arena.slots, arena.slot_bytes)
        path = Path(offer.shm_path)
        if not path.is_absolute() or not path.name.startswith(_NAME_PREFIX):
            raise TransportUnusable(f"{offer.shm_path!r} is not the name of a latents arena")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise TransportUnusable(f"cannot open the arena's file: {error}") from error
        try:
            self._prove(descriptor, offer)
            self._mapping = _Mapping(descriptor, self._layout, mmap.ACCESS_READ)
        finally:
            os.close(descriptor)

    def _prove(self, descriptor: int, offer: TransportOffer) -> None:
        file = os.fstat(descriptor)
        if not stat.S_ISREG(file.st_mode) or file.st_uid != os.geteuid():
            raise TransportUnusable("the arena's file is not a plain file of this user")
        # A file that is shorter than its header says would end the process with SIGBUS.
        if file.st_size < self._layout.file_bytes:
            raise TransportUnusable(f"the arena's file has {file.st_size} bytes, not {self._layout.file_bytes}")
        found = os.pread(descriptor, _HEADER.size, 0)
        expected = _HEADER.pack(_MAGIC, _VERSION, self._layout.slots, self._layout.slot_bytes, offer.pattern)
        if found != expected:
            raise TransportUnusable("the arena's file does not hold the pattern offered")

    def load(self, slot: SlotRef) -> bytearray | None:
        """A whole copy of the slot's latents, or None when it is stale or not written."""
        if slot.arena_id != self._arena_id or not 0 <= slot.index < self._layout.slots:
            return None
        return self._mapping.load(slot.index, slot.epoch)

    async def read(self, slots: Sequence[SlotRef]) -> list[memoryview | None]:
        """See LatentsReader. Never waits: a copy of latents takes less time than the way to another thread."""
        return [None if data is None else memoryview(data) for data in map(self.load, slots)]

    def close(self) -> None:
        """See LatentsReader."""
        self._mapping.close()


def sweep_stale_files(directory: Path = SHARED_MEMORY_DIRECTORY) -> list[Path]:
    """Remove this user's arenas of dead owners, and return their paths. Raises OSError for the directory."""
    return sweep(directory, _NAME_PREFIX)


def _create_locked(directory: Path) -> tuple[Path, int]:
    """A new file that only its owner can read, locked by this process."""
    while True:
        path = directory / f"{_NAME_PREFIX}{boot_id()}-{os.getpid()}-{secrets.token_hex(4)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            os.unlink(path)
            os.close(descriptor)
            raise
        # A sweeper may have come between open and flock and taken the file for a dead owner's.
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)
