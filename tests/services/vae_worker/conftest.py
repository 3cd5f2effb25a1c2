"""The bundled model's VAE, and diffusers' own decode of it to compare with."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor

from synerdiff.models.family import VaeSide
from synerdiff.models.loading import load_vae_side

MODEL = Path(__file__).parents[3] / "models" / "emoji" / "model"


@pytest.fixture(scope="session")
def vae_side() -> VaeSide:
    return load_vae_side(MODEL, torch.float32)


def latents_of(count: int, width: int, height: int) -> torch.Tensor:
    """Random latents [count, C, height / factor, width / factor], each its own."""
    config = _vae().config
    factor = 2 ** (len(config.block_out_channels) - 1)
    shape = (count, config.latent_channels, height // factor, width // factor)
    return torch.randn(shape, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def diffusers_decode(latents: torch.Tensor) -> list[npt.NDArray[Any]]:
    """The pictures that a diffusers pipeline makes of latents, as integers."""
    vae = _vae()
    pictures = []
    for one in latents:
        image = vae.decode(one[None] / vae.config.scaling_factor, return_dict=False)[0]
        [picture] = VaeImageProcessor().postprocess(image, output_type="pil")
        pictures.append(np.asarray(picture).astype(int))
    return pictures


@cache
def _vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(MODEL, subfolder="vae")
