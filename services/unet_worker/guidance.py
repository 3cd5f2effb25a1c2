"""Classifier-free guidance for a batch: UNet rows, one answer per task of them, and D predicted for calls that skip."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from synerdiff.skip_cfg import SkipPredictor


@dataclass(frozen=True)
class GuidanceRows:
    """The UNet rows of one batch: the unconditional ones of its guided tasks, then a conditional one of every task.

    `guided` are the places in the batch, in order, of the tasks that take two rows; `predicted` of those whose guidance
    is predicted, which take one as unguided tasks do. For a single guided task this is the row order of a diffusers
    pipeline: [negative prompt, prompt]. `upload` takes places from the CPU to where the rows are.
    """

    guided: tuple[int, ...]
    tasks: int
    predicted: tuple[int, ...] = ()
    upload: Callable[[Tensor], Tensor] = field(default=lambda places: places, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        guided: Sequence[bool],
        predicted: Sequence[bool] = (),
        upload: Callable[[Tensor], Tensor] = lambda places: places,
    ) -> "GuidanceRows":
        """The rows of a batch whose task k takes two where `guided[k]`, and has one saved where `predicted[k]`."""
        return cls(_places(guided), len(guided), _places(predicted), upload)

    @property
    def count(self) -> int:
        """UNet rows: two per guided task, one per other task."""
        return len(self.guided) + self.tasks

    def expand(self, per_task: Tensor) -> Tensor:
        """[tasks, ...] -> [rows, ...]: each task's value in each of its rows."""
        if not self.guided:
            return per_task
        if len(self.guided) == self.tasks:
            return torch.cat([per_task, per_task])
        return torch.cat([per_task[self._guided_at], per_task])

    def differences(self, noise_pred: Tensor) -> Tensor:
        """[rows, C, h, w] -> [guided, C, h, w]: D = e_c - e_u of every guided task."""
        return noise_pred[len(self.guided) :][self._guided_at] - noise_pred[: len(self.guided)]

    def mix(self, noise_pred: Tensor, guidance_scales: Tensor, predicted_differences: Tensor | None = None) -> Tensor:
        """[rows, C, h, w] -> [tasks, C, h, w]: e_u + w (e_c - e_u) of guided tasks, e_c + (w - 1) D' of predicted ones.

        Tasks that are neither stay untouched. `guidance_scales` [tasks] fp32 on the same device; theirs are not read.
        `predicted_differences` [predicted, C, h, w] are the D'; None where no task is predicted.
        """
        if not self.guided and predicted_differences is None:
            return noise_pred
        unconditional, conditional = noise_pred[: len(self.guided)], noise_pred[len(self.guided) :]
        if len(self.guided) == self.tasks:
            return _guide(unconditional, conditional, guidance_scales)
        mixed = conditional.clone()
        if self.guided:
            guided = self._guided_at
            mixed[guided] = _guide(unconditional, conditional[guided], guidance_scales[guided])
        if predicted_differences is not None:
            predicted = self._predicted_at
            mixed[predicted] += (guidance_scales[predicted] - 1)[:, None, None, None] * predicted_differences
        return mixed

    @cached_property
    def _guided_at(self) -> Tensor:
        return self.upload(torch.tensor(self.guided, dtype=torch.long))

    @cached_property
    def _predicted_at(self) -> Tensor:
        return self.upload(torch.tensor(self.predicted, dtype=torch.long))


def _places(chosen: Sequence[bool]) -> tuple[int, ...]:
    return tuple(place for place, is_chosen in enumerate(chosen) if is_chosen)


def _guide(unconditional: Tensor, conditional: Tensor, guidance_scales: Tensor) -> Tensor:
    mixed: Tensor = unconditional + guidance_scales[:, None, None, None] * (conditional - unconditional)
    return mixed


@dataclass(eq=False)
class GuidanceMemory:
    """The last measured D of one task, as many as its predictor needs, and which of its calls skipped guidance.

    `predictor` is None for a task that never skips. `differences` are [C, h, w] fp32 on the model's device, the newest
    first and in units of predicted noise (`units` holds the factor of D for that, by call); `measured` are the calls
    that measured them. Only `measure` and `skip` change the memory, once per call and after the batch has been
    computed, so a call that failed half-way leaves no trace.
    """

    predictor: SkipPredictor | None = None
    units: tuple[float, ...] = ()
    differences: list[Tensor] = field(default_factory=list, repr=False)
    measured: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()

    @property
    def remembers(self) -> int:
        """How many measured D are kept."""
        return self.predictor.remembers if self.predictor else 0

    @property
    def can_skip(self) -> bool:
        """Whether D can be predicted: there is a predictor, and a D was measured if it needs any."""
        return self.predictor is not None and (bool(self.measured) or not self.remembers)

    def stale(self, call: int) -> bool:
        """Whether D was measured before, but not at the call before this one."""
        return bool(self.measured) and self.measured[0] < call - 1

    def weights(self, call: int) -> tuple[float, ...]:
        """The weight of each of `differences` in D' at a call; valid only where `can_skip`."""
        if self.predictor is None:
            return ()
        return tuple(weight / self.units[call] for weight in self.predictor.weights(self.measured, call))

    def measure(self, call: int, difference: Tensor) -> None:
        """Remember D [C, h, w] of a guided call."""
        if self.remembers:
            self.differences = [difference * self.units[call], *self.differences][: self.remembers]
            self.measured = (call, *self.measured)[: self.remembers]

    def skip(self, call: int) -> None:
        """Note that a call has skipped guidance."""
        self.skipped = (*self.skipped, call)

    def forget(self) -> None:
        """Free the measured D; the list of calls that skipped stays."""
        self.differences, self.measured = [], ()


def predict_differences(
    memories: Sequence[GuidanceMemory],
    calls: Sequence[int],
    like: Tensor,
    upload: Callable[[Tensor], Tensor] = lambda weights: weights,
) -> Tensor:
    """D' [memories, C, h, w] fp32 of each task at its call. `like` is [..., C, h, w], where `upload` takes weights."""
    most = max(memory.remembers for memory in memories)
    differences = like.new_zeros((len(memories), most, *like.shape[-3:]))
    weights = torch.zeros(len(memories), most)
    for place, (memory, call) in enumerate(zip(memories, calls, strict=True)):
        for age, (difference, weight) in enumerate(zip(memory.differences, memory.weights(call), strict=True)):
            differences[place, age] = difference
            weights[place, age] = weight
    predicted: Tensor = (upload(weights)[:, :, None, None, None] * differences).sum(1)
    return predicted


def drift(differences: Tensor, predicted: Tensor) -> Tensor:
    """[n]: |D - D'| / |D| per task, for [n, C, h, w] each."""
    off: Tensor = (differences - predicted).flatten(1).norm(dim=1)
    length: Tensor = differences.flatten(1).norm(dim=1)
    return off / length.clamp_min(torch.finfo(length.dtype).tiny)
