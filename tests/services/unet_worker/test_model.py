"""A model directory as a UNet worker takes it up: its own scheduler, or a refusal in one line, or a replacement."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from services.unet_worker import stage
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.stage import load_model, warm_up
from synerdiff.cards import ModelCard, Sampler
from synerdiff.models.compiled.components import CompiledUnet, no_request
from synerdiff.models.layout import ModelLoadError
from synerdiff.models.loading import load_vae_side
from synerdiff.requests import TaskSpec
from tests.parity import served_latents
from tests.reference import reference_pipeline
from tests.tiny_models import FamilyName, edit_json
from tests.values import spec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:numpy", "ignore::FutureWarning")

# Of 255 levels: what diffusers' own rounding to whole levels may turn into.
A_LEVEL = 1


def spec_of(card: ModelCard, prompt: str = "a red car", steps: int = 6) -> TaskSpec:
    size: dict[str, Any] = {"width": card.native_width, "height": card.native_height}
    return spec(prompt=prompt, **size, num_inference_steps=steps, guidance_scale=5.0, sampler=card.default_sampler)


def assert_draws_as_diffusers(path: Path, prompt: str = "a red car") -> ModelCard:
    """A request without sampler and size gets the picture of diffusers' own pipeline; other samplers untried."""
    with patch.object(stage, "sampler_limits", lambda config: ()):
        side, card = load_model(path, torch.float32)
    spec = spec_of(card, prompt)
    (latents,) = served_latents(side, [spec])
    served = load_vae_side(path, torch.float32).decode(latents[None])[0]
    pipeline = reference_pipeline.__wrapped__(path)  # not kept: the directory is this test's alone
    expected = np.asarray(
        pipeline(
            prompt,
            num_inference_steps=spec.num_inference_steps,
            guidance_scale=spec.guidance_scale,
            generator=torch.Generator().manual_seed(spec.seed),
        ).images[0]
    )
    assert served.shape == expected.shape
    assert int(np.abs(served.astype(int) - expected).max()) <= A_LEVEL
    return card


def scheduler_is(path: Path, class_name: str, **options: Any) -> None:
    """Have the directory's scheduler be of another class, with these options and no others."""
    edit_json(path / "model_index.json", scheduler=["diffusers", class_name])
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": class_name, **options}))


def without(path: Path, *keys: str) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in keys}))


BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PLAYGROUND = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "solver_order": 2}


@pytest.mark.parametrize(
    ("family", "class_name", "options"),
    [
        ("sdxl", "EDMDPMSolverMultistepScheduler", PLAYGROUND),
        ("sdxl", "EDMEulerScheduler", {"sigma_data": 0.5}),
        (
            "sd1",
            "DPMSolverMultistepScheduler",
            BETAS | {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        ),
        (
            "sd1",
            "DPMSolverMultistepScheduler",
            BETAS | {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        ),
        ("sd1", "PNDMScheduler", BETAS | {"skip_prk_steps": False, "steps_offset": 1}),
        ("sd1", "UniPCMultistepScheduler", BETAS),
        ("sd2", "UniPCMultistepScheduler", BETAS | {"prediction_type": "v_prediction"}),
        ("sd2", "SASolverScheduler", BETAS | {"prediction_type": "v_prediction"}),
    ],
)
def test_the_scheduler_that_a_directory_names_is_served(
    copy_of: Any, family: FamilyName, class_name: str, options: dict[str, Any]
) -> None:
    path = copy_of(family)
    scheduler_is(path, class_name, **options)
    card = assert_draws_as_diffusers(path)
    assert (card.scheduler, card.scheduler_refused) == (class_name, "")


@pytest.mark.parametrize(
    ("family", "class_name", "options"),
    [
        ("sd1", "PNDMScheduler", BETAS | {"skip_prk_steps": True}),
        ("sd1", "DDIMScheduler", BETAS | {"steps_offset": 1}),
        ("sd1", "DDIMScheduler", BETAS | {"clip_sample": True}),
        ("sd2", "DDIMScheduler", BETAS | {"prediction_type": "v_prediction"}),
        ("sd2", "PNDMScheduler", BETAS | {"prediction_type": "v_prediction", "skip_prk_steps": True}),
    ],
)
def test_an_old_scheduler_config_is_corrected_as_the_pipeline_corrects_it(
    copy_of: Any, family: FamilyName, class_name: str, options: dict[str, Any]
) -> None:
    path = copy_of(family)
    scheduler_is(path, class_name, **options)
    assert_draws_as_diffusers(path)


def test_the_class_is_that_of_the_index_as_for_diffusers(copy_of: Any) -> None:
    path = copy_of("sd1")
    edit_json(path / "scheduler" / "scheduler_config.json", _class_name="EulerDiscreteScheduler")
    assert assert_draws_as_diffusers(path).scheduler == "PNDMScheduler"


def test_a_conversion_of_2022_has_the_size_that_the_pipeline_gives_it(copy_of: Any) -> None:
    path = copy_of("sd1")
    edit_json(path / "unet" / "config.json", sample_size=32, _diffusers_version="0.6.0")
    _, card = load_model(path, torch.float32)
    assert (card.native_width, card.native_height, card.max_side) == (512, 512, 1024)
    edit_json(path / "unet" / "config.json", sample_size=32, _diffusers_version="0.9.0")
    _, card = load_model(path, torch.float32)
    assert (card.native_width, card.native_height, card.max_side) == (256, 256, 512)


def test_a_scheduler_that_cannot_be_served_is_refused_in_a_line_before_weights_are_read(copy_of: Any) -> None:
    """For what reasons: test_samplers has them."""
    path = copy_of("sd1")
    scheduler_is(path, "LMSDiscreteScheduler", **BETAS)
    for weights in path.rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ModelLoadError) as caught:
        load_model(path, torch.float32)
    message = str(caught.value)
    assert message.startswith(f"cannot load a model from {path}: its own scheduler cannot be served: ")
    assert "LMSDiscreteScheduler needs scipy, which is not installed" in message
    assert message.endswith("; --replace-scheduler NAME serves the sampler of that name in its place")
    assert "\n" not in message


def test_a_replacement_is_told_by_the_card_and_with_every_picture(copy_of: Any) -> None:
    path = copy_of("sd1")
    scheduler_is(path, "LMSDiscreteScheduler", **BETAS, steps_offset=1)
    side, card = load_model(path, torch.float32, replacement=Sampler.EULER)
    reason = "LMSDiscreteScheduler needs scipy, which is not installed"
    assert (card.default_sampler, card.scheduler, card.scheduler_refused) == (
        Sampler.EULER,
        "LMSDiscreteScheduler",
        reason,
    )
    warm_up(side, CompiledUnet(side, no_request, 0), card)
    (prepared,) = TaskPreparer(side, card=card).prepare([spec_of(card)])
    assert prepared.warnings == (f"sampler: euler stands in for the model's own scheduler: {reason}",)


def test_a_replacement_does_not_touch_a_scheduler_that_can_be_served(copy_of: Any) -> None:
    side, card = load_model(copy_of("sd1"), torch.float32, replacement=Sampler.EULER)
    assert (card.default_sampler, card.scheduler_refused) == (Sampler.PNDM, "")
    (prepared,) = TaskPreparer(side, card=card).prepare([spec_of(card)])
    assert prepared.warnings == ()
