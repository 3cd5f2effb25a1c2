"""The few calls of the CUDA driver that an arena needs, each failing by name, and a reader's copies in device memory.

A CudaDevice looks for NVIDIA's cuda-bindings (the extra `gpu`) and the driver when it is made, so this module can be
imported anywhere.
"""

import asyncio
import contextlib
import ctypes
import importlib
import os
import queue
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

HANDLE_BYTES = 64
"""The size of a CUipcMemHandle."""

INVALID_CONTEXT = 201

_STREAM_NON_BLOCKING = 1
_LAZY_ENABLE_PEER_ACCESS = 1

T = TypeVar("T")


class CudaUnavailable(Exception):
    """No cuda-bindings, no CUDA driver or no such device here; the message says which."""


class DriverError(Exception):
    """A call of the CUDA driver that failed."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call}: {name} (CUDA error {code})")
        self.code = code


class CudaDevice:
    """One device's primary context, which torch uses too, and a stream of its own in it. Any thread may call.

    Every copy has reached its destination when the call returns. Work on the default stream does not delay copies.
    The context is never released: the process computes in it for as long as it lives.

    Raises CudaUnavailable.
    """

    def __init__(self, ordinal: int) -> None:
        try:
            self._driver: Any = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            raise CudaUnavailable(f"cuda-bindings is not installed (pip install 'synerdiff[gpu]'): {error}") from error
        self._relaxed = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        try:
            self._call("cuInit", 0)
            device = self._call("cuDeviceGet", ordinal)
            self.name: str = self._call("cuDeviceGetName", 256, device).split(b"\0")[0].decode()
            self._identity = uuid.UUID(bytes=bytes(self._call("cuDeviceGetUuid", device).bytes))
            self._context = self._call("cuDevicePrimaryCtxRetain", device)
            with self._current():
                self._stream = self._call("cuStreamCreate", _STREAM_NON_BLOCKING)
        except DriverError as error:
            raise CudaUnavailable(str(error)) from error
        except RuntimeError as error:  # cuda-bindings raises it without a libcuda.so.1, or with one too old
            raise CudaUnavailable(f"no CUDA driver: {error}") from error

    @property
    def is_mig(self) -> bool:
        """Whether this is a slice of a GPU, by the device's name: the driver has no attribute for it."""
        return " MIG " in f"{self.name} " or os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith("MIG-")

    @property
    def uuid(self) -> str:
        """As nvidia-smi prints it: GPU-... of a whole GPU, MIG-... of a slice."""
        return f"{'MIG' if self.is_mig else 'GPU'}-{self._identity}"

    def free_bytes(self) -> int:
        """Free device memory. Raises DriverError."""
        with self._current():
            return int(self._call("cuMemGetInfo")[0])

    def allocate(self, size_bytes: int) -> int:
        """The address of new device memory. Raises DriverError where there is too little."""
        with self._current():
            return int(self._call("cuMemAlloc", size_bytes))

    def free(self, pointer: int) -> None:
        """Free memory of `allocate`. Raises DriverError."""
        with self._current():
            self._call("cuMemFree", pointer)

    def copy_in(self, pointer: int, data: bytes | bytearray | memoryview) -> None:
        """Host memory to device memory. Raises DriverError."""
        with self._current():
            self._call("cuMemcpyHtoDAsync", pointer, data, len(data), self._stream)
            self._synchronize()

    def copy_out(self, pointer: int, size_bytes: int) -> bytearray:
        """Device memory to new host memory. Raises DriverError."""
        data = bytearray(size_bytes)
        with self._current():
            self._call("cuMemcpyDtoHAsync", data, pointer, size_bytes, self._stream)
            self._synchronize()
        return data

    def copy(self, spans: Iterable[tuple[int, int, int]]) -> None:
        """Device memory to device memory, for each (to, from, bytes). Raises DriverError."""
        with self._current():
            for target, source, size_bytes in spans:
                self._call("cuMemcpyDtoDAsync", target, source, size_bytes, self._stream)
            self._synchronize()

    def export(self, pointer: int) -> bytes:
        """The handle by which other processes open an allocation: HANDLE_BYTES bytes. Raises DriverError."""
        with self._current():
            handle = self._call("cuIpcGetMemHandle", pointer)
        return ctypes.string_at(handle.getPtr(), HANDLE_BYTES)

    def open_exported(self, handle: bytes) -> int:
        """The address at which another process's allocation is mapped from now on. Raises DriverError."""
        found = self._driver.CUipcMemHandle()
        ctypes.memmove(found.getPtr(), handle, HANDLE_BYTES)
        with self._current():
            return int(self._call("cuIpcOpenMemHandle", found, _LAZY_ENABLE_PEER_ACCESS))

    def close_exported(self, pointer: int) -> None:
        """Undo one `open_exported`. Raises DriverError."""
        with self._current():
            self._call("cuIpcCloseMemHandle", pointer)

    def _synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        """This context on this thread, in the mode that does not disturb another thread's CUDA graph capture."""
        self._call("cuCtxPushCurrent", self._context)
        mode = self._call("cuThreadExchangeStreamCaptureMode", self._relaxed)
        try:
            yield
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", mode)
            self._call("cuCtxPopCurrent")

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._driver, name)(*arguments)
        if int(status):
            raise DriverError(name, int(status), status.name)
        return values[0] if len(values) == 1 else values


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
        """One dimension of unsigned bytes, already complete: readers need not wait for a stream."""
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
        # May run at the end of any last reference, even within this class: it takes no lock.
        self._free.append(pointer)
        if self._closed:
            self._free_buffers()

    def _free_buffers(self) -> None:
        while self._free:
            self._device.free(self._free.pop())


class DeviceThread:
    """Does one thing after another. Not a ThreadPoolExecutor: the interpreter joins the threads of those at its end."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """The result of `work`, or its error. Raises TimeoutError after `timeout_s`; later calls wait for its end."""
        return await asyncio.wait_for(asyncio.wrap_future(self._submit(work)), timeout_s)

    def end(self, last: Callable[[], object]) -> None:
        """End after the earlier calls and `last`. Does not wait; later calls never run."""
        self._submit(last)
        self._work.put(None)

    def _submit(self, work: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()
        self._work.put((future, work))
        return future

    def _run(self) -> None:
        while (asked := self._work.get()) is not None:
            _do(*asked)
            del asked  # or this thread would keep the result while it waits


def _do(future: "Future[T]", work: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
