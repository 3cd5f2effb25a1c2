"""The bundled model's VAE, and diffusers' own decode of it to compare with."""

import io
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from synerdiff.models.family import VaeSide
from synerdiff.models.loading import load_vae_side
from tests.reference import in_float64
from tests.rounding import assert_same_picture

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


def assert_decoded(pictures: Iterable[npt.NDArray[np.uint8]], latents: torch.Tensor) -> None:
    """That pictures [H, W, 3] are those that diffusers makes of latents, each alone."""
    for picture, one in zip(pictures, latents, strict=True):
        assert_same_picture(picture, diffusers_levels(in_float64(_vae()), one.double()), diffusers_levels(_vae(), one))


def assert_decoded_as_jpeg(picture: npt.NDArray[np.uint8], latents: torch.Tensor) -> None:
    """The same of a JPEG: that it is off by no more than twice what a JPEG of diffusers' own picture is."""
    expected = diffusers_levels(_vae(), latents).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(expected).save(file, "JPEG", quality=90)
    with Image.open(file) as opened:
        loss = np.abs(np.asarray(opened).astype(int) - expected).max()
    assert np.abs(picture.astype(int) - expected).max() <= 2 * loss


@torch.no_grad()
def diffusers_levels(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """The picture [H, W, 3] that a diffusers pipeline makes of latents [C, h, w], in levels that are not yet whole."""
    image = vae.decode(latents[None] / vae.config.scaling_factor, return_dict=False)[0]
    [picture] = VaeImageProcessor().postprocess(image, output_type="pt")
    levels: torch.Tensor = picture.permute(1, 2, 0) * 255
    return levels


@cache
def _vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(MODEL, subfolder="vae")
