"""Denoises with a made-up model: by diffusers' own scheduler, and by a SamplerTable."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from services.unet_worker.noise import TaskNoise
from services.unet_worker.sampler_table import SamplerTable
from tests.reference import drawing_in
from tests.rounding import assert_rounded

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
    latents, options = _begun(scheduler, num_inference_steps, seed, dtype)
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


def by_diffusers_exactly(scheduler: Any, num_inference_steps: int, seed: int, given: Run) -> Run:
    """The calls of `by_diffusers` again in float64, each from the latents and answer `given`: errors of one call."""
    dtype = given.latents[0].dtype
    run = Run(timesteps=given.timesteps, noise_preds=given.noise_preds)
    with _keeping_float64(), drawing_in(dtype) if dtype == torch.float32 else nullcontext():
        latents, options = _begun(scheduler, num_inference_steps, seed, torch.float64)
        run.latents.append(latents[0])
        for call, timestep in enumerate(scheduler.timesteps):
            latents, noise_pred = given.latents[call].double()[None], given.noise_preds[call].double()[None]
            run.model_inputs.append(scheduler.scale_model_input(latents, timestep)[0])
            run.latents.append(scheduler.step(noise_pred, timestep, latents, return_dict=False, **options)[0][0])
    return run


def _begun(scheduler: Any, num_inference_steps: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Any]:
    """The initial latents, and the options of a step."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(num_inference_steps)
    latents = torch.randn((1, *LATENT_SHAPE), generator=generator, dtype=dtype) * scheduler.init_noise_sigma
    taken = inspect.signature(scheduler.step).parameters
    return latents, {name: given for name, given in {"generator": generator, "eta": 0.0}.items() if name in taken}


@contextmanager
def _keeping_float64() -> Iterator[None]:
    """Some schedulers cast to float32, lest half precisions lose digits, and lose digits of float64 by it."""
    to = Tensor.to

    def kept(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        narrows = tensor.dtype == torch.float64 and torch.float32 in (*arguments, options.get("dtype"))
        return tensor if narrows else to(tensor, *arguments, **options)

    with patch.object(Tensor, "to", kept):
        yield


def by_table(table: SamplerTable, seed: int, dtype: torch.dtype, given: Run) -> Run:
    """The same calls by one matrix product each, in float32: from the latents and the model's answer `given`."""
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


def assert_same_calls(run: Run, exact: Run, given: Run | None = None) -> None:
    """Calls in float32 are those in float64 but for rounding, told by `given` where terms cancel."""
    assert run.timesteps == torch.tensor(exact.timesteps, dtype=torch.float32).tolist()
    for found, expected in zip(run.model_inputs, exact.model_inputs, strict=True):
        assert_rounded(found, expected)
    for call, (found, expected) in enumerate(zip(run.latents, exact.latents, strict=True)):
        assert_rounded(found, expected, *([given.latents[call]] if given else []))
