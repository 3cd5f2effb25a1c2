from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from synerdiff.cards import Sampler
from synerdiff.models.family import UnetSide
from synerdiff.requests import TaskSpec
from tests.parity import served_images
from tests.reference import reference_levels, settings_of
from tests.rounding import assert_same_picture
from tests.tiny_models import EMOJI_MODEL
from tests.values import spec


def mixed_eight(size: int) -> list[TaskSpec]:
    """Eight tasks that differ in everything that may differ within a batch."""
    settings: list[tuple[Sampler, int, float, str, str]] = [
        (Sampler.DDIM, 4, 4.0, "a slice of pizza", ""),
        (Sampler.EULER_ANCESTRAL, 4, 7.5, "a red apple", "blue"),
        (Sampler.PNDM, 4, 1.0, "a rocket", "ignored without guidance"),
        (Sampler.DPMSOLVER_MULTISTEP_KARRAS, 5, 3.0, "a car", "red"),
        (Sampler.HEUN, 2, 5.0, "a house", ""),
        (Sampler.DPMSOLVER_MULTISTEP_SDE, 5, 2.0, "a cactus on a blue background", "green"),
        (Sampler.LCM, 2, 0.0, "a lion", ""),
        (Sampler.KDPM2, 2, 4.5, "", "a guitar"),
    ]
    return [
        spec(
            f"mixed/{k}",
            sampler=sampler,
            num_inference_steps=steps,
            guidance_scale=guidance,
            prompt=prompt,
            negative_prompt=negative,
            seed=100 + k,
            width=size,
            height=size,
        )
        for k, (sampler, steps, guidance, prompt, negative) in enumerate(settings)
    ]


def assert_equal_to_pipeline(model_path: Path, tasks: list[TaskSpec]) -> None:
    exact = [reference_levels(model_path, dtype=torch.float64, **settings_of(task)) for task in tasks]
    rounded = [reference_levels(model_path, **settings_of(task)) for task in tasks]
    assert np.mean([float(levels.std()) for levels in exact]) > 10, "flat pictures would prove nothing"
    for together in (False, True):
        images = served_images(model_path, tasks, together=together)
        for image, expected, by_diffusers in zip(images, exact, rounded, strict=True):
            assert_same_picture(image, expected, by_diffusers)


def test_the_bundled_model_alone_and_in_a_mixed_batch_of_eight() -> None:
    assert_equal_to_pipeline(EMOJI_MODEL, mixed_eight(64))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_family_alone_and_in_a_mixed_batch_of_eight(family: str, tiny_models: dict[str, Path]) -> None:
    assert_equal_to_pipeline(tiny_models[family], mixed_eight(64))


def test_a_picture_that_is_not_square(tiny_models: dict[str, Path]) -> None:
    tasks = [spec(f"wide/{k}", width=128, height=64, seed=k, sampler=Sampler.EULER) for k in range(2)]
    assert_equal_to_pipeline(tiny_models["sdxl"], tasks)


def test_tasks_of_different_sizes_cannot_share_a_call(tiny_side: UnetSide) -> None:
    prepared = TaskPreparer(tiny_side).prepare([spec("a/0"), spec("b/0", width=128)])
    with pytest.raises(ValueError, match="one latent shape"):
        Denoiser(tiny_side).step([p.task for p in prepared])


def test_a_call_that_failed_can_be_made_again_to_the_same_latents(tiny_side: UnetSide, monkeypatch: Any) -> None:
    request = spec(sampler=Sampler.EULER_ANCESTRAL)
    (expected,) = (p.task for p in TaskPreparer(tiny_side).prepare([request]))
    (task,) = (p.task for p in TaskPreparer(tiny_side).prepare([request]))
    denoiser = Denoiser(tiny_side)
    bmm, failures = torch.bmm, iter([RuntimeError("out of memory")])

    def failing_bmm(*arguments: torch.Tensor) -> torch.Tensor:
        for failure in failures:
            raise failure
        return bmm(*arguments)

    denoiser.step([expected])
    monkeypatch.setattr(torch, "bmm", failing_bmm)
    with pytest.raises(RuntimeError, match="out of memory"):
        denoiser.step([task])
    assert task.next_call == 0
    denoiser.step([task])

    assert task.next_call == 1
    assert torch.equal(task.sample, expected.sample)


def test_the_outcome_tells_the_rows(tiny_side: UnetSide) -> None:
    prepared = TaskPreparer(tiny_side).prepare([spec("a/0"), spec("b/0", guidance_scale=1.0)])
    outcome = Denoiser(tiny_side).step([p.task for p in prepared])
    assert outcome.rows == 3
    assert outcome.noise_pred.shape == outcome.model_input.shape == (2, 4, 8, 8)
