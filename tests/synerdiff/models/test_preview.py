"""The latent-to-RGB projection."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synerdiff.models.loading import load_unet_side, load_vae_side
from synerdiff.models.preview import PreviewProjection, fit_projection
from tests.tiny_models import EMOJI_MODEL

HALF_A_LEVEL = 0.5 / 255  # what pictures of whole levels say of a colour


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), channels=st.sampled_from([4, 16]))
def test_a_linear_decoder_is_found_again(seed: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix, bias = torch.randn(3, channels, generator=generator) * 0.02, torch.full((3,), 0.5)
    # Even latents keep every colour within range: a clipped one would not be linear.
    latents = torch.rand(6, channels, 8, 8, generator=generator) * 2 - 1
    colours = torch.einsum("rc,nchw->nhwr", matrix, latents) + bias
    images = (colours * 255).round().to(torch.uint8).numpy().repeat(8, axis=1).repeat(8, axis=2)
    fitted = fit_projection(latents, images)
    torch.testing.assert_close(fitted.matrix, matrix, rtol=0, atol=HALF_A_LEVEL)
    torch.testing.assert_close(fitted.bias, bias, rtol=0, atol=HALF_A_LEVEL)


def test_colours_out_of_range_are_clipped() -> None:
    projection = PreviewProjection(matrix=torch.eye(3), bias=torch.zeros(3))
    latents = torch.tensor([-1.0, 0.5, 9.0]).view(1, 3, 1, 1).to(torch.bfloat16)
    assert projection.images(latents).tolist() == [[[[0, 128, 255]]]]


def test_the_bundled_models_previews_look_like_its_pictures() -> None:
    preview = load_unet_side(EMOJI_MODEL, torch.float32).preview
    assert preview is not None
    vae_side = load_vae_side(EMOJI_MODEL, torch.float32)
    # Any picture will do, so long as it comes from the encoder: a red disc on white.
    rows, columns = np.mgrid[-1:1:128j, -1:1:128j]
    disc = np.where((rows**2 + columns**2 < 0.5)[..., None], [220, 40, 30], [255, 255, 255]).astype(np.float32)
    picture = torch.from_numpy(disc).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latents = vae_side.vae.encode(picture).latent_dist.mode() * vae_side.vae.config.scaling_factor
    small = vae_side.decode(latents)[0].reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
    assert np.abs(preview.images(latents)[0] - small).mean() < 25
