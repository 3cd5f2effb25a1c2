"""The samplers of a model: their tables, the steps they can do, and which one is the model's own."""

import json
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from typing import Any

import torch

from services.unet_worker.sampler_limits import steps_range
from services.unet_worker.sampler_probe import UnsupportedScheduler, UnsupportedSteps, probe_scheduler
from services.unet_worker.sampler_recipes import RECIPES, nearest_sampler
from services.unet_worker.sampler_registers import build_table
from services.unet_worker.sampler_table import SamplerTable
from synerdiff.cards import Sampler, SamplerLimits
from synerdiff.telemetry import get_logger

__all__ = [
    "SamplerTable",
    "UnsupportedScheduler",
    "UnsupportedSteps",
    "default_sampler",
    "sampler_limits",
    "sampler_table",
]

_CACHED_TABLES = 512  # 1000 calls of 4 registers: 96 KB; a usual table of 20 to 50 calls: a few KB
_CACHED_MODELS = 16
_log = get_logger("samplers")


def sampler_table(scheduler_config: Mapping[str, Any], sampler: Sampler, num_inference_steps: int) -> SamplerTable:
    """The table of a sampler for a model with this scheduler config, read off diffusers on first use and then cached.

    Takes some ms for usual step counts and about a second for 1000: not for the step thread. Safe to call from several
    threads. Raises UnsupportedSteps when diffusers cannot do `num_inference_steps`, UnsupportedScheduler, naming the
    scheduler's class, when a step of it is not linear or remembers too much.
    """
    trained = scheduler_config.get("num_train_timesteps", 1000)
    if not 1 <= num_inference_steps <= trained:
        raise UnsupportedSteps(
            RECIPES[sampler].class_name,
            num_inference_steps,
            f"it must be 1 to {trained}, the model's training timesteps",
        )
    return _table(_canonical(scheduler_config), sampler, num_inference_steps)


def sampler_limits(scheduler_config: Mapping[str, Any]) -> tuple[SamplerLimits, ...]:
    """The samplers that a model with this scheduler config can be served with, each with the steps it can do.

    Those that its config makes nonlinear (clip_sample, thresholding) or impossible are left out, with a log line.
    """
    config_json = _canonical(scheduler_config)
    found = ((sampler, _served_steps(config_json, sampler)) for sampler in RECIPES)
    return tuple(SamplerLimits(sampler, *steps) for sampler, steps in found if steps)


def default_sampler(scheduler_config: Mapping[str, Any]) -> Sampler:
    """The model's own sampler, or the nearest that can be served: DPM-Solver++ 2M for a scheduler that cannot.

    Raises UnsupportedScheduler when no sampler can be served with this config.
    """
    config_json = _canonical(scheduler_config)
    own = nearest_sampler(scheduler_config)
    if own is not None and _served_steps(config_json, own):
        return own
    for near in (Sampler.DPMSOLVER_MULTISTEP, *RECIPES):
        if _served_steps(config_json, near):
            own_class = scheduler_config.get("_class_name")
            _log.warning("own_scheduler_not_served", scheduler=own_class, instead=near.name)
            return near
    raise UnsupportedScheduler(f"no sampler can be served with the scheduler config {config_json}")


def _canonical(scheduler_config: Mapping[str, Any]) -> str:
    return json.dumps(dict(scheduler_config), sort_keys=True)


@lru_cache(maxsize=_CACHED_TABLES)
@torch.inference_mode(False)  # whatever mode the first caller is in, the cached tensors are ordinary ones
def _table(config_json: str, sampler: Sampler, num_inference_steps: int) -> SamplerTable:
    return build_table(probe_scheduler(_new_scheduler(config_json, sampler), num_inference_steps))


def _new_scheduler(config_json: str, sampler: Sampler) -> Any:
    """A scheduler of one's own. Copied, since some take half a second to make."""
    return deepcopy(_prototype(config_json, sampler))


@lru_cache(maxsize=_CACHED_MODELS * len(RECIPES))
@torch.inference_mode(False)
def _prototype(config_json: str, sampler: Sampler) -> Any:
    return RECIPES[sampler].build(json.loads(config_json))


@lru_cache(maxsize=_CACHED_MODELS * len(RECIPES))
def _served_steps(config_json: str, sampler: Sampler) -> tuple[int, int] | None:
    try:
        steps = steps_range(_new_scheduler(config_json, sampler))
        reason = "diffusers cannot run it with this config"
    except (UnsupportedScheduler, ValueError, NotImplementedError) as error:
        steps, reason = None, str(error)
    if steps is None:
        _log.info("sampler_not_served", sampler=sampler.name, reason=reason)
    return steps
