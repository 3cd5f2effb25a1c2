"""Intervals from signs alone."""

import random
from math import inf

import pytest

from services.scheduler.profiles.measuring.paired import CONFIDENCE, LOOKS, paired


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
