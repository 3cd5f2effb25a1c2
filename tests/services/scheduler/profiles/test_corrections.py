"""A profile follows what is measured: how far, how fast, and how rarely it changes."""

import random

import pytest

from services.scheduler.engine.ticks import MeasuredItem
from services.scheduler.profiles import corrections
from services.scheduler.profiles.corrections import ProfileCorrection
from tests.services.scheduler.reports import planned, profile, timing


def item(rows: int, decodes: float, ms: float, *, in_step: bool = True) -> MeasuredItem:
    unet = timing(0, ms, rows) if rows else None
    vae = timing(0, ms, 1) if decodes else None
    return MeasuredItem("d", 1, planned(1, rows, decodes), unet, vae, intact=True, in_step=in_step)


def observed(times: int, *items: MeasuredItem, correction: ProfileCorrection | None = None) -> ProfileCorrection:
    """A correction, of the profile as it was if none is given, that has seen the items so many times."""
    correction = correction or ProfileCorrection(profile())
    for _ in range(times):
        for each in items:
            correction.observe(each)
    return correction


def corrected(correction: ProfileCorrection, now_s: float) -> None:
    scales = correction.log_scales()
    correction.adopt(correction.corrected(scales), scales, now_s)


def test_cells_take_on_what_is_measured_near_them_and_the_original_stays() -> None:
    original = profile()
    slower = item(8, 0, 120.0)  # 1.5 times what was profiled
    correction = observed(200, slower, item(2, 0, 20.0), item(8, 2, 1.2 * 144), correction=ProfileCorrection(original))
    assert correction.due(0.0)
    corrected(correction, 0.0)
    assert correction.current.latency_ms(8, 0) == pytest.approx(120, rel=0.03)
    assert correction.current.latency_ms(2, 0) == pytest.approx(20, rel=0.03)
    assert correction.current.latency_ms(8, 2) == pytest.approx(1.2 * 144, rel=0.03)
    assert correction.current.latency_ms(0, 1) == 20.0
    assert correction.current.digest != original.digest
    assert correction.original is original
    assert original.latency_ms(8, 0) == 80
    assert correction.drift == pytest.approx(0.5, rel=0.1)


def test_interpolated_items_count_for_the_nearest_cell() -> None:
    correction = observed(200, item(7, 0, 1.4 * 70))
    corrected(correction, 0.0)
    assert correction.current.latency_ms(8, 0) == pytest.approx(1.4 * 80, rel=0.03)


def test_a_kind_speaks_for_its_cells_that_nothing_has_visited() -> None:
    correction = observed(200, item(8, 0, 1.3 * 80))
    corrected(correction, 0.0)
    assert correction.current.latency_ms(1, 0) == pytest.approx(13, rel=0.05)
    assert correction.current.latency_ms(2, 1) == profile().latency_ms(2, 1)


def test_parts_of_a_decode_are_compared_with_that_part_of_its_time() -> None:
    correction = observed(100, item(0, 0.5, 10.0))
    assert correction.drift < 0.01


def test_one_wild_item_moves_little() -> None:
    correction = observed(50, item(4, 0, 40.0))
    correction.observe(item(4, 0, 4000.0))
    assert correction.drift < 0.03


def test_no_cell_goes_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrections, "LIMIT", 2.0)
    correction = ProfileCorrection(profile())
    observed(500, item(4, 0, 40_000.0), correction=correction)
    corrected(correction, 0.0)
    assert correction.current.latency_ms(4, 0) == pytest.approx(80)


def test_items_that_say_nothing_of_the_profile_are_ignored() -> None:
    correction = observed(50, item(4, 0, 400.0, in_step=False))
    assert correction.drift == 0
    assert not correction.due(1e9)


def test_a_new_profile_comes_only_past_the_dead_band_and_not_too_often() -> None:
    correction = observed(100, item(4, 0, 1.07 * 40))
    assert correction.due(0.0)  # nothing was ever changed: any drift over the least band is old enough
    corrected(correction, 0.0)
    observed(400, item(4, 0, 1.07 * 1.08 * 40), correction=correction)
    assert not correction.due(4.9)
    assert not correction.due(5.5)  # 8 % is within the band of 10 % by now
    assert correction.due(8.0)
    corrected(correction, 8.0)
    assert not correction.due(1e9)


def test_noise_alone_asks_for_no_change() -> None:
    correction = ProfileCorrection(profile())
    draw = random.Random(1)
    asked = 0
    for tick in range(3000):
        correction.observe(item(4, 0, 40 * draw.lognormvariate(0, 0.08)))
        if tick > 100 and correction.due(tick * 0.04):
            asked += 1
            corrected(correction, tick * 0.04)
    assert asked <= 2


def test_the_original_given_again_is_taken_up_where_it_was_left() -> None:
    correction = observed(100, item(4, 0, 60.0))
    corrected(correction, 0.0)
    assert not correction.due(100.0)
    correction.revert(profile())
    assert correction.due(100.0)
