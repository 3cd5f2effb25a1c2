"""Denoises with a made-up model twice: by diffusers' own scheduler, and by a SamplerTable."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from services.unet_worker.noise import TaskNoise
from services.unet_worker.sampler_table import SamplerTable

LATENT_SHAPE = (4, 6, 6)


def made_up_model(model_input: Tensor, timestep: Tensor) -> Tensor:
    """A nonlinear stand-in for a UNet: depends on every input, in the range of a noise prediction."""
    mixed = model_input + 0.5 * model_input.roll(1, dims=-1)
    return torch.tanh(mixed + timestep.float() / 1000) + 0.3 * torch.sin(3 * model_input)


def by_diffusers(scheduler: Any, num_inference_steps: int, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """The latents at the start and after each call of a diffusers pipeline with a CPU generator."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(num_inference_steps)
    latents = torch.randn((1, *LATENT_SHAPE), generator=generator, dtype=dtype) * scheduler.init_noise_sigma
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    trajectory = [latents]
    for timestep in scheduler.timesteps:
        noise_pred = made_up_model(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(noise_pred, timestep, latents, return_dict=False, **options)[0]
        trajectory.append(latents)
    return [latents[0] for latents in trajectory]


def by_table(table: SamplerTable, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """The same with a table: one matrix product per call."""
    noise_source = TaskNoise(seed, LATENT_SHAPE, dtype, table)
    registers = torch.zeros(table.num_registers, *LATENT_SHAPE)
    registers[0] = noise_source.initial_latents()
    trajectory = [registers[0]]
    for call in range(table.num_calls):
        noise_pred = made_up_model(registers[0] * table.input_scale[call], table.timesteps[call])
        noise = noise_source.next_step()
        inputs = torch.stack([noise_pred, torch.zeros(LATENT_SHAPE) if noise is None else noise.float()])
        stacked = torch.cat([registers, inputs]).flatten(1)
        registers = (table.matrix[call] @ stacked).view(-1, *LATENT_SHAPE)
        trajectory.append(registers[0])
    return trajectory


def relative_errors(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Per entry the largest difference over the largest value."""
    return [
        float((a.double() - e.double()).abs().max() / e.double().abs().max())
        for a, e in zip(actual, expected, strict=True)
    ]
