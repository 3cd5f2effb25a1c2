"""Finds out which num_inference_steps diffusers can run a scheduler with, without running each of them."""

from typing import Any

import torch

from services.unet_worker.sampler_probe import SCHEDULER_ERRORS, UnsupportedScheduler, UnsupportedSteps, probe_scheduler

_MOST_MIN_STEPS = 4  # a scheduler that cannot do so few cannot do any
DEFAULT_TRAIN_TIMESTEPS = 1000  # of a scheduler that does not say


def steps_range(scheduler: Any) -> tuple[int, int]:
    """The fewest and most steps that a new scheduler can run with.

    Takes it that a scheduler which can do n steps can do fewer, down to its minimum: what stops them is timesteps that
    coincide or run out. "Can" means that diffusers runs: with "trailing" spacing it adds a timestep of -1 to some
    schedules of 61 steps and more, and so does the table.

    Leaves the scheduler in a used state; raises UnsupportedScheduler as `probe_scheduler` does, and, with what
    diffusers says, where it cannot run with few steps nor more.
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
