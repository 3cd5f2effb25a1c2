"""The engine under random orders of all that can happen: every job ends once and nothing leaks."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.scheduler.engine.effects import FailJob
from services.scheduler.engine.events import JobDropped
from services.scheduler.engine.tasks import Phase
from synerdiff.jobs import JobRecord, JobState
from synerdiff.profiles import ItemCaps, Mechanisms, Profile
from synerdiff.requests import Priority
from synerdiff.skip_cfg import SkipCfgBudget
from tests.services.scheduler.simulated import straight_line_profile
from tests.services.scheduler.world import World, job

WORKERS = st.sampled_from(("u0", "u1", "v0", "v1"))


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
        if worker not in self.away:
            self.world.act(worker, times)

    @rule()
    def write(self) -> None:
        self.world.write()

    @rule(lost=st.lists(WORKERS, min_size=1, unique=True), breaks=st.booleans(), data=st.data())
    def lose(self, lost: list[str], breaks: bool, data: st.DataObject) -> None:
        """Workers die at once, or only their streams break; the leader hears of each death and return in any order."""
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
        self.world.settle_empty()
        for job_id, record in self.records.items():
            if job_id in self.dropped:
                continue
            assert self.world.ended[job_id] == 1, f"{job_id} never ended"
            failed = any(isinstance(e, FailJob) and e.job_id == job_id for e in self.world.store)
            assert not failed or self.max_deaths < 10**6
            assert failed or all(self.world.stored[job_id, index] == 1 for index in range(record.request.num_images))


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
