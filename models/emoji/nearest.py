"""How well pictures match what was asked: the rank of the right emoji among the nearest training pictures."""

from collections.abc import Sequence

import torch
from pictures import WHITE, compose
from torch import Tensor
from torch.nn import functional

SCALES = (1.0, 0.93, 0.86)
SHIFTS = ((0, 0), (4, 0), (-4, 0), (0, 4), (0, -4))


class NearestPictures:
    """Distances at 32x32 pixels, border colour subtracted, to small scale and shift variants of each reference."""

    def __init__(self, rgba: Tensor) -> None:
        variants = [
            _features(torch.stack([compose(emoji, WHITE, scale, dx, dy) for emoji in rgba]))
            for scale in SCALES
            for dx, dy in SHIFTS
        ]
        self._count = len(rgba)
        self._references = torch.stack(variants, 1).flatten(0, 1)  # [emoji * variants, features]

    def ranks(self, pictures: Tensor, truth: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The rank of each picture's right emoji, 0 being the nearest, and all emoji from the nearest on."""
        distances = torch.cdist(_features(pictures), self._references)
        order = distances.view(len(pictures), self._count, -1).amin(-1).argsort(1)
        return (order == torch.tensor(truth)[:, None]).float().argmax(1), order


def _features(pictures: Tensor) -> Tensor:
    small = functional.avg_pool2d(pictures, 4)
    border = torch.cat([small[..., 0, :], small[..., -1, :], small[..., :, 0], small[..., :, -1]], -1)
    background = border.median(-1).values
    return (small - background[:, :, None, None]).flatten(1)


def score(ranks: Tensor) -> dict[str, float]:
    """The shares of pictures whose right emoji is the nearest, and among the nearest five."""
    return {"top1": round((ranks == 0).float().mean().item(), 4), "top5": round((ranks < 5).float().mean().item(), 4)}
