"""Latents of the training pictures, encoded once: the UNet trains on these."""

import random
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import torch
from networks import make_vae
from pictures import COLOURS, compose
from torch import Tensor

BATCH = 32


class Kind(IntEnum):
    """How an emoji was composed."""

    PLAIN = 0
    JITTERED = 1
    COLOURED = 2


@dataclass(frozen=True)
class Composition:
    """One way to compose an emoji."""

    colour: str
    scale: float = 1.0
    dx: int = 0
    dy: int = 0

    @property
    def kind(self) -> Kind:
        """Its kind; one jittered by nothing counts as plain."""
        if self.colour != "white":
            return Kind.COLOURED
        return Kind.PLAIN if self.scale == 1.0 else Kind.JITTERED


@torch.no_grad()
def cache_latents(work: Path, rgba: Tensor, jittered: int, coloured: int, seed: int) -> None:
    """Write WORK/latents.pt: per emoji one plain on white, some jittered on white, some on named colours."""
    rng = random.Random(seed + 1)
    checkpoint = torch.load(work / "vae.pt")
    vae = make_vae().eval()
    vae.load_state_dict(checkpoint["vae"])
    started = time.time()
    compositions = [_compositions(rng, jittered, coloured) for _ in rgba]
    pictures = [(index, composition) for index, of_emoji in enumerate(compositions) for composition in of_emoji]
    latents = []
    for first in range(0, len(pictures), BATCH):
        batch = torch.stack(
            [
                compose(rgba[index], COLOURS[how.colour], how.scale, how.dx, how.dy)
                for index, how in pictures[first : first + BATCH]
            ]
        )
        latents.append((vae.encode(batch).latent_dist.mode() * checkpoint["scale"]).half())
    torch.save(
        {
            "lat": torch.cat(latents),
            "idx": torch.tensor([index for index, _ in pictures]),
            "col": [composition.colour for _, composition in pictures],
            "kind": torch.tensor([int(composition.kind) for _, composition in pictures]),
            "scale": checkpoint["scale"],
        },
        work / "latents.pt",
    )
    print(f"cached {len(pictures)} latents in {time.time() - started:.0f} s", flush=True)


def _compositions(rng: random.Random, jittered: int, coloured: int) -> list[Composition]:
    colours = [colour for colour in COLOURS if colour != "white"]
    jitter = [
        Composition("white", rng.uniform(0.85, 1.0), rng.randint(-5, 5), rng.randint(-5, 5)) for _ in range(jittered)
    ]
    return [Composition("white"), *jitter, *(Composition(colour) for colour in rng.sample(colours, coloured))]
