"""One batched UNet call for tasks of one latent shape, at any steps of any samplers, then all their samplers at once.

Nothing here waits for the device, or is copied between it and the CPU but by `Device.upload`: see docs/gpu.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from services.unet_worker.guidance import GuidanceRows, drift, predict_differences
from services.unet_worker.sampler_table import SamplerTable
from services.unet_worker.tasks import DenoisingTask
from synerdiff.models.compiled.components import CompiledUnet
from synerdiff.models.device import Device, DeviceFailed
from synerdiff.models.exact import ExactUnet, joined
from synerdiff.models.family import Conditioning, UnetSide

# Prepares the call of a batch's rows: latents, timesteps and conditioning.
_Predictor = Callable[[Tensor, Tensor, Conditioning], Callable[[], Tensor]]


@dataclass(frozen=True)
class StepOutcome:
    """The inputs and outputs of one UNet call, per task: all that a preview needs.

    `timesteps` [tasks], `model_input` and (guided) `noise_pred` [tasks, C, h, w], all fp32 on the model's device.
    `rows` is the call's UNet rows. `drifts` has, by place in the batch, how far the prediction of D was off for every
    task that measured D again after calls that skipped it: scalars on the model's device.
    """

    rows: int
    timesteps: Tensor
    model_input: Tensor
    noise_pred: Tensor
    drifts: Mapping[int, Tensor]

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        """The outcome of parts of a batch, one after the other."""
        if len(parts) == 1:
            return parts[0]
        drifts, first = dict[int, Tensor](), 0
        for part in parts:
            drifts |= {first + place: off for place, off in part.drifts.items()}
            first += len(part.timesteps)
        timesteps = torch.cat([part.timesteps for part in parts])
        model_input = torch.cat([part.model_input for part in parts])
        noise_pred = torch.cat([part.noise_pred for part in parts])
        return cls(sum(part.rows for part in parts), timesteps, model_input, noise_pred, drifts)


@dataclass(frozen=True)
class PreparedCall:
    """A batch, or the exact part of one, up to its UNet call, which is made by `predict`. All of it is on the device.

    `skips`: by place, which tasks skip guidance. `timesteps` and `guidance_scales` [tasks], `model_input` [tasks, C, h,
    w], all fp32.
    """

    tasks: Sequence[DenoisingTask]
    rows: GuidanceRows
    skips: Sequence[bool]
    timesteps: Tensor
    guidance_scales: Tensor
    model_input: Tensor
    predict: Callable[[], Tensor]


class _ExactRows:
    """The rows of several parts as one exact call, which is made when the first part asks for its answer."""

    def __init__(self, unet: ExactUnet) -> None:
        self._unet = unet
        self._rows: list[tuple[Tensor, Tensor, Conditioning]] = []
        self._answers: tuple[Tensor, ...] = ()

    def add(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Callable[[], Tensor]:
        """Take the rows of another part; the call gives its answer."""
        part = len(self._rows)
        self._rows.append((latents, timesteps, conditioning))
        return lambda: self._answered()[part]

    def _answered(self) -> tuple[Tensor, ...]:
        if not self._answers:
            latents, timesteps, conditionings = zip(*self._rows, strict=True)
            answered = self._unet.predict(torch.cat(latents), torch.cat(timesteps), joined(conditionings))
            self._answers = torch.split(answered, [len(part) for part in latents])
        return self._answers


@dataclass(frozen=True)
class _Computed:
    """All results of a call, before its tasks take them over. `advanced` [tasks, R, C, h, w]."""

    call: PreparedCall
    advanced: Tensor
    measured: Mapping[int, Tensor]
    outcome: StepOutcome

    def advance(self) -> None:
        """Let the tasks take it over."""
        for place, (task, registers) in enumerate(zip(self.call.tasks, self.advanced, strict=True)):
            task.advance(registers[: len(task.registers)], self.measured.get(place), self.call.skips[place])


class Denoiser:
    """Advances tasks by one UNet call each. One thread at a time. `unet`: how its calls are made."""

    def __init__(self, unet_side: UnetSide, unet: CompiledUnet | None = None) -> None:
        self._unet_side = unet_side
        self._unet = unet or CompiledUnet(unet_side)
        self._exact = ExactUnet(unet_side)

    @property
    def compute(self) -> Device:
        """The device it runs on."""
        return self._unet_side.compute

    def free_memory(self) -> None:
        """Free the memory that is held to save time."""
        self._unet.free()
        self.compute.free_caches()

    @torch.inference_mode()
    def check_device(self) -> None:
        """Make a UNet call of one row of zeros at the smallest size. Raises DeviceFailed: no task is to blame."""
        side, multiple = self._unet_side, self._unet_side.size_multiple
        try:
            prompt = side.encode([""])
            latents = self.compute.upload(torch.zeros(1, *side.latent_shape(multiple, multiple)))
            timesteps = self.compute.upload(torch.zeros(1))
            answered = side.predict(latents, timesteps, side.conditioning(prompt, multiple, multiple))
            self.compute.download(answered)
        except Exception as error:
            raise DeviceFailed(f"the UNet computes nothing on {side.device}: {error}") from error

    def step(self, tasks: Sequence[DenoisingTask], skipping: Sequence[bool] = ()) -> StepOutcome:
        """Make the next call of every task, in one batch; none of them may be done.

        See `prepare`, also for errors raised. Tasks change only once everything has been computed: a call that raises
        may be made again.
        """
        return self.make(self.prepare(tasks, skipping))

    @torch.inference_mode()
    def prepare(self, tasks: Sequence[DenoisingTask], skipping: Sequence[bool] = ()) -> tuple[PreparedCall, ...]:
        """All of a step that comes before its UNet call, for `make`. The next call must be this one.

        Each exact task is a part of its own; the parts share only the UNet call: see `ExactUnet`. Task k skips guidance
        where `skipping[k]`, if it can: an unguided task, one without a predictor, and one whose predictor needs a
        measured D before the first was measured, make the call as they would without. Raises ValueError where the
        tasks' latents are not of one shape, exact tasks are among others, or `skipping` is of another length.
        """
        shapes = {task.registers.shape[1:] for task in tasks}
        if len(shapes) != 1:
            raise ValueError(f"tasks of one batch need one latent shape, not {sorted(map(tuple, shapes))}")
        if len({task.spec.exact for task in tasks}) != 1:
            raise ValueError("exact tasks share a batch with exact tasks alone")
        wanted = skipping or [False] * len(tasks)
        if not tasks[0].spec.exact:
            return (self._prepared(tasks, wanted, self._unet.prepared),)
        rows = _ExactRows(self._exact)
        return tuple(self._prepared([task], [skip], rows.add) for task, skip in zip(tasks, wanted, strict=True))

    def _prepared(self, tasks: Sequence[DenoisingTask], wanted: Sequence[bool], predictor: _Predictor) -> PreparedCall:
        skips = [is_wanted and task.can_skip for task, is_wanted in zip(tasks, wanted, strict=True)]
        guided = [task.guided and not skip for task, skip in zip(tasks, skips, strict=True)]
        rows = GuidanceRows.of(guided, skips, self.compute.upload)
        timesteps, scales, guidance_scales = self.compute.upload(_numbers(tasks))
        model_input = torch.stack([task.sample for task in tasks]) * scales[:, None, None, None]
        predict = predictor(rows.expand(model_input), rows.expand(timesteps), self._conditioning(tasks, rows))
        return PreparedCall(tasks, rows, skips, timesteps, guidance_scales, model_input, predict)

    @torch.inference_mode()
    def make(self, parts: Sequence[PreparedCall]) -> StepOutcome:
        """Make the prepared call, and its tasks' next step. Raises NotExact for exact tasks where it cannot be."""
        computed = [self._computed(part) for part in parts]
        for part in computed:
            part.advance()
        return StepOutcome.together([part.outcome for part in computed])

    def _computed(self, call: PreparedCall) -> _Computed:
        tasks, rows = call.tasks, call.rows
        answered = call.predict().float()
        predicted = self._predicted([tasks[k] for k in rows.predicted], call.model_input)
        noise_pred = rows.mix(answered, call.guidance_scales, predicted)
        measured = _measured(tasks, rows, answered)
        drifts = self._drifts(tasks, measured)
        advanced = self._apply_samplers(tasks, noise_pred)
        outcome = StepOutcome(rows.count, call.timesteps, call.model_input, noise_pred, drifts)
        return _Computed(call, advanced, measured, outcome)

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
                state[place, -1] = self.compute.upload(noise)
        state[:, -2] = noise_pred
        matrices = torch.stack([_padded(task.table, most).matrix[task.next_call] for task in tasks])
        advanced = torch.bmm(self.compute.upload(matrices), state.flatten(2))
        return advanced.view(len(tasks), most, *noise_pred.shape[1:])

    def _predicted(self, tasks: Sequence[DenoisingTask], like: Tensor) -> Tensor | None:
        """D' of tasks that can skip, [tasks, C, h, w] as `like` has it; None of no tasks."""
        if not tasks:
            return None
        memories, calls = [task.guidance for task in tasks], [task.next_call for task in tasks]
        return predict_differences(memories, calls, like, self.compute.upload)

    def _drifts(self, tasks: Sequence[DenoisingTask], measured: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """By place, how far D' would have been off for tasks that have skipped since they last measured D: scalars."""
        places = [place for place in measured if tasks[place].guidance.stale(tasks[place].next_call)]
        predicted = self._predicted([tasks[place] for place in places], next(iter(measured.values()), torch.empty(0)))
        if predicted is None:
            return {}
        return dict(zip(places, drift(torch.stack([measured[place] for place in places]), predicted), strict=True))


def _numbers(tasks: Sequence[DenoisingTask]) -> Tensor:
    """[3, tasks] fp32 on the CPU: timestep, scale of the model input and guidance scale of each task's next call."""
    calls = [task.next_call for task in tasks]
    timesteps = [float(task.table.timesteps[call]) for task, call in zip(tasks, calls, strict=True)]
    scales = [float(task.table.input_scale[call]) for task, call in zip(tasks, calls, strict=True)]
    return torch.tensor([timesteps, scales, [task.spec.guidance_scale for task in tasks]], dtype=torch.float32)


def _measured(tasks: Sequence[DenoisingTask], rows: GuidanceRows, answered: Tensor) -> dict[int, Tensor]:
    """D [C, h, w] by the places of the guided tasks; none where no task would remember it."""
    if not any(task.guidance.remembers for task in tasks):
        return {}
    return dict(zip(rows.guided, rows.differences(answered), strict=True))


@lru_cache(maxsize=512)
def _padded(table: SamplerTable, num_registers: int) -> SamplerTable:
    return table.padded(num_registers)
