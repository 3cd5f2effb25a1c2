"""One batched UNet call for tasks of one latent shape, at any steps of any samplers, then all their samplers at once.

Runs on the device that the model is on. Written for CUDA as well, but never run on a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from services.unet_worker.guidance import GuidanceRows
from services.unet_worker.sampler_table import SamplerTable
from services.unet_worker.tasks import DenoisingTask
from synerdiff.models.family import Conditioning, UnetSide


@dataclass(frozen=True)
class StepOutcome:
    """What one UNet call was given and answered, per task: all that a preview needs.

    `timesteps` [tasks], `model_input` and (guided) `noise_pred` [tasks, C, h, w], all fp32 on the model's device.
    `rows` is the call's UNet rows.
    """

    rows: int
    timesteps: Tensor
    model_input: Tensor
    noise_pred: Tensor


class Denoiser:
    """Advances tasks by one UNet call each. One thread at a time."""

    def __init__(self, unet_side: UnetSide) -> None:
        self._unet_side = unet_side

    @torch.inference_mode()
    def step(self, tasks: Sequence[DenoisingTask]) -> StepOutcome:
        """Make the next call of every task, in one batch; none of them may be done.

        Tasks change only once everything has been computed: a call that raises may be made again.

        Raises:
            ValueError: the tasks' latents are not of one shape.
        """
        shapes = {task.registers.shape[1:] for task in tasks}
        if len(shapes) != 1:
            raise ValueError(f"tasks of one batch need one latent shape, not {sorted(map(tuple, shapes))}")
        rows = GuidanceRows.of([task.guided for task in tasks])
        timesteps = self._per_task([float(task.table.timesteps[task.next_call]) for task in tasks])
        scales = self._per_task([float(task.table.input_scale[task.next_call]) for task in tasks])
        guidance_scales = self._per_task([task.spec.guidance_scale for task in tasks])

        model_input = torch.stack([task.sample for task in tasks]) * scales[:, None, None, None]
        answered = self._unet_side.predict(
            rows.expand(model_input), rows.expand(timesteps), self._conditioning(tasks, rows)
        )
        noise_pred = rows.mix(answered.float(), guidance_scales)
        advanced = self._apply_samplers(tasks, noise_pred)
        for task, registers in zip(tasks, advanced, strict=True):
            task.advance(registers[: len(task.registers)])
        if self._unet_side.device.type == "cuda":
            torch.cuda.synchronize(self._unet_side.device)
        return StepOutcome(rows.count, timesteps, model_input, noise_pred)

    def _conditioning(self, tasks: Sequence[DenoisingTask], rows: GuidanceRows) -> Conditioning:
        negative = [tasks[k].negative_embeds for k in rows.guided]
        embeds = [*(e for e in negative if e is not None), *(task.embeds for task in tasks)]
        return self._unet_side.conditioning(embeds, tasks[0].spec.width, tasks[0].spec.height)

    def _apply_samplers(self, tasks: Sequence[DenoisingTask], noise_pred: Tensor) -> Tensor:
        """[tasks, R, C, h, w]: matrix @ [registers; noise_pred; noise] of each task, R being the batch's largest."""
        most = max(len(task.registers) for task in tasks)
        state = noise_pred.new_zeros((len(tasks), most + 2, *noise_pred.shape[1:]))
        for place, task in enumerate(tasks):
            state[place, : len(task.registers)] = task.registers
            noise = task.step_noise()
            if noise is not None:
                state[place, -1] = noise
        state[:, -2] = noise_pred
        matrices = torch.stack([_padded(task.table, most).matrix[task.next_call] for task in tasks])
        advanced = torch.bmm(matrices.to(state.device), state.flatten(2))
        return advanced.view(len(tasks), most, *noise_pred.shape[1:])

    def _per_task(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._unet_side.device)


@lru_cache(maxsize=512)
def _padded(table: SamplerTable, num_registers: int) -> SamplerTable:
    return table.padded(num_registers)
