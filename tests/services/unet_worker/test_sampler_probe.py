"""What the probe refuses, by name, of schedulers that a table cannot stand for."""

from dataclasses import dataclass, field, replace
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
    TCDScheduler,
)
from torch import Tensor

from services.unet_worker.sampler_limits import check_table
from services.unet_worker.sampler_probe import (
    MAX_LISTED,
    NOISE,
    OUTPUT,
    SAMPLE,
    UnsupportedScheduler,
    UnsupportedSteps,
    build_table,
    probe_scheduler,
)
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
    order: int = 1

    def set_timesteps(self, num_inference_steps: int) -> None:
        self.timesteps = torch.arange(num_inference_steps, 0, -1)
        self.outputs: list[Tensor] = []

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return sample / 2

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, generator: torch.Generator, return_dict: bool
    ) -> tuple[Tensor]:
        self.outputs.append(model_output)
        stepped = self.sample_weight * sample + self.offset
        for weight, output in zip(self.output_weights, reversed(self.outputs), strict=False):
            stepped = stepped + weight * output
        for _ in range(self.noise_draws):
            stepped = stepped + 0.25 * torch.randn(sample.shape, generator=generator, dtype=sample.dtype)
        if len(self.outputs) == self.broken_at:
            stepped = stepped * float("nan")
        return (stepped.clamp(-self.clip_at, self.clip_at),)


def test_reads_the_coefficients_that_a_scheduler_has() -> None:
    weights = (0.5, -0.25, 0.0, 0.0, 1e-6)
    read = probe_scheduler(HandWrittenScheduler(output_weights=weights, noise_draws=1), 12)
    before = {f"outputs[{index}]": weight for index, weight in zip((-1, -2, -3, -4), weights[1:], strict=True)}
    expected = {SAMPLE: 0.9, OUTPUT: 0.5, NOISE: 0.25} | {name: weight for name, weight in before.items() if weight}
    assert read.weights[11][SAMPLE] == pytest.approx(expected)
    assert read.weights[0][SAMPLE] == pytest.approx({SAMPLE: 0.9, OUTPUT: 0.5, NOISE: 0.25})
    assert build_table(read).num_registers == 5  # what comes to be used later waits in registers of its own
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
    ],
    ids=["clips", "clips-far-out", "adds-a-constant", "draws-twice"],
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
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_diffusers_schedulers_beyond_a_table_are_refused_by_name(scheduler: Any, message: str) -> None:
    with pytest.raises(UnsupportedScheduler, match=message):
        probe_scheduler(scheduler, 25)


def test_linear_schedulers_outside_the_recipes_can_be_probed_too() -> None:
    multistep = probe_scheduler(IPNDMScheduler(), 10)
    assert build_table(multistep).num_registers == 4
    assert probe_scheduler(LCMScheduler(clip_sample=False), 5).draws_noise == (True, True, True, True, False)


def test_steps_get_the_options_that_a_pipeline_gives_them() -> None:
    # Of TCD's own accord eta is 0.3, and it draws noise.
    assert probe_scheduler(TCDScheduler(clip_sample=False), 5).draws_noise == (False,) * 5


def remembering(calls: int) -> HandWrittenScheduler:
    return HandWrittenScheduler(output_weights=(*[0.0] * calls, 0.5))


@dataclass
class Hiding(HandWrittenScheduler):
    """Remembers the last output where no probe sees it, and clips what only ordinary values of it exceed."""

    hides_output: bool = False
    clips_products: bool = False

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, generator: torch.Generator, return_dict: bool
    ) -> tuple[Tensor]:
        (stepped,) = super().step(model_output, timestep, sample, generator, return_dict)
        if self.hides_output:
            hidden = getattr(self, "hidden", None)
            self.hidden = {"last": (model_output,)}
            stepped = stepped + 0.1 * (hidden["last"][0] if hidden and hidden["last"][0].shape == sample.shape else 0)
        if self.clips_products:
            stepped = stepped + (model_output * sample).clamp(-0.1, 0.1)
        return (stepped,)


@pytest.mark.parametrize(
    "scheduler",
    [remembering(MAX_LISTED + 1), Hiding(hides_output=True), Hiding(clips_products=True)],
    ids=["long-memory", "hidden-memory", "products"],
)
def test_what_the_probe_cannot_see_is_refused_when_the_table_is_tried(scheduler: HandWrittenScheduler) -> None:
    table = build_table(probe_scheduler(replace(scheduler), MAX_LISTED + 8))
    with pytest.raises(UnsupportedScheduler, match=r"does at call \d+ what is no sum of samples"):
        check_table(table, replace(scheduler), MAX_LISTED + 8)
    fewer = remembering(MAX_LISTED)
    check_table(build_table(probe_scheduler(replace(fewer), MAX_LISTED + 8)), fewer, MAX_LISTED + 8)


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
