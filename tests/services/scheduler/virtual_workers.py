"""Workers without models: they keep to the stage contracts exactly, and a test decides when they act and die."""

from collections import deque
from dataclasses import dataclass, field

from services.scheduler.engine.effects import (
    Admit,
    CancelOnWorker,
    ForgetImages,
    ReleaseSlots,
    SendUnetPlan,
    SendVaePlan,
    WorkerEffect,
)
from services.scheduler.engine.events import Report
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from synerdiff.plans import (
    DecodedImage,
    ItemTiming,
    ResidentTask,
    SkippedEntry,
    SkipReason,
    SlotRef,
    TaskFailed,
    TaskReady,
    UnetPlan,
    UnetTickDone,
    VaePlan,
    VaeTickDone,
)
from synerdiff.requests import ImageFormat, TaskSpec


@dataclass
class Resident:
    """A task on a virtual UNet worker."""

    spec: TaskSpec
    slot: SlotRef
    num_calls: int = 0
    next_call: int = 0

    @property
    def finished(self) -> bool:
        """Whether its last call is done."""
        return 0 < self.num_calls <= self.next_call


@dataclass
class VirtualUnet:
    """A UNet worker that advances tasks by counting. `arena` maps slot index to the task that holds it."""

    worker_id: str
    domain: str
    model: str = "emoji"
    slots: int = 4
    life: int = 0
    residents: dict[str, Resident] = field(default_factory=dict)
    commands: deque[WorkerEffect] = field(default_factory=deque)
    epoch: int = 0
    weights: str = ""

    @property
    def arena_id(self) -> str:
        """The arena of this life."""
        return f"{self.worker_id}#{self.life}"

    def lane(self) -> UnetLaneState:
        """What a stream reports when it opens."""
        lane = UnetLaneState(self.worker_id, self.domain, self.model, slots=self.slots, arena_address=self.worker_id)
        lane.weights = self.weights
        return lane

    def resident_tasks(self) -> list[ResidentTask]:
        """Likewise."""
        return [
            ResidentTask(task_id, r.next_call, r.num_calls, r.slot if r.finished else None)
            for task_id, r in self.residents.items()
        ]

    def die(self) -> None:
        """Forget everything; the next life has another arena."""
        self.life += 1
        self.residents.clear()
        self.commands.clear()

    def act(self) -> list[Report]:
        """Carry out the next command."""
        if not self.commands:
            return []
        match self.commands.popleft():
            case Admit(task=task):
                return self._admit(task)
            case SendUnetPlan(plan=plan):
                return [self._run(plan)]
            case CancelOnWorker(task_ids=task_ids) | ReleaseSlots(task_ids=task_ids):
                for task_id in task_ids:
                    self.residents.pop(task_id, None)
        return []

    def _admit(self, task: TaskSpec) -> list[Report]:
        used = {r.slot.index for r in self.residents.values()}
        free = [index for index in range(self.slots) if index not in used]
        if not free:
            return [TaskFailed(task.task_id, 8, "arena full")]
        self.epoch += 1
        resident = Resident(task, SlotRef(self.arena_id, free[0], self.epoch))
        resident.num_calls = task.num_inference_steps
        self.residents[task.task_id] = resident
        return [TaskReady(task.task_id, resident.num_calls, 1.0)]

    def _run(self, plan: UnetPlan) -> UnetTickDone:
        skipped: list[SkippedEntry] = []
        finished: list[tuple[str, SlotRef]] = []
        rows = 0
        for entry in (e for item in plan.items for e in item.entries):
            resident = self.residents.get(entry.task_id)
            if resident is None:
                skipped.append(SkippedEntry(entry.task_id, SkipReason.UNKNOWN_TASK))
            elif resident.finished or resident.next_call != entry.call:
                skipped.append(SkippedEntry(entry.task_id, SkipReason.OTHER_CALL, resident.next_call))
            else:
                resident.next_call += 1
                rows += 1
                if resident.finished:
                    finished.append((entry.task_id, resident.slot))
        return UnetTickDone(plan.tick, (ItemTiming(0, 1, rows),), tuple(skipped), tuple(finished))


@dataclass
class VirtualVae:
    """A VAE worker that reads slots of virtual UNet workers."""

    worker_id: str
    domain: str
    unets: dict[str, VirtualUnet]
    model: str = "emoji"
    commands: deque[WorkerEffect] = field(default_factory=deque)
    outbox: dict[str, DecodedImage] = field(default_factory=dict)
    weights: str = ""

    def lane(self) -> VaeLaneState:
        """What a stream reports when it opens."""
        return VaeLaneState(self.worker_id, self.domain, self.model, weights=self.weights)

    def die(self) -> None:
        """Forget everything."""
        self.commands.clear()
        self.outbox.clear()

    def act(self) -> list[Report]:
        """Carry out the next command."""
        if not self.commands:
            return []
        match self.commands.popleft():
            case SendVaePlan(plan=plan):
                return self._run(plan)
            case CancelOnWorker(task_ids=task_ids) | ForgetImages(task_ids=task_ids):
                for task_id in task_ids:
                    self.outbox.pop(task_id, None)
        return []

    def _run(self, plan: VaePlan) -> list[Report]:
        skipped, images = [], []
        for entry in (e for item in plan.items for e in item.entries if e.end_chunk == e.chunks):
            unet = self.unets[entry.arena_address]
            resident = unet.residents.get(entry.task_id)
            if resident is None or resident.slot != entry.slot:
                skipped.append(SkippedEntry(entry.task_id, SkipReason.STALE_SLOT))
            else:
                data = f"{entry.task_id}:{resident.spec.seed}".encode()
                images.append(DecodedImage(entry.task_id, ImageFormat.PNG, 8, 8, data, False, 1.0, 1.0))
        self.outbox.update({image.task_id: image for image in images})
        decoded = tuple(image.task_id for image in images)
        return [VaeTickDone(plan.tick, (ItemTiming(0, 1, len(images)),), tuple(skipped), decoded), *images]
