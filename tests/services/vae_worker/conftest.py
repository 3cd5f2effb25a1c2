"""The bundled model's VAE, a worker that serves it, and diffusers' own decode of it to compare with."""

import io
from collections.abc import AsyncIterator, Iterable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from services.vae_worker.service import add_services
from services.vae_worker.worker import VaeWorker
from synerdiff.latents.arena import create_arena
from synerdiff.models.family import VaeSide
from synerdiff.models.loading import load_vae_side
from synerdiff.rpc import ServiceHost
from tests.reference import in_float64
from tests.rounding import assert_same_picture
from tests.services.vae_worker.stage import MODEL, SIDE, Stage, reference_vae
from tests.services.worker_processes import served_arena


@pytest.fixture(scope="session")
def vae_side() -> VaeSide:
    return load_vae_side(MODEL, torch.float32)


@pytest.fixture
async def stage(vae_side: VaeSide) -> AsyncIterator[Stage]:
    arena, host = create_arena(16, 4 * (SIDE // 8) ** 2 * 4, "float32"), ServiceHost()
    worker = VaeWorker("vae-1", vae_side, encode_threads=2, outbox_bytes=1 << 24)
    add_services(host, worker)
    address = await host.start("127.0.0.1:0")
    worker.start()
    async with served_arena(arena) as arena_address:
        made = Stage(worker, address, arena, arena_address)
        yield made
        for channel in made.channels:
            await channel.close()
        await host.drain(0)
    await worker.close()


def assert_decoded(pictures: Iterable[npt.NDArray[np.uint8]], latents: torch.Tensor) -> None:
    """That pictures [H, W, 3] are those that diffusers makes of latents, each alone."""
    for picture, one in zip(pictures, latents, strict=True):
        assert_same_picture(
            picture, diffusers_levels(in_float64(reference_vae()), one.double()), diffusers_levels(reference_vae(), one)
        )


def assert_decoded_as_jpeg(picture: npt.NDArray[np.uint8], latents: torch.Tensor) -> None:
    """The same of a JPEG: that it is off by no more than twice what a JPEG of diffusers' own picture is."""
    expected = diffusers_levels(reference_vae(), latents).round().byte().numpy()
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
