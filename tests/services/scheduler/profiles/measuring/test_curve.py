"""The knee of curves that are known, and how sure it is of those that are not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.profiles.measuring.curve import Curve, FloatArray, rising

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
