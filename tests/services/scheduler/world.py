"""An engine with virtual workers and a store that remembers: whatever is to happen, a test says."""

from collections import Counter
from collections.abc import Sequence
from itertools import product

from services.scheduler.engine import events
from services.scheduler.engine.effects import Effect, FailJob, FinishJob, StoreImage, WorkerEffect
from services.scheduler.engine.engine import Engine, EngineBounds
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.policies import POLICIES, ConfiguredPolicy, PolicyBounds
from services.scheduler.policy.snapshots import BatchKey
from synerdiff.cards import Sampler
from synerdiff.jobs import JobRecord, JobState
from synerdiff.profiles import Profile
from synerdiff.requests import ImageFormat, ImageRequest, Priority
from tests.services.scheduler.virtual_workers import VirtualUnet, VirtualVae

ROUNDS = PlanBook(solve_now=True)


def job(job_id: str, *, images: int = 1, steps: int = 2, width: int = 128, **fields: object) -> JobRecord:
    values: dict[str, object] = {
        "request_id": job_id,
        "model": "emoji",
        "prompt": "a cat",
        "negative_prompt": "",
        "width": width,
        "height": 128,
        "num_inference_steps": steps,
        "guidance_scale": 4.0,
        "seed": 7,
        "sampler": Sampler.DDIM,
        "num_images": images,
        "image_format": ImageFormat.PNG,
        "priority": Priority.NORMAL,
        "timeout_ms": 60_000,
        "preview_every": 0,
    }
    record: dict[str, object] = {
        "state": JobState.QUEUED,
        "accepted_at_ms": 0,
        "deadline_ms": 10**9,
        "abandonable": False,
    }
    record |= {k: fields.pop(k) for k in list(fields) if k in (*record, "images_done")}
    return JobRecord(job_id=job_id, request=ImageRequest(**(values | fields)), **record)  # type: ignore[arg-type]


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

    def arrive(self, record: JobRecord) -> None:
        self.on(events.JobArrived(record))

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

    def act(self, worker_id: str) -> bool:
        worker = self.unets.get(worker_id) or self.vaes[worker_id]
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

    def settle(self, limit: int = 5000) -> None:
        """Let everything happen until nothing more does."""
        for _ in range(limit):
            if not any([*map(self.act, (*self.unets, *self.vaes)), self.write()]):
                return
        raise AssertionError("never settles")

    def assert_empty(self) -> None:
        assert not self.engine.holdings.tasks
        assert not any(unet.residents for unet in self.unets.values())
        assert not any(vae.outbox for vae in self.vaes.values())
