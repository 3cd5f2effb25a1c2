"""Every sampler, replayed from its table against diffusers' own scheduler, step by step."""

import re
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.unet_worker.sampler_probe import UnsupportedScheduler, UnsupportedSteps
from services.unet_worker.sampler_table import SamplerTable
from services.unet_worker.samplers import RECIPES, DefaultSampler, _canonical, _limits, default_sampler, sampler_table
from synerdiff.cards import Sampler, SamplerLimits, unet_calls
from tests.services.unet_worker.sampler_replay import (
    Run,
    assert_same_calls,
    by_diffusers,
    by_diffusers_exactly,
    by_table,
)
from tests.services.unet_worker.scheduler_configs import (
    CONFIGS,
    LATENT_CONSISTENCY,
    NAMED,
    SDXL_TURBO,
    STABLE_DIFFUSION_1_5,
    STABLE_DIFFUSION_2_1,
    STABLE_DIFFUSION_XL,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers", "ignore::DeprecationWarning:numpy")

STEPS = (1, 2, 3, 5, 20, 50)
FEWER_STEPS = (1, 2, 12)
THOROUGH = ("sd1.5", "sd2.1", "sdxl")
FOR_ALL = ("sd1.5", "sd2.1")
SLOW_TO_MAKE = (Sampler.KDPM2, Sampler.KDPM2_KARRAS)  # half a second each


@cache
def _made(config_name: str, sampler: Sampler) -> Any:
    return RECIPES[sampler].build(CONFIGS[config_name])


def scheduler_of(config_name: str, sampler: Sampler) -> Any:
    return deepcopy(_made(config_name, sampler))


def both_ways(config_name: str, sampler: Sampler, steps: int, dtype: torch.dtype = torch.float32) -> tuple[Run, Run]:
    """A run by diffusers, and the calls of it in float64."""
    given = by_diffusers(scheduler_of(config_name, sampler), steps, 7 * steps, dtype)
    return given, by_diffusers_exactly(scheduler_of(config_name, sampler), steps, 7 * steps, given)


def assert_replays(config_name: str, sampler: Sampler, steps: int, table: SamplerTable | None = None) -> None:
    table = table or sampler_table(CONFIGS[config_name], sampler, steps)
    given, exact = both_ways(config_name, sampler, steps)
    assert_same_calls(by_table(table, 7 * steps, torch.float32, given), exact)


@pytest.mark.parametrize(
    ("config_name", "sampler"),
    [
        pytest.param(name, sampler, id=f"{name}-{sampler.name}")
        for name in CONFIGS
        for sampler in NAMED
        if name in FOR_ALL or sampler not in SLOW_TO_MAKE
    ],
)
def test_replays_as_diffusers_runs(config_name: str, sampler: Sampler) -> None:
    refused = []
    for steps in STEPS if config_name in THOROUGH else FEWER_STEPS:
        try:
            assert_replays(config_name, sampler, steps)
        except UnsupportedSteps:
            refused.append(steps)
            with pytest.raises((ValueError, IndexError)):
                by_diffusers(scheduler_of(config_name, sampler), steps, seed=0, dtype=torch.float32)
    assert len(refused) <= 1


@settings(max_examples=30)
@given(config_name=st.sampled_from(FOR_ALL), sampler=st.sampled_from(NAMED), steps=st.integers(4, 40))
def test_any_number_of_steps_replays_as_diffusers_runs(config_name: str, sampler: Sampler, steps: int) -> None:
    assert_replays(config_name, sampler, steps)


def test_a_timestep_too_many_of_diffusers_is_taken_over() -> None:
    assert sampler_table(SDXL_TURBO, Sampler.DDIM, 61).timesteps[-1] == -1
    assert_replays("sdxl-turbo", Sampler.DDIM, 61)


@pytest.mark.parametrize("sampler", [Sampler.EULER_ANCESTRAL, Sampler.DPMSOLVER_MULTISTEP_SDE], ids=lambda s: s.name)
def test_noise_is_drawn_in_the_dtype_that_diffusers_draws_it_in(sampler: Sampler) -> None:
    table = sampler_table(STABLE_DIFFUSION_1_5, sampler, 6)
    # A model in float64, since the generator gives quite other numbers in that dtype.
    given, exact = both_ways("sd1.5", sampler, 6, torch.float64)
    assert_same_calls(by_table(table, 42, torch.float64, given), exact)
    other = replace(table, noise_dtype="model" if table.noise_dtype == "float32" else "float32")
    with pytest.raises(AssertionError, match="off by"):
        assert_same_calls(by_table(other, 42, torch.float64, given), exact)


@pytest.mark.parametrize("sampler", [Sampler.EULER, Sampler.PNDM, Sampler.DPMSOLVER_MULTISTEP_SDE, Sampler.HEUN])
@pytest.mark.parametrize("row", [0, -1])
def test_a_wrong_coefficient_does_not_go_unnoticed(sampler: Sampler, row: int) -> None:
    table = sampler_table(STABLE_DIFFUSION_1_5, sampler, 10)
    for column in table.matrix[4, row].nonzero().flatten():
        matrix = table.matrix.clone()
        matrix[4, row, column] *= 1.001
        with pytest.raises(AssertionError, match="off by"):
            assert_replays("sd1.5", sampler, 10, replace(table, matrix=matrix))


def test_a_wrong_input_scale_or_timestep_does_not_go_unnoticed() -> None:
    table = sampler_table(STABLE_DIFFUSION_XL, Sampler.EULER, 10)
    for wrong in (replace(table, input_scale=table.input_scale * 1.001), replace(table, timesteps=table.timesteps + 1)):
        with pytest.raises(AssertionError):
            assert_replays("sdxl", Sampler.EULER, 10, wrong)


@pytest.mark.parametrize(
    ("sampler", "num_calls", "num_registers"),
    [
        (Sampler.DDIM, 20, 1),
        (Sampler.EULER_ANCESTRAL, 20, 1),
        (Sampler.DPMSOLVER_MULTISTEP, 20, 2),
        (Sampler.DEIS_MULTISTEP, 20, 2),
        (Sampler.HEUN, 39, 3),
        (Sampler.KDPM2, 39, 2),
        (Sampler.PNDM, 21, 4),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_tables_have_the_calls_and_registers_of_their_method(
    sampler: Sampler, num_calls: int, num_registers: int
) -> None:
    table = sampler_table(STABLE_DIFFUSION_1_5, sampler, 20)
    assert (table.num_calls, table.num_registers) == (num_calls, num_registers)
    assert table.matrix.shape == (num_calls, num_registers, num_registers + 2)
    assert table.timesteps.shape == table.input_scale.shape == (num_calls,)


def test_only_samplers_that_draw_noise_say_so() -> None:
    noisy = {s for s in NAMED if any(sampler_table(STABLE_DIFFUSION_2_1, s, 4).draws_noise)}
    sde = {Sampler.DPMSOLVER_MULTISTEP_SDE, Sampler.DPMSOLVER_MULTISTEP_SDE_KARRAS}
    assert noisy == {Sampler.DDPM, Sampler.EULER_ANCESTRAL, Sampler.LCM} | sde
    assert {s for s in noisy if sampler_table(STABLE_DIFFUSION_2_1, s, 4).noise_dtype == "float32"} == sde
    assert sampler_table(STABLE_DIFFUSION_2_1, Sampler.LCM, 4).draws_noise == (True, True, True, False)


@pytest.mark.parametrize("sampler", NAMED, ids=lambda sampler: sampler.name)
def test_a_padded_table_does_the_same(sampler: Sampler) -> None:
    table = sampler_table(STABLE_DIFFUSION_2_1, sampler, 5)
    padded = table.padded(6)
    assert padded.matrix.shape == (table.num_calls, 6, 8)
    assert_replays("sd2.1", sampler, 5, padded)


def test_padding_to_fewer_registers_is_refused() -> None:
    with pytest.raises(ValueError, match="num_registers 2 is below the 4"):
        sampler_table(STABLE_DIFFUSION_1_5, Sampler.PNDM, 20).padded(2)


@pytest.mark.parametrize("steps", [0, -1, 1001, 100001])
def test_steps_beyond_the_training_timesteps_are_refused_with_the_bound(steps: int) -> None:
    with pytest.raises(UnsupportedSteps, match=rf"num_inference_steps: .*cannot do {steps}: it must be 1 to 1000"):
        sampler_table(STABLE_DIFFUSION_1_5, Sampler.EULER, steps)


def test_tables_are_cached_whatever_the_order_of_the_config() -> None:
    reordered = dict(reversed(STABLE_DIFFUSION_1_5.items()))
    assert sampler_table(STABLE_DIFFUSION_1_5, Sampler.DDIM, 11) is sampler_table(reordered, Sampler.DDIM, 11)
    assert sampler_table(STABLE_DIFFUSION_2_1, Sampler.DDIM, 11) is not sampler_table(reordered, Sampler.DDIM, 11)


def test_tables_asked_for_in_inference_mode_hold_ordinary_tensors() -> None:
    with torch.inference_mode():
        table = sampler_table(STABLE_DIFFUSION_1_5, Sampler.PNDM, 13)
    assert not table.matrix.is_inference()
    assert_replays("sd1.5", Sampler.PNDM, 14)


def test_tables_built_from_several_threads_are_right() -> None:
    with ThreadPoolExecutor(8) as pool:
        tables = list(pool.map(lambda n: sampler_table(SDXL_TURBO, Sampler.PNDM, 4 + n % 4), range(32)))
    assert [table.num_calls for table in tables] == [5 + n % 4 for n in range(32)]
    for n in range(4):
        assert_replays("sdxl-turbo", Sampler.PNDM, 4 + n, tables[n])


@pytest.mark.parametrize(
    ("config", "sampler"),
    [
        (STABLE_DIFFUSION_1_5, Sampler.PNDM),
        (STABLE_DIFFUSION_2_1, Sampler.DDIM),
        (STABLE_DIFFUSION_XL, Sampler.EULER),
        (STABLE_DIFFUSION_XL | {"use_karras_sigmas": True}, Sampler.EULER_KARRAS),
        (SDXL_TURBO, Sampler.EULER_ANCESTRAL),
        (LATENT_CONSISTENCY, Sampler.LCM),
        (STABLE_DIFFUSION_1_5 | {"_class_name": "DPMSolverMultistepScheduler"}, Sampler.DPMSOLVER_MULTISTEP),
        (
            STABLE_DIFFUSION_1_5
            | {
                "_class_name": "DPMSolverMultistepScheduler",
                "algorithm_type": "sde-dpmsolver++",
                "use_karras_sigmas": True,
            },
            Sampler.DPMSOLVER_MULTISTEP_SDE_KARRAS,
        ),
        (
            STABLE_DIFFUSION_1_5 | {"_class_name": "DPMSolverSinglestepScheduler", "lower_order_final": True},
            Sampler.DPMSOLVER_SINGLESTEP,
        ),
        (STABLE_DIFFUSION_1_5 | {"_class_name": "UniPCMultistepScheduler"}, Sampler.OWN),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_default_is_the_models_own_sampler(config: dict[str, Any], sampler: Sampler) -> None:
    assert default_sampler(config) == DefaultSampler(sampler)


OWN = [
    {"_class_name": "UniPCMultistepScheduler"},
    {"_class_name": "UniPCMultistepScheduler", "solver_order": 3, "final_sigmas_type": "sigma_min"},
    {"_class_name": "UniPCMultistepScheduler", "prediction_type": "v_prediction", "disable_corrector": [0, 1]},
    {"_class_name": "SASolverScheduler"},
    {"_class_name": "KDPM2AncestralDiscreteScheduler"},
    {"_class_name": "IPNDMScheduler"},
    {"_class_name": "TCDScheduler"},
    {"_class_name": "EDMEulerScheduler"},
    {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0},
    {"_class_name": "PNDMScheduler", "skip_prk_steps": False},
    {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
    {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "use_lu_lambdas": True},
    {"_class_name": "DEISMultistepScheduler", "solver_order": 3},
    {"_class_name": "EulerDiscreteScheduler", "use_exponential_sigmas": True, "timestep_spacing": "linspace"},
]


@pytest.mark.parametrize("change", OWN, ids=lambda change: "-".join(map(str, change.values())))
def test_a_models_own_scheduler_is_served_with_all_its_options(change: dict[str, Any]) -> None:
    config = STABLE_DIFFUSION_1_5 | change
    sampler = default_sampler(config).sampler
    limits = _limits(_canonical(config), sampler)  # `sampler_limits` tries every sampler, which takes a second
    assert isinstance(limits, SamplerLimits)
    for steps in (2, 7, 20):
        if steps < limits.min_num_inference_steps:  # PNDM's Runge-Kutta calls take four
            continue
        table = sampler_table(config, sampler, steps)
        assert table.num_calls == limits.unet_calls(steps)
        given = by_diffusers(RECIPES[Sampler.OWN].build(config), steps, steps, torch.float32)
        exact = by_diffusers_exactly(RECIPES[Sampler.OWN].build(config), steps, steps, given)
        assert_same_calls(by_table(table, steps, torch.float32, given), exact, given)


def test_options_that_the_pipeline_corrected_are_not_dropped_again() -> None:
    corrected = STABLE_DIFFUSION_1_5 | {"_use_default_values": ["steps_offset", "clip_sample"]}
    assert sampler_table(corrected, Sampler.OWN, 5).timesteps.tolist() == [801, 601, 601, 401, 201, 1]
    assert default_sampler(corrected) == DefaultSampler(Sampler.OWN)


UNSERVED = [
    (
        {"_class_name": "DDIMScheduler", "clip_sample": True},
        r"DDIMScheduler.step is not linear at call 0 \(clip_sample=T",
    ),
    ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "its coefficients are not all finite"),
    (
        {"_class_name": "UniPCMultistepScheduler", "lower_order_final": False},
        "cannot run it with 20 steps: its coefficients are not all finite",
    ),
    ({"_class_name": "LMSDiscreteScheduler"}, "LMSDiscreteScheduler needs scipy, which is not installed"),
    ({"_class_name": "DPMSolverSDEScheduler"}, "DPMSolverSDEScheduler needs torchsde, which is not installed"),
    ({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}, "Make sure to install scipy"),
    ({"_class_name": "DDIMScheduler", "beta_start": None}, "DDIMScheduler cannot be made of its config: TypeError"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "diffusers itself cannot run FlowMatch.*init_noise_sigma"),
    ({"_class_name": "NoSuchScheduler"}, "NoSuchScheduler is not one of the schedulers of diffusers"),
    ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel is not one of the schedulers of diffusers"),
]


@pytest.mark.parametrize(("change", "reason"), UNSERVED, ids=lambda value: value if isinstance(value, str) else "")
def test_an_own_scheduler_that_cannot_be_served_is_refused_or_replaced_as_told(
    change: dict[str, Any], reason: str
) -> None:
    config = STABLE_DIFFUSION_1_5 | change
    with pytest.raises(UnsupportedScheduler, match=reason):
        default_sampler(config)
    if "beta_start" in change:
        with pytest.raises(UnsupportedScheduler, match=f"{reason}.*nor can euler take its place: EulerDiscreteSched"):
            default_sampler(config, Sampler.EULER)
        return
    replaced = default_sampler(config, Sampler.PNDM)
    assert replaced.sampler is Sampler.PNDM
    assert re.search(reason, replaced.refused)


@pytest.mark.parametrize("sampler", NAMED)
def test_the_calls_of_a_sampler_are_known_before_it_is_made(sampler: Sampler) -> None:
    for steps in (2, 6):
        table = sampler_table(STABLE_DIFFUSION_1_5, sampler, steps)
        assert table.num_calls == unet_calls(sampler, steps)
