"""Requests as a crowd would send them: every sampler, many steps, scales, sizes and counts."""

import random
from dataclasses import dataclass

from synerdiff.cards import Sampler
from synerdiff.client.load.requests import LoadRequest, prompts_of_words
from synerdiff_cli.deployment import BUNDLED_MODEL

SAMPLERS = [sampler for sampler in Sampler if sampler not in (Sampler.DDPM, Sampler.LCM, Sampler.OWN)]


@dataclass(frozen=True)
class MixedRequest(LoadRequest):
    """A request that leaves nothing to the server."""

    num_inference_steps: int
    guidance_scale: float
    sampler: Sampler
    width: int
    height: int


def mixed_requests(count: int, seed: int, steps: tuple[int, int] = (4, 12)) -> list[MixedRequest]:
    """Requests to the bundled model, never skipping guidance, of `steps[0]` to `steps[1]` steps; the same for the same
    arguments."""
    draw = random.Random(seed)
    prompts = prompts_of_words(BUNDLED_MODEL.parent / "core.txt")
    sizes = [(128, 128)] * 6 + [(128, 160), (96, 128)]
    requests = []
    for _ in range(count):
        width, height = draw.choice(sizes)
        requests.append(
            MixedRequest(
                prompt=draw.choice(prompts),
                negative_prompt=draw.choice(["", "", "blue"]),
                seed=draw.randrange(2**32),
                num_inference_steps=draw.randint(*steps),
                guidance_scale=draw.choice([1.0, 2.5, 4.0, 4.0, 7.5]),
                sampler=draw.choice(SAMPLERS),
                width=width,
                height=height,
                num_images=draw.choice([1, 1, 1, 2]),
                skip_cfg=False,
            )
        )
    return requests
