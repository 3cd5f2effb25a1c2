"""The engine against virtual workers: whatever dies or is cancelled, every job ends once and nothing leaks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.scheduler.engine.effects import (
    Admit,
    Effect,
    FailJob,
    FinishJob,
    MarkDecoding,
    SendUnetPlan,
    StartJob,
    StoreImage,
    WorkerEffect,
)
from services.scheduler.engine.engine import Engine, EngineBounds
from services.scheduler.engine.events import (
    Event,
    ImageStored,
    JobArrived,
    JobDropped,
    ProfileKnown,
    Report,
    Reported,
    UnetAttached,
    VaeAttached,
    WorkerAnnounced,
    WorkerLost,
)
from services.scheduler.engine.tasks import Phase
from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.policies import POLICIES, ConfiguredPolicy, PolicyBounds
from services.scheduler.policy.snapshots import BatchKey
from synerdiff.cards import Sampler
from synerdiff.jobs import JobRecord, JobState
from synerdiff.profiles import ItemCaps, Mechanisms, Profile
from synerdiff.requests import ImageFormat, ImageRequest, Priority
from synerdiff.skip_cfg import SkipCfgBudget
from tests.services.scheduler.simulated import straight_line_profile
from tests.services.scheduler.virtual_workers import VirtualUnet, VirtualVae

ROUNDS = PlanBook(solve_now=True)
WORKERS = st.sampled_from(("u0", "u1", "v0", "v1"))


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
                self.on(ProfileKnown(domain, BatchKey("emoji", width, 128), self.profile))

    def on(self, event: Event) -> None:
        self.engine.on(event, self.now_ms)

    def arrive(self, record: JobRecord) -> None:
        self.on(JobArrived(record))

    def attach(self, worker_id: str) -> None:
        if worker_id in self.unets:
            unet = self.unets[worker_id]
            unet.commands.clear()
            self.on(UnetAttached(unet.lane(), tuple(unet.resident_tasks())))
        else:
            vae = self.vaes[worker_id]
            vae.commands.clear()
            self.on(VaeAttached(vae.lane()))
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

    def report(self, worker_id: str, report: Report) -> None:
        self.now_ms += 1
        self.on(Reported(worker_id, report))

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
        self.on(ImageStored(f"{effect.job_id}/{effect.index}"))
        self.pump()
        return True

    def die(self, workers: Sequence[str]) -> None:
        """All of them at once; the engine has not heard of it."""
        for worker_id in workers:
            (self.unets.get(worker_id) or self.vaes[worker_id]).die()

    def lose(self, worker_id: str) -> None:
        """The engine hears that the stream to a worker has ended."""
        self.on(WorkerLost(worker_id))
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


def test_a_job_goes_from_waiting_to_finished_in_order() -> None:
    world = World()
    world.arrive(job("j", images=2))
    world.attach_all()
    world.settle()
    kinds = [type(effect) for effect in world.store if not hasattr(effect, "step")]
    assert kinds == [StartJob, MarkDecoding, FinishJob]
    assert world.stored == {("j", 0): 1, ("j", 1): 1}
    world.assert_empty()


def test_plans_run_ahead_by_two_and_no_further() -> None:
    world = World()
    world.arrive(job("j", steps=10))
    world.attach_all()
    world.act("u0")  # admit
    plans = [c.plan for c in world.unets["u0"].commands if isinstance(c, SendUnetPlan)]
    assert [[e.call for e in plan.items[0].entries] for plan in plans] == [[0], [1]]
    assert [plan.tick for plan in plans] == [1, 2]


def test_a_waiting_task_joins_at_the_next_step_and_a_full_batch_is_never_exceeded() -> None:
    world = World()
    world.arrive(job("a", steps=20))
    world.attach_all()
    world.act("u0")
    for name in "bcde":
        world.arrive(job(name, steps=20))
    world.pump()
    batches = []
    for _ in range(10):
        batches += [len(c.plan.items[0].entries) for c in world.unets["u0"].commands if isinstance(c, SendUnetPlan)]
        world.act("u0")
    assert max(batches) == 3
    assert len(world.unets["u0"].residents) == 4  # three run, one is prepared ahead


def test_sizes_share_a_tick_but_not_a_batch() -> None:
    world = World()
    world.arrive(job("a", steps=9))
    world.arrive(job("b", steps=9, width=256))
    world.attach_all()
    world.act("u0")
    world.act("u0")
    last = [c.plan for c in world.unets["u0"].commands if isinstance(c, SendUnetPlan)][-1]
    for _ in range(3):
        world.act("u0")
        last = [c.plan for c in world.unets["u0"].commands if isinstance(c, SendUnetPlan)][-1]
    assert [[e.task_id for e in item.entries] for item in last.items] == [["a/0"], ["b/0"]]


def test_priority_goes_first() -> None:
    world = World()
    for name in "abcd":
        world.arrive(job(name, priority=Priority.LOW, accepted_at_ms=1))
    world.arrive(job("urgent", priority=Priority.HIGH, accepted_at_ms=2))
    world.attach_all()
    assert next(iter(world.engine.holdings.unet["u0"].tasks)) == "urgent/0"


def test_work_spreads_over_workers() -> None:
    world = World(unets=2, domains=2)
    for name in "abcd":
        world.arrive(job(name))
    world.attach_all()
    for name in "efgh":
        world.arrive(job(name))
    world.pump()
    assert sorted(len(unet.commands) for unet in world.unets.values()) == [4, 4]


def test_a_domain_without_a_vae_worker_is_decoded_elsewhere() -> None:
    world = World(unets=2, vaes=1, domains=2)
    world.attach_all()
    for name in "abcdef":
        world.arrive(job(name))
    world.pump()
    world.settle()
    assert len(world.ended) == 6
    world.assert_empty()


def test_a_cancelled_job_frees_its_slots_at_once() -> None:
    world = World()
    world.arrive(job("j", images=3, steps=50))
    world.attach_all()
    for _ in range(8):
        world.act("u0")
    world.on(JobDropped("j"))
    world.pump()
    for _ in range(5):  # the two plans under way, and a cancellation each
        world.act("u0")
    assert not world.unets["u0"].residents
    world.settle()
    world.assert_empty()
    assert not world.ended


def test_a_deadline_fails_the_job_and_frees_its_slots() -> None:
    world = World()
    world.arrive(job("j", steps=50, deadline_ms=500, timeout_ms=500))
    world.attach_all()
    world.act("u0")
    world.engine.check_deadlines(501)
    world.pump()
    world.settle()
    failed = next(effect for effect in world.store if isinstance(effect, FailJob))
    assert (failed.code, failed.message) == (4, "timeout: the request's 0.5 s ran out")
    world.assert_empty()


def test_a_worker_without_room_is_no_failure() -> None:
    world = World()
    world.unets["u0"].slots = 1
    world.attach_all()
    world.engine.holdings.unet["u0"].slots = 4  # the engine believes in more room than there is
    for name in "abc":
        world.arrive(job(name))
    world.pump()
    admissions = 0
    for _ in range(30):
        admissions += isinstance(next(iter(world.unets["u0"].commands), None), Admit)
        world.act("u0")
    assert admissions == 3, "a worker that refuses is not asked again at once"
    world.unets["u0"].slots = 4
    world.engine.check_deadlines(world.now_ms)
    world.pump()
    world.settle()
    assert set(world.ended) == {"a", "b", "c"}
    assert not [effect for effect in world.store if isinstance(effect, FailJob)]


def test_a_worker_that_is_not_announced_gets_nothing_new_until_it_is_again() -> None:
    world = World()
    world.attach_all()
    world.arrive(job("a", steps=3))
    world.pump()
    for worker in ("u0", "v0"):
        world.on(WorkerAnnounced(worker, takes_new=False))
    world.arrive(job("b", steps=3))
    world.pump()
    world.settle()
    assert set(world.engine.holdings.unet["u0"].tasks) == {"a/0"}, "what it held went on; b waits"
    for worker in ("u0", "v0"):
        world.on(WorkerAnnounced(worker, takes_new=True))
    world.pump()
    world.settle()
    assert set(world.ended) == {"a", "b"}
    world.assert_empty()


def test_a_task_that_kills_every_worker_is_given_up() -> None:
    world = World(max_deaths=2)
    world.arrive(job("poison", steps=50))
    for _ in range(3):
        world.attach("u0")
        world.act("u0")
        world.unets["u0"].die()
        world.on(WorkerLost("u0"))
        world.pump()
    failed = next(effect for effect in world.store if isinstance(effect, FailJob))
    assert "lost 3 times" in failed.message


def test_a_new_leader_goes_on_where_the_tasks_stand() -> None:
    world = World()
    records = [job("a", steps=20), job("b", steps=20)]
    for record in records:
        world.arrive(record)
    world.attach_all()
    for _ in range(12):
        world.act("u0")
    stands = {task_id: r.next_call for task_id, r in world.unets["u0"].residents.items()}
    assert min(stands.values()) > 2
    world.new_leader()
    world.store.clear()
    world.arrive(records[0])  # b has been cancelled meanwhile
    world.attach_all()
    assert StartJob("a") in world.store, "its record says that the leader before could not write it"
    assert world.engine.holdings.tasks["a/0"].done_calls == stands["a/0"]
    world.act("u0")
    assert set(world.unets["u0"].residents) == {"a/0"}
    world.settle()
    assert world.ended == {"a": 1}
    world.assert_empty()


def test_a_job_whose_images_are_all_stored_needs_only_its_end() -> None:
    world = World()
    world.arrive(job("j", images=2, images_done=(0, 1), state=JobState.DECODING))
    world.pump()
    assert world.ended == {"j": 1}


@pytest.mark.parametrize("kind", ["unet", "vae"])
def test_a_stream_that_breaks_does_not_lose_what_the_worker_holds(kind: str) -> None:
    world = World()
    world.arrive(job("j", steps=6))
    world.attach_all()
    for _ in range(5):
        world.act("u0")
    before = world.unets["u0"].residents["j/0"].next_call
    worker = "u0" if kind == "unet" else "v0"
    world.on(WorkerLost(worker))
    world.attach(worker)
    assert world.engine.holdings.tasks["j/0"].done_calls >= before > 0 or kind == "vae"
    world.settle()
    assert world.ended == {"j": 1}
    world.assert_empty()


@pytest.mark.parametrize("heard", [("u0", "v0"), ("v0", "u0")])
@pytest.mark.parametrize("back", [("u0", "v0"), ("v0", "u0")])
def test_both_workers_of_a_domain_may_die_at_once_whatever_its_tasks_are_at(
    heard: tuple[str, str], back: tuple[str, str]
) -> None:
    """As clients of CUDA MPS do when one of them has a fatal fault. The leader hears of both before they are back."""
    met: set[Phase] = set()
    script = (["u0"] * 9 + ["v0"]) * 4
    for moment in range(0, len(script), 2):
        world = World()
        world.unets["u0"].slots = 12
        jobs = [job(f"j{n}", steps=1 + n % 3) for n in range(16)]
        for record in jobs:
            world.arrive(record)
        world.attach_all()
        for worker in script[:moment]:
            world.act(worker)
        met |= phases(world)
        world.die(heard)
        for worker in heard:
            world.lose(worker)
        assert phases(world) <= {Phase.WAITING, Phase.STORING}, "what has reached the leader is kept, the rest is anew"
        for worker in back:
            world.attach(worker)
            world.act(worker)
        world.settle()
        assert world.ended == {record.job_id: 1 for record in jobs}
        assert set(world.stored.values()) == {1}
        world.assert_empty()
    assert met == set(Phase) - {Phase.DONE}


def phases(world: World) -> set[Phase]:
    return {task.phase for task in world.engine.holdings.tasks.values()}


class AnyOrder(RuleBasedStateMachine):
    """Jobs, work, deaths, cancellations and leader changes in any order."""

    max_deaths = 10**6
    policy = "continuous"
    profile: Profile | None = None

    def __init__(self) -> None:
        super().__init__()
        self.world = World(2, 2, 2, self.max_deaths, self.policy, self.profile)
        self.records: dict[str, JobRecord] = {}
        self.dropped: set[str] = set()
        self.away: set[str] = set()
        self.world.attach_all()

    @rule(
        images=st.integers(1, 3),
        steps=st.integers(1, 5),
        width=st.sampled_from((128, 256)),
        priority=st.sampled_from(Priority),
    )
    def arrive(self, images: int, steps: int, width: int, priority: Priority) -> None:
        record = job(f"j{len(self.records)}", images=images, steps=steps, width=width, priority=priority)
        self.records[record.job_id] = record
        self.world.arrive(record)
        self.world.pump()

    @rule(worker=WORKERS, times=st.integers(1, 6))
    def work(self, worker: str, times: int) -> None:
        for _ in range(times if worker not in self.away else 0):
            self.world.act(worker)

    @rule()
    def write(self) -> None:
        self.world.write()

    @rule(lost=st.lists(WORKERS, min_size=1, unique=True), breaks=st.booleans(), data=st.data())
    def lose(self, lost: list[str], breaks: bool, data: st.DataObject) -> None:
        """Workers die at the same instant, or only their streams break; some stay away for a while.

        The leader hears of each death and of each return in any order, and who is back may work before it hears more.
        """
        if not breaks:
            self.world.die(lost)
        stay_away = data.draw(st.sets(st.sampled_from(lost)))
        for worker in data.draw(st.permutations(lost * 2)):
            if worker not in self.away:
                self.world.lose(worker)
                self.away.add(worker)
            elif worker not in stay_away:
                self.come_back(worker)
                self.work(worker, data.draw(st.integers(0, 2)))

    @rule(worker=WORKERS)
    def come_back(self, worker: str) -> None:
        if worker in self.away:
            self.away.remove(worker)
            self.world.attach(worker)

    @precondition(lambda self: self.records)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.records)))
        if not self.world.ended[job_id]:
            self.dropped.add(job_id)
        self.world.on(JobDropped(job_id))
        self.world.pump()

    @rule()
    def change_leader(self) -> None:
        world = self.world
        world.new_leader()
        for job_id, record in self.records.items():
            if not world.ended[job_id] and job_id not in self.dropped:
                done = tuple(index for job, index in world.stored if job == job_id)
                state = JobState.RUNNING
                world.arrive(JobRecord(job_id, state, record.request, 0, record.deadline_ms, False, images_done=done))
        world.attach_all()
        self.away.clear()

    @invariant()
    def slots_are_never_oversubscribed(self) -> None:
        for worker_id, lane in self.world.engine.holdings.unet.items():
            assert len(lane.tasks) <= lane.slots
            assert len(self.world.unets[worker_id].residents) <= self.world.unets[worker_id].slots

    @invariant()
    def nothing_ends_twice_or_is_stored_twice(self) -> None:
        assert all(count == 1 for count in self.world.ended.values())
        assert all(count == 1 for count in self.world.stored.values())

    @invariant()
    def every_task_is_where_its_phase_says(self) -> None:
        holdings = self.world.engine.holdings
        for task_id, task in holdings.tasks.items():
            assert (task_id in holdings.waiting) == (task.phase is Phase.WAITING)
            assert (task_id in holdings.ready) == (task.phase is Phase.READY_TO_DECODE)
            if task.phase in (Phase.PREPARING, Phase.RUNNING, Phase.READY_TO_DECODE):
                assert task_id in holdings.unet[task.unet_worker].tasks

    def teardown(self) -> None:
        for worker in sorted(self.away):
            self.come_back(worker)
        self.world.settle()
        for job_id, record in self.records.items():
            if job_id in self.dropped:
                continue
            assert self.world.ended[job_id] == 1, f"{job_id} never ended"
            failed = any(isinstance(e, FailJob) and e.job_id == job_id for e in self.world.store)
            assert not failed or self.max_deaths < 10**6
            assert failed or all(self.world.stored[job_id, index] == 1 for index in range(record.request.num_images))
        self.world.assert_empty()


class AnyOrderMortal(AnyOrder):
    """The same where tasks are given up at their second death: siblings of a failed task must not live on."""

    max_deaths = 1


class AnyOrderPlanned(AnyOrder):
    """The same with planned rounds: tasks are set aside, skip guidance, and decodes span items."""

    policy = "synerdiff"
    profile = replace(
        straight_line_profile(step_ms=1.5, caps=ItemCaps(3, 2), chunks=(1, 2)),
        skip_cfg=SkipCfgBudget("reuse", share=0.5, longest_run=1, head=1),
        mechanisms=Mechanisms(chunking=True),
    )


class AnyOrderOneByOne(AnyOrder):
    """The same with requests served one by one."""

    policy = "static"


TestAnyOrderOneByOne = AnyOrderOneByOne.TestCase
TestAnyOrderOneByOne.settings = settings(max_examples=20, stateful_step_count=30)
TestAnyOrderPlanned = AnyOrderPlanned.TestCase
TestAnyOrderPlanned.settings = settings(max_examples=40, stateful_step_count=40)
TestAnyOrderMortal = AnyOrderMortal.TestCase
TestAnyOrderMortal.settings = settings(max_examples=60, stateful_step_count=40)
TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40)
