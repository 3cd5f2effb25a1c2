"""Numbers of windows."""

import math

import pytest

from synerdiff.client.load.sending import Answer, Window
from synerdiff.client.load.summary import percentile, ratio, summarise, window_ratios


def window(*latencies_s: float, errors: tuple[str, ...] = ()) -> Window:
    served = [
        Answer(k, 1.0, 1.0, 1.0 + latency, images=1, unet_calls=20, skipped_calls=5)
        for k, latency in enumerate(latencies_s)
    ]
    return Window((*served, *(Answer(99, 1.0, 1.25, 2.0, error=code) for code in errors)), 0.0)


def test_a_summary_is_over_all_windows() -> None:
    summary = summarise([window(1.0, 2.0, 3.0), window(4.0, errors=("UNAVAILABLE", "UNAVAILABLE", "INTERNAL"))])
    assert (summary.requests, summary.images, summary.mean_s, summary.max_s) == (7, 4, 2.5, 4.0)
    assert (summary.p50_s, summary.p90_s, summary.p99_s) == (2.0, 4.0, 4.0)
    assert summary.errors == {"UNAVAILABLE": 2, "INTERNAL": 1}
    assert summary.skipped_share == 0.25
    assert summary.images_per_s == pytest.approx((3 / 3 + 1 / 4) / 2)
    assert summary.late_s == 0.25


def test_nothing_served_is_no_number() -> None:
    summary = summarise([window(errors=("INTERNAL",))])
    assert math.isnan(summary.mean_s)
    assert math.isnan(summary.p99_s)
    assert (summary.images, summary.images_per_s, summary.skipped_share) == (0, 0.0, 0.0)


@pytest.mark.parametrize(("p", "value"), [(50, 5), (99, 10), (90, 9), (0, 1), (100, 10)])
def test_percentiles(p: float, value: int) -> None:
    assert percentile(range(1, 11), p) == value
    assert math.isnan(percentile([], p))


def test_ratios_are_taken_round_by_round() -> None:
    # Both twice as slow in the second round: no ratio sees that.
    of = ratio([2.0, 1.0, 4.5, 2.0], [1.0, 0.5, 1.5, 2.0])
    assert of.per_round == (2.0, 2.0, 3.0, 1.0)
    assert (of.lower_quartile, of.median, of.upper_quartile) == (1.75, 2.0, 2.25)
    of = window_ratios([window(2.0), window(4.0)], [window(1.0), window(8.0)])["mean_s"]
    assert of.per_round == (2.0, 0.5)


def test_rounds_without_a_number_are_left_out_of_the_median() -> None:
    of = ratio([2.0, math.nan, 3.0], [1.0, 1.0, 0.0])
    assert (of.median, of.lower_quartile, of.upper_quartile) == (2.0, 2.0, 2.0)
    assert math.isnan(ratio([math.nan], [1.0]).median)
