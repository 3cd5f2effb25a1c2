"""Statistics of a GroupNorm over an activation that lies in bands: those of the whole, never those of a band."""

from collections.abc import Sequence
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
    """What `norm` does to the activation that lies in `bands`, [n, C, rows, W] each."""
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
