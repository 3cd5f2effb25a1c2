"""An activation that lies in row bands, and windows of rows on it."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from services.vae_worker.group_statistics import Affine


@dataclass(frozen=True)
class Shape:
    """Of a whole activation: [images, channels, rows, columns], and bytes per value."""

    images: int
    channels: int
    height: int
    width: int
    itemsize: int

    @property
    def positions(self) -> int:
        """Rows times columns."""
        return self.height * self.width

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return self.images * self.channels * self.height * self.width


class BandedActivation:
    """Bands [n, C, rows, W] that were appended from the top on, less those already dropped."""

    def __init__(self, height: int) -> None:
        self.height = height
        self._bands: deque[tuple[int, Tensor]] = deque()
        self._appended = 0

    def append(self, band: Tensor) -> None:
        """Add the band below the last one."""
        self._bands.append((self._appended, band))
        self._appended += band.shape[2]

    def tensors(self) -> list[Tensor]:
        """The bands, from the top on."""
        return [band for _, band in self._bands]

    def rows(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """The rows [start, stop) as views on the bands, each with the number of its first row."""
        for first, band in self._bands:
            low, high = max(start, first), min(stop, first + band.shape[2])
            if low < high:
                yield low, band.narrow(2, low - first, high - low)

    def drop_above(self, row: int) -> None:
        """Free the bands that end at `row` or above; of one that ends below it keep what is left, if that is little."""
        while self._bands and self._bands[0][0] + self._bands[0][1].shape[2] <= row:
            self._bands.popleft()
        if self._bands:
            first, band = self._bands[0]
            left = first + band.shape[2] - row
            if left * 4 <= band.shape[2]:
                self._bands[0] = (row, band.narrow(2, row - first, left).clone())

    def whole(self) -> Tensor:
        """All rows in one tensor."""
        tensors = self.tensors()
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=2)


def split_rows(height: int, bands: int) -> Iterator[tuple[int, int]]:
    """The bounds [start, stop) of `bands` bands as even as `height` allows, at least one row each."""
    bands = max(1, min(bands, height))
    return ((i * height // bands, (i + 1) * height // bands) for i in range(bands))


def window(
    source: BandedActivation,
    start: int,
    stop: int,
    halo: int,
    norm: Affine | None = None,
    lies: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Rows [start - halo, stop + halo) of `source`, through `norm`; zeros outside the picture. `lies`: its format."""
    top = start - halo
    buffer: Tensor | None = None
    for row, rows in source.rows(max(top, 0), min(stop + halo, source.height)):
        if buffer is None:
            n, channels, _, width = rows.shape
            shape = (n, channels, stop - start + 2 * halo, width)
            buffer = torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=lies)
        target = buffer.narrow(2, row - top, rows.shape[2])
        if norm is None:
            target.copy_(rows)
        else:
            torch.addcmul(norm.shift, rows, norm.scale, out=target)
    if buffer is None:
        raise IndexError(f"rows {start} to {stop} are outside the picture or already dropped")
    if top < 0:
        buffer.narrow(2, 0, -top).zero_()
    below = stop + halo - source.height
    if below > 0:
        buffer.narrow(2, buffer.shape[2] - below, below).zero_()
    return buffer
