"""The noise of a task, drawn as a diffusers pipeline with a CPU generator of the task's seed draws it."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from services.unet_worker.sampler_table import SamplerTable

# A model trained to a terminal signal of zero has no noise units at its first timestep.
_LEAST_SIGNAL = 0.05


class TaskNoise:
    """The generator of one task and the order in which its sampler takes noise from it: first the initial latents, then
    call by call. The noise depends on the seed, the latent shape, the model's dtype and the sampler alone.

    Not safe for several threads at once.
    """

    def __init__(self, seed: int, latent_shape: tuple[int, int, int], dtype: torch.dtype, table: SamplerTable) -> None:
        """`latent_shape` is (C, h, w); `dtype` is the model's."""
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._shape = (1, *latent_shape)
        self._dtype = dtype
        self._table = table
        self._next_call: int | None = None  # None: the initial latents are not drawn yet

    @property
    def next_call(self) -> int:
        """The UNet call whose noise is drawn next."""
        return self._next_call or 0

    def initial_latents(self) -> Tensor:
        """[C, h, w] in the model's dtype on the CPU. Raises RuntimeError when something was drawn before."""
        if self._next_call is not None:
            raise RuntimeError("the initial latents were drawn before: make a new TaskNoise to start over")
        self._next_call = 0
        latents: Tensor = self._draw(self._dtype) * self._table.init_noise_sigma
        return latents

    def next_step(self) -> Tensor | None:
        """Of the next UNet call, [C, h, w] on the CPU; None if it takes none. Raises RuntimeError out of turn."""
        if self._next_call is None:
            raise RuntimeError("the initial latents come before the noise of any call")
        if self._next_call == self._table.num_calls:
            raise RuntimeError(f"all {self._table.num_calls} calls have had their noise")
        call = self._next_call
        self._next_call = call + 1
        if not self._table.draws_noise[call]:
            return None
        return self._draw(torch.float32 if self._table.noise_dtype == "float32" else self._dtype)

    def _draw(self, dtype: torch.dtype) -> Tensor:
        drawn: Tensor = randn_tensor(self._shape, generator=self._generator, device=torch.device("cpu"), dtype=dtype)[0]
        return drawn


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
