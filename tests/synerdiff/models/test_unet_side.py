"""One UNet call, the model card and the geometry of each family."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from synerdiff.cards import Sampler, SamplerLimits
from synerdiff.models.family import Conditioning, UnetSide
from synerdiff.models.loading import load_unet_side
from tests.reference import exact_call, reference_pipeline
from tests.rounding import assert_rounded
from tests.tiny_models import EMOJI_MODEL, FamilyName, edit_json

SAMPLERS = (SamplerLimits(Sampler.DDIM, 1, 1000),)


@dataclass(frozen=True)
class RecordedCall:
    """What a pipeline's UNet was told and answered, uncond above cond; and what it answers in float64."""

    latents: Tensor
    timestep: Tensor
    noise_pred: Tensor
    exact: Tensor


def record_pipeline_calls(model_path: Path, width: int, height: int) -> list[RecordedCall]:
    """The UNet calls of a short run."""
    pipeline = reference_pipeline(model_path)
    calls: list[tuple[tuple[Tensor, Tensor], dict[str, Any], Tensor]] = []

    def record(_: Any, arguments: tuple[Tensor, Tensor], told: dict[str, Any], answer: tuple[Tensor]) -> None:
        calls.append((arguments, told, answer[0]))

    hook = pipeline.unet.register_forward_hook(record, with_kwargs=True)
    try:
        pipeline(
            "a slice of pizza",
            negative_prompt="blue",
            width=width,
            height=height,
            num_inference_steps=3,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
    finally:
        hook.remove()
    assert len(calls) >= 3
    return [
        RecordedCall(
            *arguments,
            noise_pred,
            exact_call(pipeline.unet, *arguments, told["encoder_hidden_states"], told["added_cond_kwargs"]),
        )
        for arguments, told, noise_pred in calls
    ]


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64)])
def test_one_call_equals_the_pipelines(unet_side: UnetSide, model_path: Path, width: int, height: int) -> None:
    rows = unet_side.encode_negative(["blue"]) + unet_side.encode(["a slice of pizza"])
    conditioning = unet_side.conditioning(rows, width, height)
    for call in record_pipeline_calls(model_path, width, height):
        ours = unet_side.predict(call.latents, call.timestep.expand(2), conditioning)
        assert_rounded(ours, call.exact, call.noise_pred)


def test_a_call_told_wrongly_would_be_found(unet_side: UnetSide, model_path: Path) -> None:
    negative, positive = unet_side.encode_negative(["blue"]), unet_side.encode(["a slice of pizza"])
    told = unet_side.conditioning(negative + positive, 64, 64)
    swapped = unet_side.conditioning(positive + negative, 64, 64)
    (call, *_) = record_pipeline_calls(model_path, 64, 64)
    half = replace(unet_side, unet=deepcopy(unet_side.unet).half(), dtype=torch.float16)
    added = told.added and {name: rows.half() for name, rows in told.added.items()}
    half_told = Conditioning(told.hidden.half(), added)
    for wrong in (
        unet_side.predict(call.latents, call.timestep.expand(2) + 1, told),
        unet_side.predict(call.latents, call.timestep.expand(2), swapped),
        half.predict(call.latents, call.timestep.expand(2), half_told),
    ):
        with pytest.raises(AssertionError, match="off by"):
            assert_rounded(wrong, call.exact, call.noise_pred)


def test_rows_at_different_timesteps_equal_each_alone(unet_side: UnetSide) -> None:
    embeds = unet_side.encode(["a dog", "a cat", "a red apple"])
    latents = torch.randn(3, *unet_side.latent_shape(64, 64), generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([999, 20, 500])
    together = unet_side.predict(latents, timesteps, unet_side.conditioning(embeds, 64, 64))
    for row in range(3):
        one = slice(row, row + 1)
        told = unet_side.conditioning(embeds[one], 64, 64)
        alone = unet_side.predict(latents[one], timesteps[one], told)
        exact = exact_call(unet_side.unet, latents[one], timesteps[one], told.hidden, told.added)
        assert_rounded(together[one], exact, alone)


def test_the_answer_depends_on_prompt_and_timestep(unet_side: UnetSide) -> None:
    latents = torch.randn(1, *unet_side.latent_shape(64, 64)).repeat(3, 1, 1, 1)
    embeds = unet_side.encode(["a dog", "a cat", "a dog"])
    answers = unet_side.predict(latents, torch.tensor([500, 500, 900]), unet_side.conditioning(embeds, 64, 64))
    assert (answers[0] - answers[1]).abs().max() > 0.05
    assert (answers[0] - answers[2]).abs().max() > 0.05


def test_sdxl_is_told_the_size_and_the_others_are_not(tiny_models: dict[str, Path]) -> None:
    sides = {family: load_unet_side(path, torch.float32) for family, path in tiny_models.items()}
    added = {family: side.conditioning(side.encode(["a dog", "a cat"]), 96, 64).added for family, side in sides.items()}
    assert added["sd1"] is None
    assert added["sd2"] is None
    assert added["sdxl"] is not None
    assert added["sdxl"]["time_ids"].tolist() == [[64, 96, 0, 0, 64, 96]] * 2
    assert added["sdxl"]["text_embeds"].shape == (2, 48)


def test_latents_of_another_dtype_are_cast(unet_side: UnetSide) -> None:
    conditioning = unet_side.conditioning(unet_side.encode(["a dog"]), 64, 64)
    latents = torch.zeros(1, *unet_side.latent_shape(64, 64), dtype=torch.float64)
    assert unet_side.predict(latents, torch.tensor([1.5]), conditioning).dtype == torch.float32


def test_card_of_the_bundled_model() -> None:
    card = load_unet_side(EMOJI_MODEL, torch.float32).describe("emoji", SAMPLERS, Sampler.DDIM)
    assert (card.name, card.family, card.prediction_type) == ("emoji", "sd1", "v_prediction")
    assert (card.native_width, card.native_height, card.size_multiple, card.max_side) == (128, 128, 32, 256)
    assert (card.default_num_inference_steps, card.default_guidance_scale) == (20, 4.0)
    assert (card.max_prompt_tokens, card.samplers, card.default_sampler) == (32, SAMPLERS, Sampler.DDIM)


@pytest.mark.parametrize(
    ("family", "guidance_scale", "size_multiple", "prediction_type"),
    [("sd1", 7.5, 16, "epsilon"), ("sd2", 7.5, 16, "v_prediction"), ("sdxl", 5.0, 32, "epsilon")],
)
def test_card_of_each_family(
    tiny_models: dict[str, Path], family: FamilyName, guidance_scale: float, size_multiple: int, prediction_type: str
) -> None:
    card = load_unet_side(tiny_models[family], torch.float32).describe("tiny", SAMPLERS, Sampler.DDIM)
    assert (card.family, card.prediction_type, card.size_multiple) == (family, prediction_type, size_multiple)
    assert (card.default_num_inference_steps, card.default_guidance_scale) == (50, guidance_scale)
    assert (card.native_width, card.native_height, card.max_side) == (64, 64, 128)


def test_max_side_can_be_given(unet_side: UnetSide) -> None:
    assert unet_side.describe("tiny", SAMPLERS, Sampler.DDIM, max_side=96).max_side == 96


def test_every_multiple_of_the_size_works(unet_side: UnetSide) -> None:
    step = unet_side.size_multiple
    for width, height in ((3 * step, step), (step, 3 * step)):
        conditioning = unet_side.conditioning(unet_side.encode(["a dog"]), width, height)
        latents = torch.zeros(1, *unet_side.latent_shape(width, height))
        assert unet_side.predict(latents, torch.tensor([1]), conditioning).shape == latents.shape


def test_a_native_size_may_be_oblong(unet_side: UnetSide) -> None:
    unet = type("Unet", (), {"config": type("Config", (), {"sample_size": (8, 16)})})
    assert replace(unet_side, unet=unet).native_size == (128, 64)


def test_scheduler_config_is_corrected_as_the_pipeline_does(copy_of: Callable[[str], Path]) -> None:
    path = copy_of("sd1")
    edit_json(path / "scheduler" / "scheduler_config.json", steps_offset=0, clip_sample=True)
    ours = load_unet_side(path, torch.float32).scheduler_config
    theirs = reference_pipeline(path).scheduler.config
    assert (ours["steps_offset"], ours["clip_sample"]) == (1, False)
    assert ours == dict(theirs)


def test_scheduler_config_is_the_pipelines(unet_side: UnetSide, model_path: Path) -> None:
    assert unet_side.scheduler_config == dict(reference_pipeline(model_path).scheduler.config)


def test_it_is_loaded_for_inference(unet_side: UnetSide) -> None:
    assert unet_side.device == torch.device("cpu")
    assert not any(parameter.requires_grad for parameter in unet_side.unet.parameters())
    assert not unet_side.unet.training
