"""The way through a profile on latency functions that are known; times from neighbours alone where speed swings."""

import math
import random
from collections.abc import Callable
from itertools import pairwise
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.profiles.measuring.course import ProfileCourse
from services.scheduler.profiles.measuring.findings import with_caps
from services.scheduler.profiles.measuring.rounds import Extent, Probe, Run, extent_for
from services.scheduler.profiles.measuring.samples import Curve, FloatArray, RelativeTimes, relative_times, rising
from synerdiff.profiles import ItemCaps, Profile, ProfileSubject, Setting

Latency = Callable[[Probe], float]
SUBJECT = ProfileSubject("m", "d", "cpu", "float32", (4, 8, 8), "2+2")
ONE = Extent(64, 6)


def affine(probe: Probe) -> float:
    return (22.0 if probe.rows else 0) + 1.6 * probe.rows + 11.0 * probe.decodes


def flat_then_linear(probe: Probe) -> float:
    return max(40.0 if probe.rows else 0, 2.0 * probe.rows) + 11.0 * probe.decodes


def staircase(probe: Probe) -> float:
    return 5.0 + 9.0 * math.ceil(probe.rows / 8) + 7.0 * math.ceil(probe.decodes / 2)


def no_use(probe: Probe) -> float:
    return 10.0 * probe.rows + 8.0 * probe.decodes


def run(course: ProfileCourse, latency: Latency, until: Callable[[], bool] = lambda: False) -> list[tuple[Probe, ...]]:
    """The sweeps asked for, each taking as long as its items."""
    asked: list[tuple[Probe, ...]] = []
    while not until() and (sweep := course.next()) is not None:
        asked.append(sweep)
        assert len(asked) < 2000
        course.measured([ran(probe, latency(probe)) for probe in sweep], sum(map(latency, sweep)) / 1000)
    return asked


def ran(probe: Probe, ms: float) -> Run:
    return Run(probe, ms, ms if probe.rows else 0.0, ms if probe.decodes else 0.0)


def profile_of(course: ProfileCourse) -> Profile:
    extent = course.stages.extent
    caps = ItemCaps(max(1, extent.max_rows // 2), extent.max_decodes)
    return with_caps(Profile(SUBJECT, course.stages.cells(), caps, "now"), slots=64)


def throughput_at_knee(profile: Profile, latency: Latency, max_rows: int) -> float:
    """Relative to the best there is."""

    def throughput(rows: int) -> float:
        return rows / latency(Probe(rows, 0, Setting()))

    return throughput(profile.knee_rows()) / max(throughput(rows) for rows in range(2, max_rows + 1, 2))


@pytest.mark.parametrize("latency", [affine, flat_then_linear, staircase, no_use])
def test_the_knee_is_where_throughput_bends(latency: Latency) -> None:
    course = ProfileCourse(ONE)
    run(course, latency)
    profile = profile_of(course)
    assert throughput_at_knee(profile, latency, 64) >= 0.93
    knee = course.stages.curve().knee(0.05)
    rows = [cell.rows for cell in profile.cells if not cell.decodes]
    below, above = max([0, *(r for r in rows if r < knee.rows)]), min(r for r in rows if r >= knee.rows)
    assert above - below <= max(4, knee.rows / 6)


def test_the_ladder_ends_where_longer_batches_bring_nothing() -> None:
    course = ProfileCourse(ONE)
    asked = run(course, no_use)
    assert max(probe.rows for sweep in asked for probe in sweep) == 8


def test_what_is_essential_comes_first_and_is_enough_to_plan_by() -> None:
    course = ProfileCourse(ONE)
    asked = run(course, affine, until=lambda: course.ready)
    assert len(asked) <= 25
    profile = profile_of(course)
    assert throughput_at_knee(profile, affine, 64) >= 0.93
    assert profile.latency_ms(0, 2) == pytest.approx(22, rel=0.02)
    assert profile.latency_ms(32, 2) == pytest.approx(affine(Probe(32, 2, Setting())), rel=0.05)
    first = [probe for sweep in asked[:4] for probe in sweep]
    assert all(probe.rows and not probe.decodes for probe in first)


def test_a_budget_of_nothing_still_measures_what_is_essential() -> None:
    course = ProfileCourse(ONE, budget_s=0)
    run(course, affine)
    assert course.ready
    assert profile_of(course).latency_ms(16, 1) > 0


def test_a_spent_budget_stops_it_with_what_is_whole() -> None:
    long, short = ProfileCourse(ONE), ProfileCourse(ONE, budget_s=15)
    run(long, affine)
    run(short, affine)
    assert short.spent_s == pytest.approx(15, abs=2)
    assert short.seconds_left == 0
    assert short.runs < long.runs
    profile_of(short)


@given(
    base=st.floats(0.5, 60),
    bend=st.integers(1, 70),
    per_row=st.floats(0.1, 20),
    max_rows=st.integers(1, 32).map(lambda tasks: 2 * tasks),
    max_decodes=st.integers(1, 8),
)
@settings(max_examples=15)
def test_it_ends_with_whole_grids_and_a_knee(
    base: float, bend: int, per_row: float, max_rows: int, max_decodes: int
) -> None:
    def latency(probe: Probe) -> float:
        steps = base + per_row * max(probe.rows, bend) if probe.rows else 0.0
        return steps + 3.0 * math.pow(probe.decodes, 1.1)

    course = ProfileCourse(Extent(max_rows, max_decodes))
    run(course, latency)
    profile = profile_of(course)  # refuses grids that are not rectangular
    assert throughput_at_knee(profile, latency, max_rows) >= 0.90
    assert profile.caps.rows <= max_rows
    assert {cell.decodes for cell in profile.cells} >= {1, max_decodes}


def test_neighbours_are_drawn_by_lot_and_a_sweep_is_short() -> None:
    course = ProfileCourse(ONE)
    asked = run(course, affine)
    neighbours = {(a, b) for sweep in asked for a, b in pairwise(sweep)}
    assert len(neighbours) > 3 * len({probe for sweep in asked for probe in sweep})
    assert max(sum(map(affine, sweep)) for sweep in asked) < 1500
    assert all(len(sweep) <= 11 for sweep in asked)


def test_another_setting_is_kept_where_it_is_surely_faster_and_only_then() -> None:
    two, one = Setting(1, 2, 0), Setting(1, 1, 0)
    extent = Extent(16, 2, (two, one), (Setting(1, 0, 2), Setting(1, 0, 1)), (Setting(1, 1, 1),))

    def latency(probe: Probe) -> float:
        threads = probe.setting.unet_threads
        steps = 20 + 2 * probe.rows if threads == 2 else 8 + 4 * probe.rows
        return (steps if probe.rows else 0) + (10.0 if probe.setting.vae_threads == 2 else 10.1) * probe.decodes

    course = ProfileCourse(extent)
    run(course, latency)
    profile = profile_of(course)
    few, many = profile.choice(2, 0), profile.choice(16, 0)
    assert few
    assert many
    assert (few.setting, many.setting) == (one, two)
    assert few.ms == pytest.approx(16, rel=0.01)
    assert many.ms == pytest.approx(52, rel=0.01)
    assert {cell.setting.vae_threads for cell in profile.cells if not cell.rows} == {2}
    taken = {found.choice: found.taken for found in course.stages.evidence()}
    assert taken == {"threads: UNet 1": True, "threads: VAE 1": False}


@pytest.mark.parametrize(("decode_ms", "bands"), [(5.0, {1}), (200.0, {1, 2, 4})])
def test_bands_are_measured_where_a_decode_is_longer_than_the_steps(decode_ms: float, bands: set[int]) -> None:
    course = ProfileCourse(Extent(8, 1, bands=(2, 4)))
    run(course, lambda probe: 20 + probe.rows + decode_ms * probe.decodes if probe.rows else decode_ms)
    assert {cell.setting.chunks for cell in course.stages.cells()} == bands


def test_without_memory_it_goes_on_with_smaller_items() -> None:
    course = ProfileCourse(ONE)
    run(course, affine, until=lambda: course.ready)
    course.limit("unet", 15)
    assert not course.ready
    course.limit("vae", 3)
    run(course, affine)
    profile = profile_of(course)
    assert max(cell.rows for cell in profile.cells) == 14
    assert max(cell.decodes for cell in profile.cells) == 3


def test_runs_that_nobody_asked_for_are_refused() -> None:
    course = ProfileCourse(ONE)
    course.next()
    with pytest.raises(ValueError, match="asked for"):
        course.measured([ran(Probe(7, 3, Setting()), 1.0)], 0.1)


def test_two_cores_are_split_one_to_each() -> None:
    extent = extent_for(16, 4, [1, 2], unet_threads=2, vae_threads=2, cores=2)
    assert extent.unet == (Setting(1, 2, 0), Setting(1, 1, 0))
    assert extent.vae == (Setting(1, 0, 2), Setting(1, 0, 1))
    assert extent.beside == (Setting(1, 1, 1),)
    assert extent.bands == (2,)


def test_more_cores_are_split_several_ways_and_gpus_not_at_all() -> None:
    assert extent_for(16, 4, [1], 16, 16, 16).beside == (Setting(1, 12, 4), Setting(1, 14, 2), Setting(1, 8, 8))
    gpu = extent_for(16, 4, [1, 4], 0, 0, 0)
    assert gpu.unet == gpu.beside == gpu.vae == (Setting(),)
    assert gpu.bands == (4,)


# ---- times from neighbours alone: what comes out, and how sure it says that it is


TIMES_MS = (22.9, 25.8, 32.8, 44.7, 68.2, 94.5, 126.2)


def run_in_turns(seed: int, sweeps: int, deviation: float, held_up: float = 0.02) -> RelativeTimes:
    """Each item once a sweep, in an order drawn by lot, while the machine's speed changes every second or few."""
    source = random.Random(seed)
    slower, until_ms, now_ms = 1.0, 0.0, 0.0
    pairs: list[tuple[int, int]] = []
    ratios: list[float] = []
    last: tuple[int, float] | None = None
    for _ in range(sweeps):
        for item in source.sample(range(len(TIMES_MS)), len(TIMES_MS)):
            if now_ms >= until_ms:
                slower, until_ms = source.uniform(1, 2), now_ms + source.uniform(1000, 8000)
            ms = TIMES_MS[item] * slower * source.lognormvariate(0, deviation)
            ms *= source.uniform(2, 40) if source.random() < held_up else 1
            now_ms += ms
            if last and last[0] != item:
                pairs.append((last[0], item))
                ratios.append(log(ms / last[1]))
            last = item, ms
    return relative_times(len(TIMES_MS), pairs, ratios)


def off(found: RelativeTimes, one: int, other: int) -> float:
    return float(found.log_ms[one] - found.log_ms[other]) - log(TIMES_MS[one] / TIMES_MS[other])


def test_errors_are_as_large_as_they_are_said_to_be() -> None:
    for sweeps, deviation in ((4, 0.03), (10, 0.05), (30, 0.03)):
        made = [run_in_turns(seed, sweeps, deviation) for seed in range(60)]
        within = [abs(off(found, 6, 3)) < 1.96 * found.error(6, 3) for found in made]
        assert np.mean(within) >= 0.88, (sweeps, deviation)  # 95 %, less three deviations of that share of sixty
        assert np.median([found.error(6, 3) for found in made]) < 4 * deviation / sweeps**0.5


def test_a_run_that_was_held_up_moves_nothing() -> None:
    pairs = [(0, 1), (1, 0)] * 10
    ratios = [log(2) + 0.01, -log(2) + 0.01] * 10
    ratios[6], ratios[7] = log(2) + 5, -log(2) - 5
    found = relative_times(2, pairs, ratios)
    assert found.log_ms[1] - found.log_ms[0] == pytest.approx(log(2), abs=0.003)


def test_items_without_neighbours_say_nothing() -> None:
    found = relative_times(3, [(0, 1)] * 5, [0.5] * 5)
    assert found.log_ms[1] - found.log_ms[0] == pytest.approx(0.5, abs=1e-3)
    assert np.isinf(found.covariance[2, 2])
    assert np.isinf(relative_times(2, [], []).covariance[0, 0])


ROWS = np.array([2.0, 4, 8, 16, 24, 32, 48, 64])


def curve(ms: FloatArray, error: float = 0.0) -> Curve:
    log_ms = np.log(ms)
    return Curve(ROWS[: len(log_ms)], log_ms, np.eye(len(log_ms)) * error**2)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 10)), min_size=1, max_size=9))
@settings(max_examples=200)
def test_what_rises_is_kept_and_the_rest_is_levelled_at_its_mean(points: list[tuple[float, float]]) -> None:
    values, weights = np.array(points).T
    risen = rising(values, weights)
    assert np.all(np.diff(risen) >= -1e-9)
    assert np.dot(risen, weights) == pytest.approx(np.dot(values, weights))
    ordered = np.sort(values)
    assert rising(ordered, weights) == pytest.approx(ordered, abs=1e-9)
    for level in np.unique(risen.round(9)):
        block = np.isclose(risen, level)
        assert np.average(values[block], weights=weights[block]) == pytest.approx(level, abs=1e-6)


def test_rising_takes_many_sequences_at_once() -> None:
    values = np.array([[1.0, 3, 2], [4, 3, 2], [1, 2, 3]])
    assert rising(values, np.ones(3)).tolist() == [[1, 2.5, 2.5], [3, 3, 3], [1, 2, 3]]


@pytest.mark.parametrize(
    ("ms", "within", "knee"),
    [
        (10 + 2.0 * ROWS, 0.05, 38),  # 38 in 86 ms are 0.953 of 64 in 138
        (10 + 2.0 * ROWS, 0.20, 16),  # 16 in 42 ms are 0.82 of it
        (np.maximum(20.0, ROWS), 0.05, 22),  # between 16 rows in 20 ms and 24 in 24: 22 in 23
        (ROWS, 0.05, 2),  # no use of batches at all
        (np.full(8, 30.0), 0.05, 62),
    ],
)
def test_the_knee_is_the_fewest_rows_near_the_best(ms: FloatArray, within: float, knee: int) -> None:
    found = curve(ms).knee(within)
    assert found.rows == knee
    assert (found.low, found.high) == (found.rows, found.rows)
    assert found.error == 0


def test_a_dip_that_noise_made_is_no_knee() -> None:
    ms = 10 + 2.0 * ROWS
    dipped = ms.copy()
    dipped[3] *= 1.3  # 16 rows seem to take longer than 24
    assert curve(dipped).knee(0.05).rows == curve(ms).knee(0.05).rows


def test_what_is_unsure_says_so() -> None:
    ms = 22 + 1.6 * ROWS
    sure, unsure = curve(ms, error=0.002).knee(0.05), curve(ms, error=0.05).knee(0.05)
    assert sure.high - sure.low <= 4
    assert sure.error < 0.01
    assert unsure.high - unsure.low > 8
    assert unsure.error > 0.03
    assert curve(ms, error=0.002).near_best(0.05)[-1] == 1
    assert curve(ms, error=0.002).near_best(0.05)[0] == 0


def test_intervals_hold_the_knee_as_often_as_they_say() -> None:
    ms, error, source = 22 + 1.6 * ROWS, 0.02, np.random.default_rng(5)
    truth = curve(ms).knee(0.05).rows
    found = [curve(ms * np.exp(error * source.standard_normal(8)), error).knee(0.05) for _ in range(100)]
    assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.88


def test_a_curve_of_one_size() -> None:
    found = Curve(np.array([1.0]), np.array([0.0]), np.zeros((1, 1))).knee(0.05)
    assert (found.rows, found.low, found.high) == (1, 1, 1)
