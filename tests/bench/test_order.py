"""The simulated numbers of the order of urgency, small: the whole of them is `python -m bench.order`."""

from dataclasses import replace

import pytest

from bench.order import BUNDLED_BUDGET, burst_of_equals, paper_profile, steady


def test_least_work_first_makes_the_mean_small_and_delays_nobody_long() -> None:
    figures = steady("paper-table", share=0.9, requests=150, seed=3)
    assert figures["mean_ratio"] < 0.8
    assert figures["mean_ratio"] == pytest.approx(figures["ideal_ratio"], rel=0.05)
    assert figures["over_3x"] == 0
    assert figures["most_later"] > 1


def test_a_burst_is_served_sooner_than_by_processor_sharing_and_by_continuous_at_the_knee() -> None:
    full = burst_of_equals(paper_profile("paper-table"), requests=64, steps=8)
    assert full["over_sharing"] <= 0.65
    assert full["over_continuous_at_knee"] < 1.03
    skipping = burst_of_equals(replace(paper_profile("paper-table"), skip_cfg=BUNDLED_BUDGET), requests=64, steps=8)
    assert skipping["over_continuous_at_knee"] <= 0.95
    assert skipping["urgency_per_s"] >= skipping["continuous_at_knee_per_s"]
