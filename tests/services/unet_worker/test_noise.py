"""A task's noise is a diffusers pipeline's noise."""

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from services.unet_worker.noise import TaskNoise, noise_units
from services.unet_worker.sampler_table import SamplerTable
from services.unet_worker.samplers import sampler_table
from synerdiff.cards import Sampler
from tests.rounding import UNIT
from tests.services.unet_worker.scheduler_configs import STABLE_DIFFUSION_1_5

SHAPE = (4, 5, 7)


def table(sampler: Sampler, steps: int = 4) -> SamplerTable:
    return sampler_table(STABLE_DIFFUSION_1_5, sampler, steps)


def same(drawn: Tensor | None, expected: Tensor | None) -> bool:
    if drawn is None or expected is None:
        return drawn is expected
    return drawn.dtype == expected.dtype and torch.equal(drawn, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_draws_as_a_pipeline_does(dtype: torch.dtype) -> None:
    generator = torch.Generator("cpu").manual_seed(2**63 - 1)
    euler = table(Sampler.EULER_ANCESTRAL)
    noise = TaskNoise(2**63 - 1, SHAPE, dtype, euler)
    sigma = torch.tensor(euler.init_noise_sigma)
    assert torch.equal(noise.initial_latents(), randn_tensor((1, *SHAPE), generator=generator, dtype=dtype)[0] * sigma)
    for _ in range(4):
        assert same(noise.next_step(), randn_tensor((1, *SHAPE), generator=generator, dtype=dtype)[0])


def test_draws_in_float32_where_the_scheduler_does() -> None:
    noise = TaskNoise(5, SHAPE, torch.bfloat16, table(Sampler.DPMSOLVER_MULTISTEP_SDE))
    assert noise.initial_latents().dtype == torch.bfloat16
    drawn = noise.next_step()
    assert drawn is not None
    assert drawn.dtype == torch.float32


def test_draws_nothing_for_a_sampler_without_noise() -> None:
    noise = TaskNoise(5, SHAPE, torch.float32, table(Sampler.DDIM))
    noise.initial_latents()
    assert [noise.next_step() for _ in range(4)] == [None] * 4


def test_drawing_out_of_order_is_refused() -> None:
    noise = TaskNoise(1, SHAPE, torch.float32, table(Sampler.DDPM))
    with pytest.raises(RuntimeError, match="initial latents come before"):
        noise.next_step()
    noise.initial_latents()
    with pytest.raises(RuntimeError, match="initial latents were drawn before"):
        noise.initial_latents()
    for _ in range(4):
        noise.next_step()
    with pytest.raises(RuntimeError, match="all 4 calls"):
        noise.next_step()


CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "rescale_betas_zero_snr": True,
}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_outputs_that_differ_by_one_differ_by_a_unit_of_noise(prediction_type: str) -> None:
    config = CONFIG | {"prediction_type": prediction_type, "rescale_betas_zero_snr": False}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    a = (1 - betas).cumprod(0)[500]
    signal, noise = a.sqrt(), (1 - a).sqrt()
    sample = torch.tensor(0.3, dtype=torch.float64)

    def noise_of(output: float) -> torch.Tensor:
        """The noise in a sample = signal * clean + noise * noise, from what the model says of it."""
        if prediction_type == "v_prediction":  # output = signal * noise - noise * clean
            return signal * output + noise * sample
        return torch.tensor(output) if prediction_type == "epsilon" else (sample - signal * output) / noise

    (unit,) = noise_units(config, torch.tensor([500.0]))
    # The product of 500 factors, each rounded, and rounded again at each.
    assert unit == pytest.approx(float((noise_of(2.0) - noise_of(1.0)).abs()), rel=2 * 500 * UNIT)


def test_a_step_without_signal_can_be_divided_by() -> None:
    first, last = noise_units(CONFIG | {"prediction_type": "v_prediction"}, torch.tensor([999.0, 0.0]))
    assert 0.01 < first < 0.1
    assert last == pytest.approx(1, abs=1e-3)
