"""Classifier-free guidance for a batch: which UNet rows its tasks need, and how their answers become one per task."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GuidanceRows:
    """The UNet rows of one batch: the unconditional ones of its guided tasks, then a conditional one of every task.

    `guided` are the guided tasks' places in the batch, in order. For a single guided task this is the row order of a
    diffusers pipeline: [negative prompt, prompt].
    """

    guided: tuple[int, ...]
    tasks: int

    @classmethod
    def of(cls, guided: Sequence[bool]) -> "GuidanceRows":
        """The rows of a batch whose task k is guided where `guided[k]` is true."""
        return cls(tuple(k for k, is_guided in enumerate(guided) if is_guided), len(guided))

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
        return torch.cat([per_task[list(self.guided)], per_task])

    def mix(self, noise_pred: Tensor, guidance_scales: Tensor) -> Tensor:
        """[rows, C, h, w] -> [tasks, C, h, w]: e_u + w (e_c - e_u) for guided tasks; one-row tasks stay untouched.

        `guidance_scales` [tasks] fp32 on the same device; the entries of one-row tasks are not read.
        """
        if not self.guided:
            return noise_pred
        unconditional, conditional = noise_pred[: len(self.guided)], noise_pred[len(self.guided) :]
        if len(self.guided) == self.tasks:
            return _guide(unconditional, conditional, guidance_scales)
        places = list(self.guided)
        mixed = conditional.clone()
        mixed[places] = _guide(unconditional, conditional[places], guidance_scales[places])
        return mixed


def _guide(unconditional: Tensor, conditional: Tensor, guidance_scales: Tensor) -> Tensor:
    mixed: Tensor = unconditional + guidance_scales[:, None, None, None] * (conditional - unconditional)
    return mixed
