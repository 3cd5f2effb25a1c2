"""CUDA graphs that share a memory pool. Never run on a GPU: written from torch's sources (see docs/gpu.md).

Rules of torch's CUDAGraph.cpp and CUDACachingAllocator.cpp that its documentation does not have:

- A pool lives while a graph of it does. The handle of a dead one may still be known to the allocator, for a cuBLAS
  workspace that a capture took from it; to capture into it is then an assertion. So a new round of graphs gets a new
  handle, and the workspaces go first. (A graph kept for ever would do as well, but a pool in use gives nothing back.)
- cuBLAS keeps a workspace per stream, and newer releases drop that of a graph's stream with the graph, whatever other
  graphs still write to it. So captures have a stream on which nothing else is ever computed: its workspace then lies in
  the pool, which stays mapped while any graph lives.
- A capture that fails to begin or to end leaves the calling thread on the stream for captures, and the allocator
  believing that it goes on: emptying the cache is an assertion then, and so is the next capture into that pool.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from synerdiff.models.device.cuda_memory import graph_segments

# The driver's own memory for a graph of a few thousand launches, which torch does not see: an allowance, not measured.
_LAUNCHES_BYTES = 16 << 20

Handle = Any  # torch's, opaque


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
    """Captures graphs that are replayed one at a time, in any order. One thread at a time."""

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
        """Capture a call, which has been made before. Waits for the device. Raises whatever makes that impossible."""
        if not any(captured.handle == self._handle for captured in self._alive):
            self.clear_workspaces()
            self._handle = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer one restores the thread's stream whatever happens. Other threads go on with work that a capture
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
        """Have the allocator know that a failed capture has ended, if it was not told.

        The pool then counts a graph too many, so the next captures go into another. The graph stays: the allocator for
        pinned memory, which cannot be told, would go on asking it.
        """
        with contextlib.suppress(RuntimeError):  # it was told: "not currently recording to mempool_id"
            torch._C._cuda_endAllocateToPool(self._device.index, self._handle)
            self._abandoned.append(graph)
            self._handle = torch.cuda.graph_pool_handle()
