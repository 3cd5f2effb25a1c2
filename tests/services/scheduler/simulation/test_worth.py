"""The worth of the controller and of the order of urgency, simulated and small; docs/simulation.md has the whole."""

from dataclasses import replace
from statistics import mean

from services.scheduler.planner.plan_book import PlanBook
from services.scheduler.policy.policies import POLICIES, PolicySpec
from services.scheduler.policy.policy_spec import Urgency
from services.scheduler.simulation.simulated_workers import Overheads
from services.scheduler.simulation.simulation import SimulatedPool, simulate_spec
from services.scheduler.simulation.simulation_results import Summary
from services.scheduler.simulation.workloads import Mix, burst, poisson
from synerdiff.skip_cfg import SkipCfgBudget
from tests.services.scheduler.simulated import PAPER

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
