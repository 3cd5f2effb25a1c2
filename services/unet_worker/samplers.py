"""The samplers of a model: their tables, the steps they can do, and which one is the model's own."""

import inspect
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch

from services.unet_worker.sampler_limits import DEFAULT_TRAIN_TIMESTEPS, check_table, steps_range
from services.unet_worker.sampler_probe import UnsupportedScheduler, UnsupportedSteps, build_table, probe_scheduler
from services.unet_worker.sampler_table import SamplerTable
from synerdiff.cards import Sampler, SamplerLimits
from synerdiff.models.schedulers import SchedulerNotMade, make_scheduler
from synerdiff.telemetry import get_logger

_CACHED_TABLES = 512  # 1000 calls of 4 registers: 96 KB; a usual table of 20 to 50 calls: a few KB
_CACHED_MODELS = 16
_TRIED_STEPS = 20  # enough for every memory of a scheduler to be in use
_log = get_logger("samplers")

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
        # diffusers replaces the options named there by its own defaults, and so drops a pipeline's corrections.
        options = {option: value for option, value in scheduler_config.items() if option != "_use_default_values"}
        return make_scheduler(str(scheduler_config.get("_class_name")), options)


def _plain(class_name: str, **overrides: Any) -> SchedulerRecipe:
    return SchedulerRecipe(class_name, MappingProxyType({**overrides, "use_karras_sigmas": False}))


def _karras(class_name: str, **overrides: Any) -> SchedulerRecipe:
    other_sigmas = {"use_exponential_sigmas": False, "use_beta_sigmas": False}  # diffusers takes one kind at a time
    return SchedulerRecipe(class_name, MappingProxyType({**overrides, **other_sigmas, "use_karras_sigmas": True}))


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
    """The options that a scheduler was made with: those that its class takes."""
    taken = inspect.signature(type(scheduler)).parameters
    return {option: value for option, value in scheduler.config.items() if option in taken}


@dataclass(frozen=True)
class DefaultSampler:
    """The sampler of requests that name none. `refused`: why it is not the model's own scheduler."""

    sampler: Sampler
    refused: str = ""


def sampler_table(scheduler_config: Mapping[str, Any], sampler: Sampler, num_inference_steps: int) -> SamplerTable:
    """The table of a sampler for a model with this scheduler config, read off diffusers on first use and then cached.

    Takes some ms for usual step counts and about a second for 1000: not for the step thread. Safe to call from several
    threads. Raises UnsupportedSteps when diffusers cannot do `num_inference_steps`, UnsupportedScheduler, naming the
    scheduler's class, when it cannot be made or a step of it is not linear.
    """
    trained = scheduler_config.get("num_train_timesteps", DEFAULT_TRAIN_TIMESTEPS)
    if not 1 <= num_inference_steps <= trained:
        raise UnsupportedSteps(
            sampler.name, num_inference_steps, f"it must be 1 to {trained}, the model's training timesteps"
        )
    return _table(_canonical(scheduler_config), sampler, num_inference_steps)


def sampler_limits(scheduler_config: Mapping[str, Any]) -> tuple[SamplerLimits, ...]:
    """The samplers that a model with this scheduler config can be served with, each with the steps it can do.

    OWN is among them where the model's own scheduler is none of the others. Those that its config makes nonlinear
    (clip_sample, thresholding) or impossible are left out, with a log line.
    """
    own = _like_own(_canonical(scheduler_config))
    served = (_limits(_canonical(scheduler_config), sampler) for sampler in RECIPES if sampler in (own, *_NAMED))
    return tuple(found for found in served if isinstance(found, SamplerLimits))


def default_sampler(scheduler_config: Mapping[str, Any], replacement: Sampler | None = None) -> DefaultSampler:
    """The model's own scheduler, or else `replacement` and why. Raises UnsupportedScheduler where neither serves."""
    config_json = _canonical(scheduler_config)
    own = _like_own(config_json)
    served = _limits(config_json, own) if isinstance(own, Sampler) else own
    if isinstance(served, SamplerLimits):
        return DefaultSampler(served.sampler)
    if replacement is None:
        raise UnsupportedScheduler(served)
    instead = _limits(config_json, replacement)
    if isinstance(instead, str):
        raise UnsupportedScheduler(f"{served}; nor can {replacement.name.lower()} take its place: {instead}")
    return DefaultSampler(replacement, served)


_NAMED = tuple(sampler for sampler in RECIPES if sampler is not Sampler.OWN)


def _canonical(scheduler_config: Mapping[str, Any]) -> str:
    return json.dumps(dict(scheduler_config), sort_keys=True)


@lru_cache(maxsize=_CACHED_TABLES)
@torch.inference_mode(False)  # the cached tensors are ordinary ones in any mode of the first caller
def _table(config_json: str, sampler: Sampler, num_inference_steps: int) -> SamplerTable:
    try:
        scheduler = _new_scheduler(config_json, sampler)
    except SchedulerNotMade as error:
        raise UnsupportedScheduler(str(error)) from error
    table = build_table(probe_scheduler(scheduler, num_inference_steps))
    check_table(table, _new_scheduler(config_json, sampler), num_inference_steps)
    return table


def _new_scheduler(config_json: str, sampler: Sampler) -> Any:
    """A scheduler for one caller. Copied, since some take half a second to make."""
    return deepcopy(_prototype(config_json, sampler))


@lru_cache(maxsize=_CACHED_MODELS * len(RECIPES))
@torch.inference_mode(False)
def _prototype(config_json: str, sampler: Sampler) -> Any:
    return RECIPES[sampler].build(json.loads(config_json))


@lru_cache(maxsize=_CACHED_MODELS)
def _like_own(config_json: str) -> Sampler | str:
    """The sampler that is the model's own scheduler, or why there can be none."""
    try:
        return sampler_like_own(json.loads(config_json))
    except SchedulerNotMade as error:
        return str(error)


@lru_cache(maxsize=_CACHED_MODELS * len(RECIPES))
def _limits(config_json: str, sampler: Sampler) -> SamplerLimits | str:
    """The limits of a sampler with a scheduler config, or why it cannot be served with it."""
    try:
        fewest, most = steps_range(_new_scheduler(config_json, sampler))
        last = min(most, _TRIED_STEPS)
        calls = _calls(config_json, sampler, sorted({max(last - 1, fewest), last}))
    except (UnsupportedScheduler, SchedulerNotMade) as error:
        _log.info("sampler_not_served", sampler=sampler.name, reason=str(error))
        return str(error)
    if sampler is not Sampler.OWN or len(calls) < 2:
        return SamplerLimits(sampler, fewest, most)
    a_step = calls[last] - calls[last - 1]
    return SamplerLimits(sampler, fewest, most, a_step, calls[last] - a_step * last)


def _calls(config_json: str, sampler: Sampler, tried_steps: Sequence[int]) -> dict[int, int]:
    """UNet calls by number of steps that can be run. Raises UnsupportedScheduler where none can."""
    calls: dict[int, int] = {}
    reason = ""
    for steps in tried_steps:
        try:
            calls[steps] = _table(config_json, sampler, steps).num_calls
        except UnsupportedSteps as error:
            reason = f"diffusers itself cannot run it with {steps} steps: {error.reason}"
    if not calls:
        raise UnsupportedScheduler(reason)
    return calls
