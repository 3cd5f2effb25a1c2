"""Reference pictures, made by diffusers' own pipelines with a CPU generator: what every served picture must equal."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline

from synerdiff.cards import Sampler

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
def reference_image(
    model_path: Path | str,
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
) -> npt.NDArray[np.uint8]:
    """The picture [height, width, 3] that the model's diffusers pipeline makes of these settings, made alone. Kept."""
    pipeline = reference_pipeline(Path(model_path), dtype, variant)
    own_scheduler = pipeline.scheduler
    class_name, options = _SCHEDULERS[sampler]
    pipeline.scheduler = getattr(diffusers, class_name).from_config(own_scheduler.config, **options)
    try:
        picture = pipeline(
            prompt,
            # An empty negative prompt means that none was given.
            negative_prompt=negative_prompt or None,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            width=width,
            height=height,
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
    finally:
        pipeline.scheduler = own_scheduler
    image = np.asarray(picture)
    image.flags.writeable = False
    return image


@lru_cache(maxsize=4)
def reference_pipeline(model_path: Path, dtype: torch.dtype = torch.float32, variant: str | None = None) -> Any:
    """The diffusers pipeline of a model directory, with its own scheduler. Kept for later calls: do not change it."""
    pipeline = DiffusionPipeline.from_pretrained(
        model_path, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
