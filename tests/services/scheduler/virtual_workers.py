"""Workers without models: they keep to the stage contracts exactly, and a test decides when they act and die."""

from collections import deque
from dataclasses import dataclass, field

from services.scheduler.engine import effects
from services.scheduler.engine.events import Report
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.simulation.counting import CountingUnet, decode, picture
from synerdiff.plans import DecodedImage, DecodeEntry, ItemTiming, UnetTickDone, VaePlan, VaeTickDone


class VirtualUnet(CountingUnet):
    """A UNet worker that counts."""

    def __init__(self, worker_id: str, domain: str, model: str = "emoji", slots: int = 4) -> None:
        super().__init__(f"{worker_id}#0", slots)
        self.worker_id, self.domain, self.model, self.weights = worker_id, domain, model, ""
        self.commands: deque[effects.WorkerEffect] = deque()
        self.life = 0

    def lane(self) -> UnetLaneState:
        """What a stream reports when it opens."""
        lane = UnetLaneState(self.worker_id, self.domain, self.model, slots=self.slots, arena_address=self.worker_id)
        lane.weights = self.weights
        return lane

    def die(self) -> None:
        """Forget everything; the next life has another arena."""
        self.life += 1
        self.arena_id = f"{self.worker_id}#{self.life}"
        self.residents.clear()
        self.commands.clear()

    def act(self) -> list[Report]:
        """Carry out the next command."""
        if not self.commands:
            return []
        match self.commands.popleft():
            case effects.Admit(task=task):
                return [self.admit(task)]
            case effects.SendUnetPlan(plan=plan):
                stepped = self.step(plan.items)
                return [UnetTickDone(plan.tick, (ItemTiming(0, 0, stepped.rows),), stepped.skipped, stepped.finished)]
            case effects.CancelOnWorker(task_ids=task_ids) | effects.ReleaseSlots(task_ids=task_ids):
                self.let_go(task_ids)
        return []


@dataclass
class VirtualVae:
    """A VAE worker that reads slots of virtual UNet workers."""

    worker_id: str
    domain: str
    unets: dict[str, VirtualUnet]
    model: str = "emoji"
    commands: deque[effects.WorkerEffect] = field(default_factory=deque)
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
            case effects.SendVaePlan(plan=plan):
                return self._run(plan)
            case effects.CancelOnWorker(task_ids=task_ids) | effects.ForgetImages(task_ids=task_ids):
                for task_id in task_ids:
                    self.outbox.pop(task_id, None)
        return []

    def _holds(self, entry: DecodeEntry) -> bool:
        return self.unets[entry.arena_address].holds(entry)

    def _run(self, plan: VaePlan) -> list[Report]:
        decoded = decode(plan.items, self._holds)
        images = [picture(entry, f"file of {entry.task_id}".encode(), 1.0) for entry in decoded.entries]
        self.outbox.update({image.task_id: image for image in images})
        timing = ItemTiming(0, 0, len(images))
        return [VaeTickDone(plan.tick, (timing,), decoded.skipped, decoded.task_ids), *images]
