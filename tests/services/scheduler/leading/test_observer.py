"""What a leader learns from reports, and what operators see of it."""

from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from services.scheduler.api.operations import planning_statuses, set_planning_gauges
from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Phase, Task, UnetLaneState, VaeLaneState
from services.scheduler.engine.ticks import PlannedPart, TickLog
from services.scheduler.leading.observer import Observer
from services.scheduler.policy.controller import ThresholdController
from services.scheduler.policy.policy_spec import Pace
from services.scheduler.policy.snapshots import DomainSnapshot
from services.scheduler.telemetry.metrics import PoolMetrics
from synerdiff.plans import ItemTiming, UnetTickDone, VaeTickDone
from tests.services.scheduler.reports import KEY, planned, profile, timing
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

    def unet(self, rows: int, ms: float, *, decodes: float = 0.0, task_ids: tuple[str, ...] = ("t",)) -> None:
        """A UNet worker's report of a tick of one item."""
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
        spec = a_spec(task_id)
        self.lane.tasks[task_id] = Task(spec, "j", 0, KEY, Phase.RUNNING)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def reporter() -> Reporter:
    return Reporter()


def test_both_sides_of_an_item_count_once_when_both_have_reported(reporter: Reporter) -> None:
    before = metric("synerdiff_item_predicted_ratio_count", kind="beside")
    reporter.unet(8, 100, decodes=1.0)
    assert metric("synerdiff_item_predicted_ratio_count", kind="beside") == before
    reporter.vae(8, 150, decodes=1.0)
    assert metric("synerdiff_item_predicted_ratio_count", kind="beside") == before + 1
    assert [r.kind for r in reporter.ticks.records()] == ["unet", "vae"]
    assert reporter.observer.thresholds == {"d": 0.8}


def test_a_profile_that_is_off_is_due_for_correction_and_then_predicts(reporter: Reporter) -> None:
    for _ in range(100):
        reporter.unet(8, 100.0)
    ((domain, key, correction),) = reporter.observer.due(now_s=10.0)
    scales = correction.log_scales()
    corrected = correction.corrected(scales)
    correction.adopt(corrected, scales, now_s=10.0)
    reporter.holdings.profiles[domain, key] = corrected
    assert reporter.predicted_ms(8, 0) == pytest.approx(100, rel=0.02)
    for _ in range(100):
        reporter.unet(8, 100.0)
    assert reporter.observer.due(now_s=1000.0) == []
    status = planning_statuses(reporter.holdings, reporter.observer)[0]
    assert (status.profile_digest, status.profile_corrected) == (profile().digest, True)
    assert status.profile_drift == pytest.approx(0.25, rel=0.1)


def test_another_profile_begins_anew_and_the_same_one_does_not(reporter: Reporter) -> None:
    for _ in range(100):
        reporter.unet(8, 100.0)
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
    before = metric("synerdiff_set_aside_total", model="m")
    for task_id in ("a", "b", "c"):
        reporter.task(task_id)
    reporter.unet(4, 40, task_ids=("a", "b", "finished"))
    reporter.unet(4, 40, task_ids=("b", "c"))  # a made way for c
    reporter.unet(4, 40, task_ids=("b", "c"))
    reporter.unet(4, 40, task_ids=("a", "b"))  # c made way for a
    assert metric("synerdiff_set_aside_total", model="m") == before + 2


def test_skipped_steps_are_counted(reporter: Reporter) -> None:
    before = metric("synerdiff_skipped_steps_total", model="m")
    reporter.unet(4, 40)
    assert metric("synerdiff_skipped_steps_total", model="m") == before + 2


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
    for _ in range(100):
        reporter.unet(8, 100.0)
    controller = ThresholdController()
    snapshot = DomainSnapshot(1000, "d", (), (), (), profiles={KEY: profile()})
    threshold = controller.threshold(snapshot, 0)
    status, state = planning_statuses(reporter.holdings, reporter.observer, controller)[0], controller.state("d")
    assert state
    assert (status.controller.threshold, status.controller.feed_forward) == (threshold, state.feed_forward)
    assert not planning_statuses(reporter.holdings, reporter.observer)[0].HasField("controller")
    set_planning_gauges(reporter.metrics, reporter.holdings, reporter.observer, controller)
    assert metric("synerdiff_threshold", domain="d") == 0.8
    assert metric("synerdiff_profile_drift", domain="d", model="m", size="64x64") == pytest.approx(0.25, rel=0.1)
    assert metric("synerdiff_controller", domain="d", term="threshold") == threshold
    reporter.holdings.unet.clear()
    reporter.holdings.profiles.clear()
    set_planning_gauges(reporter.metrics, reporter.holdings, reporter.observer, controller)
    assert REGISTRY.get_sample_value("synerdiff_threshold", {"domain": "d"}) is None
    assert REGISTRY.get_sample_value("synerdiff_controller", {"domain": "d", "term": "threshold"}) is None
