"""Each sampler of the API as a diffusers scheduler class and the options that make it. A new sampler is a line here."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from synerdiff.cards import Sampler
from synerdiff.models.schedulers import make_scheduler


@dataclass(frozen=True)
class SchedulerRecipe:
    """How a diffusers user makes a sampler: `scheduler_class.from_config(model's scheduler config, **overrides)`."""

    class_name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def build(self, scheduler_config: Mapping[str, Any]) -> Any:
        """A new scheduler for a model trained as `scheduler_config` says, steps not set. Raises SchedulerNotMade."""
        return make_scheduler(self.class_name, scheduler_config, **self.overrides)


@dataclass(frozen=True)
class OwnScheduler:
    """The model's own: `scheduler_config` is all of its options, those that its pipeline corrected among them."""

    def build(self, scheduler_config: Mapping[str, Any]) -> Any:
        """As `SchedulerRecipe.build`."""
        # Of options that it names diffusers takes its own default instead, and so drops what a pipeline corrected.
        options = {option: value for option, value in scheduler_config.items() if option != "_use_default_values"}
        return make_scheduler(str(scheduler_config.get("_class_name")), options)


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

RECIPES: Mapping[Sampler, SchedulerRecipe | OwnScheduler] = MappingProxyType(
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
        Sampler.OWN: OwnScheduler(),
    }
)


def sampler_like_own(scheduler_config: Mapping[str, Any]) -> Sampler:
    """The sampler that is the model's own scheduler in every option; OWN where none is. Raises SchedulerNotMade."""
    own = OwnScheduler().build(scheduler_config)
    same_class = {
        sampler: recipe
        for sampler, recipe in RECIPES.items()
        if isinstance(recipe, SchedulerRecipe) and recipe.class_name == type(own).__name__
    }
    for sampler, recipe in same_class.items():
        if _options(recipe.build(scheduler_config)) == _options(own):
            return sampler
    return Sampler.OWN


def _options(scheduler: Any) -> dict[str, Any]:
    """What a scheduler was made of: the options that its class takes."""
    taken = inspect.signature(type(scheduler)).parameters
    return {option: value for option, value in scheduler.config.items() if option in taken}
