"""The plans of a UNet worker: one batched call an item on the device thread, and reports once the device is done.

A call that fails is made in halves. Reports go to `deliver` of their plan, which must be quick and thread-safe.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

import torch
from grpc import StatusCode
from torch import Tensor

from services.unet_worker.denoiser import Denoiser, StepOutcome
from services.unet_worker.previews import PreviewEncoder
from services.unet_worker.residents import HandedOver, Resident, Residents
from services.unet_worker.tasks import DenoisingTask
from synerdiff.models.device import Fault
from synerdiff.models.exact import NotExact
from synerdiff.plans import GuidanceDrift, ItemTiming, SkippedEntry, TaskFailed, UnetItem, UnetPlan, UnetTickDone
from synerdiff.worker.device_thread import Computed, DeviceItem, DevicePlan, DeviceThread
from synerdiff.worker.halving import Halves

StepReport = UnetTickDone | TaskFailed
Deliver = Callable[[StepReport], None]
Batch = tuple[Resident, ...]


@dataclass
class _StepsTaken:
    """The contents of a plan's report. `done`: residents past their last call; `drifts`: still on the device."""

    skipped: list[SkippedEntry] = field(default_factory=list)
    done: list[Resident] = field(default_factory=list)
    drifts: list[tuple[str, int, Tensor]] = field(default_factory=list)


class StepLoop:
    """Has the device thread step residents as plans say."""

    def __init__(
        self, denoiser: Denoiser, residents: Residents, previews: PreviewEncoder, device: DeviceThread
    ) -> None:
        self.denoiser = denoiser
        self.residents = residents
        self.previews = previews
        self.device = device

    def submit(self, plan: UnetPlan, deliver: Deliver) -> None:
        """Queue a plan; its reports go to `deliver`, on a thread of the device's."""
        on_device, taken = self.device.begin_plan(plan.tick), _StepsTaken()
        for item in plan.items:
            self.device.submit_item(on_device, _StepItem(item, self, taken, deliver))
        self.device.submit(partial(self._end_plan, on_device, taken, deliver))

    def _end_plan(self, plan: DevicePlan, taken: _StepsTaken, deliver: Deliver) -> None:
        """Begin to hand over finished latents, also of an abandoned plan."""
        compute = self.denoiser.compute
        handed_over = self.residents.hand_over(taken.done, compute)
        off = [off for *_, off in taken.drifts]
        drifts = compute.begin_download(torch.stack(off)) if off else torch.empty(0)
        self.device.settle_plan(plan, partial(self._settle, plan, taken, handed_over, drifts, deliver))

    def _settle(
        self,
        plan: DevicePlan,
        taken: _StepsTaken,
        handed_over: HandedOver,
        drifts: Tensor,
        deliver: Deliver,
        timings: tuple[ItemTiming, ...],
    ) -> None:
        """Put finished latents into their slots, and report, unless the plan was abandoned."""
        finished = self.residents.settle(handed_over)
        if not plan.abandoned:
            measured = zip(taken.drifts, drifts.tolist(), strict=True)
            told = tuple(GuidanceDrift(task_id, call, off) for (task_id, call, _), off in measured)
            deliver(UnetTickDone(plan.tick, timings, tuple(taken.skipped), tuple(finished), told))


class _StepItem(DeviceItem):
    def __init__(self, item: UnetItem, loop: StepLoop, taken: _StepsTaken, deliver: Deliver) -> None:
        self.execution = item.execution
        self.exact = False
        self._entries = item.entries
        self._skipping = {entry.task_id for entry in item.entries if entry.skip_cfg}
        self._loop = loop
        self._taken = taken
        self._deliver = deliver
        self._batch: Batch = ()
        self._prepared: Callable[[], StepOutcome] | None = None

    def prepare(self) -> None:
        """Choose the residents at their expected call; where the device queues its work, prepare their UNet call."""
        chosen, unfit = self._loop.residents.select(self._entries)
        self._taken.skipped += unfit
        self._batch = tuple(chosen)
        self.exact = any(resident.spec.exact for resident in chosen)
        denoiser = self._loop.denoiser
        if chosen and denoiser.compute.queues:
            try:
                self._prepared = partial(denoiser.make, denoiser.prepare(*self._tasks(self._batch)))
            except Exception as error:
                self._prepared = partial(_fail, error.with_traceback(None))

    def compute(self) -> Computed:
        """Step the batch. A task that fails alone is given up."""
        rows, halves = 0, Halves(self._batch, self._loop.denoiser.free_memory, self._rows)
        while halves:
            batch = halves.parts[0]
            outcome = self._attempt(batch)
            if isinstance(outcome, StepOutcome):
                rows += outcome.rows
                self._take_in(batch, outcome)
                halves.done()
            elif (fault := halves.failed(outcome)) is not None:
                self._give_up(batch[0], outcome, fault)
        return Computed(rows, halves.take_halved())

    def over(self, abandoned: bool) -> None:
        """Nothing: the end of its plan reports it."""

    def _attempt(self, batch: Batch) -> StepOutcome | Exception:
        """Use the prepared call for the first attempt, and drop it: a failed one may hold a capture."""
        prepared, self._prepared = self._prepared, None
        try:
            return prepared() if prepared else self._loop.denoiser.step(*self._tasks(batch))
        except Exception as error:
            return error.with_traceback(None)

    def _take_in(self, batch: Batch, outcome: StepOutcome) -> None:
        tasks, _ = self._tasks(batch)
        for place, (resident, task) in enumerate(zip(batch, tasks, strict=True)):
            every = resident.spec.preview_every
            if every and task.next_call % every == 0 and not task.done:
                self._loop.previews.submit(resident.spec.task_id, task.next_call, outcome, place)
            if task.done:
                self._taken.done.append(resident)
        drifts = outcome.drifts.items()
        self._taken.drifts += [(tasks[k].spec.task_id, tasks[k].next_call - 1, off) for k, off in drifts]

    def _give_up(self, resident: Resident, failure: Exception, fault: Fault) -> None:
        """Report why a task that failed alone cannot go on, unless a broken device has failed it."""
        if fault is Fault.OUT_OF_MEMORY:
            code, message = StatusCode.RESOURCE_EXHAUSTED, f"no memory for a UNet call of this task alone: {failure}"
        elif isinstance(failure, NotExact):
            code, message = StatusCode.FAILED_PRECONDITION, str(failure)
        else:
            self._loop.denoiser.check_device()
            code, message = StatusCode.INTERNAL, f"the UNet call failed: {type(failure).__name__}: {failure}"
        if self._loop.residents.give_up(resident):
            failed = TaskFailed(resident.spec.task_id, code.value[0], message)
            self._loop.device.settle(partial(self._deliver, failed))  # after the reports of earlier plans

    def _tasks(self, batch: Batch) -> tuple[list[DenoisingTask], list[bool]]:
        """The tasks of residents that stand ready, and which of them are to skip guidance."""
        tasks = [resident.task for resident in batch if resident.task is not None]
        return tasks, [task.spec.task_id in self._skipping for task in tasks]

    def _rows(self, batch: Batch) -> int:
        """The rows of a batch, two for each task that is guided at this call."""
        tasks = zip(*self._tasks(batch), strict=True)
        return sum(1 + (task.guided and not (skip and task.can_skip)) for task, skip in tasks)


def _fail(failure: Exception) -> NoReturn:
    raise failure
