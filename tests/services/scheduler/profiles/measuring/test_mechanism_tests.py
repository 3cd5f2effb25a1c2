"""A mechanism leaves its default where pairs surely say so, and only there: on a machine whose speed swings."""

import random
from math import inf

import pytest

from services.scheduler.profiles.measuring import mechanism_tests
from services.scheduler.profiles.measuring.mechanism_tests import CONFIDENCE, LOOKS, paired
from services.scheduler.profiles.measuring.rounds import Probe
from synerdiff.profiles import Evidence, Mechanisms, Setting
from tests.services.scheduler.measured_profiles import two_cores
from tests.services.scheduler.noise import Noise, noisy
from tests.services.scheduler.probe_bench import Bench

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
