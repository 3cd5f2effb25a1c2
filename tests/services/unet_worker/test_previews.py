import queue
import threading
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DDPMScheduler
from prometheus_client import REGISTRY

from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.previews import MAX_WAITING, CleanLatents, PreviewEncoder
from synerdiff.cards import Sampler
from synerdiff.models.family import UnetSide
from synerdiff.models.serving import PreviewProjection
from synerdiff.plans import Preview
from tests.parity import served_latents
from tests.rounding import assert_rounded
from tests.values import spec
from tests.waiting import HANG_S

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_gives_the_clean_latents(prediction_type: str, timestep: int) -> None:
    scheduler = DDPMScheduler(**BETAS)
    clean, noise = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    at = torch.tensor([timestep])
    noisy = scheduler.add_noise(clean[None], noise[None], at)[0]
    answer = {
        "epsilon": noise,
        "v_prediction": scheduler.get_velocity(clean[None], noise[None], at)[0],
        "sample": clean,
    }[prediction_type]
    predicted = CleanLatents(BETAS | {"prediction_type": prediction_type}).predicted(noisy, answer, float(timestep))
    assert_rounded(predicted, clean)


@pytest.mark.parametrize("sampler", [Sampler.DDIM, Sampler.EULER, Sampler.HEUN_KARRAS, Sampler.DPMSOLVER_MULTISTEP])
def test_the_last_call_of_any_sampler_points_at_the_finished_latents(tiny_side: UnetSide, sampler: Sampler) -> None:
    request = spec(sampler=sampler, num_inference_steps=8, guidance_scale=1.0)
    (task,) = (prepared.task for prepared in TaskPreparer(tiny_side).prepare([request]))
    denoiser = Denoiser(tiny_side)
    while not task.done:
        outcome = denoiser.step([task])
    predicted = CleanLatents(tiny_side.scheduler_config).predicted(
        outcome.model_input[0], outcome.noise_pred[0], float(outcome.timesteps[0])
    )
    (finished,) = served_latents(tiny_side, [request])
    off = (predicted - finished).square().mean().sqrt() / finished.square().mean().sqrt()
    assert off < 0.1


class Gated(PreviewProjection):
    """A projection that waits to be let through."""

    entered = threading.Event()
    open = threading.Event()

    def images(self, latents: torch.Tensor) -> npt.NDArray[np.uint8]:
        self.entered.set()
        assert self.open.wait(HANG_S)
        return super().images(latents)


def test_an_encoder_that_is_behind_leaves_previews_out_and_never_blocks(tiny_side: UnetSide) -> None:
    waiting, too_many = range(1, MAX_WAITING + 1), 20
    delivered: queue.SimpleQueue[Preview] = queue.SimpleQueue()
    gated = Gated(torch.full((3, 4), 0.1), torch.full((3,), 0.5))
    encoder = PreviewEncoder(replace(tiny_side, preview=gated), delivered.put)
    (task,) = (prepared.task for prepared in TaskPreparer(tiny_side).prepare([spec()]))
    outcome = Denoiser(tiny_side).step([task])
    dropped_before = dropped()

    encoder.submit("a/0", 0, outcome, 0)
    assert gated.entered.wait(HANG_S)
    for call in (*waiting, *range(too_many)):
        encoder.submit("a/0", call, outcome, 0)
    assert dropped() - dropped_before == too_many
    gated.open.set()

    calls = [delivered.get(timeout=HANG_S).call for _ in (0, *waiting)]
    assert calls == [0, *waiting]
    encoder.close()
    assert delivered.empty()


def dropped() -> float:
    return REGISTRY.get_sample_value("synerdiff_unet_previews_dropped_total") or 0.0
