"""Times from neighbours alone, on machines whose speed swings: what comes out, and how sure it says that it is."""

import random
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.profiles.measuring.samples import Curve, FloatArray, RelativeTimes, relative_times, rising

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


def test_times_are_right_whatever_the_phases() -> None:
    found = run_in_turns(1, sweeps=30, deviation=0.03)
    for one in range(len(TIMES_MS)):
        assert off(found, one, 0) == pytest.approx(0, abs=0.03)


def test_errors_are_as_large_as_they_are_said_to_be() -> None:
    for sweeps, deviation in ((4, 0.03), (10, 0.05), (30, 0.03)):
        made = [run_in_turns(seed, sweeps, deviation) for seed in range(60)]
        within = [abs(off(found, 6, 3)) < 1.96 * found.error(6, 3) for found in made]
        assert np.mean(within) >= 0.88, (sweeps, deviation)  # 95 %, less three deviations of that share of sixty
        assert np.median([found.error(6, 3) for found in made]) < 4 * deviation / sweeps**0.5


def test_more_runs_say_more() -> None:
    few, many = (run_in_turns(3, sweeps, 0.04) for sweeps in (5, 80))
    assert many.error(6, 0) < few.error(6, 0) / 2


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
