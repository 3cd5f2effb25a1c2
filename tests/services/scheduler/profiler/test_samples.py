"""How often an item is measured, and what its timings say."""

import random

import pytest

from services.scheduler.profiler.profiling import Probe
from services.scheduler.profiler.samples import Effort, Timing, cell_of, enough, median_spread, outliers, percentile
from synerdiff.profiles import Setting


def timings(*values: float) -> list[Timing]:
    return [Timing(ms, ms, ms / 2) for ms in values]


def test_steady_times_are_enough_at_once_and_scattered_ones_are_not() -> None:
    effort = Effort(least=5, most=9, spread=0.02, longest_s=100)
    assert not enough(timings(*[10.0] * 4), effort)
    assert enough(timings(*[10.0] * 5), effort)
    scattered = [5.0, 20.0, 8.0, 15.0, 12.0, 3.0, 18.0, 9.0, 10.0]
    assert not enough(timings(*scattered[:8]), effort)
    assert enough(timings(*scattered), effort)


def test_long_items_are_measured_less_often() -> None:
    scattered = [500.0, 2000.0, 800.0, 1500.0, 1200.0]
    assert not enough(timings(*scattered), Effort(longest_s=7))
    assert enough(timings(*scattered), Effort(longest_s=6))
    assert not enough(timings(*scattered[:4]), Effort(longest_s=1))


def test_the_spread_is_that_of_medians() -> None:
    draw = random.Random(1)
    samples = [[draw.gauss(100, 10) for _ in range(25)] for _ in range(400)]
    medians = [sorted(sample)[12] for sample in samples]
    mean = sum(medians) / len(medians)
    measured = (sum((m - mean) ** 2 for m in medians) / len(medians)) ** 0.5 / 100
    estimated = sum(median_spread(sample) for sample in samples) / len(samples)
    assert estimated == pytest.approx(measured, rel=0.15)
    assert median_spread([*[10.0] * 9, 500.0]) == 0


def test_a_cell_is_the_median_with_its_ninetieth_percentile() -> None:
    cell = cell_of(Probe(4, 2, Setting(2, 1, 1)), timings(*map(float, range(1, 12))), 123)
    assert (cell.rows, cell.decodes, cell.setting) == (4, 2, Setting(2, 1, 1))
    assert (cell.median_ms, cell.p90_ms, cell.unet_ms, cell.vae_ms) == (6.0, 10.0, 6.0, 3.0)
    assert (cell.samples, cell.peak_bytes, cell.origin) == (11, 123, "measured")


def test_percentiles_and_outliers() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([7.0], 0.9) == 7.0
    assert outliers(timings(10, 10, 11, 14, 16, 90)) == 1
