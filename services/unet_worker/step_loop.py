"""The device thread: plan items in order, straight from a queue, with nothing but the steps between two UNet calls.

No event loop, encoding or message is on its path, and no logging but of what fails. What it has to say goes through
`deliver` of the work that it belongs to, which must be quick and thread-safe.
"""

import queue
import threading
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

from grpc import StatusCode
from torch import Tensor

from services.unet_worker.denoiser import Denoiser, StepOutcome
from services.unet_worker.previews import PreviewEncoder
from services.unet_worker.residents import Resident, Residents
from synerdiff.models.device import DeviceFailed, Fault, Mark, Timeline, fault_of
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

    `done`: residents whose last call has been made; `drifts`: task, call and the drift, still on the device.
    """

    skipped: list[SkippedEntry] = field(default_factory=list)
    done: list[Resident] = field(default_factory=list)
    drifts: list[tuple[str, int, Tensor]] = field(default_factory=list)


@dataclass
class _Run:
    """An item that has been given to the device. `halved`: see ItemTiming."""

    start: Mark
    end: Mark
    rows: int
    waited_ms: float
    halved: int

    def timing(self, timeline: Timeline, peak_bytes: int) -> ItemTiming:
        start_ns, end_ns = timeline.unix_ns(self.start), timeline.unix_ns(self.end)
        return ItemTiming(start_ns, end_ns, self.rows, self.waited_ms, self.halved, peak_bytes)


@dataclass
class _Stepped:
    """Rows computed for a sub-batch, and the fewest rows that memory did not suffice for; 0: it did."""

    rows: int = 0
    halved: int = 0

    def and_then(self, other: "_Stepped") -> "_Stepped":
        return _Stepped(self.rows + other.rows, min(filter(None, (self.halved, other.halved)), default=0))


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
        """Give every item to the device; wait for it once, at the end of the plan.

        In step also at the end of each item: the VAE worker is told then that it is over.
        """
        compute = self._denoiser.compute
        compute.restart_peak()
        timeline, became, runs = compute.timeline(), _Became(), list[_Run]()
        for item in work.plan.items:
            waited_ms = self._pacer.before(item.execution, lambda: work.reign != self._reign)
            if work.reign != self._reign:
                break
            self._share.take(item.execution.threads)
            start = timeline.mark()
            stepped = self._run_item(item, became, work.deliver)
            runs.append(_Run(start, timeline.mark(), stepped.rows, waited_ms, stepped.halved))
            if item.execution.pace:
                timeline.wait(runs[-1].end)
            self._pacer.after(item.execution, work.plan.tick)
        if runs:
            timeline.wait(runs[-1].end)
        finished = self._residents.settle(became.done)
        if work.reign == self._reign:
            timings = tuple(run.timing(timeline, compute.peak_bytes()) for run in runs)
            drifts = tuple(GuidanceDrift(task_id, call, float(off)) for task_id, call, off in became.drifts)
            work.deliver(UnetTickDone(work.plan.tick, timings, tuple(became.skipped), tuple(finished), drifts))

    def _run_item(self, item: UnetItem, became: _Became, deliver: Deliver) -> _Stepped:
        residents, unfit = self._residents.select(item.entries)
        became.skipped.extend(unfit)
        skipping = {entry.task_id for entry in item.entries if entry.skip_cfg}
        return self._step(residents, skipping, became, deliver) if residents else _Stepped()

    def _step(self, residents: Sequence[Resident], skipping: Set[str], became: _Became, deliver: Deliver) -> _Stepped:
        """Step a sub-batch; one that fails, for memory or anything else, in halves until what fails is alone.

        Raises:
            DeviceFailed: the device steps nothing any more.
        """
        tasks = [resident.task for resident in residents if resident.task is not None]
        try:
            outcome = self._denoiser.step(tasks, [task.spec.task_id in skipping for task in tasks])
        except Exception as error:
            # Its frames hold activations, whose memory the next attempt needs.
            failure = error.with_traceback(None)
        else:
            self._ask_for_previews(residents, outcome)
            became.drifts += [(tasks[k].spec.task_id, tasks[k].next_call - 1, off) for k, off in outcome.drifts.items()]
            became.done += [resident for resident, task in zip(residents, tasks, strict=True) if task.done]
            return _Stepped(outcome.rows)
        return self._recover(residents, failure, skipping, became, deliver)

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
            halved = halved.and_then(self._step(part, skipping, became, deliver))
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
        else:
            self._denoiser.check_device()
            code, message = StatusCode.INTERNAL, f"the UNet call failed: {type(failure).__name__}: {failure}"
        if self._residents.give_up(resident):
            deliver(TaskFailed(resident.spec.task_id, code.value[0], message))


def _rows(residents: Sequence[Resident], skipping: Set[str]) -> int:
    """The rows of a batch, as far as its tasks can do what they are asked to."""
    tasks = [resident.task for resident in residents if resident.task is not None]
    return sum(1 + (task.guided and not (task.spec.task_id in skipping and task.can_skip)) for task in tasks)
