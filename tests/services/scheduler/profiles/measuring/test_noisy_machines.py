"""Measured while others use the machine: short profiles against none at all, and what mechanisms are worth."""

import random
from collections.abc import Callable
from itertools import product
from math import inf

import pytest

from services.scheduler.policy.policy_spec import POLICIES
from services.scheduler.profiles.measuring import mechanism_tests
from services.scheduler.profiles.measuring.mechanism_tests import CONFIDENCE, LOOKS, paired
from services.scheduler.profiles.measuring.rounds import Probe, Run
from services.scheduler.profiles.measuring.samples import Samples
from services.scheduler.profiles.measuring.stages import SettingTried
from services.scheduler.simulation.simulation import SimulatedPool, simulate_spec
from services.scheduler.simulation.simulation_results import Summary
from services.scheduler.simulation.workloads import Arrival, Mix, burst, poisson
from synerdiff.profiles import KNEE_WITHIN, Cell, Evidence, ItemCaps, Mechanisms, Profile, Setting
from tests.services.scheduler.measured_profiles import SUBJECT, two_cores
from tests.services.scheduler.timed_pair import Bench, Noise, noisy

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


# ---- mechanisms leave their default where pairs surely say so, and only there


SEEDS = range(100)
SMALL = {"max_rows": 8, "max_decodes": 2}


async def outcome(with_it_ms: float, default: bool, seed: int, limit_s: float = 60.0) -> Evidence | None:
    """Of a test whose ways take so long and 100 ms on a quiet machine."""
    now_ms, item_ms = 0.0, noisy(lambda probe: float(probe.rows), Noise(), seed)

    def way(quiet_ms: float) -> mechanism_tests.Timed:
        async def ran() -> float:
            nonlocal now_ms
            ms = quiet_ms * item_ms(Probe(1, 0, Setting()), now_ms)
            now_ms += ms
            return ms

        return ran

    return await mechanism_tests.evidence_of(
        mechanism_tests.MechanismTest("it", way(with_it_ms), way(100.0), default), 0.02, limit_s
    )


async def taken(with_it_ms: float, default: bool) -> float:
    """How often it is on in the end."""
    found = [await outcome(with_it_ms, default, seed) for seed in SEEDS]
    return sum(each.taken for each in found if each) / len(found)


async def test_what_is_at_the_limit_stays_as_it_is() -> None:
    assert await taken(101.0, default=True) >= 0.92  # 97 %, less three deviations of that share of a hundred
    assert await taken(101.0, default=False) <= 0.08


async def test_what_makes_a_difference_is_found() -> None:
    assert await taken(110.0, default=True) <= 0.05
    assert await taken(90.0, default=False) >= 0.95
    assert await taken(90.0, default=True) == 1
    assert await taken(110.0, default=False) == 0


async def test_the_clearer_it_is_the_fewer_pairs_it_takes() -> None:
    clear, unclear = await outcome(130.0, True, seed=1), await outcome(100.0, True, seed=1)
    assert clear
    assert unclear
    assert clear.pairs < unclear.pairs
    assert clear.low < 1.3 < clear.high
    assert not clear.taken


async def test_without_the_time_for_it_nothing_is_said() -> None:
    assert await outcome(130.0, True, seed=1, limit_s=0.3) is None


async def test_side_by_side_goes_off_where_it_surely_costs_time() -> None:
    def in_each_others_way(probe: Probe, now_ms: float) -> float:
        return two_cores(probe) * (3 if probe.rows and probe.decodes else 1)

    made = await Bench(item_ms=in_each_others_way).profile(**SMALL)
    assert not made.mechanisms.beside
    (evidence,) = [found for found in made.evidence if found.choice == mechanism_tests.BESIDE]
    assert evidence.low > 1
    assert (await Bench().profile(**SMALL)).mechanisms.beside


async def test_plans_run_ahead_unless_waiting_costs_next_to_nothing() -> None:
    assert (await Bench(plan_ms=2.0).profile(**SMALL)).mechanisms.plan_ahead == 2
    near = await Bench(plan_ms=0.05).profile(**SMALL)
    assert near.mechanisms.plan_ahead == 1
    (evidence,) = [found for found in near.evidence if found.choice == mechanism_tests.PLAN_AHEAD]
    assert 1 < evidence.ratio < 1.01


async def test_decodes_are_cut_where_that_surely_saves_time() -> None:
    def long_decodes(faster: float) -> Bench:
        """In bands a decode beside steps takes its part of the time, over `faster`."""

        def item_ms(probe: Probe, now_ms: float) -> float:
            decode_ms = 200.0 * probe.decodes / (1 if probe.setting.chunks == 1 else probe.setting.chunks * faster)
            return max(20 + 2.0 * probe.rows if probe.rows else 0.0, decode_ms)

        return Bench(item_ms=item_ms)

    assert (await long_decodes(1.5).profile(max_decodes=1, max_rows=8, chunks=(2,))).mechanisms.chunking
    assert not (await long_decodes(0.5).profile(max_decodes=1, max_rows=8, chunks=(2,))).mechanisms.chunking


async def test_bands_stay_off_on_a_gpu_that_they_make_slower() -> None:
    """As where memory bandwidth is the limit: each band gathers its rows once more. Times of a made-up GPU."""

    def item_ms(probe: Probe, now_ms: float) -> float:
        steps_ms = 10.0 + 1.0 * probe.rows if probe.rows else 0.0
        bands_cost = 1.3 if probe.setting.chunks > 1 else 1.0
        return steps_ms + 60.0 * probe.decodes / probe.setting.chunks * bands_cost

    made = await Bench(item_ms=item_ms, threads=0).profile(max_decodes=1, max_rows=8, chunks=(2, 4))
    assert {cell.setting.chunks for cell in made.cells} == {1, 2, 4}
    tried = [found for found in made.evidence if found.choice.startswith(mechanism_tests.CHUNKING)]
    assert len(tried) == 2
    assert all(found.low > 1 and not found.taken for found in tried)
    assert not made.mechanisms.chunking


async def test_without_time_for_tests_all_is_as_by_default() -> None:
    made = await Bench(item_ms=lambda probe, now_ms: 1000 * two_cores(probe)).profile(budget_s=1.0, **SMALL)
    assert made.mechanisms == Mechanisms()
    assert made.evidence == ()
    assert any("the time was over" in note for note in made.notes)


def test_too_few_pairs_say_nothing() -> None:
    found = paired([1.0, 1.1, 0.9])
    assert (found.low, found.high, found.pairs) == (0.0, inf, 3)
    assert found.ratio == pytest.approx(1.0)
    assert paired([1.0] * LOOKS[0]).high < inf


def test_the_interval_is_between_pairs_and_narrows() -> None:
    ratios = [0.90, 0.95, 0.97, 1.0, 1.0, 1.01, 1.3]
    assert (paired(ratios).low, paired(ratios).high) == (0.90, 1.3)
    more = paired(ratios * 4)
    assert 0.90 < more.low <= 1.0 <= more.high < 1.3


def test_wild_pairs_count_as_one_each() -> None:
    steady = [0.98 + 0.001 * k for k in range(14)]
    assert paired([*steady[:-1], 1e6]).high < 1


@pytest.mark.parametrize("count", [*LOOKS, 50])
def test_it_misses_the_median_no_more_often_than_it_says(count: int) -> None:
    source = random.Random(count)
    skewed = [[source.expovariate(0.6931471805599453) for _ in range(count)] for _ in range(2000)]  # the median is 1
    missed = sum(not found.low <= 1 <= found.high for found in map(paired, skewed)) / len(skewed)
    assert missed <= 1 - CONFIDENCE + 0.01
