"""The device thread: plan items in order, straight from a queue, with nothing but the steps between two UNet calls.

No event loop, encoding, logging or message is on its path. What it has to say goes through `deliver` of the work that
it belongs to, which must be quick and thread-safe.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace

import torch
from grpc import StatusCode

from services.unet_worker.denoiser import Denoiser, StepOutcome
from services.unet_worker.previews import PreviewEncoder
from services.unet_worker.residents import Resident, Residents
from synerdiff.models.threads import ThreadShare
from synerdiff.pace import Pacer
from synerdiff.plans import (
    GuidanceDrift,
    ItemTiming,
    SkippedEntry,
    SlotRef,
    TaskFailed,
    UnetItem,
    UnetPlan,
    UnetTickDone,
)

StepReport = UnetTickDone | TaskFailed
Deliver = Callable[[StepReport], None]


@dataclass(frozen=True)
class _Work:
    plan: UnetPlan
    deliver: Deliver
    reign: int


@dataclass(frozen=True)
class _Boundary:
    """Asks to be told, at an item boundary, that no plan of an earlier reign will run any more."""

    reached: Callable[[], None]


@dataclass
class _Became:
    """What a plan's report will say of its entries, as far as its items have run."""

    skipped: list[SkippedEntry] = field(default_factory=list)
    finished: list[tuple[str, SlotRef]] = field(default_factory=list)
    drifts: list[GuidanceDrift] = field(default_factory=list)


class StepLoop:
    """Runs plans on a thread of its own until closed. `crashed` is told, there, of an error that ended the thread.

    `threads` is the thread's own number of CPU threads, which an item may change; it lets go of `pacer` at its end.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        residents: Residents,
        previews: PreviewEncoder,
        crashed: Callable[[Exception], None],
        threads: int,
        pacer: Pacer,
    ) -> None:
        self._denoiser = denoiser
        self._residents = residents
        self._previews = previews
        self._crashed = crashed
        self._share = ThreadShare(threads)
        self._pacer = pacer
        self._inbox: queue.SimpleQueue[_Work | _Boundary | None] = queue.SimpleQueue()
        self._reign = 0
        self._thread = threading.Thread(target=self._run, name="step-loop", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, plan: UnetPlan, deliver: Deliver) -> None:
        """Queue a plan; its reports go to `deliver`, on the device thread."""
        self._inbox.put(_Work(plan, deliver, self._reign))

    def begin_reign(self, reached: Callable[[], None]) -> None:
        """Abandon all plans so far at the next item boundary, without a report; then call `reached` on the thread."""
        self._reign += 1
        self._inbox.put(_Boundary(reached))

    def close(self) -> None:
        """Abandon what is queued and wait for the running item."""
        self._reign += 1
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._run_inbox()
        except Exception as error:
            self._crashed(error)
        finally:
            self._pacer.close()

    def _run_inbox(self) -> None:
        while (work := self._inbox.get()) is not None:
            if isinstance(work, _Boundary):
                work.reached()
            else:
                self._run_plan(work)

    def _run_plan(self, work: _Work) -> None:
        timings: list[ItemTiming] = []
        became = _Became()
        for item in work.plan.items:
            waited_ms = self._pacer.before(item.execution, lambda: work.reign != self._reign)
            if work.reign != self._reign:
                return
            self._share.take(item.execution.threads)
            timing = self._run_item(item, became, work.deliver)
            self._pacer.after(item.execution, work.plan.tick)
            timings.append(replace(timing, waited_ms=waited_ms))
        skipped, finished, drifts = tuple(became.skipped), tuple(became.finished), tuple(became.drifts)
        work.deliver(UnetTickDone(work.plan.tick, tuple(timings), skipped, finished, drifts))

    def _run_item(self, item: UnetItem, became: _Became, deliver: Deliver) -> ItemTiming:
        start = time.time_ns()
        residents, unfit = self._residents.select(item.entries)
        became.skipped.extend(unfit)
        skipping = {entry.task_id for entry in item.entries if entry.skip_cfg}
        rows = self._step(residents, skipping, became, deliver) if residents else 0
        return ItemTiming(start, time.time_ns(), rows)

    def _step(self, residents: Sequence[Resident], skipping: Set[str], became: _Became, deliver: Deliver) -> int:
        """Step a sub-batch, in halves where memory does not suffice for the whole. Returns the rows computed."""
        tasks = [resident.task for resident in residents if resident.task is not None]
        try:
            outcome = self._denoiser.step(tasks, [task.spec.task_id in skipping for task in tasks])
        except Exception as error:
            if _out_of_memory(error) and len(residents) > 1:
                _empty_device_cache()
                half = len(residents) // 2
                halves = residents[:half], residents[half:]
                return sum(self._step(part, skipping, became, deliver) for part in halves)
            self._give_up(residents, error, deliver)
            return 0
        self._ask_for_previews(residents, outcome)
        became.drifts.extend(
            GuidanceDrift(tasks[k].spec.task_id, tasks[k].next_call - 1, off) for k, off in outcome.drifts.items()
        )
        became.finished.extend(self._residents.settle(residents))
        return outcome.rows

    def _ask_for_previews(self, residents: Sequence[Resident], outcome: StepOutcome) -> None:
        for place, resident in enumerate(residents):
            task, every = resident.task, resident.spec.preview_every
            if task is not None and every and task.next_call % every == 0 and not task.done:
                self._previews.submit(resident.spec.task_id, task.next_call, outcome, place)

    def _give_up(self, residents: Sequence[Resident], error: Exception, deliver: Deliver) -> None:
        for resident in residents:
            if self._residents.give_up(resident):
                message = f"the UNet call failed: {type(error).__name__}: {error}"
                deliver(TaskFailed(resident.spec.task_id, StatusCode.INTERNAL.value[0], message))


def _out_of_memory(error: Exception) -> bool:
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _empty_device_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
