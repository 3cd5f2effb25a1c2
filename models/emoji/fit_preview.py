"""Fit a model's latent-to-RGB projection for cheap previews, and write it into the model's serving.json.

python fit_preview.py --model model --prompts core.txt --count 48

Works for any model directory that SynerDiff serves: the latents are those of its own pictures, so the fit is good
where it matters. A quarter of the pictures is held out to measure it. Other fields of serving.json are kept.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from synerdiff.models.loading import load_unet_side, load_vae_side
from synerdiff.models.serving import PreviewProjection, fit_projection

BATCH = 8
SIGNIFICANT_DIGITS = 5


def main() -> None:
    """Fit, measure and write."""
    arguments = _parse_arguments()
    defaults = load_unet_side(arguments.model, torch.float32).defaults
    latents = draw_latents(
        arguments.model,
        read_prompts(arguments.prompts, arguments.count),
        num_inference_steps=defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
    )
    images = load_vae_side(arguments.model, torch.float32, safety_checker=False).decode(latents)
    held_out = len(latents) // 4
    projection = fit_projection(latents[held_out:], images[held_out:])
    error = preview_error(projection, latents[:held_out], images[:held_out])
    write_projection(arguments.model / "serving.json", projection)
    print(f"fitted on {len(latents) - held_out} pictures; mean error on {held_out} others: {error:.1f} levels of 255")


def read_prompts(path: Path, count: int) -> list[str]:
    """`count` names of a file of names separated by "|", as prompts."""
    names = [name.strip().lower() for name in path.read_text(encoding="utf-8").replace("\n", "").split("|")]
    return [f"a {name}" for name in random.Random(0).sample(names, min(count, len(names)))]


def draw_latents(model: Path, prompts: list[str], num_inference_steps: int, guidance_scale: float) -> Tensor:
    """The finished latents [n, C, h, w] of the model's own pictures of `prompts`, picture k from seed k."""
    pipeline = DiffusionPipeline.from_pretrained(model, local_files_only=True).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    batches = [
        pipeline(
            prompts[first : first + BATCH],
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generators[first : first + BATCH],
            output_type="latent",
        ).images
        for first in range(0, len(prompts), BATCH)
    ]
    return torch.cat(batches)


def preview_error(projection: PreviewProjection, latents: Tensor, images: np.ndarray) -> float:
    """Mean absolute error of previews against the pictures scaled down to their size, in levels of 255."""
    factor = images.shape[1] // latents.shape[2]
    count, height, width = len(images), latents.shape[2], latents.shape[3]
    small = images.reshape(count, height, factor, width, factor, 3).mean(axis=(2, 4))
    return float(np.abs(projection.images(latents) - small).mean())


def write_projection(path: Path, projection: PreviewProjection) -> None:
    """Put the projection into serving.json, made if need be."""
    serving: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    serving["preview"] = {"matrix": [_rounded(row) for row in projection.matrix], "bias": _rounded(projection.bias)}
    path.write_text(json.dumps(serving, indent=2) + "\n")


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in values.tolist()]


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fit a model's preview projection.")
    parser.add_argument(
        "--model", type=Path, default=Path("model"), help="model directory; its serving.json is written"
    )
    parser.add_argument("--prompts", type=Path, default=Path("core.txt"), help="names separated by |")
    parser.add_argument("--count", type=int, default=48, help="pictures to draw")
    return parser.parse_args()


if __name__ == "__main__":
    main()
