"""What a leader learns from reports, what operators see of it, and how its plans follow."""

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from services.scheduler.api.operations import planning_statuses, set_planning_gauges, worker_statuses
from services.scheduler.engine import events
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Phase, Task, UnetLaneState, VaeLaneState
from services.scheduler.engine.ticks import PlannedPart, TickLog
from services.scheduler.leading.leader import Leader, LeaderOptions
from services.scheduler.leading.observer import Observer
from services.scheduler.policy.controller import ThresholdController
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.policy_spec import POLICIES, Pace, PolicyBounds
from services.scheduler.policy.snapshots import DomainSnapshot
from services.scheduler.store.scripts import Lease
from services.scheduler.telemetry.metrics import PoolMetrics
from synerdiff.plans import ItemTiming, UnetTickDone, VaeTickDone
from synerdiff.stopping import cancel_and_wait
from tests.services.scheduler.redis_jobs import metric
from tests.services.scheduler.reports import KEY, planned, profile, timing
from tests.services.scheduler.virtual_pool import SIDE, VirtualPool, VirtualTimeLoop
from tests.services.scheduler.world import job
from tests.values import a_worker
from tests.values import spec as a_spec


class Reporter:
    """A domain of two workers, and an observer that hears their reports."""

    def __init__(self) -> None:
        self.holdings = Holdings(max_deaths=1)
        self.lane = UnetLaneState("u", "d", "m")
        self.holdings.unet["u"] = self.lane
        self.holdings.vae["v"] = VaeLaneState("v", "d", "m")
        self.holdings.profiles["d", KEY] = profile()
        self.ticks = TickLog()
        self.metrics = PoolMetrics.of_process()
        self.observer = Observer(self.holdings, self.ticks, self.metrics)
        self.tick = 0

    def unet(
        self, rows: int, ms: float, *, decodes: float = 0.0, task_ids: tuple[str, ...] = ("t",), ticks: int = 1
    ) -> None:
        """A UNet worker's reports of ticks of one item each."""
        for _ in range(ticks):
            self.tick += 1
            item = planned(1, rows, decodes, predicted_ms=self.predicted_ms(rows, decodes), skips=2)
            part = PlannedPart(task_ids, (item,), 0.8, KEY, in_step=True)
            self.observer.reported("u", "unet", UnetTickDone(self.tick, (timing(0, ms, rows),), (), ()), part)

    def vae(self, rows: int, ms: float, decodes: float) -> None:
        """The VAE worker's report of the same tick."""
        item = planned(1, rows, decodes, predicted_ms=self.predicted_ms(rows, decodes))
        part = PlannedPart(("x",), (item,), 0.8, KEY, in_step=True)
        self.observer.reported("v", "vae", VaeTickDone(self.tick, (timing(0, ms, 1),), (), ("x",)), part)

    def predicted_ms(self, rows: int, decodes: float) -> float:
        return self.holdings.profiles["d", KEY].latency_ms(rows, decodes)

    def task(self, task_id: str) -> None:
        self.lane.tasks[task_id] = Task(a_spec(task_id), "j", 0, KEY, Phase.RUNNING)


@pytest.fixture
def reporter() -> Reporter:
    return Reporter()


def test_both_sides_of_an_item_count_once_when_both_have_reported(reporter: Reporter) -> None:
    before = metric("item_predicted_ratio_count", kind="beside")
    reporter.unet(8, 100, decodes=1.0)
    assert metric("item_predicted_ratio_count", kind="beside") == before
    reporter.vae(8, 150, decodes=1.0)
    assert metric("item_predicted_ratio_count", kind="beside") == before + 1
    assert [r.kind for r in reporter.ticks.records()] == ["unet", "vae"]
    assert reporter.observer.thresholds == {"d": 0.8}


def test_a_profile_that_is_off_is_due_for_correction_and_then_predicts(reporter: Reporter) -> None:
    reporter.unet(8, 100.0, ticks=100)
    ((domain, key, correction),) = reporter.observer.due(now_s=10.0)
    scales = correction.log_scales()
    corrected = correction.corrected(scales)
    correction.adopt(corrected, scales, now_s=10.0)
    reporter.holdings.profiles[domain, key] = corrected
    assert reporter.predicted_ms(8, 0) == pytest.approx(100, rel=0.02)
    reporter.unet(8, 100.0, ticks=100)
    assert reporter.observer.due(now_s=1000.0) == []
    status = planning_statuses(reporter.holdings, reporter.observer)[0]
    assert (status.profile_digest, status.profile_corrected) == (profile().digest, True)
    assert status.profile_drift == pytest.approx(0.25, rel=0.1)


def test_another_profile_begins_anew_and_the_same_one_does_not(reporter: Reporter) -> None:
    reporter.unet(8, 100.0, ticks=100)
    learned = reporter.observer.corrections["d", KEY]
    reporter.holdings.profiles["d", KEY] = profile()
    reporter.unet(8, 100.0)
    assert reporter.observer.corrections["d", KEY] is learned
    reporter.holdings.profiles["d", KEY] = replace(profile(), made_at="2026-11-23T00:00:00Z")
    reporter.unet(8, 100.0)
    assert reporter.observer.corrections["d", KEY] is not learned
    del reporter.holdings.profiles["d", KEY]
    assert reporter.observer.due(now_s=1000.0) == []
    assert reporter.observer.corrections == {}


def test_tasks_left_out_of_a_tick_while_they_run_were_set_aside(reporter: Reporter) -> None:
    before = metric("set_aside_total", model="m")
    for task_id in ("a", "b", "c"):
        reporter.task(task_id)
    reporter.unet(4, 40, task_ids=("a", "b", "finished"))
    reporter.unet(4, 40, task_ids=("b", "c"))  # a made way for c
    reporter.unet(4, 40, task_ids=("b", "c"))
    reporter.unet(4, 40, task_ids=("a", "b"))  # c made way for a
    assert metric("set_aside_total", model="m") == before + 2


def test_skipped_steps_are_counted(reporter: Reporter) -> None:
    before = metric("skipped_steps_total", model="m")
    reporter.unet(4, 40)
    assert metric("skipped_steps_total", model="m") == before + 2


def test_a_report_of_a_worker_that_is_gone_or_of_a_plan_of_nobodys_teaches_nothing(reporter: Reporter) -> None:
    done = UnetTickDone(1, (ItemTiming(0, 1, 1),), (), ())
    reporter.observer.reported("u", "unet", done, None)
    assert len(reporter.ticks.records()) == 1
    del reporter.holdings.unet["u"]
    reporter.observer.reported("u", "unet", done, None)
    assert len(reporter.ticks.records()) == 1
    assert reporter.observer.corrections == {}


def test_operators_see_profiles_and_domains_without_one(reporter: Reporter) -> None:
    reporter.holdings.unet["w"] = UnetLaneState("w", "bare", "m")
    reporter.unet(8, 80.0)
    profiled, bare = planning_statuses(reporter.holdings, reporter.observer)
    assert (profiled.domain, profiled.model, profiled.width, profiled.threshold) == ("d", "m", 64, 0.8)
    assert (profiled.knee_rows, profiled.profile_origin) == (Pace.of(profile(), 0.8).rows, "measured")
    assert (profiled.profile_made_at, profiled.profile_corrected) == ("2026-11-22T00:00:00Z", False)
    assert (bare.domain, bare.profile_digest) == ("bare", "")


def test_gauges_show_threshold_drift_and_the_controllers_terms(reporter: Reporter) -> None:
    reporter.unet(8, 100.0, ticks=100)
    controller = ThresholdController()
    snapshot = DomainSnapshot(1000, "d", (), (), (), profiles={KEY: profile()})
    threshold = controller.threshold(snapshot, 0)
    status, state = planning_statuses(reporter.holdings, reporter.observer, controller)[0], controller.state("d")
    assert state
    assert (status.controller.threshold, status.controller.feed_forward) == (threshold, state.feed_forward)
    assert not planning_statuses(reporter.holdings, reporter.observer)[0].HasField("controller")
    set_planning_gauges(reporter.metrics, reporter.holdings, reporter.observer, controller)
    assert metric("threshold", domain="d") == 0.8
    assert metric("profile_drift", domain="d", model="m", size="64x64") == pytest.approx(0.25, rel=0.1)
    assert metric("controller", domain="d", term="threshold") == threshold
    reporter.holdings.unet.clear()
    reporter.holdings.profiles.clear()
    set_planning_gauges(reporter.metrics, reporter.holdings, reporter.observer, controller)
    assert REGISTRY.get_sample_value("synerdiff_threshold", {"domain": "d"}) is None
    assert REGISTRY.get_sample_value("synerdiff_controller", {"domain": "d", "term": "threshold"}) is None


# ---- a leader


NOBODY = cast(Any, None)


def leader() -> Leader:
    policy = ConfiguredPolicy(POLICIES["synerdiff"], PolicyBounds())
    made = Leader(Lease("default", 1), LeaderOptions(policy), NOBODY, NOBODY, TickLog())
    made.engine.on(events.UnetAttached(UnetLaneState("u", "d", "m", slots=8)), 0)
    made.engine.on(events.ProfileKnown("d", KEY, profile()), 0)
    return made


def report(leading: Leader, tick: int, ms: float) -> None:
    part = PlannedPart(("t",), (planned(1, 8, predicted_ms=80.0),), 1.0, KEY, in_step=True)
    leading.engine.holdings.unet["u"].plans[tick] = part
    leading.on(events.Reported("u", UnetTickDone(tick, (timing(0, ms, 8),), (), ())))


async def test_a_profile_that_is_off_is_replaced_and_one_that_is_right_is_not() -> None:
    slow, steady = leader(), leader()
    for tick in range(1, 101):
        report(slow, tick, 120.0)
        report(steady, tick, 80.0)
    for leading in (slow, steady):
        await leading.correct_profiles()
    assert 115 < slow.engine.holdings.profiles["d", KEY].latency_ms(8, 0) < 121
    assert steady.engine.holdings.profiles["d", KEY].digest == profile().digest
    assert slow.observer.corrections["d", KEY].original.digest == profile().digest


async def test_a_profile_that_is_taken_away_meanwhile_is_not_brought_back() -> None:
    leading = leader()
    for tick in range(1, 101):
        report(leading, tick, 120.0)
    correcting = asyncio.create_task(leading.correct_profiles())
    await asyncio.sleep(0)  # on its way to the other thread
    leading.on(events.ProfileUnknown("d", KEY))
    await correcting
    assert leading.engine.holdings.profiles == {}


def lost(kind: str) -> float:
    return metric("worker_losses_total", kind=kind)


def test_a_worker_that_goes_without_a_word_is_counted_and_one_that_drained_is_not() -> None:
    async def lose(*, draining: bool) -> None:
        leading = leader()
        leading.on(events.VaeAttached(VaeLaneState("v", "d", "m")))
        leading.on(events.WorkerAnnounced("v", takes_new=not draining))
        for worker_id in ("v", "unknown"):
            leading.on(events.WorkerLost(worker_id))

    before = lost("vae"), lost("unet")
    asyncio.run(lose(draining=False))
    assert (lost("vae"), lost("unet")) == (before[0] + 1, before[1])
    asyncio.run(lose(draining=True))
    assert (lost("vae"), lost("unet")) == (before[0] + 1, before[1])


async def test_workers_that_a_leaving_leader_lets_go_are_not_lost() -> None:
    leading, before = leader(), lost("unet")
    leading.ended.set()
    leading.on(events.WorkerLost("u"))
    assert lost("unet") == before


async def test_the_rows_of_a_workers_last_item_are_told() -> None:
    leading = leader()
    report(leading, 1, 80.0)
    record = a_worker(worker_id="u", domain="d")
    (status,) = worker_statuses([record], leading.engine.holdings)
    assert status.rows == 8


def test_what_is_known_of_a_domain_goes_and_comes_with_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual = VirtualPool(monkeypatch)
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(_lose_a_domain(virtual))


async def _lose_a_domain(virtual: VirtualPool) -> None:
    serving = asyncio.create_task(virtual.pool.run())
    await virtual.until(lambda: virtual.pool.leader is not None)
    leading = cast(Leader, virtual.pool.leader)
    everybody = list(virtual.domains.records)

    def known() -> set[str]:
        return {domain for domain, _ in leading.engine.holdings.profiles}

    async def serve(job_id: str) -> None:
        virtual.store.accept(job(job_id, images=8, steps=3, width=SIDE, height=SIDE))
        await virtual.until(lambda: bool(virtual.store.ended[job_id]))

    await virtual.until(lambda: known() == {"d0", "d1"})
    await serve("before")
    assert set(leading.observer.thresholds) == {"d0", "d1"}
    virtual.domains.lose("d1")
    await asyncio.sleep(0)
    assert known() == {"d0", "d1"}, "it is announced, and may be back at once"
    virtual.domains.records[:] = [record for record in everybody if record.domain == "d0"]
    await virtual.until(lambda: known() == {"d0"})
    assert set(leading.observer.thresholds) == {"d0"}
    virtual.domains.records[:] = everybody
    await virtual.until(lambda: known() == {"d0", "d1"})
    await serve("after")
    assert set(leading.observer.thresholds) == {"d0", "d1"}, "its workers have ignored no plan"
    assert virtual.pool.leader is leading
    await cancel_and_wait(serving)
