"""Times from neighbours alone, on machines whose speed swings: what comes out, and how sure it says that it is."""

import random
from math import log

import numpy as np
import pytest

from services.scheduler.profiles.measuring.relative_times import RelativeTimes, relative_times

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
