"""Each sampler of the API as a diffusers scheduler class and the options that make it. A new sampler is a line here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import diffusers

from synerdiff.cards import Sampler


@dataclass(frozen=True)
class SchedulerRecipe:
    """How a diffusers user makes a sampler: `scheduler_class.from_config(model's scheduler config, **overrides)`."""

    class_name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def build(self, scheduler_config: Mapping[str, Any]) -> Any:
        """A new diffusers scheduler for a model trained as `scheduler_config` says; its steps are not set yet."""
        return getattr(diffusers, self.class_name).from_config(dict(scheduler_config), **self.overrides)


def _plain(class_name: str, **overrides: Any) -> SchedulerRecipe:
    return SchedulerRecipe(class_name, MappingProxyType({**overrides, "use_karras_sigmas": False}))


def _karras(class_name: str, **overrides: Any) -> SchedulerRecipe:
    other_sigmas = {"use_exponential_sigmas": False, "use_beta_sigmas": False}  # diffusers takes one kind at a time
    return SchedulerRecipe(class_name, MappingProxyType({**overrides, **other_sigmas, "use_karras_sigmas": True}))


_EULER = "EulerDiscreteScheduler"
_MULTISTEP = "DPMSolverMultistepScheduler"
_SINGLESTEP = "DPMSolverSinglestepScheduler"
_DEIS = "DEISMultistepScheduler"
_HEUN = "HeunDiscreteScheduler"
_KDPM2 = "KDPM2DiscreteScheduler"

_ODE: dict[str, Any] = {"algorithm_type": "dpmsolver++"}
_SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++"}
# The singlestep scheduler switches lower_order_final on by itself, with a warning, for odd steps and for a last sigma
# of 0, which latent diffusion has.
_ODE_SINGLESTEP: dict[str, Any] = {"algorithm_type": "dpmsolver++", "lower_order_final": True}
_LOG_RHO: dict[str, Any] = {"algorithm_type": "deis", "solver_type": "logrho"}
# The Runge-Kutta calls at the start are for pixel-space models; no latent diffusion model uses them.
_LINEAR_MULTISTEP: dict[str, Any] = {"skip_prk_steps": True}

RECIPES: Mapping[Sampler, SchedulerRecipe] = MappingProxyType(
    {
        Sampler.DDIM: SchedulerRecipe("DDIMScheduler"),
        Sampler.DDPM: SchedulerRecipe("DDPMScheduler"),
        Sampler.PNDM: SchedulerRecipe("PNDMScheduler", MappingProxyType(_LINEAR_MULTISTEP)),
        Sampler.EULER: _plain(_EULER),
        Sampler.EULER_KARRAS: _karras(_EULER),
        Sampler.EULER_ANCESTRAL: SchedulerRecipe("EulerAncestralDiscreteScheduler"),
        Sampler.DPMSOLVER_MULTISTEP: _plain(_MULTISTEP, **_ODE),
        Sampler.DPMSOLVER_MULTISTEP_KARRAS: _karras(_MULTISTEP, **_ODE),
        Sampler.DPMSOLVER_MULTISTEP_SDE: _plain(_MULTISTEP, **_SDE),
        Sampler.DPMSOLVER_MULTISTEP_SDE_KARRAS: _karras(_MULTISTEP, **_SDE),
        Sampler.DPMSOLVER_SINGLESTEP: _plain(_SINGLESTEP, **_ODE_SINGLESTEP),
        Sampler.DPMSOLVER_SINGLESTEP_KARRAS: _karras(_SINGLESTEP, **_ODE_SINGLESTEP),
        Sampler.DEIS_MULTISTEP: _plain(_DEIS, **_LOG_RHO),
        Sampler.DEIS_MULTISTEP_KARRAS: _karras(_DEIS, **_LOG_RHO),
        Sampler.HEUN: _plain(_HEUN),
        Sampler.HEUN_KARRAS: _karras(_HEUN),
        Sampler.KDPM2: _plain(_KDPM2),
        Sampler.KDPM2_KARRAS: _karras(_KDPM2),
        Sampler.LCM: SchedulerRecipe("LCMScheduler"),
    }
)


def nearest_sampler(scheduler_config: Mapping[str, Any]) -> Sampler | None:
    """The sampler that changes least of the scheduler that the model came with; None for a class not listed here."""
    class_name = scheduler_config.get("_class_name")
    same_class = [sampler for sampler, recipe in RECIPES.items() if recipe.class_name == class_name]
    if not same_class:
        return None
    own = SchedulerRecipe(str(class_name)).build(scheduler_config).config

    def changes(sampler: Sampler) -> int:
        return sum(own.get(option) != value for option, value in RECIPES[sampler].overrides.items())

    return min(same_class, key=changes)
