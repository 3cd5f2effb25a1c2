"""The GPU memory of this process, by torch's caching allocator. Never run on a GPU; tested on a fake of its API.

A CUDA graph keeps the memory that its capture took, in a pool of its own. A replay computes in it without asking the
allocator, so the tensors that it makes there are in no count of allocated bytes. The whole pool counts: no
other tensor can use it while a graph lives.
"""

from collections.abc import Mapping
from typing import Any

import torch

_DEFAULT_POOL = (0, 0)


class CudaMemory:
    """Counts for one device. Cheap, but for once after each time that the allocator has taken or given back memory."""

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
