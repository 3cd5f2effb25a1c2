"""The steps that cards promise are those that diffusers can run."""

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from services.unet_worker.sampler_limits import steps_range
from services.unet_worker.sampler_probe import UnsupportedScheduler, UnsupportedSteps
from services.unet_worker.samplers import RECIPES, sampler_limits, sampler_table
from synerdiff.cards import Sampler, SamplerLimits
from tests.services.unet_worker.sampler_replay import by_diffusers
from tests.services.unet_worker.scheduler_configs import (
    CONFIGS,
    LATENT_CONSISTENCY,
    NAMED,
    STABLE_DIFFUSION_1_5,
    ZERO_TERMINAL_SNR,
    SchedulerConfig,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers", "ignore::DeprecationWarning:numpy")

# Models of few training timesteps, so that every number of steps can be tried.
TRAINED = 16
SMALL_CONFIGS = {
    name: CONFIGS[name] | {"num_train_timesteps": TRAINED, "original_inference_steps": 6}
    for name in ("sd1.5", "sdxl", "zero-snr")
}
SECOND_ORDER = (Sampler.HEUN, Sampler.HEUN_KARRAS, Sampler.KDPM2, Sampler.KDPM2_KARRAS)


def most_steps(config: SchedulerConfig, sampler: Sampler) -> int:
    fewest, most = steps_range(RECIPES[sampler].build(config))
    assert fewest == 1
    return most


def diffusers_runs(config: SchedulerConfig, sampler: Sampler, steps: int) -> bool:
    try:
        latents = by_diffusers(RECIPES[sampler].build(config), steps, seed=1, dtype=torch.float32).latents[-1]
    except (ValueError, IndexError):
        return False
    return bool(latents.isfinite().all())


@pytest.mark.parametrize("sampler", [s for s in NAMED if s not in SECOND_ORDER], ids=lambda sampler: sampler.name)
@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_diffusers_runs_with_all_steps_up_to_the_most(name: str, sampler: Sampler) -> None:
    config = SMALL_CONFIGS[name]
    runs = [steps for steps in range(1, TRAINED + 1) if diffusers_runs(config, sampler, steps)]
    most = most_steps(config, sampler)
    assert runs[:most] == list(range(1, most + 1))
    # Where the last two sigmas before the training timesteps run out are equal, diffusers may still get through.
    assert runs[-1] <= most + 1
    if runs[-1] == most + 1:
        assert most == TRAINED - 1


@pytest.mark.parametrize("sampler", SECOND_ORDER, ids=lambda sampler: sampler.name)
def test_second_order_samplers_can_do_all_training_timesteps(sampler: Sampler) -> None:
    config = SMALL_CONFIGS["sd1.5"]
    assert most_steps(config, sampler) == TRAINED
    assert diffusers_runs(config, sampler, TRAINED)


@pytest.mark.parametrize(
    ("sampler", "most"), [(Sampler.DDIM, 999), (Sampler.DPMSOLVER_MULTISTEP, 999), (Sampler.LCM, 50)]
)
def test_a_table_of_more_than_the_most_steps_is_refused(sampler: Sampler, most: int) -> None:
    assert most_steps(STABLE_DIFFUSION_1_5, sampler) == most
    assert sampler_table(STABLE_DIFFUSION_1_5, sampler, most).num_calls == most
    with pytest.raises(UnsupportedSteps, match=f"cannot do {most + 1}"):
        sampler_table(STABLE_DIFFUSION_1_5, sampler, most + 1)


def test_large_karras_sigmas_end_early() -> None:
    assert most_steps(ZERO_TERMINAL_SNR, Sampler.DPMSOLVER_MULTISTEP_KARRAS) == 20
    assert diffusers_runs(ZERO_TERMINAL_SNR, Sampler.DPMSOLVER_MULTISTEP_KARRAS, 20)
    assert not diffusers_runs(ZERO_TERMINAL_SNR, Sampler.DPMSOLVER_MULTISTEP_KARRAS, 21)


def test_all_samplers_are_served_with_a_usual_config() -> None:
    found = {limits.sampler: limits for limits in sampler_limits(STABLE_DIFFUSION_1_5)}
    assert set(found) == set(NAMED)
    assert found[Sampler.LCM] == SamplerLimits(Sampler.LCM, 1, 50)
    assert found[Sampler.PNDM] == SamplerLimits(Sampler.PNDM, 1, 999)


def test_latent_consistency_has_at_most_its_original_steps() -> None:
    assert most_steps(LATENT_CONSISTENCY | {"original_inference_steps": 8}, Sampler.LCM) == 8


def test_samplers_that_the_config_makes_nonlinear_are_left_out() -> None:
    served = {each.sampler for each in sampler_limits(SMALL_CONFIGS["sd1.5"] | {"clip_sample": True})}
    assert served == set(NAMED) - {Sampler.DDIM, Sampler.DDPM, Sampler.HEUN, Sampler.HEUN_KARRAS, Sampler.LCM}


def test_samplers_without_the_prediction_type_are_left_out() -> None:
    served = {each.sampler for each in sampler_limits(SMALL_CONFIGS["sd1.5"] | {"prediction_type": "sample"})}
    assert Sampler.DDIM in served
    assert not served & {Sampler.PNDM, Sampler.EULER_ANCESTRAL, Sampler.KDPM2}


def test_the_range_of_a_scheduler_stops_where_it_stops() -> None:
    assert steps_range(LCMScheduler(original_inference_steps=7)) == (1, 7)
    for trained in (16, 40, 100):
        assert steps_range(DDIMScheduler(trained, steps_offset=1, clip_sample=False)) == (1, trained - 1)
    with pytest.raises(UnsupportedScheduler, match="DDIMScheduler"):
        steps_range(DDIMScheduler(clip_sample=True))
