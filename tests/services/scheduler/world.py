"""An engine with virtual workers and a store that remembers: whatever is to happen, a test says."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from services.scheduler.engine import effects, events
from services.scheduler.engine.effects import Effect, FailJob, FinishJob, SendUnetPlan, StoreImage, WorkerEffect
from services.scheduler.engine.engine import Engine, EngineBounds
from services.scheduler.engine.events import Report
from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.policy_spec import POLICIES, PolicyBounds
from services.scheduler.policy.snapshots import BatchKey
from services.scheduler.simulation.counting import CountingUnet, decode, picture
from synerdiff.jobs import JobRecord
from synerdiff.plans import DecodedImage, DecodeEntry, ItemTiming, UnetPlan, UnetTickDone, VaePlan, VaeTickDone
from synerdiff.profiles import Profile
from tests.values import a_job, a_request

ROUNDS = PlanBook(solve_now=True)


OF_A_RECORD = {"state", "accepted_at_ms", "deadline_ms", "abandonable", "images_done"}


def job(job_id: str, *, images: int = 1, steps: int = 2, width: int = 128, **fields: Any) -> JobRecord:
    """A job that waits. `fields`: of its record and of its request."""
    of_request = {"height": 128, "seed": 7, "preview_every": 0} | {k: fields[k] for k in fields.keys() - OF_A_RECORD}
    request = a_request(request_id=job_id, width=width, num_inference_steps=steps, num_images=images, **of_request)
    return a_job(job_id, request, **{k: fields[k] for k in fields.keys() & OF_A_RECORD})


class World:
    """An engine, its virtual workers, and a store that remembers. `profile`: of every device for every size."""

    def __init__(
        self,
        unets: int = 1,
        vaes: int = 1,
        domains: int = 1,
        max_deaths: int = 10,
        policy: str = "continuous",
        profile: Profile | None = None,
    ) -> None:
        bounds = PolicyBounds(unet_batch=3, vae_batch=2, prepare_ahead=1)
        self.policy = ConfiguredPolicy(POLICIES[policy], bounds, ROUNDS)
        self.profile = profile
        self.bounds = EngineBounds(max_deaths=max_deaths)
        self.unets = {f"u{i}": VirtualUnet(f"u{i}", f"d{i % domains}") for i in range(unets)}
        self.vaes = {f"v{i}": VirtualVae(f"v{i}", f"d{i % domains}", self.unets) for i in range(vaes)}
        self.now_ms = 0
        self.stored: Counter[tuple[str, int]] = Counter()
        self.ended: Counter[str] = Counter()
        self.store: list[Effect] = []
        self.to_store: list[StoreImage] = []
        self.new_leader()

    def new_leader(self) -> None:
        self.engine = Engine(self.policy, 1, self.bounds)
        self.to_store.clear()
        for domain, width in product({unet.domain for unet in self.unets.values()}, (128, 256)):
            if self.profile:
                self.on(events.ProfileKnown(domain, BatchKey("emoji", width, 128), self.profile))

    def on(self, event: events.Event) -> None:
        self.engine.on(event, self.now_ms)

    def arrive(self, *records: JobRecord) -> None:
        for record in records:
            self.on(events.JobArrived(record))

    def begin(self, *records: JobRecord) -> "World":
        """This world, once the jobs have arrived and then every worker was attached."""
        self.arrive(*records)
        self.attach_all()
        return self

    def attach(self, worker_id: str) -> None:
        if worker_id in self.unets:
            unet = self.unets[worker_id]
            unet.commands.clear()
            self.on(events.UnetAttached(unet.lane(), tuple(unet.resident_tasks())))
        else:
            vae = self.vaes[worker_id]
            vae.commands.clear()
            self.on(events.VaeAttached(vae.lane()))
            for image in list(vae.outbox.values()):
                self.report(worker_id, image)
        self.pump()

    def attach_all(self) -> None:
        for worker_id in (*self.unets, *self.vaes):
            self.attach(worker_id)

    def pump(self) -> None:
        self.engine.pump(self.now_ms)
        for effect in self.engine.take_effects():
            if isinstance(effect, WorkerEffect):
                worker = self.unets.get(effect.worker_id) or self.vaes[effect.worker_id]
                worker.commands.append(effect)
            elif isinstance(effect, StoreImage):
                self.to_store.append(effect)
            else:
                self.store.append(effect)
                if isinstance(effect, FinishJob | FailJob):
                    self.ended[effect.job_id] += 1

    def report(self, worker_id: str, report: events.Report) -> None:
        self.now_ms += 1
        self.on(events.Reported(worker_id, report))

    def act(self, worker_id: str, times: int = 1) -> bool:
        """Have a worker carry out so many commands. Returns whether there was one for the last time."""
        worker, had = self.unets.get(worker_id) or self.vaes[worker_id], False
        for _ in range(times):
            had = bool(worker.commands)
            for report in worker.act():
                self.report(worker_id, report)
            self.pump()
        return had

    def write(self) -> bool:
        if not self.to_store:
            return False
        effect = self.to_store.pop(0)
        self.stored[effect.job_id, effect.index] += 1
        self.on(events.ImageStored(f"{effect.job_id}/{effect.index}"))
        self.pump()
        return True

    def die(self, workers: Sequence[str]) -> None:
        """All of them at once; the engine has not heard of it."""
        for worker_id in workers:
            (self.unets.get(worker_id) or self.vaes[worker_id]).die()

    def lose(self, worker_id: str) -> None:
        """The engine hears that the stream to a worker has ended."""
        self.on(events.WorkerLost(worker_id))
        self.pump()

    def commands(self, limit: int = 5000) -> Iterator[tuple[str, WorkerEffect]]:
        """Every command with its worker, just before it is carried out, until nothing more happens."""
        for _ in range(limit):
            acted = self.write()
            for worker_id, worker in (self.unets | self.vaes).items():
                if worker.commands:
                    yield worker_id, worker.commands[0]
                    acted = self.act(worker_id) or acted
            if not acted:
                return
        raise AssertionError("never settles")

    def settle(self) -> None:
        """Let everything happen until nothing more does."""
        for _ in self.commands():
            pass

    def plans(self) -> list[UnetPlan]:
        """Those that the first UNet worker has not carried out."""
        return [c.plan for c in self.unets["u0"].commands if isinstance(c, SendUnetPlan)]

    def failed(self) -> FailJob:
        """The only job that has failed."""
        (failed,) = [effect for effect in self.store if isinstance(effect, FailJob)]
        return failed

    def settle_empty(self) -> None:
        """Let everything happen; then no task is left, on no worker either."""
        self.settle()
        assert not self.engine.holdings.tasks
        assert not any(unet.residents for unet in self.unets.values())
        assert not any(vae.outbox for vae in self.vaes.values())


class VirtualUnet(CountingUnet):
    """A UNet worker that counts."""

    def __init__(self, worker_id: str, domain: str, model: str = "emoji", slots: int = 4) -> None:
        super().__init__(f"{worker_id}#0", slots)
        self.worker_id, self.domain, self.model, self.weights = worker_id, domain, model, ""
        self.commands: deque[effects.WorkerEffect] = deque()
        self.life = 0
        self.call: Any = None  # the last that a virtual pool's leader has made

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
    call: Any = None

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
