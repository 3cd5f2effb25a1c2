"""Statistics of a GroupNorm over an activation that lies in bands: taken per band, then merged exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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


def band_moments(band: Tensor, groups: int) -> Moments:
    """Moments of one band [n, C, rows, W], whose C channels fall into `groups`."""
    n, channels, rows, width = band.shape
    # Several times as fast as torch.var_mean on CPUs, and as exact; its other result is dropped at once.
    _, mean, rstd = torch.native_group_norm(
        band.float().contiguous(), None, None, n, channels, rows * width, groups, eps=0.0
    )
    return Moments(channels // groups * rows * width, mean.double(), rstd.double().pow(-2))


def merge(parts: Sequence[Moments]) -> Moments:
    """Moments of disjoint bands together: n = sum n_i, m = sum n_i m_i / n, var = sum n_i (var_i + (m_i - m)^2) / n."""
    count = sum(part.count for part in parts)
    shares = [part.count / count for part in parts]
    mean = _sum([share * part.mean for share, part in zip(shares, parts, strict=True)])
    var = _sum([share * (part.var + (part.mean - mean) ** 2) for share, part in zip(shares, parts, strict=True)])
    return Moments(count, mean, var)


def affine(norm: nn.GroupNorm, moments: Moments) -> Affine:
    """What `norm` does to an activation that has these moments."""
    per_group = norm.num_channels // norm.num_groups
    rstd = (moments.var + norm.eps).rsqrt().repeat_interleave(per_group, dim=1)
    scale = rstd * norm.weight.double()
    shift = norm.bias.double() - moments.mean.repeat_interleave(per_group, dim=1) * scale
    return Affine(scale.float()[:, :, None, None], shift.float()[:, :, None, None])


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(dim=0)
