"""What a VAE's dtype costs its pictures: PSNR to those of float32, of the same latents.

    python -m bench.vae_dtype [--model DIRECTORY] [--pictures 8] [--steps 12]

Latents are denoised in float32 at the model's native size, then decoded in float32, in bfloat16 and, where the VAE does
not overflow in it, in float16. Prints JSON: per dtype the least and the mean PSNR in dB, and the largest difference in
levels of 255.
"""

from typing import Any

import torch

from bench.command import ModelDirectory, run
from bench.parity import levels, psnr_db
from services.unet_worker.fidelity_pictures import Studio, Task
from synerdiff.cards import Sampler
from synerdiff.models.dtypes import dtype_from_name
from synerdiff.models.errors import ModelLoadError
from synerdiff.models.loading import load_unet_side, load_vae_side
from synerdiff_cli.deployment import BUNDLED_MODEL

_GUIDANCE_SCALE = 4.0
_PROMPTS = ("a red apple", "a rocket", "a cat face", "a slice of pizza")


def measure(model: ModelDirectory = BUNDLED_MODEL, pictures: int = 8, steps: int = 12) -> dict[str, Any]:
    prompts = tuple(_PROMPTS[k % len(_PROMPTS)] for k in range(pictures))
    unet_side = load_unet_side(model, torch.float32)
    studio = Studio(unet_side, load_vae_side(model, torch.float32, safety_checker=False))
    drawn = studio.full(Task(prompts, Sampler.DDIM, steps, _GUIDANCE_SCALE))
    found: dict[str, Any] = {"device": "cpu", "model": model.name, "pictures": pictures}
    for name in ("bfloat16", "float16"):
        try:
            side = load_vae_side(model, torch.float32, vae_dtype=dtype_from_name(name), safety_checker=False)
        except ModelLoadError:  # it overflows
            continue
        pairs = list(zip(side.decode(drawn.latents), drawn.images, strict=True))
        psnrs = [psnr_db(one, other) for one, other in pairs]
        found[name] = {
            "least_psnr_db": round(min(psnrs), 1),
            "mean_psnr_db": round(sum(psnrs) / len(psnrs), 1),
            "most_levels": max(levels(one, other) for one, other in pairs),
        }
    return found


if __name__ == "__main__":
    run(measure)
