"""Finds out which num_inference_steps diffusers can run a scheduler with, without running each of them."""

from typing import Any

import torch

from services.unet_worker.noise import TaskNoise
from services.unet_worker.sampler_probe import (
    SCHEDULER_ERRORS,
    UnsupportedScheduler,
    UnsupportedSteps,
    probe_scheduler,
    step_options,
)
from services.unet_worker.sampler_table import SamplerTable

_MOST_MIN_STEPS = 4  # a scheduler that cannot do so few cannot do any
DEFAULT_TRAIN_TIMESTEPS = 1000  # of a scheduler that does not say

_LATENT_SHAPE = (4, 3, 3)
_SEED = 20240301
# Relative to the terms of the sum that a sample is: far above a table's rounding, far below visible differences.
_TOLERANCE = 1e-3
# Schedulers that cancel large terms lose all digits of float32 to that, which is rounding, not another method.
_DTYPE = torch.float64


def steps_range(scheduler: Any) -> tuple[int, int]:
    """The fewest and most steps that a new scheduler can run with.

    Assumes that a scheduler which can do n steps can do fewer, down to its minimum: it fails only where timesteps
    coincide or run out. "Can" means that diffusers runs: with "trailing" spacing it adds a timestep of -1 to some
    schedules of 61 steps and more, and so does the table.

    Leaves the scheduler in a used state; raises UnsupportedScheduler as `probe_scheduler` does, and, with
    diffusers' message, where it can run with no number of steps.
    """
    trained = int(scheduler.config.get("num_train_timesteps", DEFAULT_TRAIN_TIMESTEPS))
    # Some schedulers set all their training timesteps when they are made, which can take half a second: not twice.
    are_set = getattr(scheduler, "num_inference_steps", None) == trained
    can_do_all = _runs(scheduler, trained, timesteps_are_set=are_set)
    fewest = _fewest(scheduler)
    if can_do_all:
        return fewest, trained
    most, too_many = fewest, trained
    while too_many - most > 1:
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if _runs(scheduler, middle) else (most, middle)
    return fewest, most


def _runs(scheduler: Any, num_inference_steps: int, timesteps_are_set: bool = False) -> bool:
    """Whether a run would go through, judged by its timesteps and its first call."""
    try:
        with torch.no_grad():
            if not timesteps_are_set:
                scheduler.set_timesteps(num_inference_steps)
            first = scheduler.timesteps[0]
            sample = scheduler.scale_model_input(torch.ones(1, 4, 1, 1), first)
            scheduler.step(sample, first, sample, return_dict=False)
            # From a later timestep it would run off its end.
            started_at_first = getattr(scheduler, "step_index", 1) == 1
            return started_at_first and not _has_equal_sigmas(scheduler)
    except SCHEDULER_ERRORS:
        return False


def _has_equal_sigmas(scheduler: Any) -> bool:
    """Whether neighbouring sigmas are equal (0/0 in most solvers) in schedulers that do not double them by design."""
    if scheduler.order != 1 or not hasattr(scheduler, "sigmas"):
        return False
    sigmas = scheduler.sigmas[:-1]  # the last is where the last step ends
    return bool((sigmas[1:] == sigmas[:-1]).any())


def _fewest(scheduler: Any) -> int:
    error: UnsupportedSteps | None = None
    for num_inference_steps in range(1, _MOST_MIN_STEPS + 1):
        try:
            probe_scheduler(scheduler, num_inference_steps)
            return num_inference_steps
        except UnsupportedSteps as refused:
            error = refused
    assert error is not None
    raise UnsupportedScheduler(f"diffusers itself cannot run {type(scheduler).__name__}: {error.reason}") from error


@torch.no_grad()
def check_table(table: SamplerTable, scheduler: Any, num_inference_steps: int) -> None:
    """Raise UnsupportedScheduler unless `table` gives, call by call, the samples that a new `scheduler` gives.

    So a scheduler with a part that the probe could not see (a memory of another kind, a bound that only ordinary values
    reach) is refused, not served wrongly. Leaves the scheduler in a used state.
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
