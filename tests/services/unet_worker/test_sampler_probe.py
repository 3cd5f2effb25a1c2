"""What the probe refuses, by name, of schedulers that a table cannot stand for."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from services.unet_worker.sampler_probe import MAX_AGE, UnsupportedScheduler, UnsupportedSteps, probe_scheduler
from tests.services.unet_worker.scheduler_configs import STABLE_DIFFUSION_1_5


def ddim(**options: Any) -> Any:
    return DDIMScheduler.from_config(STABLE_DIFFUSION_1_5, **options)


@dataclass
class HandWrittenScheduler:
    """x' = a x + sum(b[age] o[age]) + noise, with the ways to be different that the tests need."""

    sample_weight: float = 0.9
    output_weights: tuple[float, ...] = (-0.5,)
    noise_draws: int = 0
    clip_at: float = float("inf")
    offset: float = 0.0
    broken_at: int = -1
    config: dict[str, Any] = field(default_factory=dict)
    init_noise_sigma: float = 1.5

    def set_timesteps(self, num_inference_steps: int) -> None:
        self.timesteps = torch.arange(num_inference_steps, 0, -1)
        self.outputs: list[Tensor] = []

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample / 2

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, generator: torch.Generator, return_dict: bool
    ) -> tuple[Tensor]:
        self.outputs.insert(0, model_output)
        stepped = self.sample_weight * sample + self.offset
        for weight, output in zip(self.output_weights, self.outputs, strict=False):
            stepped = stepped + weight * output
        for _ in range(self.noise_draws):
            stepped = stepped + 0.25 * torch.randn(sample.shape, generator=generator, dtype=sample.dtype)
        if len(self.outputs) == self.broken_at:
            stepped = stepped * float("nan")
        return (stepped.clamp(-self.clip_at, self.clip_at),)


def test_reads_the_coefficients_that_a_scheduler_has() -> None:
    weights = (0.5, -0.25, 0.0, 0.0, 1e-6)
    read = probe_scheduler(HandWrittenScheduler(output_weights=weights, noise_draws=1), 12)
    np.testing.assert_allclose(read.samples, [[0.9, 0, 0, 0, 0]] * 12, atol=1e-12)
    np.testing.assert_allclose(read.outputs[MAX_AGE:], [weights] * (12 - MAX_AGE), atol=1e-12)
    assert not read.outputs[0, 1:].any()
    np.testing.assert_allclose(read.noise, 0.25, rtol=1e-9)
    np.testing.assert_array_equal(read.input_scale, 0.5)
    np.testing.assert_array_equal(read.timesteps, np.arange(12, 0, -1))
    assert (read.draws_noise, read.noise_dtype, read.init_noise_sigma) == ((True,) * 12, "model", 1.5)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (HandWrittenScheduler(clip_at=1.0), r"HandWrittenScheduler\.step is not linear at call 0"),
        (HandWrittenScheduler(clip_at=1000.0), r"HandWrittenScheduler\.step is not linear at call 0"),
        (HandWrittenScheduler(offset=0.01), "adds something at call 0 that is not one draw of noise"),
        (HandWrittenScheduler(noise_draws=2), "adds something at call 0 that is not one draw of noise"),
        (HandWrittenScheduler(output_weights=(0, 0, 0, 0, 0, 1e-6)), "at call 5 .* model outputs of more than 4 calls"),
    ],
    ids=["clips", "clips-far-out", "adds-a-constant", "draws-twice", "long-memory"],
)
def test_refuses_what_is_not_linear_in_the_recent_past(scheduler: HandWrittenScheduler, message: str) -> None:
    with pytest.raises(UnsupportedScheduler, match=message):
        probe_scheduler(scheduler, 12)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (ddim(clip_sample=True), r"DDIMScheduler\.step .*clip_sample=True"),
        (ddim(thresholding=True), r"DDIMScheduler\.step .*thresholding=True"),
        (
            DPMSolverMultistepScheduler(beta_schedule="scaled_linear", thresholding=True),
            r"DPMSolverMultistepScheduler\.step .*thresholding=True",
        ),
        (
            HeunDiscreteScheduler(beta_schedule="scaled_linear", clip_sample=True),
            r"HeunDiscreteScheduler\.step .*clip_sample=True",
        ),
        (LCMScheduler(clip_sample=True), r"LCMScheduler\.step .*clip_sample=True"),
        (UniPCMultistepScheduler(beta_schedule="scaled_linear"), "UniPCMultistepScheduler .*more than 4 calls before"),
        (UniPCMultistepScheduler(prediction_type="v_prediction"), "UniPCMultistepScheduler .*more than 4 calls before"),
        (PNDMScheduler(skip_prk_steps=False), "PNDMScheduler .*model outputs of more than 4 calls before"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_diffusers_schedulers_beyond_a_table_are_refused_by_name(scheduler: Any, message: str) -> None:
    with pytest.raises(UnsupportedScheduler, match=message):
        probe_scheduler(scheduler, 25)


def test_linear_schedulers_outside_the_recipes_can_be_probed_too() -> None:
    multistep = probe_scheduler(IPNDMScheduler(), 10)
    assert multistep.outputs[9, :4].all()
    assert not multistep.outputs[:, 4].any()
    stochastic = probe_scheduler(TCDScheduler(clip_sample=False), 5)
    assert stochastic.draws_noise == (True, True, True, True, False)


def test_noise_that_does_not_come_from_the_generator_is_refused() -> None:
    class IgnoresTheGenerator(EulerDiscreteScheduler):  # type: ignore[misc]
        def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool) -> tuple[Tensor]:
            return (super().step(model_output, timestep, sample, s_churn=5.0, return_dict=False)[0],)

    with pytest.raises(UnsupportedScheduler, match="IgnoresTheGenerator adds something at call 0"):
        probe_scheduler(IgnoresTheGenerator(beta_schedule="scaled_linear"), 10)


def test_steps_without_finite_coefficients_are_refused() -> None:
    with pytest.raises(UnsupportedSteps, match="HandWrittenScheduler cannot do 5: its coefficients are not all finite"):
        probe_scheduler(HandWrittenScheduler(broken_at=3), 5)


def test_what_diffusers_raises_is_passed_on_as_a_bad_number_of_steps() -> None:
    with pytest.raises(UnsupportedSteps, match=r"LCMScheduler cannot do 51: The combination"):
        probe_scheduler(LCMScheduler(), 51)


def test_a_scaling_that_mixes_elements_is_refused() -> None:
    scheduler = HandWrittenScheduler()
    scheduler.scale_model_input = lambda sample, timestep: sample.roll(1, -1)  # type: ignore[method-assign]
    with pytest.raises(UnsupportedScheduler, match="scale_model_input does more than multiply"):
        probe_scheduler(scheduler, 3)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    probe_scheduler(HandWrittenScheduler(noise_draws=1), 5)
    assert torch.equal(torch.get_rng_state(), before)
