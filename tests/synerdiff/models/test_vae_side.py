"""Decoding and the safety checker, against the diffusers pipelines."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from synerdiff.cards import Sampler
from synerdiff.models.compiled.components import compile_subject
from synerdiff.models.device.opening import dtype_from_name
from synerdiff.models.family import VaeSide
from synerdiff.models.layout import ModelLoadError
from synerdiff.models.loading import load_vae_side
from synerdiff.mps import DeviceShare
from synerdiff.settings import load
from synerdiff.worker.loading import worker_record
from synerdiff.worker_settings import WorkerSettings
from tests.reference import in_float64, reference_image, reference_pipeline
from tests.rounding import COARSEST, assert_same_picture, off
from tests.tiny_models import edit_json, tiny_model
from tests.values import CARD

CopyOf = Callable[[str], Path]

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PipelineRun:
    """The latents [1, C, h, w] that a short pipeline run ends with, and the picture that it makes of them.

    `levels` [H, W, 3], 0 to 255: as the pipeline has them before they are made whole. `exact`: of the same latents and
    weights, in float64.
    """

    latents: Tensor
    levels: Tensor
    exact: Tensor


def pipeline_run(path: Path, dtype: torch.dtype = torch.float32) -> PipelineRun:
    pipeline: Any = reference_pipeline(path, dtype)

    def run(output_type: str) -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipeline("a dog", num_inference_steps=2, generator=generator, output_type=output_type).images

    latents, levels = run("latent"), torch.from_numpy(run("np")[0]) * 255
    return PipelineRun(latents, levels, decoded(in_float64(pipeline.vae), latents.double())[0])


@torch.no_grad()
def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Levels [n, H, W, 3], 0 to 255, not yet whole, of latents [n, C, h, w] as a UNet leaves them."""
    latents = latents / vae.config.scaling_factor
    if vae.config.latents_mean is not None:
        mean, deviation = (
            torch.tensor(values, dtype=latents.dtype).view(1, -1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        latents = latents * deviation + mean
    levels: Tensor = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) * 255
    return levels


def test_decode_equals_the_pipelines(vae_side: VaeSide, model_path: Path) -> None:
    run = pipeline_run(model_path)
    (ours,) = vae_side.decode(run.latents)
    assert ours.dtype == np.uint8
    assert_same_picture(ours, run.exact, run.levels)
    assert 20 < run.exact.std() < 80


def test_decode_of_a_batch_equals_each_alone(vae_side: VaeSide) -> None:
    latents = torch.randn(3, *vae_side.latent_shape(96, 64), generator=torch.Generator().manual_seed(0))
    together = vae_side.decode(latents)
    assert together.shape == (3, 64, 96, 3)
    for row in range(3):
        one = latents[row : row + 1]
        (exact,), (rounded,) = decoded(in_float64(vae_side.vae), one.double()), decoded(vae_side.vae, one)
        for ours in (together[row], vae_side.decode(one)[0]):
            assert_same_picture(ours, exact, rounded)


def test_latents_mean_and_deviation_of_an_sdxl_vae(copy_of: CopyOf) -> None:
    path = copy_of("sdxl")
    edit_json(path / "vae" / "config.json", latents_mean=[-1.6, 1.1, 3.3, -2.5], latents_std=[8.5, 5.5, 6.6, 5.2])
    run = pipeline_run(path)
    assert_same_picture(load_vae_side(path, torch.float32).decode(run.latents)[0], run.exact, run.levels)


@pytest.mark.parametrize("force_upcast", [True, False])
def test_sdxl_in_float16_upcasts_its_vae_when_told_to(copy_of: CopyOf, force_upcast: bool) -> None:
    path = copy_of("sdxl")
    edit_json(path / "vae" / "config.json", force_upcast=force_upcast)
    run = pipeline_run(path, torch.float16)
    side = load_vae_side(path, torch.float16)
    assert side.vae.dtype == (torch.float32 if force_upcast else torch.float16)
    coarsest = COARSEST if force_upcast else 1 / 32  # 8 levels
    assert_same_picture(side.decode(run.latents)[0], run.exact, run.levels, coarsest=coarsest)


def test_a_vae_computes_in_the_dtype_that_it_is_told(copy_of: CopyOf) -> None:
    path = copy_of("sdxl")
    latents = pipeline_run(path, torch.float16).latents
    side = load_vae_side(path, torch.float16, vae_dtype=torch.bfloat16)
    assert (side.dtype, side.vae_dtype) == (torch.float16, torch.bfloat16)
    (exact,) = decoded(in_float64(reference_pipeline(path, torch.float32).vae), latents.double())
    (levels,) = decoded(reference_pipeline(path, torch.bfloat16).vae, latents.bfloat16()).float()
    # The pipeline rounds to bfloat16 at the same places: four times as far off is another computation.
    assert off(torch.tensor(side.decode(latents)[0]), exact) <= 0.5 + 4 * off(levels, exact)


def test_float16_is_refused_for_a_vae_that_overflows_in_it(copy_of: CopyOf) -> None:
    path = copy_of("sdxl")
    edit_json(path / "vae" / "config.json", force_upcast=True)
    for dtype in (torch.float16, torch.float32):
        with pytest.raises(ModelLoadError, match=r"vae_dtype: float16 overflows in its VAE \(force_upcast\); bfloat16"):
            load_vae_side(path, dtype, vae_dtype=torch.float16)
    edit_json(path / "vae" / "config.json", force_upcast=False)
    assert load_vae_side(path, torch.float32, vae_dtype=torch.float16).vae_dtype == torch.float16


def test_weights_of_a_vae_in_another_dtype_do_not_pass_through_the_models(tiny_models: dict[str, Path]) -> None:
    told = load_vae_side(tiny_models["sd1"], torch.bfloat16, vae_dtype=torch.float32)
    plain = load_vae_side(tiny_models["sd1"], torch.float32)
    for one, other in zip(told.vae.parameters(), plain.vae.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("dtype", "vae_dtype", "shown", "compiled"),
    [
        ("float16", None, "float32", "float16"),  # as SDXL's pipeline: float16 weights, upcast
        ("float16", "bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", None, "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "float32", "float32"),
    ],
)
def test_what_a_vae_computes_in_is_in_its_record_and_in_the_name_of_its_package(
    copy_of: CopyOf, dtype: str, vae_dtype: str | None, shown: str, compiled: str
) -> None:
    path = copy_of("sdxl")
    told = dtype_from_name(vae_dtype) if vae_dtype else None
    side = load_vae_side(path, dtype_from_name(dtype), vae_dtype=told)
    settings = load(WorkerSettings, ["--model", str(path)])
    record = worker_record("vae", "v", CARD, side, DeviceShare(), settings)
    assert record.dtype == shown
    subject = compile_subject("vae", path, side)
    assert subject.dtype == compiled
    again = load_vae_side(path, dtype_from_name(subject.dtype))
    assert again.vae_dtype == side.vae_dtype
    for one, other in zip(again.vae.parameters(), side.vae.parameters(), strict=True):
        assert torch.equal(one, other)


def test_sd_in_float16_keeps_its_dtype(tiny_models: dict[str, Path]) -> None:
    assert load_vae_side(tiny_models["sd1"], torch.float16).vae.dtype == torch.float16


def test_without_a_checker_nothing_is_flagged(vae_side: VaeSide) -> None:
    images = np.full((2, 64, 64, 3), 7, np.uint8)
    checked, flagged = vae_side.check(images)
    assert flagged == [False, False]
    np.testing.assert_array_equal(checked, images)


@pytest.mark.parametrize(("threshold", "is_flagged"), [(-1.0, True), (1.0, False)])
def test_flagged_pictures_are_black_as_the_pipeline_makes_them(
    tmp_path: Path, threshold: float, is_flagged: bool
) -> None:
    path = tiny_model("sd1", tmp_path / "model", safety_checker=True, safety_threshold=threshold)
    run = pipeline_run(path)
    side = load_vae_side(path, torch.float32)
    pictures = side.decode(run.latents)
    before = pictures.copy()
    checked, flagged = side.check(pictures)
    assert flagged == [is_flagged]
    assert run.levels.any() != is_flagged
    assert checked.any() != is_flagged
    if not is_flagged:
        assert_same_picture(checked[0], run.exact, run.levels)
    np.testing.assert_array_equal(pictures, before)


def test_each_picture_gets_the_verdict_it_gets_alone(tmp_path: Path) -> None:
    probe = load_vae_side(tiny_model("sd1", tmp_path / "probe", safety_checker=True), torch.float32)
    pictures = probe.decode(torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 5)
    threshold = median_similarity(probe, pictures)
    side = load_vae_side(
        tiny_model("sd1", tmp_path / "model", safety_checker=True, safety_threshold=threshold), torch.float32
    )
    checked, flagged = side.check(pictures)
    assert set(flagged) == {True, False}
    assert flagged == [side.check(picture[None])[1][0] for picture in pictures]
    for picture, seen, is_flagged in zip(pictures, checked, flagged, strict=True):
        np.testing.assert_array_equal(seen, np.zeros_like(picture) if is_flagged else picture)


def median_similarity(side: VaeSide, pictures: Images) -> float:
    """The middle of the pictures' highest concept similarities, so that some are above and some below."""
    checker = side.checker
    assert checker is not None
    pixel_values = checker.feature_extractor(list(pictures), return_tensors="pt").pixel_values
    with torch.no_grad():
        embeds = checker.model.visual_projection(checker.model.vision_model(pixel_values)[1])
    embeds = torch.nn.functional.normalize(embeds)
    highest = (embeds @ torch.nn.functional.normalize(checker.model.concept_embeds).T).amax(dim=1)
    return float(highest.sort().values[3:5].mean())


def test_the_checker_can_be_switched_off(tmp_path: Path) -> None:
    path = tiny_model("sd1", tmp_path / "model", safety_checker=True, safety_threshold=-1.0)
    side = load_vae_side(path, torch.float32, safety_checker=False)
    assert side.checker is None
    assert side.check(np.ones((1, 64, 64, 3), np.uint8))[1] == [False]


def test_reference_pictures_differ_by_what_is_asked(model_path: Path) -> None:
    """The parity tests compare with these pictures: they would prove nothing if all were alike."""

    def picture(prompt: str = "a dog", **changes: Any) -> npt.NDArray[np.int64]:
        asked = {"seed": 1, "steps": 4, "guidance_scale": 4.0, "sampler": Sampler.DDIM} | changes
        return reference_image(model_path, prompt=prompt, width=64, height=64, **asked).astype(int)

    first = picture()
    for other in (picture("a cat"), picture(negative_prompt="a cat"), picture(guidance_scale=1.0), picture(seed=2)):
        assert np.abs(first - other).mean() > 2
    np.testing.assert_array_equal(first, picture())
