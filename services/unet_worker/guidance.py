"""Classifier-free guidance for a batch: which UNet rows its tasks need, and how their answers become one per task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


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
