"""Weights that change under a running deployment: nobody gets a picture of others than it was accepted for."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bench.status import attached_again
from synerdiff.client import AsyncClient, GenerateOptions
from synerdiff.errors import SynerDiffError
from tests.end_to_end.command import Up
from tests.tiny_models import EMOJI_MODEL
from tests.waiting import HANG_S

LONG = 900  # steps of a job that is still running when its worker dies


def train_in_place(weights: Path, beside: Path) -> None:
    """Write other weights into the file itself, as a copy over it does."""
    save_file({name: tensor + 0.01 for name, tensor in load_file(weights).items()}, beside, {"format": "pt"})
    shutil.copyfile(beside, weights)


@pytest.fixture
def weights(up: Up) -> Iterator[Path]:
    """The UNet's file, which is what it was for whatever comes after."""
    weights = up.home / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    yield weights
    shutil.copyfile(EMOJI_MODEL / "unet" / weights.name, weights)
    up.kill("unet")


async def test_what_was_accepted_for_weights_that_are_gone_ends_in_one_line_and_new_requests_get_the_new(
    up: Up, weights: Path, tmp_path: Path
) -> None:
    told = GenerateOptions(num_inference_steps=3, seed=7, exact=True)
    async with AsyncClient(up.addresses[0], patience_s=HANG_S) as client:
        before = await client.generate("a car", **told)
        (unet, _) = (await client.models())[0].weights
        old = await client.submit("a car", num_inference_steps=LONG)
        train_in_place(weights, tmp_path / "trained")
        assert (await client.generate("a car", **told)).image.data == before.image.data, "it serves what it read"
        up.kill("unet")
        await attached_again(up.addresses)
        with pytest.raises(SynerDiffError, match=rf"accepted for UNet weights {unet.digest[:12]}.*ask again"):
            await old.result()
        after = await client.generate("a car", **told)
        assert after.image.data != before.image.data
        assert (await client.models())[0].weights[0].digest != unet.digest
