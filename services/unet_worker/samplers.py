"""The samplers that requests may name, as diffusers schedulers: their tables, limits and defaults.

A new sampler is a line in `CATALOGUE`.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import diffusers

from services.unet_worker.sampler_probe import UnsupportedScheduler, UnsupportedSteps, probe_scheduler
from services.unet_worker.sampler_registers import build_table
from services.unet_worker.sampler_table import SamplerTable
from synerdiff.cards import Sampler, SamplerLimits


@dataclass(frozen=True)
class SchedulerRecipe:
    """How a diffusers user would make a sampler: `scheduler_class.from_config(model's config, **overrides)`."""

    class_name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def build(self, scheduler_config: Mapping[str, Any]) -> Any:
        """A new scheduler of the model's training, steps not set."""
        return getattr(diffusers, self.class_name).from_config(dict(scheduler_config), **self.overrides)


def _plain(class_name: str, **overrides: Any) -> SchedulerRecipe:
    return SchedulerRecipe(class_name, MappingProxyType({**overrides, "use_karras_sigmas": False}))


def _karras(class_name: str, **overrides: Any) -> SchedulerRecipe:
    others = {"use_exponential_sigmas": False, "use_beta_sigmas": False}
    return SchedulerRecipe(class_name, MappingProxyType({**overrides, **others, "use_karras_sigmas": True}))


_MULTISTEP = "DPMSolverMultistepScheduler"
_SINGLESTEP = "DPMSolverSinglestepScheduler"
_DPM = {"algorithm_type": "dpmsolver++"}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_DPM_SINGLESTEP = {"algorithm_type": "dpmsolver++", "lower_order_final": True}  # diffusers sets it when it is needed
_DEIS = {"algorithm_type": "deis", "solver_type": "logrho"}

CATALOGUE: Mapping[Sampler, SchedulerRecipe] = MappingProxyType(
    {
        Sampler.DDIM: SchedulerRecipe("DDIMScheduler"),
        Sampler.DDPM: SchedulerRecipe("DDPMScheduler"),
        Sampler.PNDM: SchedulerRecipe("PNDMScheduler", MappingProxyType({"skip_prk_steps": True})),
        Sampler.EULER: _plain("EulerDiscreteScheduler"),
        Sampler.EULER_KARRAS: _karras("EulerDiscreteScheduler"),
        Sampler.EULER_ANCESTRAL: SchedulerRecipe("EulerAncestralDiscreteScheduler"),
        Sampler.DPMSOLVER_MULTISTEP: _plain(_MULTISTEP, **_DPM),
        Sampler.DPMSOLVER_MULTISTEP_KARRAS: _karras(_MULTISTEP, **_DPM),
        Sampler.DPMSOLVER_MULTISTEP_SDE: _plain(_MULTISTEP, **_SDE),
        Sampler.DPMSOLVER_MULTISTEP_SDE_KARRAS: _karras(_MULTISTEP, **_SDE),
        Sampler.DPMSOLVER_SINGLESTEP: _plain(_SINGLESTEP, **_DPM_SINGLESTEP),
        Sampler.DPMSOLVER_SINGLESTEP_KARRAS: _karras(_SINGLESTEP, **_DPM_SINGLESTEP),
        Sampler.DEIS_MULTISTEP: _plain("DEISMultistepScheduler", **_DEIS),
        Sampler.DEIS_MULTISTEP_KARRAS: _karras("DEISMultistepScheduler", **_DEIS),
        Sampler.HEUN: _plain("HeunDiscreteScheduler"),
        Sampler.HEUN_KARRAS: _karras("HeunDiscreteScheduler"),
        Sampler.KDPM2: _plain("KDPM2DiscreteScheduler"),
        Sampler.KDPM2_KARRAS: _karras("KDPM2DiscreteScheduler"),
        Sampler.LCM: SchedulerRecipe("LCMScheduler"),
    }
)


def sampler_table(scheduler_config: Mapping[str, Any], sampler: Sampler, num_inference_steps: int) -> SamplerTable:
    return _cached_table(json.dumps(scheduler_config, sort_keys=True), sampler, num_inference_steps)


@lru_cache(maxsize=512)
def _cached_table(config_json: str, sampler: Sampler, num_inference_steps: int) -> SamplerTable:
    scheduler = CATALOGUE[sampler].build(json.loads(config_json))
    return build_table(probe_scheduler(scheduler, num_inference_steps))
