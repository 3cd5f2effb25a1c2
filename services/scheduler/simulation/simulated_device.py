"""A device under a virtual clock: the lanes of a UNet worker and a VAE worker, timed by a profile.

The model: an item of r rows beside v decodes takes L(r, v), and both sides of it end together. So while both lanes are
busy each gets through 1 / L(r, v) of its own part per ms, and 1 / L(r, 0) or 1 / L(0, v) while the other is not. Items
in step start together and take exactly L(r, v); lanes that run free slow down and speed up as the other comes and goes.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import count
from typing import NamedTuple

from services.scheduler.engine import effects
from services.scheduler.engine.events import Report
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.simulation.counting import CountingUnet, decode, picture
from synerdiff.plans import ItemRef, TaskReady, UnetPlan, UnetTickDone, VaeItem, VaePlan, VaeTickDone
from synerdiff.profiles import Profile
from synerdiff.requests import TaskSpec

Action = Callable[[], None]

Reporter = Callable[[str, Report], None]
MODEL = "simulated"


class Agenda:
    """Actions in order of virtual time; those due at the same moment, in order of entry."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self._entered = count()
        self._heap: list[tuple[float, int, Action]] = []

    def at(self, when_ms: float, action: Action) -> None:
        """Enter an action; one of the past is due now."""
        heapq.heappush(self._heap, (max(when_ms, self.now_ms), next(self._entered), action))

    def run_moment(self) -> bool:
        """Go on to the next moment at which actions are due, and run all of them; False once there are none."""
        heap = self._heap
        if not heap:
            return False
        self.now_ms = heap[0][0]
        while heap and heap[0][0] == self.now_ms:
            heapq.heappop(heap)[2]()
        return True


class Work(NamedTuple):
    """One worker's part of an item. `after`: the item of the other lane that must have ended first."""

    ref: ItemRef
    after: ItemRef | None
    rows: int
    decodes: float
    chunks: int
    ended: Action


@dataclass
class Lane:
    """The work of one worker, in order. `left`: the part of `current` still to do, `per_ms` how fast it shrinks."""

    queue: deque[Work] = field(default_factory=deque)
    current: Work | None = None
    left: float = 0.0
    per_ms: float = 0.0
    timing: int = 0
    last_ended: ItemRef = field(default_factory=lambda: ItemRef(0, 0))


class SimulatedDevice:
    """Both lanes of one domain."""

    def __init__(self, agenda: Agenda, profile: Profile) -> None:
        self.unet = Lane()
        self.vae = Lane()
        self.busy_ms = 0.0
        self._agenda = agenda
        self._item_ms = lru_cache(None)(partial(_item_ms, profile))  # an item's parts come back again and again
        self._looked_at_ms = 0.0
        self._changed = False

    def settle(self) -> None:
        """Start the work that may start now, and time running work anew. To be called at the end of every moment."""
        self._start(self.unet, self.vae)
        self._start(self.vae, self.unet)
        if self._changed:
            self._changed = False
            self._retime()

    def _start(self, lane: Lane, other: Lane) -> None:
        if lane.current or not lane.queue:
            return
        after = lane.queue[0].after
        if after and (after.tick, after.place) > (other.last_ended.tick, other.last_ended.place):
            return
        self._progress()
        lane.current, lane.left = lane.queue.popleft(), 1.0
        self._changed = True

    def _progress(self) -> None:
        """Take off the work done since the lanes were last looked at."""
        passed_ms = self._agenda.now_ms - self._looked_at_ms
        if passed_ms == 0:
            return
        self._looked_at_ms = self._agenda.now_ms
        if self.unet.current or self.vae.current:
            self.busy_ms += passed_ms
        for lane in (self.unet, self.vae):
            lane.left -= lane.per_ms * passed_ms

    def _retime(self) -> None:
        unet, vae = self.unet.current, self.vae.current
        rows = unet.rows if unet else 0
        decodes, chunks = (vae.decodes, vae.chunks) if vae else (0.0, 1)
        per_ms = 1.0 / self._item_ms(rows, decodes, chunks)
        for lane in (self.unet, self.vae):
            if lane.current and lane.per_ms != per_ms:
                self._progress()
                lane.per_ms = per_ms
                lane.timing += 1
                ends_ms = self._agenda.now_ms + max(0.0, lane.left) / per_ms
                self._agenda.at(ends_ms, partial(self._end, lane, lane.timing))

    def _end(self, lane: Lane, timing: int) -> None:
        work = lane.current
        if work is None or timing != lane.timing:
            return
        self._progress()
        lane.current, lane.per_ms, lane.last_ended = None, 0.0, work.ref
        self._changed = True
        work.ended()


def _item_ms(profile: Profile, rows: int, decodes: float, chunks: int) -> float:
    """The time of an item by its fastest setting; where the two were never measured beside each other, in turn."""
    choice = profile.choice(rows, decodes, chunks)
    if choice is None:
        alone = profile.choice(0, decodes, chunks) or profile.choice(0, decodes)
        return max(profile.latency_ms(rows, 0) + (alone.ms if alone else 0.0), 1e-6)
    return max(choice.ms, 1e-6)


@dataclass(frozen=True)
class Overheads:
    """Times beside the device. `slots`: tasks that a UNet worker holds at once.

    `prepare_ms`: from a task's admission to its readiness, for any number side by side. `store_ms`: from an image's
    decode to its being safe in Redis. `report_ms`: from a report until the worker has the plan that answers it.
    """

    slots: int = 32
    prepare_ms: float = 5.0
    store_ms: float = 2.0
    report_ms: float = 0.5


@dataclass
class SimulatedWorkers:
    """A UNet worker and a VAE worker that share a device."""

    domain: str
    profile: Profile
    overheads: Overheads
    agenda: Agenda
    report: Reporter
    unet_ticks: int = 0

    def __post_init__(self) -> None:
        self.unet_id, self.vae_id = f"{self.domain}-unet", f"{self.domain}-vae"
        self.device = SimulatedDevice(self.agenda, self.profile)
        self._unet = CountingUnet(self.unet_id, self.overheads.slots)

    def unet_lane(self) -> UnetLaneState:
        """The first report of the UNet worker's stream."""
        slots = self.overheads.slots
        return UnetLaneState(self.unet_id, self.domain, MODEL, slots=slots, arena_address=self.unet_id)

    def vae_lane(self) -> VaeLaneState:
        """The first report of the VAE worker's stream."""
        return VaeLaneState(self.vae_id, self.domain, MODEL)

    def carry_out(self, command: effects.WorkerEffect) -> None:
        """Take a command of the engine's."""
        match command:
            case effects.SendUnetPlan(plan=unet_plan):
                self._queue_unet(unet_plan)
            case effects.SendVaePlan(plan=vae_plan):
                self._queue_vae(vae_plan)
            case effects.Admit(task=task):
                self._admit(task)
            case effects.CancelOnWorker(worker_id, task_ids) | effects.ReleaseSlots(worker_id, task_ids):
                if worker_id == self.unet_id:
                    self._unet.let_go(task_ids)
            case effects.ForgetImages():
                pass

    def _admit(self, task: TaskSpec) -> None:
        ready = self._unet.admit(task, encode_ms=self.overheads.prepare_ms)
        assert isinstance(ready, TaskReady), "the engine admits no more tasks than there are slots"
        self._tell(self.unet_id, ready, self.overheads.prepare_ms)

    def _tell(self, worker_id: str, report: Report, after_ms: float) -> None:
        self.agenda.at(self.agenda.now_ms + after_ms, partial(self.report, worker_id, report))

    def _queue_unet(self, plan: UnetPlan) -> None:
        last = len(plan.items) - 1
        for number, item in enumerate(plan.items):
            ended = partial(self._unet_ended, plan) if number == last else lambda: None
            ref = ItemRef(plan.tick, item.execution.place)
            self.device.unet.queue.append(Work(ref, item.execution.after, self._unet.rows(item), 0.0, 1, ended))

    def _unet_ended(self, plan: UnetPlan) -> None:
        self.unet_ticks += 1
        stepped = self._unet.step(plan.items)
        done = UnetTickDone(plan.tick, (), stepped.skipped, stepped.finished)
        self._tell(self.unet_id, done, self.overheads.report_ms)

    def _queue_vae(self, plan: VaePlan) -> None:
        last = len(plan.items) - 1
        for number, item in enumerate(plan.items):
            chunks = max(entry.chunks for entry in item.entries)
            decodes = sum((entry.end_chunk - entry.first_chunk) / entry.chunks for entry in item.entries)
            ended = partial(self._vae_ended, plan, item, number == last)
            ref = ItemRef(plan.tick, item.execution.place)
            self.device.vae.queue.append(Work(ref, item.execution.after, 0, decodes, chunks, ended))

    def _vae_ended(self, plan: VaePlan, item: VaeItem, last: bool) -> None:
        for entry in decode((item,), self._unet.holds).entries:
            self._tell(self.vae_id, picture(entry), self.overheads.report_ms)
        if last:
            whole = decode(plan.items, self._unet.holds)
            done = VaeTickDone(plan.tick, (), whole.skipped, whole.task_ids)
            self._tell(self.vae_id, done, self.overheads.report_ms)
