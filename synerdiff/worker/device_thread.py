"""The one thread that gives a worker's device its work: plans in order, their items in turn with the other worker's.

It runs no event loop, encoding or messages, and logs only failures. On a device that queues its work, the
thread prepares and queues the next item while the last one runs; another thread waits for the device and settles. On
other devices this thread does everything: a second one would take the cores and the interpreter's lock from the next
item.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from synerdiff.models.device import Device, DeviceFailed, Mark
from synerdiff.models.threads import ThreadShare
from synerdiff.pace import Pacer
from synerdiff.plans import Execution, ItemTiming
from synerdiff.worker.job_thread import Job, JobThread

# One item runs, the next is queued behind it: more would gain nothing, and delay cancellations and new leaders.
_MOST_ITEMS = 2


@dataclass(frozen=True)
class Computed:
    """The computation of an item. `rows`, `halved`: see ItemTiming."""

    rows: int
    halved: int


class DeviceItem(ABC):
    """An item as its stage computes it, on the device thread.

    `exact`: whether it is computed with the threads of exact pictures; known once it is prepared.
    """

    execution: Execution
    exact: bool

    @abstractmethod
    def prepare(self) -> None:
        """Prepare the computation: before the item's turn if the device queues its work, else at its turn."""

    @abstractmethod
    def compute(self) -> Computed:
        """Give the device its work. Raises DeviceFailed, and no error that an input caused."""

    @abstractmethod
    def over(self, abandoned: bool) -> None:
        """The item is computed, or abandoned with its plan. Called on the settling thread if there is one."""


@dataclass(eq=False)
class DevicePlan:
    """A plan on its way. `timings`: of the items that have ended, in their order."""

    thread: "DeviceThread"
    tick: int
    generation: int
    begun: bool = False
    timings: list[ItemTiming] = field(default_factory=list)

    @property
    def abandoned(self) -> bool:
        """Whether it is not wanted any more."""
        return self.generation != self.thread.generation


class DeviceThread:
    """Does the work of plans until closed. `failed` gets the error that ended it, on a thread here.

    `generation`: of the plans that are begun now; those of earlier ones are abandoned. `heartbeats`: of its threads.
    """

    def __init__(self, compute: Device, pacer: Pacer, share: ThreadShare, failed: Callable[[Exception], None]) -> None:
        self._compute = compute
        self._pacer = pacer
        self._share = share
        self._failed = failed
        self._timeline = compute.timeline()
        self._thread = JobThread("device", self._fail)
        self._settling = JobThread("settling", self._fail) if compute.queues else None
        self._threads = [thread for thread in (self._thread, self._settling) if thread]
        self.heartbeats = [thread.heartbeat for thread in self._threads]
        self.generation = 0
        self._has_failed = False
        self._unsettled = 0
        self._changed = threading.Condition()

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def begin_plan(self, tick: int) -> DevicePlan:
        """A plan to submit items of."""
        return DevicePlan(self, tick, self.generation)

    def abandon_plans(self, reached: Job | None = None) -> None:
        """Compute no further item of the plans so far. `reached` is called on a thread here once none of them runs."""
        self.generation += 1
        if reached:
            self.submit(partial(self.settle, reached))

    def submit(self, job: Job) -> None:
        """Have a job done on the device thread, in its turn."""
        self._thread.submit(job)

    def submit_item(self, plan: DevicePlan, item: DeviceItem) -> None:
        """Have an item computed, if its plan is still wanted when its turn comes."""
        self._thread.submit(partial(self._run_item, plan, item))

    def settle(self, job: Job) -> None:
        """On the device thread: have a job done after all jobs that were settled before."""
        if self._settling:
            self._settling.submit(job)
        else:
            job()

    def settle_plan(self, plan: DevicePlan, settled: Callable[[tuple[ItemTiming, ...]], object]) -> None:
        """On the device thread: `settled` gets the timings of the plan's items once the device has done all of them."""
        mark, peak_bytes = self._timeline.mark(), self._compute.peak_bytes()

        def settle() -> None:
            self._timeline.wait(mark)
            settled(tuple(replace(timing, peak_bytes=peak_bytes) for timing in plan.timings))

        self.settle(settle)

    def close(self) -> None:
        """Abandon all plans, wait for the device, and close the pacer."""
        self.generation += 1
        for thread in self._threads:
            thread.close()
        self._pacer.close()

    def _run_item(self, plan: DevicePlan, item: DeviceItem) -> None:
        """Give the device an item in its turn, and have its end settled."""
        waited_ms = 0.0 if plan.abandoned else self._wait_for_turn(plan, item)
        if plan.abandoned:
            item.over(abandoned=True)
            return
        if not self._compute.queues:
            item.prepare()
        self._share.take(item.execution.threads, item.exact)
        start = self._timeline.mark()
        computed = item.compute()
        end = self._timeline.mark()
        with self._changed:
            self._unsettled += 1
        self.settle(partial(self._end_item, plan, item, start, end, computed, waited_ms))

    def _wait_for_turn(self, plan: DevicePlan, item: DeviceItem) -> float:
        """Prepare the item if the device queues its work, and wait for its turn. Returns the wait in ms."""
        self._wait_for_fewer_items(_MOST_ITEMS)
        if not plan.begun:
            plan.begun = True
            self._compute.restart_peak()
        if self._compute.queues:
            item.prepare()
        if item.execution.pace:
            # Patience with the other worker counts from the end of the own last item.
            self._wait_for_fewer_items(1)
        self._thread.heartbeat.rest()  # a thread that waits for the other worker is not stuck
        waited_ms = self._pacer.before(item.execution, lambda: plan.abandoned)
        self._thread.heartbeat.begin()
        return waited_ms

    def _end_item(
        self, plan: DevicePlan, item: DeviceItem, start: Mark, end: Mark, computed: Computed, waited_ms: float
    ) -> None:
        """After an item: publish its end to the other worker, and note when it ran."""
        timeline = self._timeline
        timeline.wait(end)
        self._pacer.after(item.execution, plan.tick)
        start_ns, end_ns = timeline.unix_ns(start), timeline.unix_ns(end)
        plan.timings.append(ItemTiming(start_ns, end_ns, computed.rows, waited_ms, computed.halved))
        item.over(abandoned=False)
        with self._changed:
            self._unsettled -= 1
            self._changed.notify_all()

    def _wait_for_fewer_items(self, than: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._unsettled < than or self._has_failed)
            if self._has_failed:
                raise DeviceFailed("earlier work of the device has failed")

    def _fail(self, error: Exception) -> None:
        with self._changed:
            first, self._has_failed = not self._has_failed, True
            self._changed.notify_all()
        if first:
            self._failed(error)
