"""What a difference of two model outputs is in units of predicted noise, whatever the model predicts."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from diffusers import DDPMScheduler
from torch import Tensor

# A model trained to a terminal signal of zero has no noise units at its first timestep.
_LEAST_SIGNAL = 0.05


def noise_units(scheduler_config: Mapping[str, Any], timesteps: Tensor) -> tuple[float, ...]:
    """Per timestep (of training), how much predicted noise differs where the model's output differs by 1.

    With a = alphas_cumprod: 1 for a model that predicts noise, sqrt(a) for one that predicts velocity, and
    sqrt(a / (1 - a)) for one that predicts clean latents.
    """
    prediction_type = scheduler_config.get("prediction_type", "epsilon")
    if prediction_type == "epsilon":
        return (1.0,) * len(timesteps)
    alphas_cumprod = _alphas_cumprod(json.dumps(dict(scheduler_config), sort_keys=True))
    a = alphas_cumprod[timesteps.round().long().clamp(0, len(alphas_cumprod) - 1)]
    signal = a.sqrt().clamp_min(_LEAST_SIGNAL)
    units = signal if prediction_type == "v_prediction" else signal / (1 - a).sqrt()
    return tuple(units.tolist())


@lru_cache(maxsize=16)
def _alphas_cumprod(config_json: str) -> Tensor:
    alphas_cumprod: Tensor = DDPMScheduler.from_config(json.loads(config_json)).alphas_cumprod
    return alphas_cumprod
