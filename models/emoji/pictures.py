"""The training pictures: emoji composed over backgrounds, as tensors [3, 128, 128] in [-1, 1]."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SIZE = 128
LATENT_FACTOR = 8

WHITE = (255, 255, 255)
COLOURS = {
    "white": WHITE,
    "blue": (66, 133, 244),
    "red": (219, 68, 55),
    "green": (52, 168, 83),
    "yellow": (251, 214, 80),
    "pink": (248, 165, 194),
    "orange": (245, 150, 60),
    "purple": (149, 97, 206),
    "black": (24, 24, 24),
    "gray": (150, 150, 150),
    "light blue": (173, 216, 240),
}

Colour = tuple[int, int, int]


def load_pictures(work: Path) -> tuple[Tensor, list[dict[str, Any]]]:
    """The emoji [N, 4, 128, 128], straight alpha in [0, 1], and what data.py wrote of each."""
    rgba = torch.from_numpy(np.load(work / "emoji_rgba.npy")).permute(0, 3, 1, 2).float() / 255
    return rgba, json.loads((work / "emoji.json").read_text(encoding="utf-8"))


def read_subset(path: Path | None, meta: list[dict[str, Any]]) -> list[int]:
    """The indices of the emoji whose names a file lists, separated by "|"; all without a file."""
    if path is None:
        return list(range(len(meta)))
    names = {name.strip() for name in path.read_text(encoding="utf-8").replace("\n", "").split("|")}
    return [index for index, emoji in enumerate(meta) if emoji["label"] in names]


def compose(rgba: Tensor, colour: Colour, scale: float = 1.0, dx: float = 0, dy: float = 0) -> Tensor:
    """One emoji [4, 128, 128] over a colour, scaled about the centre and shifted by pixels, as [3, 128, 128]."""
    alpha = rgba[3:4]
    premultiplied = torch.cat([rgba[:3] * alpha, alpha])  # so that resampling does not bleed colours
    if scale != 1.0 or dx or dy:
        inverse = torch.tensor([[1.0 / scale, 0, -2 * dx / SIZE / scale], [0, 1.0 / scale, -2 * dy / SIZE / scale]])
        grid = functional.affine_grid(inverse[None], (1, 4, SIZE, SIZE), align_corners=False)
        premultiplied = functional.grid_sample(
            premultiplied[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )[0]
    background = torch.tensor(colour).view(3, 1, 1) / 255
    return (premultiplied[:3] + (1 - premultiplied[3:4]) * background) * 2 - 1


def compose_all(rgba: Tensor) -> Tensor:
    """Every emoji on white, [N, 3, 128, 128]."""
    return torch.stack([compose(emoji, WHITE) for emoji in rgba])


def random_crops(rgba: Tensor, rng: random.Random, count: int, side: int) -> Tensor:
    """Random emoji on random backgrounds, jittered and cropped to `side` pixels: [count, 3, side, side]."""
    return torch.stack([_random_crop(rgba, rng, side) for _ in range(count)])


def _random_crop(rgba: Tensor, rng: random.Random, side: int) -> Tensor:
    picture = compose(
        rgba[rng.randrange(len(rgba))],
        _random_background(rng),
        scale=rng.uniform(0.85, 1.05) if rng.random() < 0.5 else 1.0,
        dx=rng.randint(-6, 6),
        dy=rng.randint(-6, 6),
    )
    if side == SIZE:
        return picture
    # Crops are cheaper than whole pictures; most are near the middle, where the emoji is.
    top, left = (min(SIZE - side, max(0, round(rng.gauss((SIZE - side) / 2, side / 3)))) for _ in range(2))
    return picture[:, top : top + side, left : left + side]


def _random_background(rng: random.Random) -> Colour:
    """Mostly white, named colours, sometimes any colour."""
    draw = rng.random()
    if draw < 0.6:
        return WHITE
    if draw < 0.8:
        return COLOURS[rng.choice(list(COLOURS))]
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)
