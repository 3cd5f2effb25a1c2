"""A fault in what decides ends the leadership, or the one job that it is of: loudly, and never in a hang."""

import asyncio
import inspect
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

import pytest
from structlog.testing import capture_logs

from services.scheduler.engine.effects import SendUnetPlan
from services.scheduler.policy.snapshots import DomainSnapshot, TickPlan
from services.scheduler.telemetry.job_traces import JobTraces
from synerdiff.jobs import JobRecord
from synerdiff.stopping import cancel_and_wait
from tests.services.scheduler.virtual_pool import SIDE, VirtualPool, VirtualTimeLoop
from tests.services.scheduler.world import World, job

FAULTS, SEEDS = 1000, 4
# Generators are called, in this sense, to be closed as well, and nobody hears of what they raise then.
RESUMED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
FAULTY = ("engine", "policy", "planner", "telemetry", "profiles", "leading/observer", "leading/store", "leading/worker")


class Fault(Exception):
    """No code expects it."""


def test_a_domain_that_cannot_be_planned_does_not_keep_back_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(unets=2, vaes=2, domains=2).begin()
    world.arrive(*(job(name, steps=5) for name in "ab"))
    world.pump()
    plan = world.policy.plan

    def plan_or_fail(snapshot: DomainSnapshot) -> TickPlan:
        if snapshot.domain == "d0":
            raise Fault("injected")
        return plan(snapshot)

    monkeypatch.setattr(world.policy, "plan", plan_or_fail)
    for worker, unet in world.unets.items():
        for report in unet.act():
            world.report(worker, report)
    with pytest.raises(ExceptionGroup) as raised:
        world.pump()
    assert [type(fault) for fault in raised.value.exceptions] == [Fault]
    assert {e.worker_id for e in world.engine.take_effects() if isinstance(e, SendUnetPlan)} == {"u1"}


def path_of(filename: str) -> str:
    """The path of a source file below the scheduler's; empty for others."""
    _, found, path = filename.rpartition("/services/scheduler/")
    return path if found and "/tests/" not in filename else ""


class Injector:
    """Lets one call of a function of what decides raise: the one after `calls_left` others."""

    def __init__(self) -> None:
        self.calls_left = 0
        self.at = ""
        self._decides: dict[str, bool] = {}

    @contextmanager
    def armed(self, calls_left: int) -> Iterator[None]:
        self.calls_left, self.at = calls_left, ""
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(None)

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if code.co_flags & RESUMED:
            return
        decides = self._decides.get(code.co_filename)
        if decides is None:
            decides = self._decides[code.co_filename] = path_of(code.co_filename).startswith(FAULTY)
        if decides:
            self.calls_left -= 1
            if self.calls_left < 0 and not self.at:
                self.at = f"{path_of(code.co_filename)} {code.co_qualname}"
                raise Fault(self.at)  # the interpreter takes the tracer off by itself then


class Provoked:
    """A virtual pool under load, in which one call after the other raises."""

    def __init__(self, virtual: VirtualPool, seed: int, lines: Sequence[Mapping[str, object]]) -> None:
        self.virtual = virtual
        self.lines = lines
        self.chance = random.Random(seed)
        self.injector = Injector()
        self.unowned: list[dict[str, object]] = []
        self.outcomes: Counter[str] = Counter()
        self.jobs = 0

    async def run(self, faults: int) -> None:
        """Serve round after round, until so many calls have raised."""
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.unowned.append(context))
        self.serving = asyncio.create_task(self.virtual.pool.run())
        calls = await self.round(sys.maxsize)
        while self.outcomes.total() < faults:
            await self.round(self.chance.randrange(calls))
        await cancel_and_wait(self.serving)

    async def round(self, calls_left: int) -> int:
        """A few jobs to their ends, while the call after so many others raises. Returns how many calls there were."""
        store, token, failed = self.virtual.store, self.virtual.lock.token, len(self.virtual.store.reasons)
        self.told = len(self.lines)
        jobs = [self.job() for _ in range(self.chance.randint(1, 3))]
        with self.injector.armed(calls_left):
            for each in jobs:
                store.accept(each)
            await self.virtual.until(lambda: self.serving.done() or self.over(jobs, token, failed))
        process_ended = self.serving.done()
        if process_ended:  # its supervisor starts another
            assert isinstance(self.serving.exception(), Fault)
            self.serving = asyncio.create_task(self.virtual.pool.run())
            await self.virtual.until(lambda: self.over(jobs, token, failed))
        self.judge(jobs, token, failed, process_ended)
        return calls_left - self.injector.calls_left

    def job(self) -> JobRecord:
        self.jobs += 1
        images, steps = self.chance.randint(1, 2), self.chance.randint(1, 3)
        size = {"width": SIDE, "height": SIDE}
        return job(f"j{self.jobs}", images=images, steps=steps, **size)

    def over(self, jobs: Sequence[JobRecord], token: int, failed: int) -> bool:
        """Whether all has come to its end: the jobs, what the workers held, and what the fault has led to."""
        met = not self.injector.at or self.virtual.lock.token > token or len(self.virtual.store.reasons) > failed
        met = met or self.streams_given_up() > 0
        return met and self.virtual.quiet and all(self.virtual.store.ended[each.job_id] for each in jobs)

    def streams_given_up(self) -> int:
        """How many streams this round's fault has ended, whose worker is called again."""
        return sum(str(line["event"]).startswith("worker is given up") for line in self.lines[self.told :])

    def judge(self, jobs: Sequence[JobRecord], token: int, failed: int, process_ended: bool) -> None:
        store, at = self.virtual.store, self.injector.at
        assert all(store.ended[each.job_id] == 1 for each in jobs), at
        reasons = [store.reasons[each.job_id] for each in jobs if each.job_id in store.reasons]
        assert len(store.reasons) - failed == len(reasons) <= bool(at)
        assert all(reason.startswith("13: ") and "Fault" in reason for reason in reasons), reasons
        if at:
            leaderships, streams = self.virtual.lock.token - token, self.streams_given_up()
            assert leaderships + len(reasons) + streams == 1, f"{leaderships} leaderships, {streams}, {reasons} by {at}"
            kind = "job" if reasons else "stream" if streams else "process" if process_ended else "leadership"
            self.outcomes[kind] += 1


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_thousand_faults_anywhere_end_a_leadership_a_stream_or_one_job_each(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    with capture_logs() as lines, asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        provoked = Provoked(VirtualPool(monkeypatch), seed, lines)
        runner.run(provoked.run(FAULTS // SEEDS))
    assert provoked.unowned == []
    assert min(provoked.outcomes[kind] for kind in ("leadership", "job", "stream")) > 0, provoked.outcomes
    told = [line for line in lines if line["event"] == "a fault ends this leadership" and line["exc_info"]]
    assert len(told) == provoked.outcomes["leadership"]
    of_jobs = [line for line in lines if line["event"] in ("a job cannot be taken up", "an effect cannot be written")]
    assert [line["exc_info"] for line in of_jobs] == [True] * provoked.outcomes["job"]


@pytest.mark.parametrize(
    "method", ["read_pending", "read_new", "claim_stale", "gone", "start", "decoding", "store_image", "finish"]
)
def test_a_fault_in_what_is_asked_of_the_store_ends_a_leadership_or_one_job(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    virtual, raised = VirtualPool(monkeypatch), list[str]()
    works = getattr(virtual.store, method)

    async def raise_once(*arguments: object) -> object:
        if not raised:
            raised.append(method)
            raise Fault(method)
        return await works(*arguments)

    async def serve() -> None:
        serving, store = asyncio.create_task(virtual.pool.run()), virtual.store
        for name in ("a", "b"):
            store.accept(job(name, steps=200, width=SIDE, height=SIDE))
        await virtual.until(lambda: virtual.lock.token > 1 or bool(store.reasons))
        await virtual.until(lambda: store.ended == {"a": 1, "b": 1} and virtual.quiet)
        await cancel_and_wait(serving)

    monkeypatch.setattr(virtual.store, method, raise_once)
    with capture_logs() as lines, asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(serve())
    assert virtual.lock.token - 1 + len(virtual.store.reasons) == 1
    assert any(line.get("exc_info") for line in lines)


def test_a_fault_on_the_way_out_leaves_nothing_of_a_leadership_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual = VirtualPool(monkeypatch)

    def fail(_: JobTraces) -> None:
        raise Fault("on the way out")

    async def lead_twice() -> None:
        serving = asyncio.create_task(virtual.pool.run())
        await virtual.until(lambda: virtual.pool.leader is not None)
        await asyncio.sleep(1)
        tasks, leader = len(asyncio.all_tasks()), virtual.pool.leader
        assert leader is not None
        with monkeypatch.context() as patch:
            patch.setattr(JobTraces, "left", fail)
            leader.superseded()
            await virtual.until(lambda: virtual.lock.token == 2)
        await asyncio.sleep(1)
        assert len(asyncio.all_tasks()) == tasks
        await cancel_and_wait(serving)

    with capture_logs(), asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(lead_twice())
