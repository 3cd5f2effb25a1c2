"""A fake of torch.cuda's graph API, below torch's own `torch.cuda.graph`. No GPU is simulated.

It keeps the books that torch keeps (CUDAGraph.cpp, CUDACachingAllocator.cpp, CublasHandlePool.cpp): use counts of
pools, captures under way, and a workspace for every stream that has multiplied matrices. What a GPU makes of that, it
cannot show; nor whether torch's books are kept as they were read.
"""

import contextlib
import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

TOTAL_BYTES = 8 << 30
WORKSPACE_BYTES = 32 << 20

Handle = tuple[int, int]


@dataclass(eq=False)
class FakeStream:
    """A stream; `capturing`: the graph that its work goes into."""

    capturing: "FakeGraph | None" = None

    def wait_stream(self, other: "FakeStream") -> None:
        pass

    def synchronize(self) -> None:
        pass


@dataclass(eq=False)
class Block:
    """Memory from a pool, or without one from what every tensor comes from. `mapped`: it can still be written to."""

    handle: Handle | None
    size_bytes: int
    held: bool = True
    mapped: bool = True


@dataclass
class Pool:
    """As the allocator knows it."""

    use_count: int = 1
    blocks: list[Block] = field(default_factory=list)


class FakeGraph:
    """What the C++ class does with the allocator's books."""

    def __init__(self, cuda: "FakeCuda") -> None:
        self._cuda = cuda
        self._stream: FakeStream | None = None
        self._handle: Handle | None = None
        self._ended = False
        self.broken = False
        self.writes: list[Block] = []

    def capture_begin(self, pool: Handle, capture_error_mode: str = "global", **_: Any) -> None:
        cuda = self._cuda
        assert cuda.stream is not cuda.default_stream, "CUDA graphs must be captured on a non-default stream."
        cuda.begin_allocating(pool)
        self._handle = pool
        if cuda.begin_fails is not None:  # as cudaStreamBeginCapture does: after the allocator was told
            raise cuda.begin_fails
        self._stream, cuda.stream.capturing = cuda.stream, self

    def capture_end(self) -> None:
        assert self._stream is self._cuda.stream, "Capture must end on the same stream it began on."
        self._stream.capturing = None
        if self.broken:  # cudaStreamEndCapture fails, before the allocator is told
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self._cuda.end_allocating(self._handle)
        self._ended = True

    def replay(self) -> None:
        assert self._ended
        self._cuda.replays += 1
        if not all(block.mapped for block in self.writes):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def __del__(self) -> None:
        if not self._ended or self._handle is None:
            return
        if self._cuda.clears_at_reset:
            self._cuda.forget_workspaces(self._stream)
        self._cuda.pools[self._handle].use_count -= 1


@dataclass
class FakeStreamContext:
    """As torch's: the stream before it is that of its beginning, and set again at its end alone."""

    cuda: "FakeCuda"
    stream: FakeStream
    before: FakeStream | None = None

    def __enter__(self) -> None:
        self.before, self.cuda.stream = self.cuda.stream, self.stream

    def __exit__(self, *_: object) -> None:
        assert self.before is not None
        self.cuda.stream = self.before


class FakeCuda:
    """`install` puts it in torch's place. `clears_at_reset`: a graph that goes takes the workspaces of its stream
    along, as in newer releases; `begin_fails`: what captures fail with before they
    begin; `others`: segments of other GPUs.
    """

    def __init__(self, clears_at_reset: bool) -> None:
        self.clears_at_reset = clears_at_reset
        self.begin_fails: Exception | None = None
        self.default_stream = self.stream = FakeStream()
        self.pools: dict[Handle, Pool] = {}
        self.underway: list[Handle] = []
        self.workspaces: dict[FakeStream, Block] = {}
        self.replays = 0
        self.others: list[dict[str, Any]] = []
        self._ordinary: list[Block] = []
        self._handles = itertools.count(1)

    def multiply(self, tensor: Tensor) -> Tensor:
        """A computation that takes a workspace of cuBLAS, on the current stream."""
        capturing = self.stream.capturing
        if self.stream not in self.workspaces:
            self.workspaces[self.stream] = self.allocate(WORKSPACE_BYTES)
        if capturing is not None:
            capturing.writes.append(self.workspaces[self.stream])
        return tensor * 2

    def break_if_captured(self, tensor: Tensor) -> Tensor:
        """A computation that may not be captured."""
        if self.stream.capturing is None:
            return tensor
        self.stream.capturing.broken = True
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def allocate(self, size_bytes: int) -> Block:
        handle = self.underway[-1] if self.stream.capturing is not None else None
        block = Block(handle, size_bytes)
        (self._ordinary if handle is None else self.pools[handle].blocks).append(block)
        return block

    def begin_allocating(self, handle: Handle) -> None:
        if handle in self.pools:
            assert self.pools[handle].use_count > 0, "it->second->use_count > 0 INTERNAL ASSERT FAILED"
            self.pools[handle].use_count += 1
        else:
            self.pools[handle] = Pool()
        if handle in self.underway:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.underway.append(handle)

    def end_allocating(self, handle: Handle | None) -> None:
        if handle not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(handle)

    def empty_cache(self) -> None:
        assert not self.underway, "captures_underway.empty() INTERNAL ASSERT FAILED"
        for block in self._ordinary:
            block.mapped = block.held
        self._ordinary = [block for block in self._ordinary if block.held]
        for handle, pool in list(self.pools.items()):
            if pool.use_count == 0:
                for block in pool.blocks:
                    block.mapped = block.held
                pool.blocks = [block for block in pool.blocks if block.held]
                if not pool.blocks:
                    del self.pools[handle]

    def forget_workspaces(self, stream: FakeStream | None = None) -> None:
        for one in [stream] if stream is not None else list(self.workspaces):
            block = self.workspaces.pop(one, None)
            if block is not None:
                block.held = False

    def segments(self) -> list[dict[str, Any]]:
        blocks = [*self._ordinary, *(block for pool in self.pools.values() for block in pool.blocks)]
        ours = [
            {"device": 0, "segment_pool_id": block.handle or (0, 0), "total_size": block.size_bytes} for block in blocks
        ]
        return [*ours, *self.others]

    def install(self, patch: pytest.MonkeyPatch) -> None:
        properties = SimpleNamespace(total_memory=TOTAL_BYTES, name="a fake", uuid="fake")
        stands_in: dict[str, Any] = {
            "CUDAGraph": lambda: FakeGraph(self),
            "Stream": lambda *_: FakeStream(),
            "current_device": lambda: 0,
            "current_stream": lambda *_: self.stream,
            "default_stream": lambda *_: self.default_stream,
            "device": lambda _: contextlib.nullcontext(),
            "empty_cache": self.empty_cache,
            "get_device_properties": lambda _: properties,
            "graph_pool_handle": lambda: (0, next(self._handles)),
            "memory_snapshot": self.segments,
            "set_device": lambda _: None,
            "stream": lambda stream: FakeStreamContext(self, stream),
            "synchronize": lambda *_: None,
        }
        for name, stand_in in stands_in.items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(torch.cuda.graph, "default_capture_stream", None)
        below: dict[str, Any] = {
            "_cuda_clearCublasWorkspaces": self.forget_workspaces,
            "_cuda_endAllocateToPool": lambda _, handle: self.end_allocating(handle),
            "_host_emptyCache": lambda: None,
        }
        for name, stand_in in below.items():
            patch.setattr(torch._C, name, stand_in, raising=False)
