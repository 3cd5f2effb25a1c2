"""The simulation: deterministic, nothing is lost, its times are the profile's; and its workloads."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.controller import ControllerSettings
from services.scheduler.policy.policies import ConfiguredPolicy
from services.scheduler.policy.policy_spec import POLICIES, PolicyBounds, PolicySpec, Urgency
from services.scheduler.policy.snapshots import Admission, DomainSnapshot, Item, PoolSnapshot, TickPlan
from services.scheduler.simulation.simulated_device import Overheads
from services.scheduler.simulation.simulation import SimulatedPool, simulate, simulate_spec
from services.scheduler.simulation.simulation_results import Summary, most_within
from services.scheduler.simulation.workloads import Arrival, Mix, burst, from_file, poisson
from synerdiff.errors import InvalidRequest
from synerdiff.profiles import ItemCaps, Profile
from synerdiff.requests import Priority
from synerdiff.skip_cfg import SkipCfgBudget
from tests.services.scheduler.simulated import PAPER, PAPER_SERIAL, straight_line_profile

CONTINUOUS = ConfiguredPolicy(POLICIES["continuous"], PolicyBounds(unet_batch=3, vae_batch=2, prepare_ahead=2))
NONE = Overheads(prepare_ms=0, store_ms=0, report_ms=0)
MIXED = Mix(steps=((8, 0.5), (20, 0.5)), guided_share=0.8, priorities=((Priority.HIGH, 0.2), (Priority.NORMAL, 0.8)))


def test_one_request_takes_what_the_profile_says() -> None:
    overheads = Overheads(slots=4, prepare_ms=7, store_ms=3, report_ms=1)
    pool = SimulatedPool(straight_line_profile(), overheads=overheads)
    outcome = simulate(pool, CONTINUOUS, [Arrival(at_ms=100.0, steps=6)]).outcomes[0]
    # Prepared, six calls of two rows without a pause since plans run ahead, the last report, the decode, its report,
    # the image stored.
    assert outcome.latency_ms == pytest.approx(7 + 6 * 20 + 1 + 20 + 1 + 3)
    assert outcome.decode_ms == pytest.approx(20 + 1)


def test_an_unguided_request_costs_one_row_a_call() -> None:
    pool = SimulatedPool(straight_line_profile(), overheads=NONE)
    outcome = simulate(pool, CONTINUOUS, [Arrival(at_ms=0.0, steps=6, guided=False)]).outcomes[0]
    assert outcome.latency_ms == pytest.approx(6 * 15 + 20)


def test_lanes_that_run_free_take_the_time_beside_each_other_only_while_both_are_busy() -> None:
    pool = SimulatedPool(straight_line_profile(), overheads=NONE)
    short, long = simulate(pool, CONTINUOUS, [Arrival(0.0, steps=1), Arrival(0.0, steps=4)]).outcomes
    # A call of four rows (30 ms) for both. Then the decode stands beside calls of two rows that take 20 ms alone:
    # L(2, 1) = 40 ms, in which both sides get through exactly one. Two calls are left to run alone.
    assert short.latency_ms == pytest.approx(30 + 40)
    assert long.latency_ms == pytest.approx(30 + 40 + 2 * 20 + 20)


def test_nothing_is_lost_and_the_same_seed_gives_the_same_outcome() -> None:
    arrivals = poisson(4.0, 80, MIXED, seed=3)
    pool = SimulatedPool(PAPER, domains=2)
    first, second = (simulate(pool, CONTINUOUS, arrivals) for _ in range(2))
    assert first == second
    assert len(first.outcomes) == 80
    assert not any(outcome.failed for outcome in first.outcomes)
    assert all(outcome.arrived_ms <= outcome.started_ms < outcome.ended_ms for outcome in first.outcomes)
    assert poisson(4.0, 80, MIXED, seed=4) != arrivals


def test_requests_out_of_time_fail_at_their_deadline_and_the_others_are_served() -> None:
    timed = Mix(steps=((20, 1.0),), timed_share=0.5, timeout_s=3.0)
    arrivals = burst(150, timed, seed=1)
    result = simulate(SimulatedPool(PAPER), CONTINUOUS, arrivals)
    failed = [outcome for outcome in result.outcomes if outcome.failed]
    assert failed
    assert all(outcome.latency_ms == 3000 for outcome in failed)
    untimed = [outcome for arrival, outcome in zip(arrivals, result.outcomes, strict=True) if not arrival.timeout_s]
    assert not any(outcome.failed for outcome in untimed)
    assert result.summary.failed == len(failed)


def test_an_image_is_a_task_of_its_own() -> None:
    pool = SimulatedPool(straight_line_profile(), overheads=NONE)
    result = simulate(pool, CONTINUOUS, [Arrival(0.0, steps=5, images=2)])
    # Both images in calls of four rows, then both decoded at once.
    assert result.outcomes[0].latency_ms == pytest.approx(5 * 30 + 2 * 20)


def test_the_queue_is_read_by_priority() -> None:
    arrivals = [replace(arrival, priority=Priority.LOW) for arrival in burst(150, Mix(), seed=1)]
    arrivals.append(Arrival(at_ms=1.0, priority=Priority.HIGH))
    outcomes = simulate(SimulatedPool(PAPER), CONTINUOUS, arrivals).outcomes
    assert outcomes[-1].ended_ms < sorted(outcome.ended_ms for outcome in outcomes)[20]


def test_throughput_at_saturation_is_the_capacity() -> None:
    profile = straight_line_profile(caps=ItemCaps(3, 2))
    mix = Mix(steps=((20, 1.0),))
    result = simulate(SimulatedPool(profile), CONTINUOUS, burst(120, mix, seed=1))
    # Three tasks in 40 ms a call, and 20 ms a decode.
    assert mix.capacity_per_s(profile) == pytest.approx(1000 / (20 * 40 / 3 + 20))
    assert result.summary.requests_per_s == pytest.approx(mix.capacity_per_s(profile), rel=0.03)
    assert result.summary.busy_share == pytest.approx(1.0, abs=0.01)


class _Idle(ConfiguredPolicy):
    """A policy that does nothing."""

    def __init__(self) -> None:
        super().__init__(CONTINUOUS.spec, CONTINUOUS.bounds)

    def admit(self, snapshot: PoolSnapshot) -> tuple[Admission, ...]:
        return ()

    def plan(self, snapshot: DomainSnapshot) -> TickPlan:
        return TickPlan(())

    def plan_ahead(self, profile: Profile | None) -> int:
        return 1


class _InStep(_Idle):
    """Continuous, in step: the UNet part, then the decodes, then nothing beside each other."""

    def admit(self, snapshot: PoolSnapshot) -> tuple[Admission, ...]:
        return CONTINUOUS.admit(snapshot)

    def plan(self, snapshot: DomainSnapshot) -> TickPlan:
        items = CONTINUOUS.plan(snapshot).items
        apart = [Item(i.unet, None) for i in items if i.unet] + [Item(None, i.vae) for i in items if i.vae]
        return TickPlan(tuple(apart), in_step=True)


def test_items_in_step_wait_for_each_other() -> None:
    pool = SimulatedPool(straight_line_profile(), overheads=NONE)
    short, long = simulate(pool, _InStep(), [Arrival(0.0, steps=1), Arrival(0.0, steps=4)]).outcomes
    # A call of both; then a call of one, after it the decode of the other, and only then the next call.
    assert short.latency_ms == pytest.approx(30 + 20 + 20)
    assert long.latency_ms == pytest.approx(30 + 20 + 20 + 2 * 20 + 20)


def test_a_burst_moves_the_threshold_up_and_back() -> None:
    arrivals = [Arrival(0.0), *(Arrival(3000.0) for _ in range(30)), Arrival(20_000.0)]
    result = simulate_spec(SimulatedPool(PAPER), POLICIES["synerdiff"], arrivals)
    history = [switch.threshold for switch in result.switches]
    lowest = ControllerSettings().lowest
    assert history[0] == lowest
    assert max(history) == 1.0
    assert history[-1] == lowest
    assert result.summary.switches_per_s == 1


def test_plans_of_one_simulation_serve_the_next() -> None:
    plans = PlanBook(solve_now=True)
    arrivals = burst(8, Mix(steps=((4, 1.0),)), seed=0)
    fresh, first, second = (
        simulate_spec(SimulatedPool(PAPER), POLICIES["synerdiff"], arrivals, plans=book)
        for book in (None, plans, plans)
    )
    assert len(plans) > 0
    assert fresh == first == second


def test_a_constant_threshold_is_kept() -> None:
    spec = replace(POLICIES["synerdiff"], controller=False, threshold=0.9)
    result = simulate_spec(SimulatedPool(PAPER), spec, burst(6, Mix(steps=((4, 1.0),)), seed=0))
    assert [switch.threshold for switch in result.switches] == [0.9]
    assert result.summary.mean_threshold == pytest.approx(0.9)


def test_a_policy_that_serves_nobody_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="left 3 requests"):
        simulate(SimulatedPool(PAPER), _Idle(), burst(3, Mix(), seed=0))


def test_most_within_counts_a_moment_at_the_end_of_the_window_to_the_next() -> None:
    assert most_within([0.0, 1000.0, 2000.0], 1000.0) == 1
    assert most_within([0.0, 999.0, 1001.0], 1000.0) == 2
    assert most_within([], 1000.0) == 0


GIVEN_MS = {(2, 1): 46.3, (4, 0): 44.2, (4, 2): 87.4, (6, 2): 99.4, (16, 6): 262.6}  # by rows and decodes


@pytest.mark.parametrize("profile", [PAPER, PAPER_SERIAL], ids=["paper-table", "paper-table-serial"])
def test_every_number_the_paper_gives_is_there_as_given_and_the_rest_fits(profile: Profile) -> None:
    assert {(c.rows, c.decodes): c.median_ms for c in profile.cells if c.origin == "given"} == GIVEN_MS
    assert {c.origin for c in profile.cells if not c.rows} == {"assumed"}
    for rows, unet_ms in ((2, 24.7), (4, 44.2), (6, 56.2), (16, 133.0)):
        for decodes in (0, 1, 2, 3, 6):
            assert profile.latency_ms(rows, decodes) == pytest.approx(unet_ms + 21.6 * decodes)
    assert profile.latency_ms(5, 2) == pytest.approx((44.2 + 56.2) / 2 + 43.2)


def test_a_decode_alone_is_what_the_two_differ_in() -> None:
    assert PAPER.latency_ms(0, 2) == pytest.approx(1.3 * 43.2)
    assert PAPER_SERIAL.latency_ms(0, 2) == pytest.approx(43.2)


SYNERDIFF = POLICIES["synerdiff"]
PLANS = PlanBook(solve_now=True)


def test_no_constant_is_better_by_more_than_a_twentieth_when_the_device_is_nearly_full() -> None:
    mix = Mix(steps=((8, 1.0),))
    arrivals = poisson(0.95 * mix.capacity_per_s(PAPER), 150, mix, seed=0)

    def served(spec: PolicySpec) -> Summary:
        return simulate_spec(SimulatedPool(PAPER), spec, arrivals, plans=PLANS).summary

    low, high = (served(replace(SYNERDIFF, controller=False, threshold=t)) for t in (0.5, 1.0))
    controlled = served(SYNERDIFF)
    assert controlled.mean_s < 1.05 * min(low.mean_s, high.mean_s)
    assert low.mean_s > 1.03 * high.mean_s
    assert 0.5 < controlled.mean_threshold <= 1.0
    assert controlled.switches_per_s <= 1


def test_least_work_first_makes_the_mean_small_and_delays_nobody_long() -> None:
    mix = Mix(steps=((8, 0.5), (50, 0.5)))
    arrivals = poisson(0.9 * mix.capacity_per_s(PAPER), 150, mix, seed=3)
    urgency = replace(SYNERDIFF, urgency=Urgency(tail_factor=1e6))  # without the bound on its P99
    ours, fifo = (
        [outcome.latency_ms for outcome in simulate_spec(SimulatedPool(PAPER), spec, arrivals, plans=PLANS).outcomes]
        for spec in (urgency, replace(urgency, order="fifo"))
    )
    later = [one / other for one, other in zip(ours, fifo, strict=True)]
    assert mean(ours) < 0.8 * mean(fifo)
    assert 1 < max(later) <= 3


def test_a_burst_is_served_sooner_than_by_processor_sharing_and_by_continuous_at_the_knee() -> None:
    arrivals = burst(64, Mix(steps=((8, 1.0),)), seed=0)

    def served(spec: PolicySpec, budget: SkipCfgBudget | None = None) -> Summary:
        pool = SimulatedPool(replace(PAPER, skip_cfg=budget), overheads=Overheads(slots=64))
        return simulate_spec(pool, spec, arrivals, plans=PLANS).summary

    full, sharing = served(SYNERDIFF), served(replace(SYNERDIFF, order="sharing"))
    at_knee = served(replace(POLICIES["continuous"], knee=True))
    skipping = served(SYNERDIFF, SkipCfgBudget("extrapolate:0.5", share=0.5, longest_run=1))
    assert full.mean_s <= 0.65 * sharing.mean_s
    assert full.mean_s < 1.03 * at_knee.mean_s
    assert skipping.mean_s <= 0.95 * at_knee.mean_s
    assert skipping.requests_per_s >= at_knee.requests_per_s


# ---- workloads


def test_poisson_arrivals_come_at_the_rate_with_the_mix() -> None:
    mix = Mix(steps=((8, 0.25), (50, 0.75)), guided_share=0.6, timed_share=0.1, timeout_s=9.0)
    arrivals = poisson(5.0, 4000, mix, seed=1)
    assert arrivals[-1].at_ms / 1000 == pytest.approx(4000 / 5, rel=0.05)
    assert [a.at_ms for a in arrivals] == sorted(a.at_ms for a in arrivals)
    assert sum(a.steps == 8 for a in arrivals) / 4000 == pytest.approx(0.25, abs=0.03)
    assert sum(a.guided for a in arrivals) / 4000 == pytest.approx(0.6, abs=0.03)
    assert sum(a.timeout_s == 9.0 for a in arrivals) / 4000 == pytest.approx(0.1, abs=0.02)


def test_a_burst_comes_at_once() -> None:
    assert {arrival.at_ms for arrival in burst(64, Mix(), seed=0)} == {0.0}


def test_capacity_is_what_the_best_item_serves() -> None:
    # Three tasks in 56.2 ms on the one, eight in 133 on the other; 21.6 ms for a decode: beside a call, or alone.
    for profile, row_ms in ((PAPER, 56.2 / 6), (PAPER_SERIAL, 133.0 / 16)):
        assert Mix().capacity_per_s(profile) == pytest.approx(1000 / (40 * row_ms + 21.6), rel=1e-3)
        unguided = Mix(guided_share=0.0).capacity_per_s(profile)
        assert unguided == pytest.approx(1000 / (20 * row_ms + 21.6), rel=1e-3)


def test_arrivals_are_read_from_csv_and_json_lines(tmp_path: Path) -> None:
    table, lines = tmp_path / "a.csv", tmp_path / "a.jsonl"
    table.write_text("at_ms,steps,guided,priority,timeout_s\n20,8,false,high,3.5\n10,50,1,2,0\n")
    lines.write_text(
        '{"at_ms": 10, "steps": 50}\n{"at_ms": 20, "steps": 8, "guided": false, "priority": 1, "timeout_s": 3.5}\n'
    )
    expected = (Arrival(10.0, 50), Arrival(20.0, 8, guided=False, priority=Priority.HIGH, timeout_s=3.5))
    assert from_file(table) == expected
    assert from_file(lines) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("at_ms,steps\n1,zero\n", "a.csv:1 steps: 'zero'"),
        ("at_ms,steps\n1,2\n3,0\n", "a.csv:2 steps: 0; must be over 0"),
        ("at_ms,priority\n1,urgent\n", "a.csv:1 priority: 'urgent'"),
        ("at_ms,step\n1,20\n", "a.csv:1: step; the fields are at_ms, steps"),
        ("steps\n20\n", "a.csv:1: at_ms is missing"),
        ("at_ms\n-1\n", "a.csv:1 at_ms: -1.0; must be at least 0"),
        ("at_ms\n", "no requests"),
    ],
)
def test_a_bad_file_is_refused_by_line_and_field(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=problem):
        from_file(path)


@pytest.mark.parametrize("text", ["not json\n", "[1]\n"])
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=r"a\.jsonl:1"):
        from_file(path)
