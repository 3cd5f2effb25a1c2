import pytest
import torch

from services.unet_worker.noise_units import noise_units
from tests.rounding import UNIT

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
