"""Models of the kit: those of full size without weights, and tiny ones in files."""

from pathlib import Path

import pytest
import torch

from bench.gpu.configs import FULL, TINY, ModelName
from bench.gpu.models import count_costs, fill, meta_unet, parameters_m, random_block, save_model, unet_arguments
from synerdiff.models.loading import load_unet_side, load_vae_side

FAMILIES: dict[ModelName, str] = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}


@pytest.mark.parametrize(("name", "millions"), [("sd15", 859.5), ("sd21", 865.9), ("sdxl", 2567.5)])
def test_unets_have_the_published_number_of_parameters(name: ModelName, millions: float) -> None:
    assert parameters_m(meta_unet(FULL[name])) == pytest.approx(millions, abs=0.05)


def test_a_row_of_sd15_costs_what_its_layers_multiply() -> None:
    """401.6 GMAC with the products of attention, as others count too (338.7 without those and what projects them)."""
    costs = count_costs(FULL["sd15"])
    assert costs["row_tflop"] == pytest.approx(2 * 0.4016, rel=0.01)


def test_random_weights_keep_the_size_of_what_goes_through_them() -> None:
    linear = fill(torch.nn.Linear(512, 512, device="meta"), random_block(1 << 16)).float()
    answer = linear(torch.randn(64, 512))
    assert 0.8 < float(answer.std()) < 1.25  # 64 * 512 values of variance 1: off by far less
    assert len({tuple(row.tolist()) for row in linear.weight}) == 512, "rows repeat each other"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_tiny_model_is_served_as_its_family(name: ModelName, tmp_path: Path) -> None:
    config = TINY[name]
    save_model(config, tmp_path / name)
    unet = load_unet_side(tmp_path / name, torch.float32)
    vae = load_vae_side(tmp_path / name, torch.float32)
    assert unet.family.name == FAMILIES[name]
    assert unet.native_size == (config.side, config.side)
    assert unet.encoder.max_tokens == 77
    assert unet.defaults.num_inference_steps == config.steps
    assert unet.defaults.skip_cfg is not None
    picture = vae.decode(torch.randn(1, *unet.latent_shape(config.side, config.side)))[0]
    assert picture.std() > 1
    with torch.no_grad():
        [noise_pred] = unet.unet(**unet_arguments(config, 2, "cpu", torch.float32))
    assert noise_pred.isfinite().all()
