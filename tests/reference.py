"""Reference pictures, made by diffusers' own pipelines with a CPU generator: what every served picture must equal."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from synerdiff.cards import Sampler
from synerdiff.requests import TaskSpec

_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}

# The scheduler and options of each sampler, written down here once more as an independent check of the served table.
_SCHEDULERS: dict[Sampler, tuple[str, dict[str, Any]]] = {
    Sampler.DDIM: ("DDIMScheduler", {}),
    Sampler.DDPM: ("DDPMScheduler", {}),
    # As Stable Diffusion 1.5 configures its own PNDM; a config of another scheduler does not say.
    Sampler.PNDM: ("PNDMScheduler", {"skip_prk_steps": True}),
    Sampler.EULER: ("EulerDiscreteScheduler", {}),
    Sampler.EULER_KARRAS: ("EulerDiscreteScheduler", _KARRAS),
    Sampler.EULER_ANCESTRAL: ("EulerAncestralDiscreteScheduler", {}),
    Sampler.DPMSOLVER_MULTISTEP: ("DPMSolverMultistepScheduler", {}),
    Sampler.DPMSOLVER_MULTISTEP_KARRAS: ("DPMSolverMultistepScheduler", _KARRAS),
    Sampler.DPMSOLVER_MULTISTEP_SDE: ("DPMSolverMultistepScheduler", _SDE),
    Sampler.DPMSOLVER_MULTISTEP_SDE_KARRAS: ("DPMSolverMultistepScheduler", _SDE | _KARRAS),
    Sampler.DPMSOLVER_SINGLESTEP: ("DPMSolverSinglestepScheduler", {}),
    Sampler.DPMSOLVER_SINGLESTEP_KARRAS: ("DPMSolverSinglestepScheduler", _KARRAS),
    Sampler.DEIS_MULTISTEP: ("DEISMultistepScheduler", {}),
    Sampler.DEIS_MULTISTEP_KARRAS: ("DEISMultistepScheduler", _KARRAS),
    Sampler.HEUN: ("HeunDiscreteScheduler", {}),
    Sampler.HEUN_KARRAS: ("HeunDiscreteScheduler", _KARRAS),
    Sampler.KDPM2: ("KDPM2DiscreteScheduler", {}),
    Sampler.KDPM2_KARRAS: ("KDPM2DiscreteScheduler", _KARRAS),
    Sampler.LCM: ("LCMScheduler", {}),
}


@lru_cache(maxsize=64)
def reference_image(model_path: Path | str, **settings: Any) -> npt.NDArray[np.uint8]:
    """The picture [height, width, 3] that the model's diffusers pipeline makes of settings, made alone. Kept.

    Settings: those of a task (`settings_of`), and `dtype` and `variant` of the model.
    """
    image = np.asarray(_run(Path(model_path), "pil", **settings))
    image.flags.writeable = False
    return image


@lru_cache(maxsize=64)
def reference_levels(model_path: Path | str, **settings: Any) -> Tensor:
    """The same picture before its values are made whole levels: [height, width, 3] float64, 0 to 255. Kept.

    Of `dtype=torch.float64`: in float64 from the noise that a float32 pipeline draws.
    """
    with drawing_in(torch.float32):
        return torch.from_numpy(_run(Path(model_path), "np", **settings)).double() * 255


def reference_latents(model_path: Path, **settings: Any) -> Tensor:
    """The finished latents [C, h, w] of the same picture, in the settings' dtype; noise as in `reference_levels`."""
    with drawing_in(torch.float32):
        latents: Tensor = _run(model_path, "latent", **settings)
    return latents


def settings_of(task: TaskSpec) -> dict[str, Any]:
    """A task's settings, as the functions here take them."""
    return {
        "prompt": task.prompt,
        "negative_prompt": task.negative_prompt,
        "seed": task.seed,
        "steps": task.num_inference_steps,
        "guidance_scale": task.guidance_scale,
        "sampler": task.sampler,
        "width": task.width,
        "height": task.height,
    }


def _run(
    model_path: Path,
    output_type: str,
    *,
    prompt: str,
    negative_prompt: str = "",
    seed: int,
    steps: int,
    guidance_scale: float,
    sampler: Sampler,
    width: int,
    height: int,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
) -> Any:
    pipeline = reference_pipeline(model_path, dtype, variant)
    own_scheduler = pipeline.scheduler
    class_name, options = _SCHEDULERS[sampler]
    pipeline.scheduler = getattr(diffusers, class_name).from_config(own_scheduler.config, **options)
    try:
        return pipeline(
            prompt,
            # An empty negative prompt means that none was given.
            negative_prompt=negative_prompt or None,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            width=width,
            height=height,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type=output_type,
        ).images[0]
    finally:
        pipeline.scheduler = own_scheduler


@contextmanager
def drawing_in(dtype: torch.dtype) -> Iterator[None]:
    """Noise is drawn in `dtype`, whatever dtype it is asked for in: a generator gives other numbers in float64."""
    randn = torch.randn

    def drawn(*shape: Any, **options: Any) -> Tensor:
        asked = options.pop("dtype", None)
        return randn(*shape, dtype=dtype, **options).to(asked or dtype)

    with patch.object(torch, "randn", drawn):
        yield


@lru_cache(maxsize=16)
def in_float64(module: torch.nn.Module) -> Any:
    """A copy of a module whose weights are float64. Kept for later calls: do not change it."""
    return deepcopy(module).double()


@torch.no_grad()
def exact_call(
    unet: torch.nn.Module, latents: Tensor, timesteps: Tensor, hidden: Tensor, added: Mapping[str, Tensor] | None = None
) -> Tensor:
    """noise_pred [rows, C, h, w] of one call of a diffusers UNet, in float64."""
    doubled = {name: condition.double() for name, condition in (added or {}).items()}
    answer: Tensor = in_float64(unet)(
        latents.double(), timesteps, encoder_hidden_states=hidden.double(), added_cond_kwargs=doubled
    ).sample
    return answer


@lru_cache(maxsize=4)
def reference_pipeline(model_path: Path, dtype: torch.dtype = torch.float32, variant: str | None = None) -> Any:
    """The diffusers pipeline of a model directory, with its own scheduler. Kept for later calls: do not change it."""
    pipeline = DiffusionPipeline.from_pretrained(
        model_path, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
