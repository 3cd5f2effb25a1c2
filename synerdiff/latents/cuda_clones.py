"""A reader's own copies of latents in device memory, and the buffers they lie in."""

import weakref
from collections import deque
from typing import Any

from synerdiff.latents.cuda_driver import CudaDevice


class CudaClone:
    """Device memory of this process (`__cuda_array_interface__`), used again once nothing refers to this object."""

    def __init__(self, device: CudaDevice, pointer: int, size_bytes: int) -> None:
        self._device = device
        self.pointer = pointer
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return self._size_bytes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """One dimension of unsigned bytes that are there already: no stream needs to be waited for."""
        return {
            "shape": (self._size_bytes,),
            "typestr": "|u1",
            "data": (self.pointer, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def host(self) -> memoryview:
        """A writable copy in host memory. Raises DriverError."""
        return memoryview(self._device.copy_out(self.pointer, self._size_bytes))


class ClonePool:
    """Buffers of one size for clones, kept for the next: cuMemAlloc and cuMemFree may wait for the whole device."""

    def __init__(self, device: CudaDevice, buffer_bytes: int) -> None:
        self._device = device
        self._buffer_bytes = buffer_bytes
        self._free: deque[int] = deque()
        self._closed = False

    def take(self, size_bytes: int) -> CudaClone:
        """A clone yet to be written, of at most the pool's buffer size. Raises DriverError."""
        pointer = self._free.pop() if self._free else self._device.allocate(self._buffer_bytes)
        clone = CudaClone(self._device, pointer, size_bytes)
        weakref.finalize(clone, self._give_back, pointer).atexit = False
        return clone

    def close(self) -> None:
        """Free the buffers without a clone now, and the rest as the clones go. Raises DriverError."""
        self._closed = True
        self._free_buffers()

    def _give_back(self, pointer: int) -> None:
        # May run wherever the last reference goes, even within this class: it takes no lock.
        self._free.append(pointer)
        if self._closed:
            self._free_buffers()

    def _free_buffers(self) -> None:
        while self._free:
            self._device.free(self._free.pop())
