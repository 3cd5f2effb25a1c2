"""The layout of an arena's device memory: a header, slots' epochs (0: unpublished), lengths, patterns; bytes."""

import struct
from dataclasses import dataclass

from synerdiff.latents.description import round_up

PATTERN_BYTES = 16
HEADER_BYTES = 64

_MAGIC = b"SYNDCUDA"
_VERSION = 1
_HEADER = struct.Struct(f"<8sQQQQ{PATTERN_BYTES}s")  # magic, version, slots, slot_bytes, epoch, pattern
_ENTRY = struct.Struct(f"<QQ{PATTERN_BYTES}s")  # epoch, length, pattern
_ENTRY_BYTES = 64
_PAGE_BYTES = 4096
_SLOT_ALIGNMENT = 256  # that of torch's own allocations
_ALLOCATION_BYTES = 2 * 2**20  # a handle covers whole blocks of this size: an arena shares none with other memory


@dataclass(frozen=True)
class Entry:
    """The published state of a slot."""

    epoch: int
    length: int
    pattern: bytes

    def pack(self) -> bytes:
        """As it lies in the table."""
        return _ENTRY.pack(self.epoch, self.length, self.pattern)


WITHDRAWN = Entry(0, 0, bytes(PATTERN_BYTES))


@dataclass(frozen=True)
class CudaLayout:
    """The places of one arena's parts, in bytes from its start."""

    slots: int
    slot_bytes: int

    @property
    def total_bytes(self) -> int:
        """Bytes to allocate."""
        return round_up(self.data(self.slots), _ALLOCATION_BYTES)

    def entry(self, index: int) -> int:
        """Where the table's entry of a slot lies."""
        return HEADER_BYTES + index * _ENTRY_BYTES

    def data(self, index: int) -> int:
        """Where a slot's bytes lie."""
        return round_up(self.entry(self.slots), _PAGE_BYTES) + index * round_up(self.slot_bytes, _SLOT_ALIGNMENT)

    def header(self, epoch: int, pattern: bytes) -> bytes:
        """The bytes at the start."""
        return _HEADER.pack(_MAGIC, _VERSION, self.slots, self.slot_bytes, epoch, pattern)

    def entries(self, table: bytes | bytearray) -> list[Entry]:
        """The entries in a piece of the table that begins with one."""
        return [Entry(*_ENTRY.unpack_from(table, at)) for at in range(0, len(table), _ENTRY_BYTES)]

    def entries_bytes(self, count: int) -> int:
        """How long a piece of the table with `count` entries is."""
        return count * _ENTRY_BYTES
