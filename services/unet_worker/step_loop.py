"""The device thread: plan items in order, straight from a queue, with nothing but the steps between two UNet calls.

No event loop, encoding or message is on its path, and no logging but of what fails. On a device that queues its work it
never waits for what it gave before: the next item is prepared and queued while the last one runs, and what has to wait
is settled on another thread. What there is to say goes through `deliver` of the work that it belongs to, which must be
quick and thread-safe.
"""

import queue
import threading
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NoReturn

import torch
from grpc import StatusCode
from torch import Tensor

from services.unet_worker.denoiser import Denoiser, StepOutcome
from services.unet_worker.previews import PreviewEncoder
from services.unet_worker.residents import HandedOver, Resident, Residents
from services.unet_worker.settling_thread import SettlingThread
from services.unet_worker.tasks import DenoisingTask
from synerdiff.models.device import DeviceFailed, Fault, Mark, fault_of
from synerdiff.models.exact import NotExact
from synerdiff.models.threads import ThreadShare
from synerdiff.pace import Pacer
from synerdiff.plans import (
    GuidanceDrift,
    ItemTiming,
    SkippedEntry,
    TaskFailed,
    UnetItem,
    UnetPlan,
    UnetTickDone,
)
from synerdiff.telemetry import get_logger

log = get_logger("step_loop")

# One item runs, the next is queued behind it: more would gain nothing, and hold up cancellations and new leaders.
_MOST_ITEMS = 2

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
    """What a plan's report will say of its entries, as far as its items have run.

    `done`: residents whose last call has been made; `drifts`: task, call and the drift, still on the device. `timings`
    are those of items that have ended.
    """

    skipped: list[SkippedEntry] = field(default_factory=list)
    done: list[Resident] = field(default_factory=list)
    drifts: list[tuple[str, int, Tensor]] = field(default_factory=list)
    timings: list[ItemTiming] = field(default_factory=list)


@dataclass(frozen=True)
class _Run:
    """An item that has been given to the device. `halved`: see ItemTiming."""

    start: Mark
    end: Mark
    rows: int
    waited_ms: float
    halved: int


@dataclass(frozen=True)
class _PlanEnd:
    """What of a plan can be settled once the device has passed `mark`. `drifts` [n] as those of `_Became`."""

    mark: Mark
    handed_over: HandedOver
    drifts: Tensor
    peak_bytes: int


@dataclass
class _Stepping:
    """A sub-batch about to be stepped. `skipping`: ids of tasks that are to skip guidance."""

    residents: Sequence[Resident]
    skipping: Set[str]
    attempt: Callable[[], StepOutcome] | None

    def make(self) -> StepOutcome:
        """Make the attempt, once. Of one that fails nothing is kept: it may hold the capture whose memory is needed."""
        attempt, self.attempt = self.attempt, None
        assert attempt is not None
        return attempt()


@dataclass
class _Stepped:
    """Rows computed for a sub-batch, and the fewest rows that memory did not suffice for; 0: it did."""

    rows: int = 0
    halved: int = 0

    def and_then(self, other: "_Stepped") -> "_Stepped":
        return _Stepped(self.rows + other.rows, min(filter(None, (self.halved, other.halved)), default=0))


class StepLoop:
    """Runs plans on a thread of its own until closed. `crashed` is told, on a thread here, of an error that ended it.

    `threads` is the step thread's own number of CPU threads, which an item may change, `exact_threads` that of exact
    items. `pacer` is let go of at the end.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        residents: Residents,
        previews: PreviewEncoder,
        crashed: Callable[[Exception], None],
        threads: int,
        pacer: Pacer,
        exact_threads: int = 1,
    ) -> None:
        self._denoiser = denoiser
        self._residents = residents
        self._previews = previews
        self._crashed = crashed
        self._share = ThreadShare(threads, exact_threads)
        self._pacer = pacer
        self._settling = SettlingThread(denoiser.compute.queues, crashed)
        self._timeline = denoiser.compute.timeline()
        self._inbox: queue.SimpleQueue[_Work | _Boundary | None] = queue.SimpleQueue()
        self._reign = 0
        self._thread = threading.Thread(target=self._run, name="step-loop", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._settling.start()
        self._thread.start()

    def submit(self, plan: UnetPlan, deliver: Deliver) -> None:
        """Queue a plan; its reports go to `deliver`, on a thread of the loop."""
        self._inbox.put(_Work(plan, deliver, self._reign))

    def begin_reign(self, reached: Callable[[], None]) -> None:
        """Abandon all plans so far at the next item boundary, without a report; then call `reached` from here."""
        self._reign += 1
        self._inbox.put(_Boundary(reached))

    def close(self) -> None:
        """Abandon what is queued and wait for what the device was given."""
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
            self._settling.close()
            self._pacer.close()

    def _run_inbox(self) -> None:
        while (work := self._inbox.get()) is not None:
            if isinstance(work, _Boundary):
                self._settling.submit(work.reached)
            else:
                self._run_plan(work)

    def _run_plan(self, work: _Work) -> None:
        """Give every item to the device, and leave to be settled what has to wait for it."""
        compute, became = self._denoiser.compute, _Became()
        compute.restart_peak()
        for item in work.plan.items:
            if not self._run_item(work, item, became):
                break
        handed_over = self._residents.hand_over(became.done, compute)
        off = [off for *_, off in became.drifts]
        drifts = compute.begin_download(torch.stack(off)) if off else torch.empty(0)
        end = _PlanEnd(self._timeline.mark(), handed_over, drifts, compute.peak_bytes())
        self._settling.submit(partial(self._settle, work, became, end))

    def _run_item(self, work: _Work, item: UnetItem, became: _Became) -> bool:
        """Give an item to the device in its turn; False when its plan has been abandoned.

        Where the device queues its work, all that can be is done for the item before its turn has come.
        """
        self._settling.wait_for_fewer_items(_MOST_ITEMS)
        stepping = self._prepare(item, became) if self._denoiser.compute.queues else None
        if item.execution.pace:
            # Patience with the VAE worker counts from the end of the own last item.
            self._settling.wait_for_fewer_items(1)
        waited_ms = self._pacer.before(item.execution, lambda: work.reign != self._reign)
        if work.reign != self._reign:
            return False
        stepping = stepping or self._prepare(item, became)
        exact = any(resident.spec.exact for resident in stepping.residents)
        self._share.take(item.execution.threads, exact)
        start = self._timeline.mark()
        stepped = self._step(stepping, became, work.deliver)
        run = _Run(start, self._timeline.mark(), stepped.rows, waited_ms, stepped.halved)
        self._settling.submit_item(partial(self._end_item, work.plan.tick, item, run, became))
        return True

    def _end_item(self, tick: int, item: UnetItem, run: _Run, became: _Became) -> None:
        """Once an item is over: tell the VAE worker, and note when it ran."""
        self._timeline.wait(run.end)
        self._pacer.after(item.execution, tick)
        start_ns, end_ns = self._timeline.unix_ns(run.start), self._timeline.unix_ns(run.end)
        became.timings.append(ItemTiming(start_ns, end_ns, run.rows, run.waited_ms, run.halved))

    def _settle(self, work: _Work, became: _Became, end: _PlanEnd) -> None:
        """Once all of a plan is over: put finished latents into their slots, and report, unless it was abandoned."""
        self._timeline.wait(end.mark)
        finished = self._residents.settle(end.handed_over)
        if work.reign != self._reign:
            return
        timings = tuple(replace(timing, peak_bytes=end.peak_bytes) for timing in became.timings)
        drifts = zip(became.drifts, end.drifts.tolist(), strict=True)
        told = tuple(GuidanceDrift(task_id, call, off) for (task_id, call, _), off in drifts)
        work.deliver(UnetTickDone(work.plan.tick, timings, tuple(became.skipped), tuple(finished), told))

    def _prepare(self, item: UnetItem, became: _Became) -> _Stepping:
        """What an item steps. Where the device queues its work, with all done that comes before the UNet call."""
        residents, unfit = self._residents.select(item.entries)
        became.skipped.extend(unfit)
        skipping = {entry.task_id for entry in item.entries if entry.skip_cfg}
        tasks, skips = _tasks(residents, skipping)
        if not residents or not self._denoiser.compute.queues:
            return _Stepping(residents, skipping, partial(self._denoiser.step, tasks, skips))
        try:
            call = self._denoiser.prepare(tasks, skips)
        except Exception as error:
            return _Stepping(residents, skipping, partial(_fail, error.with_traceback(None)))
        return _Stepping(residents, skipping, partial(self._denoiser.make, call))

    def _step(self, stepping: _Stepping, became: _Became, deliver: Deliver) -> _Stepped:
        """Step a sub-batch; one that fails, for memory or anything else, in halves until what fails is alone.

        Raises:
            DeviceFailed: the device steps nothing any more.
        """
        residents = stepping.residents
        if not residents:
            return _Stepped()
        tasks, _ = _tasks(residents, stepping.skipping)
        try:
            outcome = stepping.make()
        except Exception as error:
            # Its frames hold activations, whose memory the next attempt needs.
            failure = error.with_traceback(None)
        else:
            self._ask_for_previews(residents, outcome)
            became.drifts += [(tasks[k].spec.task_id, tasks[k].next_call - 1, off) for k, off in outcome.drifts.items()]
            became.done += [resident for resident, task in zip(residents, tasks, strict=True) if task.done]
            return _Stepped(outcome.rows)
        return self._recover(residents, failure, stepping.skipping, became, deliver)

    def _recover(
        self, residents: Sequence[Resident], failure: Exception, skipping: Set[str], became: _Became, deliver: Deliver
    ) -> _Stepped:
        fault = fault_of(failure)
        if fault is Fault.FATAL:
            raise DeviceFailed(str(failure)) from failure
        if fault is Fault.OUT_OF_MEMORY:
            self._denoiser.free_memory()
        if len(residents) == 1:
            self._give_up(residents[0], failure, fault, deliver)
            return _Stepped()
        log.warning("a UNet call failed, trying halves", tasks=len(residents), reason=str(failure))
        halved = _Stepped(0, _rows(residents, skipping) if fault is Fault.OUT_OF_MEMORY else 0)
        middle = len(residents) // 2
        for part in (residents[:middle], residents[middle:]):
            half = _Stepping(part, skipping, partial(self._denoiser.step, *_tasks(part, skipping)))
            halved = halved.and_then(self._step(half, became, deliver))
        return halved

    def _ask_for_previews(self, residents: Sequence[Resident], outcome: StepOutcome) -> None:
        for place, resident in enumerate(residents):
            task, every = resident.task, resident.spec.preview_every
            if task is not None and every and task.next_call % every == 0 and not task.done:
                self._previews.submit(resident.spec.task_id, task.next_call, outcome, place)

    def _give_up(self, resident: Resident, failure: Exception, fault: Fault, deliver: Deliver) -> None:
        """Say why a task that failed alone cannot go on; but not of one that a broken device has failed."""
        if fault is Fault.OUT_OF_MEMORY:
            code, message = StatusCode.RESOURCE_EXHAUSTED, f"no memory for a UNet call of this task alone: {failure}"
        elif isinstance(failure, NotExact):
            code, message = StatusCode.FAILED_PRECONDITION, str(failure)
        else:
            self._denoiser.check_device()
            code, message = StatusCode.INTERNAL, f"the UNet call failed: {type(failure).__name__}: {failure}"
        if self._residents.give_up(resident):
            failed = TaskFailed(resident.spec.task_id, code.value[0], message)
            self._settling.submit(partial(deliver, failed))  # after the reports of what ran before


def _tasks(residents: Sequence[Resident], skipping: Set[str]) -> tuple[list[DenoisingTask], list[bool]]:
    """The tasks of residents that stand ready, and which of them are to skip guidance."""
    tasks = [resident.task for resident in residents if resident.task is not None]
    return tasks, [task.spec.task_id in skipping for task in tasks]


def _fail(failure: Exception) -> NoReturn:
    raise failure


def _rows(residents: Sequence[Resident], skipping: Set[str]) -> int:
    """The rows of a batch, as far as its tasks can do what they are asked to."""
    tasks = [resident.task for resident in residents if resident.task is not None]
    return sum(1 + (task.guided and not (task.spec.task_id in skipping and task.can_skip)) for task in tasks)
