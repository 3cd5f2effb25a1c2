"""One CUDA GPU. Never run on a GPU: written from torch's documentation and sources (see docs/gpu.md).

Steps and decodes go to the default stream. One side stream carries uploads, another the work that stands beside the
steps (prompts), so that neither waits for them. Pinned buffers come from torch's caching allocator, which keeps a
buffer until the copies from it are done.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor

from synerdiff.models.device.contract import DEFAULTS, Capture, Device, DeviceOptions, Lend, Mark, Timeline
from synerdiff.registry import default_domain

# How far a GPU's clock and its host's may drift apart, with a margin: crystals are good to some 1e-5.
_CLOCKS_DRIFT = 5e-5
# The driver's own memory for a graph of a few thousand launches, which torch does not see: an allowance, not measured.
_LAUNCHES_BYTES = 16 << 20
_DEFAULT_POOL = (0, 0)

Handle = Any  # torch's, opaque


class _Moment(NamedTuple):
    number: int
    event: "torch.cuda.Event"

    def ns_after(self, other: "_Moment") -> int:
        """Negative when it came before: CUDA gives only the time of the later of two events after the earlier one."""
        if other.number > self.number:
            return -other.ns_after(self)
        passed_ms: float = other.event.elapsed_time(self.event)
        return round(passed_ms * 1e6)


class _Events:
    """Moments timed from the last awaited one, and the time on this host's clock when the GPU passed that one.

    A wait returns a little after its moment and never before, which bounds that time from above; it gains no more than
    two clocks drift apart. Times between two moments are the GPU's own.
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


class CudaMemory:
    """Memory of this process on one device, by torch's caching allocator. Cheap, but for once after each time that the
    allocator has taken or given back memory.

    A CUDA graph keeps the memory that its capture took, in a pool of its own. A replay computes in it without asking
    the allocator, so the tensors that it makes there are in no count of allocated bytes. The whole pool counts: no
    other tensor can use it while a graph lives.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spare_at_restart = 0
        self._segments: tuple[int, int] = (-1, -1)
        self._spare = 0

    def restart_peak(self) -> None:
        """The allocator's own count begins anew."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._spare_at_restart = self._spare_bytes(self._stats())

    def peak_bytes(self) -> int:
        """Most bytes of tensors and of graphs' pools since `restart_peak`.

        A capture in between counts for the memory it leaves; while it ran it took no more than the calls before it.
        """
        stats = self._stats()
        allocated = stats["allocated_bytes"]["all"]
        before = int(allocated["peak"]) + self._spare_at_restart
        return max(before, int(allocated["current"]) + self._spare_bytes(stats))

    def _stats(self) -> Mapping[str, Any]:
        stats: Mapping[str, Any] = torch.cuda.memory_stats_as_nested_dict(self._device)
        return stats

    def _spare_bytes(self, stats: Mapping[str, Any]) -> int:
        """Bytes of graphs' pools in which no tensor lies now: those count as allocated."""
        taken = stats["segment"]["all"]
        segments = int(taken["allocated"]), int(taken["freed"])
        if segments != self._segments:
            self._segments = segments
            self._spare = sum(
                segment["total_size"] - segment["allocated_size"] for segment in graph_segments(self._device)
            )
        return self._spare


def graph_segments(device: torch.device) -> list[dict[str, Any]]:
    """The segments that the allocator holds for graphs' pools, as `torch.cuda.memory_snapshot` describes them."""
    segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return [
        segment
        for segment in segments
        if segment["device"] == device.index and tuple(segment["segment_pool_id"]) != _DEFAULT_POOL
    ]


@dataclass(frozen=True, eq=False)
class CapturedGraph:
    """A CUDA graph with the buffer that it leaves its answer in. `handle`: of the pool that it was captured into."""

    graph: "torch.cuda.CUDAGraph"
    output: Tensor
    handle: Handle

    def replay(self) -> None:
        """Queue it on the calling thread's stream."""
        self.graph.replay()


class GraphPool:
    """Captures graphs that are replayed one at a time, in any order. One thread at a time.

    Rules of torch's CUDAGraph.cpp and CUDACachingAllocator.cpp that its documentation does not have:

    - A pool lives while a graph of it does. The handle of a dead one may still be known to the allocator, for a cuBLAS
      workspace that a capture took from it; to capture into it is then an assertion. So a new round of graphs gets a
      new handle, and the workspaces go first. (A graph kept for ever would do too, but a pool in use gives nothing
      back.)
    - cuBLAS keeps a workspace per stream, and newer releases drop that of a graph's stream with the graph, even if
      other graphs still write to it. So captures have a stream on which nothing else is ever computed: its workspace
      then lies in the pool, which stays mapped while any graph lives.
    - A capture that fails to begin or to end leaves the calling thread on the stream for captures, and the allocator
      believing that it goes on: emptying the cache is an assertion then, and so is the next capture into that pool.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._handle: Handle = torch.cuda.graph_pool_handle()
        self._alive: WeakSet[CapturedGraph] = WeakSet()
        self._abandoned: list[torch.cuda.CUDAGraph] = []

    @property
    def held_bytes(self) -> int:
        """Memory of the pools, with the part left by dropped graphs for the next, and of the graphs' launches."""
        pools: int = sum(segment["total_size"] for segment in graph_segments(self._device))
        return pools + len(self._alive) * _LAUNCHES_BYTES

    def capture(self, call: Callable[[], Tensor]) -> CapturedGraph:
        """Capture a call, which has been made before. Waits for the device. Raises the error that prevents it."""
        if not any(captured.handle == self._handle for captured in self._alive):
            self.clear_workspaces()
            self._handle = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer one restores the thread's stream after any error. Other threads go on with work that a capture
            # in the default mode would forbid them.
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(graph, pool=self._handle, stream=self._stream, capture_error_mode="thread_local"),
            ):
                output = call()
        except Exception:
            self._abandon(graph)
            raise
        captured = CapturedGraph(graph, output, self._handle)
        self._alive.add(captured)
        return captured

    def clear_workspaces(self) -> None:
        """Let cuBLAS take its workspaces anew. No call of another thread may be on its way to the device."""
        torch._C._cuda_clearCublasWorkspaces()

    def _abandon(self, graph: "torch.cuda.CUDAGraph") -> None:
        """End a failed capture in the allocator too, if it still records.

        The pool then counts a graph too many, so the next captures go into another. The graph stays: the allocator for
        pinned memory cannot be informed and would go on querying it.
        """
        with contextlib.suppress(RuntimeError):  # it has ended: "not currently recording to mempool_id"
            torch._C._cuda_endAllocateToPool(self._device.index, self._handle)
            self._abandoned.append(graph)
            self._handle = torch.cuda.graph_pool_handle()


class CudaDevice(Device):
    """One GPU."""

    queues = True

    def __init__(self, device: torch.device, options: DeviceOptions = DEFAULTS) -> None:
        torch.cuda.set_device(device)
        self.torch_device = torch.device("cuda", torch.cuda.current_device())
        self.captures = options.cuda_graphs
        self._properties = torch.cuda.get_device_properties(self.torch_device)
        self._memory = CudaMemory(self.torch_device)
        total: int = self._properties.total_memory
        self._limit_bytes = min(options.memory_limit_bytes or int(options.memory_share * total), total)
        if self._limit_bytes < total:
            torch.cuda.set_per_process_memory_fraction(self._limit_bytes / total, self.torch_device)
        torch.backends.cudnn.benchmark = options.cudnn_benchmark
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
        """Events on the calling thread's stream, timed from now on: an idle stream takes an event at once."""
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
