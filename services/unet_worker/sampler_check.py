"""Whether a table does what its scheduler does, found out by running both on ordinary latents."""

from typing import Any

import torch

from services.unet_worker.noise import TaskNoise
from services.unet_worker.sampler_probe import UnsupportedScheduler, step_options
from services.unet_worker.sampler_table import SamplerTable

_LATENT_SHAPE = (4, 3, 3)
_SEED = 20240301
# Of the terms that a sample is the sum of: far above what a table rounds, far below what pictures show.
_TOLERANCE = 1e-3
# Schedulers that cancel large terms lose all digits of float32 to that, which is rounding, not another method.
_DTYPE = torch.float64


@torch.no_grad()
def check_table(table: SamplerTable, scheduler: Any, num_inference_steps: int) -> None:
    """Raise UnsupportedScheduler unless `table` gives, call by call, the samples that a new `scheduler` gives.

    So whatever the probe could not see of a scheduler, a memory of another kind, or a bound that only ordinary values
    reach, is refused, not served wrongly. Leaves the scheduler in a used state.
    """
    scheduler.set_timesteps(num_inference_steps)
    noise = TaskNoise(_SEED, _LATENT_SHAPE, _DTYPE, table)
    options = step_options(scheduler, torch.Generator().manual_seed(_SEED))
    outputs = torch.Generator().manual_seed(_SEED + 1)
    registers = torch.zeros(table.num_registers, *_LATENT_SHAPE, dtype=_DTYPE)
    matrices = table.matrix.to(_DTYPE)
    registers[0] = noise.initial_latents()
    if "generator" in options:  # the pipeline draws the initial latents from the same one
        torch.randn((1, *_LATENT_SHAPE), generator=options["generator"], dtype=_DTYPE)
    for call, timestep in enumerate(scheduler.timesteps):
        output = torch.randn(_LATENT_SHAPE, generator=outputs, dtype=_DTYPE)
        scheduler.scale_model_input(registers[0][None].clone(), timestep)
        stepped = scheduler.step(output[None], timestep, registers[0][None].clone(), return_dict=False, **options)[0][0]
        drawn = noise.next_step()
        inputs = torch.stack([output, torch.zeros_like(output) if drawn is None else drawn.to(_DTYPE)])
        values = torch.cat([registers, inputs]).flatten(1)
        registers = (matrices[call] @ values).view(-1, *_LATENT_SHAPE)
        size = (matrices[call, 0].abs() @ values.abs()).max()
        if not (registers[0] - stepped).abs().max() <= _TOLERANCE * size:
            name = type(scheduler).__name__
            raise UnsupportedScheduler(f"{name} does at call {call} what is no sum of samples, outputs and noise")
        registers[0] = stepped
