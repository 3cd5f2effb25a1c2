"""A short profile, made while others used the machine, against none at all: who is served better, by the simulation."""

from collections.abc import Callable
from itertools import product

import pytest

from services.scheduler.policy.policies import POLICIES
from services.scheduler.profiles.measuring.rounds import Probe, Run
from services.scheduler.profiles.measuring.samples import Samples
from services.scheduler.profiles.measuring.stages import SettingTried
from services.scheduler.simulation.simulation import SimulatedPool, simulate_spec
from services.scheduler.simulation.simulation_results import Summary
from services.scheduler.simulation.workloads import Arrival, Mix, burst, poisson
from synerdiff.profiles import KNEE_WITHIN, Cell, ItemCaps, Profile, Setting
from tests.services.scheduler.measured_profiles import SUBJECT
from tests.services.scheduler.noise import Noise, noisy
from tests.services.scheduler.probe_bench import Bench

Latency = Callable[[Probe], float]
MIX = Mix(steps=((8, 1.0),))
BUSY = Noise(slowest=2.5)
PROFILED_FOR_S = 15.0


def throughput_grows(probe: Probe) -> float:
    steps, decodes = 22 + 1.6 * probe.rows if probe.rows else 0.0, 11.0 * probe.decodes
    return (steps + decodes) * (0.9 if steps and decodes else 1)


def throughput_bends(probe: Probe) -> float:
    steps, decodes = max(40.0, 2.0 * probe.rows) if probe.rows else 0.0, 15.0 * probe.decodes
    return 1.1 * max(steps, decodes) if steps and decodes else steps + decodes


def batches_are_of_no_use(probe: Probe) -> float:
    return (2 + 10.0 * probe.rows if probe.rows else 0.0) + 8.0 * probe.decodes


def in_each_others_way(probe: Probe) -> float:
    steps, decodes = 20 + 3.0 * probe.rows if probe.rows else 0.0, 20.0 * probe.decodes
    return (steps + decodes) * (1.3 if steps and decodes else 1)


def as_it_is(quiet_ms: Latency) -> Profile:
    items = [Probe(rows, decodes, Setting()) for rows, decodes in product((0, 1, *range(2, 65, 2)), range(5))][1:]
    cells = tuple(Cell(probe.rows, probe.decodes, quiet_ms(probe), quiet_ms(probe)) for probe in items)
    return Profile(SUBJECT, cells, ItemCaps(32, 4), "now")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "quiet_ms",
    [throughput_grows, throughput_bends, batches_are_of_no_use, in_each_others_way],
    ids=lambda f: f.__name__,
)
async def test_a_short_profile_of_a_busy_machine_serves_no_worse_than_none(quiet_ms: Latency, seed: int) -> None:
    options = {"budget_s": PROFILED_FOR_S, "max_decodes": 4, "chunks": (1,), "fixed_shares": True}
    made = await Bench(item_ms=noisy(quiet_ms, BUSY, seed)).profile(**options)
    machine = as_it_is(quiet_ms)

    def served(arrivals: tuple[Arrival, ...]) -> tuple[Summary, Summary]:
        pools = SimulatedPool(machine, planned_by=made), SimulatedPool(machine, unprofiled=True)
        profiled, unprofiled = (simulate_spec(pool, POLICIES["synerdiff"], arrivals).summary for pool in pools)
        return profiled, unprofiled

    profiled, unprofiled = served(burst(32, MIX, seed=1))
    assert profiled.requests_per_s >= (1 - KNEE_WITHIN) * unprofiled.requests_per_s
    assert profiled.mean_s <= (1 + KNEE_WITHIN) * unprofiled.mean_s
    profiled, unprofiled = served(poisson(0.5 * MIX.capacity_per_s(machine), 24, MIX, seed=2))
    assert profiled.mean_s <= (1 + KNEE_WITHIN) * unprofiled.mean_s


def test_a_setting_that_is_no_faster_is_not_taken_for_one_that_is() -> None:
    items, default, other = [(16, 0), (2, 0)], Setting(1, 2, 0), Setting(1, 1, 0)

    def better(times_faster: float, seed: int) -> bool:
        samples, last, now_ms = Samples(), None, 0.0
        tried = SettingTried(samples, other, default, bound=0.02)
        item_ms = noisy(lambda p: throughput_grows(p) / (times_faster if p.setting == other else 1), BUSY, seed)
        while wanted := tried.wanted(items):
            for probe in wanted:
                ms = item_ms(probe, now_ms)
                now_ms += ms
                last = samples.add([Run(probe, ms, ms, 0.0)], last)
        return tried.better

    assert sum(better(1.0, seed) for seed in range(30)) <= 3
    assert all(better(1.3, seed) for seed in range(10))
