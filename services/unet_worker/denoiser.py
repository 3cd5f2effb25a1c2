"""One batched UNet call for tasks of one latent shape, at any steps of any samplers, then all their samplers at once.

Runs on the device that the model is on. Written for CUDA as well, but never run on a GPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from services.unet_worker.guidance import GuidanceRows
from services.unet_worker.guidance_memory import drift, predict_differences
from services.unet_worker.sampler_table import SamplerTable
from services.unet_worker.tasks import DenoisingTask
from synerdiff.models.family import Conditioning, UnetSide


@dataclass(frozen=True)
class StepOutcome:
    """What one UNet call was given and answered, per task: all that a preview needs.

    `timesteps` [tasks], `model_input` and (guided) `noise_pred` [tasks, C, h, w], all fp32 on the model's device.
    `rows` is the call's UNet rows. `drifts` has, by place in the batch, how far the prediction of D was off for every
    task that measured D again after calls that skipped it.
    """

    rows: int
    timesteps: Tensor
    model_input: Tensor
    noise_pred: Tensor
    drifts: Mapping[int, float]


class Denoiser:
    """Advances tasks by one UNet call each. One thread at a time."""

    def __init__(self, unet_side: UnetSide) -> None:
        self._unet_side = unet_side

    @torch.inference_mode()
    def step(self, tasks: Sequence[DenoisingTask], skipping: Sequence[bool] = ()) -> StepOutcome:
        """Make the next call of every task, in one batch; none of them may be done.

        Task k skips guidance where `skipping[k]`, if it can: an unguided task, one without a predictor, and one whose
        predictor goes by measured D before the first was measured, make the call as they would without. Tasks change
        only once everything has been computed: a call that raises may be made again.

        Raises:
            ValueError: the tasks' latents are not of one shape, or `skipping` is of another length.
        """
        shapes = {task.registers.shape[1:] for task in tasks}
        if len(shapes) != 1:
            raise ValueError(f"tasks of one batch need one latent shape, not {sorted(map(tuple, shapes))}")
        wanted = skipping or [False] * len(tasks)
        skips = [is_wanted and task.can_skip for task, is_wanted in zip(tasks, wanted, strict=True)]
        rows = GuidanceRows.of([task.guided and not skip for task, skip in zip(tasks, skips, strict=True)], skips)
        timesteps = self._per_task([float(task.table.timesteps[task.next_call]) for task in tasks])
        scales = self._per_task([float(task.table.input_scale[task.next_call]) for task in tasks])
        guidance_scales = self._per_task([task.spec.guidance_scale for task in tasks])

        model_input = torch.stack([task.sample for task in tasks]) * scales[:, None, None, None]
        answered = self._unet_side.predict(
            rows.expand(model_input), rows.expand(timesteps), self._conditioning(tasks, rows)
        ).float()
        noise_pred = rows.mix(answered, guidance_scales, _predicted([tasks[k] for k in rows.predicted], model_input))
        measured = _measured(tasks, rows, answered)
        drifts = _drifts(tasks, measured)
        advanced = self._apply_samplers(tasks, noise_pred)
        for place, (task, registers) in enumerate(zip(tasks, advanced, strict=True)):
            task.advance(registers[: len(task.registers)], measured.get(place), skips[place])
        if self._unet_side.device.type == "cuda":
            torch.cuda.synchronize(self._unet_side.device)
        return StepOutcome(
            rows.count, timesteps, model_input, noise_pred, {place: float(off) for place, off in drifts.items()}
        )

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


def _predicted(tasks: Sequence[DenoisingTask], like: Tensor) -> Tensor | None:
    """D' of tasks that can skip, [tasks, C, h, w] as `like` has it; None of no tasks."""
    if not tasks:
        return None
    return predict_differences([task.guidance for task in tasks], [task.next_call for task in tasks], like)


def _measured(tasks: Sequence[DenoisingTask], rows: GuidanceRows, answered: Tensor) -> dict[int, Tensor]:
    """D [C, h, w] by the places of the guided tasks; none where no task would remember it."""
    if not any(task.guidance.remembers for task in tasks):
        return {}
    return dict(zip(rows.guided, rows.differences(answered), strict=True))


def _drifts(tasks: Sequence[DenoisingTask], measured: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """By place, how far D' would have been off for the tasks that have skipped since they last measured D: scalars."""
    places = [place for place in measured if tasks[place].guidance.stale(tasks[place].next_call)]
    if not places:
        return {}
    differences = torch.stack([measured[place] for place in places])
    predicted = predict_differences(
        [tasks[place].guidance for place in places], [tasks[place].next_call for place in places], differences
    )
    return dict(zip(places, drift(differences, predicted), strict=True))


@lru_cache(maxsize=512)
def _padded(table: SamplerTable, num_registers: int) -> SamplerTable:
    return table.padded(num_registers)
