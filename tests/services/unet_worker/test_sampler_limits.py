"""The steps that cards promise are those that diffusers can run."""

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from services.unet_worker.sampler_limits import steps_range
from services.unet_worker.sampler_probe import UnsupportedScheduler
from services.unet_worker.sampler_recipes import RECIPES
from services.unet_worker.samplers import UnsupportedSteps, sampler_limits, sampler_table
from synerdiff.cards import Sampler, SamplerLimits
from tests.services.unet_worker.sampler_replay import by_diffusers
from tests.services.unet_worker.scheduler_configs import (
    LATENT_CONSISTENCY,
    STABLE_DIFFUSION_1_5,
    STABLE_DIFFUSION_XL,
    ZERO_TERMINAL_SNR,
    SchedulerConfig,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers", "ignore::DeprecationWarning:numpy")

NOT_ALL_STEPS = {
    "sd1.5": (STABLE_DIFFUSION_1_5, {Sampler.DDIM: 999, Sampler.DPMSOLVER_MULTISTEP: 999, Sampler.LCM: 50}),
    "sdxl": (STABLE_DIFFUSION_XL, {Sampler.PNDM: 999, Sampler.DPMSOLVER_MULTISTEP: 998}),
    "zero-snr": (ZERO_TERMINAL_SNR, {Sampler.DPMSOLVER_MULTISTEP_KARRAS: 20, Sampler.LCM: 50}),
}
UP_TO_TRAINING = {
    "sd1.5": (STABLE_DIFFUSION_1_5, [Sampler.EULER, Sampler.DPMSOLVER_MULTISTEP_KARRAS, Sampler.HEUN]),
    "zero-snr": (ZERO_TERMINAL_SNR, [Sampler.DDPM, Sampler.PNDM]),
}


def most_steps(config: SchedulerConfig, sampler: Sampler) -> int:
    found = steps_range(RECIPES[sampler].build(config))
    assert found is not None
    fewest, most = found
    assert fewest == 1
    return most


def diffusers_runs(config: SchedulerConfig, sampler: Sampler, steps: int) -> bool:
    try:
        latents = by_diffusers(RECIPES[sampler].build(config), steps, seed=1, dtype=torch.float32)[-1]
    except (ValueError, IndexError):
        return False
    return bool(latents.isfinite().all())


@pytest.mark.parametrize("name", NOT_ALL_STEPS)
def test_the_most_steps_are_the_most_that_diffusers_can_run(name: str) -> None:
    config, expected = NOT_ALL_STEPS[name]
    for sampler, most in expected.items():
        assert most_steps(config, sampler) == most
        assert diffusers_runs(config, sampler, most), sampler
        assert not diffusers_runs(config, sampler, most + 1), sampler
        with pytest.raises(UnsupportedSteps, match=f"cannot do {most + 1}"):
            sampler_table(config, sampler, most + 1)


@pytest.mark.parametrize("name", UP_TO_TRAINING)
def test_the_most_steps_are_at_most_the_training_timesteps(name: str) -> None:
    config, samplers = UP_TO_TRAINING[name]
    for sampler in samplers:
        assert most_steps(config, sampler) == 1000
        assert diffusers_runs(config, sampler, 1000), sampler


@pytest.mark.parametrize("sampler", [Sampler.DPMSOLVER_MULTISTEP, Sampler.DPMSOLVER_MULTISTEP_KARRAS, Sampler.LCM])
def test_every_number_of_steps_up_to_the_most_can_be_run(sampler: Sampler) -> None:
    for steps in range(1, min(most_steps(ZERO_TERMINAL_SNR, sampler), 50) + 1):
        assert diffusers_runs(ZERO_TERMINAL_SNR, sampler, steps), steps


def test_all_samplers_are_served_with_a_usual_config() -> None:
    found = {limits.sampler: limits for limits in sampler_limits(STABLE_DIFFUSION_1_5)}
    assert set(found) == set(Sampler)
    assert found[Sampler.LCM] == SamplerLimits(Sampler.LCM, 1, 50)
    assert found[Sampler.PNDM] == SamplerLimits(Sampler.PNDM, 1, 999)


def test_latent_consistency_has_at_most_its_original_steps() -> None:
    assert most_steps(LATENT_CONSISTENCY | {"original_inference_steps": 8}, Sampler.LCM) == 8


def test_samplers_that_the_config_makes_nonlinear_are_left_out() -> None:
    served = {each.sampler for each in sampler_limits(STABLE_DIFFUSION_1_5 | {"clip_sample": True})}
    assert served == set(Sampler) - {Sampler.DDIM, Sampler.DDPM, Sampler.HEUN, Sampler.HEUN_KARRAS, Sampler.LCM}


def test_samplers_without_the_prediction_type_are_left_out() -> None:
    served = {each.sampler for each in sampler_limits(STABLE_DIFFUSION_1_5 | {"prediction_type": "sample"})}
    assert Sampler.DDIM in served
    assert not served & {Sampler.PNDM, Sampler.EULER_ANCESTRAL, Sampler.KDPM2}


def test_the_range_of_a_scheduler_stops_where_it_stops() -> None:
    assert steps_range(LCMScheduler(original_inference_steps=7)) == (1, 7)
    assert steps_range(DDIMScheduler(num_train_timesteps=100, steps_offset=1, clip_sample=False)) == (1, 99)
    with pytest.raises(UnsupportedScheduler, match="DDIMScheduler"):
        steps_range(DDIMScheduler(clip_sample=True))
