"""An activation that lies in row bands, and windows of rows on it."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Groups whose channels lie in one piece for a moment: enough for the threads, little beside the activation.
_GROUPS_AT_ONCE = 4


@dataclass(frozen=True)
class Moments:
    """Mean and (biased) variance of each group of each image, [n, groups] in float64, over `count` values each."""

    count: int
    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Affine:
    """A GroupNorm whose statistics are known: x * scale + shift, both float32 [n, C, 1, 1]."""

    scale: Tensor
    shift: Tensor


def affine(norm: nn.GroupNorm, bands: Sequence[Tensor]) -> Affine:
    """The affine form of `norm` for the activation that lies in `bands`, [n, C, rows, W] each."""
    mean, rstd = (gathered if bands[0].device.type == "cpu" else merged)(norm, bands)
    per_group = norm.num_channels // norm.num_groups
    scale = rstd.repeat_interleave(per_group, dim=1) * norm.weight.float()
    shift = -scale * mean.repeat_interleave(per_group, dim=1) + norm.bias.float()
    return Affine(scale[:, :, None, None], shift[:, :, None, None])


def gathered(norm: nn.GroupNorm, bands: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation [n, groups], float32, a few groups of channels at a time by torch's own summation.

    Where convolutions do not depend on the height either, as on CPUs, the decode then equals the unchunked one to the
    last bit; rounding differences that arise early in a decoder grow a hundredfold on their way to the image.
    """
    per_group = norm.num_channels // norm.num_groups
    parts = []
    for first in range(0, norm.num_groups, _GROUPS_AT_ONCE):
        groups = min(_GROUPS_AT_ONCE, norm.num_groups - first)
        channels = [band.narrow(1, first * per_group, groups * per_group) for band in bands]
        parts.append(_native(torch.cat(channels, dim=2), groups, norm.eps))
    return torch.cat([mean for mean, _ in parts], dim=1), torch.cat([rstd for _, rstd in parts], dim=1)


def merged(norm: nn.GroupNorm, bands: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The same, from the moments of each band: it moves nothing, which pays where memory bandwidth is the limit."""
    moments = merge([band_moments(band, norm.num_groups) for band in bands])
    return moments.mean.float(), (moments.var + norm.eps).rsqrt().float()


def band_moments(band: Tensor, groups: int) -> Moments:
    """Moments of one band [n, C, rows, W], whose C channels fall into `groups`; in float32 it is read where it lies.

    In half precision a float32 copy of the band is read, as torch gives moments in their input's dtype.
    """
    n, channels, rows, width = band.shape
    grouped = band.float().view(n, groups, channels // groups, rows, width)
    var, mean = torch.var_mean(grouped, dim=(2, 3, 4), correction=0)
    return Moments(band[0].numel() // groups, mean.double(), var.double())


def merge(parts: Sequence[Moments]) -> Moments:
    """Moments of disjoint bands together: n = sum n_i, m = sum n_i m_i / n, var = sum n_i (var_i + (m_i - m)^2) / n."""
    count = sum(part.count for part in parts)
    shares = [part.count / count for part in parts]
    mean = _sum([share * part.mean for share, part in zip(shares, parts, strict=True)])
    var = _sum([share * (part.var + (part.mean - mean) ** 2) for share, part in zip(shares, parts, strict=True)])
    return Moments(count, mean, var)


def _native(activation: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    # Several times as fast as torch.var_mean on CPUs, though it normalises besides.
    n, channels, rows, width = activation.shape
    size = (n, channels, rows * width)
    _, mean, rstd = torch.native_group_norm(activation.float().contiguous(), None, None, *size, groups, eps)
    return mean, rstd


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(dim=0)


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
        """Free the bands that end at `row` or above; of one that ends below it copy a rest of up to a quarter."""
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
