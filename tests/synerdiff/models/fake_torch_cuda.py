"""A fake of torch.cuda's memory API, as its caching allocator counts. No GPU, no CUDA, no tensors: numbers alone.

Memory is taken from the device in segments, each of one pool. A segment stays when what lies in it is freed, until
`empty_cache`; one of a private pool stays even then, until its graphs are gone (`release_pool`). Sizes are not rounded
and segments not split among sizes as torch does: each allocation has a segment of its own size or a larger free one.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

PoolId = tuple[int, int]
DEFAULT: PoolId = (0, 0)


@dataclass(eq=False)
class Segment:
    """Memory taken from the device; `used` of it lies in a tensor."""

    pool: PoolId
    size: int
    used: int = 0


class FakeTorchCuda:
    """A GPU of `total` bytes to this process. `snapshots`: how often one was asked for, which walks all segments."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.fraction = 1.0
        self.snapshots = 0
        self._segments: list[Segment] = []
        self._released: set[PoolId] = set()
        self._made = self._freed = self._peak = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take torch.cuda's place, as far as a device asks for it when it is opened and about memory."""
        properties = SimpleNamespace(total_memory=self.total, uuid="GPU-fake", name="a fake")
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "Stream", lambda *_, **__: None)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
        for name in (
            *("empty_cache", "memory_snapshot", "memory_stats_as_nested_dict", "max_memory_allocated"),
            *("reset_peak_memory_stats", "set_per_process_memory_fraction"),
        ):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    # ---- what tensors and graphs do

    def allocate(self, size: int, pool: PoolId = DEFAULT) -> Segment:
        """A tensor. Raises torch.OutOfMemoryError over this process's fraction."""
        free = (each for each in self._segments if each.pool == pool and not each.used and each.size >= size)
        segment = min(free, key=lambda each: each.size, default=None)
        if segment is None:
            if sum(each.size for each in self._segments) + size > self.fraction * self.total:
                raise torch.OutOfMemoryError("CUDA out of memory")
            segment = Segment(pool, size)
            self._segments.append(segment)
            self._made += 1
        segment.used = size
        self._peak = max(self._peak, self._allocated)
        return segment

    def free(self, segment: Segment) -> None:
        """The tensor is gone; the segment stays."""
        segment.used = 0

    def release_pool(self, pool: PoolId) -> None:
        """Its last graph is gone."""
        self._released.add(pool)

    # ---- torch.cuda

    def empty_cache(self) -> None:
        kept = [
            each for each in self._segments if each.used or (each.pool != DEFAULT and each.pool not in self._released)
        ]
        self._freed += len(self._segments) - len(kept)
        self._segments = kept

    def memory_stats_as_nested_dict(self, device: Any = None) -> dict[str, Any]:
        allocated = {"current": self._allocated, "peak": self._peak}
        return {
            "allocated_bytes": {"all": allocated},
            "segment": {"all": {"allocated": self._made, "freed": self._freed}},
        }

    def max_memory_allocated(self, device: Any = None) -> int:
        return self._peak

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        self._peak = self._allocated

    def memory_snapshot(self) -> list[dict[str, Any]]:
        self.snapshots += 1
        of_another_gpu = {"device": 1, "segment_pool_id": (0, 1), "total_size": self.total, "allocated_size": 0}
        ours = [
            {"device": 0, "segment_pool_id": each.pool, "total_size": each.size, "allocated_size": each.used}
            for each in self._segments
        ]
        return [*ours, of_another_gpu]

    def set_per_process_memory_fraction(self, fraction: float, device: Any = None) -> None:
        self.fraction = fraction

    @property
    def _allocated(self) -> int:
        return sum(each.used for each in self._segments)
