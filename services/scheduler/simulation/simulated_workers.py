"""Workers of one domain under a virtual clock: they keep to the stage contracts, a profile says how long it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from services.scheduler.engine import effects
from services.scheduler.engine.events import Report
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.simulation.counting import CountingUnet, decode, picture
from services.scheduler.simulation.simulated_device import Agenda, SimulatedDevice, Work
from synerdiff.plans import ItemRef, TaskReady, UnetPlan, UnetTickDone, VaeItem, VaePlan, VaeTickDone
from synerdiff.profiles import Profile
from synerdiff.requests import TaskSpec

Reporter = Callable[[str, Report], None]
MODEL = "simulated"


@dataclass(frozen=True)
class Overheads:
    """What takes time beside the device. `slots`: tasks that a UNet worker holds at once.

    `prepare_ms`: from a task's admission to its readiness, for any number side by side. `store_ms`: from an image's
    decode to its being safe in Redis. `report_ms`: from a report to the plan that answers it being at the worker.
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
        """What the UNet worker's stream reports when it opens."""
        slots = self.overheads.slots
        return UnetLaneState(self.unet_id, self.domain, MODEL, slots=slots, arena_address=self.unet_id)

    def vae_lane(self) -> VaeLaneState:
        """What the VAE worker's stream reports when it opens."""
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
            ended = partial(self._unet_ended, plan) if number == last else _nothing
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


def _nothing() -> None:
    """An item whose end nobody is told of."""
