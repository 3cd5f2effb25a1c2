"""One CUDA GPU. Never run on a GPU: written from torch's documentation and sources (see docs/gpu.md).

Steps and decodes go to the default stream. One side stream carries uploads, another the work that stands beside the
steps (prompts), so that neither waits for them. Pinned buffers come from torch's caching allocator, which keeps a
buffer until the copies from it are done.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from synerdiff.models.device.contract import Capture, Device, Lend, Mark, Timeline
from synerdiff.models.device.cuda_graphs import GraphPool
from synerdiff.models.device.cuda_memory import CudaMemory
from synerdiff.registry import default_domain

# How far a GPU's clock and its host's may drift apart, with a margin: crystals are good to some 1e-5.
_CLOCKS_DRIFT = 5e-5


class _Moment(NamedTuple):
    number: int
    event: "torch.cuda.Event"

    def ns_after(self, other: "_Moment") -> int:
        """Negative when it came before: CUDA tells of two events only the later one's time after the earlier one."""
        if other.number > self.number:
            return -other.ns_after(self)
        passed_ms: float = other.event.elapsed_time(self.event)
        return round(passed_ms * 1e6)


class _Events:
    """Moments told from the last one that was waited for, and when the GPU passed that by this host's clock.

    A wait returns a little after its moment and never before, which bounds that clock from above; it is let run fast by
    no more than two clocks drift apart. Times between two moments are the GPU's own.
    """

    def __init__(self, new_event: Callable[[], "torch.cuda.Event"]) -> None:
        self._new_event = new_event
        self._numbers = itertools.count()
        self._base, self._base_unix_ns = self.mark(), time.time_ns()

    def mark(self) -> "_Moment":
        return _Moment(next(self._numbers), self._new_event())

    def wait(self, mark: Mark) -> None:
        mark.event.synchronize()  # sleeps, without the interpreter's lock
        now_ns, passed_ns = time.time_ns(), mark.ns_after(self._base)
        if passed_ns > 0:
            fast_ns = self._base_unix_ns + round(passed_ns * (1 + _CLOCKS_DRIFT))
            self._base, self._base_unix_ns = mark, min(now_ns, fast_ns)

    def unix_ns(self, mark: Mark) -> int:
        mark.event.synchronize()
        after_ns: int = mark.ns_after(self._base)
        return self._base_unix_ns + after_ns


class CudaDevice(Device):
    """One GPU. This process may take `memory_limit_bytes` of its memory; 0: the part `memory_share` (0 to 1).

    `captures`: use CUDA graphs. `cudnn_benchmark`: let cuDNN time its kernels at the first call of each shape.
    """

    queues = True

    def __init__(
        self,
        device: torch.device,
        *,
        captures: bool = True,
        memory_limit_bytes: int = 0,
        memory_share: float = 1.0,
        cudnn_benchmark: bool = False,
    ) -> None:
        torch.cuda.set_device(device)
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        self.captures = captures
        self._properties = torch.cuda.get_device_properties(self.torch_device)
        self._memory = CudaMemory(self.torch_device)
        total: int = self._properties.total_memory
        self._limit_bytes = min(memory_limit_bytes or int(memory_share * total), total)
        if self._limit_bytes < total:
            torch.cuda.set_per_process_memory_fraction(self._limit_bytes / total, self.torch_device)
        torch.backends.cudnn.benchmark = cudnn_benchmark
        self._copies, self._preparing = self._stream(), self._stream()
        self._graphs = GraphPool(self.torch_device)
        self._not_while_capturing = threading.Lock()

    @property
    def domain(self) -> str:
        """The GPU's UUID."""
        return default_domain(str(self._properties.uuid))

    @property
    def name(self) -> str:
        """As "cuda: NVIDIA H100 80GB HBM3, 79 GiB"."""
        return f"cuda: {self._properties.name}, {self._properties.total_memory / 2**30:.0f} GiB"

    @property
    def fastest_dtype(self) -> torch.dtype:
        """float16."""
        return torch.float16

    def cpu_threads(self, own: int) -> int:
        """None."""
        return 0

    def memory_limit_bytes(self) -> int:
        """The given limit, but no more than the GPU has."""
        return self._limit_bytes

    def restart_peak(self) -> None:
        """The allocator's own count begins anew."""
        self._memory.restart_peak()

    def peak_bytes(self) -> int:
        """Of tensors and of CUDA graphs' pools, without the memory of CUDA itself, libraries and the arena."""
        return self._memory.peak_bytes()

    def free_caches(self) -> None:
        """Blocks without a tensor go back to the GPU, those of cuBLAS among them. Waits for work beside the steps."""
        with self._not_while_capturing:
            self._graphs.clear_workspaces()
            torch.cuda.empty_cache()

    def upload(self, host: Tensor) -> Tensor:
        """Through a pinned buffer, on the side stream for copies; the thread's stream waits for it, not the thread."""
        if host.device.type != "cpu":
            return host.to(self.torch_device)
        pinned = torch.empty(host.shape, dtype=host.dtype, pin_memory=True)
        pinned.copy_(host)
        with torch.cuda.stream(self._copies):
            there = pinned.to(self.torch_device, non_blocking=True)
        stream = torch.cuda.current_stream(self.torch_device)
        stream.wait_stream(self._copies)
        there.record_stream(stream)
        return there

    def download(self, tensor: Tensor) -> Tensor:
        """Into a pinned buffer, waiting for that copy alone."""
        there = self.begin_download(tensor)
        if there is not tensor:
            self._event().synchronize()
        return there

    def begin_download(self, tensor: Tensor) -> Tensor:
        """Into a pinned buffer, in the order of the calling thread's stream."""
        if tensor.device.type == "cpu":
            return tensor
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor, non_blocking=True)

    def timeline(self) -> Timeline:
        """Events on the calling thread's stream, told from now on: an idle stream takes an event at once."""
        return _Events(self._event)

    @contextlib.contextmanager
    def beside(self) -> Iterator[Lend]:
        """On a stream of its own. Lent tensors are not freed before the steps that use them are done."""
        steps = torch.cuda.default_stream(self.torch_device)

        def lend(tensors: Iterable[Tensor]) -> None:
            for tensor in tensors:
                if tensor.device.type == "cuda":
                    tensor.record_stream(steps)

        with self._not_while_capturing, torch.cuda.stream(self._preparing):
            yield lend
            done = self._event()
        done.synchronize()

    def capture(self, call: Callable[[], Tensor]) -> Capture:
        """A CUDA graph. All graphs share a memory pool: they are replayed one at a time, in any order."""
        with self._not_while_capturing, torch.cuda.device(self.torch_device):
            call()  # libraries load and choose their kernels at a first call, which a capture forbids
            return self._graphs.capture(call)

    def captured_bytes(self) -> int:
        """Of the graphs' pools, and an allowance for the driver's memory of each."""
        return self._graphs.held_bytes

    def _stream(self) -> "torch.cuda.Stream":
        stream: torch.cuda.Stream = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        return stream

    def _event(self) -> "torch.cuda.Event":
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.torch_device))
        return event
