"""serving.json: what it may say, and how a wrong one is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synerdiff.cards import Sampler
from synerdiff.models.layout import ModelLoadError
from synerdiff.models.loading import load_unet_side, load_vae_side
from synerdiff.models.serving import PreviewProjection, fit_projection
from synerdiff.skip_cfg import SkipCfgBudget
from tests.tiny_models import EMOJI_MODEL

SKIP_CFG = {
    "predictor": "extrapolate:0.5",
    "share": 0.5,
    "longest_run": 2,
    "head": 2,
    "tail": 1,
    "floor_db": 40,
    "measured_db": 50.5,
    "least_calls": 20,
}
PREVIEW = {"matrix": [[0.1, 0.2, 0.3, 0.4]] * 3, "bias": [0.5, 0.5, 0.5]}


def write_serving(path: Path, content: Any) -> Path:
    (path / "serving.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_it_overrides_the_defaults(copy_of: Callable[[str], Path]) -> None:
    path = write_serving(
        copy_of("sdxl"),
        {"default_num_inference_steps": 7, "default_guidance_scale": 0, "max_side": 96, "preview": PREVIEW},
    )
    side = load_unet_side(path, torch.float32)
    card = side.describe("tiny", (), Sampler.EULER)
    assert (card.default_num_inference_steps, card.default_guidance_scale, card.max_side) == (7, 0.0, 96)
    assert side.preview is not None
    assert side.preview.matrix.shape == (3, 4)
    assert side.describe("tiny", (), Sampler.EULER, max_side=64).max_side == 64


def test_without_it_there_are_no_previews(tiny_models: dict[str, Path]) -> None:
    assert load_unet_side(tiny_models["sd1"], torch.float32).preview is None


def test_the_card_tells_what_guidance_can_be_skipped(copy_of: Callable[[str], Path]) -> None:
    path = write_serving(copy_of("sd1"), {"skip_cfg": SKIP_CFG})
    card = load_unet_side(path, torch.float32).describe("tiny", (), Sampler.EULER)
    assert card.skip_cfg == SkipCfgBudget("extrapolate:0.5", 0.5, 2, 2, 1, 40.0, 50.5, 20)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("{", "the file"),
        ("[]", "the file"),
        ({"default_steps": 3}, "default_steps"),
        ({"default_num_inference_steps": 0}, "default_num_inference_steps"),
        ({"default_guidance_scale": -1}, "default_guidance_scale"),
        ('{"default_guidance_scale": NaN}', "default_guidance_scale"),
        ({"max_side": "wide"}, "max_side"),
        ({"preview": {"matrix": [[1.0]], "bias": [0, 0, 0]}}, "preview.matrix"),
        ({"preview": {"matrix": [[1.0] * 3] * 3, "bias": [0, 0, 0]}}, "preview.matrix"),
        ({"preview": {"matrix": [[1.0] * 4] * 3}}, "preview.bias"),
        ({"skip_cfg": SKIP_CFG | {"predictor": "guess"}}, "skip_cfg.predictor"),
        ({"skip_cfg": SKIP_CFG | {"share": 1}}, "skip_cfg.share"),
        ({"skip_cfg": {"share": 0.5}}, "skip_cfg.predictor"),
    ],
)
def test_a_wrong_one_is_refused_by_field(copy_of: Callable[[str], Path], content: Any, field: str) -> None:
    path = write_serving(copy_of("sd1"), content)
    with pytest.raises(ModelLoadError) as caught:
        load_unet_side(path, torch.float32)
    assert f"{path}: serving.json: {field}" in str(caught.value)


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
