"""Denoises with a made-up model: by diffusers' own scheduler, and by a SamplerTable."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from services.unet_worker.noise import TaskNoise
from services.unet_worker.sampler_table import SamplerTable

LATENT_SHAPE = (4, 6, 6)


@dataclass
class Run:
    """What was computed, per call; `latents` has the initial ones in front."""

    timesteps: list[float] = field(default_factory=list)
    model_inputs: list[Tensor] = field(default_factory=list)
    noise_preds: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)


def made_up_model(model_input: Tensor, timestep: float) -> Tensor:
    """A nonlinear stand-in for a UNet: depends on every input, in the range of a noise prediction."""
    mixed = model_input + 0.5 * model_input.roll(1, dims=-1)
    return torch.tanh(mixed + timestep / 1000) + 0.3 * torch.sin(3 * model_input)


def by_diffusers(scheduler: Any, num_inference_steps: int, seed: int, dtype: torch.dtype) -> Run:
    """As a diffusers pipeline with a CPU generator runs it."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(num_inference_steps)
    latents = torch.randn((1, *LATENT_SHAPE), generator=generator, dtype=dtype) * scheduler.init_noise_sigma
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    run = Run(latents=[latents[0]])
    for timestep in scheduler.timesteps:
        model_input = scheduler.scale_model_input(latents, timestep)
        noise_pred = made_up_model(model_input, float(timestep))
        latents = scheduler.step(noise_pred, timestep, latents, return_dict=False, **options)[0]
        run.timesteps.append(float(timestep))
        run.model_inputs.append(model_input[0])
        run.noise_preds.append(noise_pred[0])
        run.latents.append(latents[0])
    return run


def by_table(table: SamplerTable, seed: int, dtype: torch.dtype, given: Run) -> Run:
    """The same by one matrix product per call.

    Each call starts from the latents and the model's answer that are `given`, as history does that was made of them:
    so errors are those of a step, not what many steps of rounding (diffusers' more than the table's) have grown to.
    """
    noise_source = TaskNoise(seed, LATENT_SHAPE, dtype, table)
    registers = torch.zeros(table.num_registers, *LATENT_SHAPE)
    run = Run(table.timesteps.tolist(), noise_preds=given.noise_preds, latents=[noise_source.initial_latents()])
    for call, noise_pred in enumerate(given.noise_preds):
        registers[0] = given.latents[call]
        run.model_inputs.append(registers[0] * table.input_scale[call])
        noise = noise_source.next_step()
        inputs = torch.stack([noise_pred.float(), torch.zeros(LATENT_SHAPE) if noise is None else noise.float()])
        stacked = torch.cat([registers, inputs]).flatten(1)
        registers = (table.matrix[call] @ stacked).view(-1, *LATENT_SHAPE)
        run.latents.append(registers[0].clone())
    return run


def worst_error(run: Run, expected: Run) -> float:
    """Over all calls, the largest difference of latents, model inputs and timesteps, relative to the largest value."""
    pairs = [
        *zip(run.latents, expected.latents, strict=True),
        *zip(run.model_inputs, expected.model_inputs, strict=True),
        *zip(torch.tensor(run.timesteps) / 1000, torch.tensor(expected.timesteps) / 1000, strict=True),
    ]
    return max(float((a.double() - e.double()).abs().max() / e.double().abs().max().clamp(min=1e-3)) for a, e in pairs)
