"""The way through a profile on latency functions that are known: few points, the stated error, an end."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.profiler.profiling import Extent, Probe, ProfileCourse, extent_for, middle_of
from synerdiff.profiles import Cell, ItemCaps, Profile, ProfileSubject, Setting

Latency = Callable[[Probe], float]
SUBJECT = ProfileSubject("m", "d", "cpu", "float32", (4, 8, 8), "2+2")


def affine(probe: Probe) -> float:
    return 3.0 + 5.0 * probe.rows + 11.0 * probe.decodes


def flat_then_linear(probe: Probe) -> float:
    return max(20.0, 4.0 * probe.rows) + 11.0 * probe.decodes


def staircase(probe: Probe) -> float:
    return 5.0 + 9.0 * math.ceil(probe.rows / 8) + 7.0 * math.ceil(probe.decodes / 2)


def run(course: ProfileCourse, latency: Latency, took_s: float = 1.0) -> list[Probe]:
    asked: list[Probe] = []
    while (probe := course.next()) is not None:
        asked.append(probe)
        assert len(asked) < 2000
        course.measured(cell(probe, latency(probe)), took_s)
    return asked


def cell(probe: Probe, ms: float) -> Cell:
    return Cell(probe.rows, probe.decodes, ms, ms, probe.setting)


def profile_of(course: ProfileCourse, extent: Extent) -> Profile:
    return Profile(SUBJECT, course.cells(), ItemCaps(extent.max_rows // 2, extent.max_decodes), "now")


def one_setting(max_rows: int = 32, max_decodes: int = 6) -> Extent:
    setting = Setting()
    return Extent(max_rows, max_decodes, (setting,), (setting,), (setting,))


def worst_error(profile: Profile, extent: Extent, latency: Latency) -> float:
    """Over every item the profile covers, measured or not."""
    every = [(r, v) for r in range(extent.max_rows + 1) for v in range(extent.max_decodes + 1) if r + v]
    truth = {at: latency(Probe(*at, Setting())) for at in every}
    return max(abs(profile.latency_ms(*at) - truth[at]) / truth[at] for at in every)


def test_what_is_linear_takes_a_check_per_axis() -> None:
    extent = one_setting()
    course = ProfileCourse(extent)
    asked = run(course, affine)
    assert len(asked) == 3 + 3 + 9
    assert len(asked) == len(set(asked))
    assert course.error == pytest.approx(0, abs=1e-9)
    assert worst_error(profile_of(course, extent), extent, affine) < 1e-9


@pytest.mark.parametrize("latency", [flat_then_linear, staircase])
def test_what_bends_is_measured_where_it_does(latency: Latency) -> None:
    extent = one_setting()
    course = ProfileCourse(extent, bound=0.05)
    asked = run(course, latency)
    assert course.error <= 0.05
    assert len(asked) < 110  # of 32 + 6 + 32 * 6
    assert worst_error(profile_of(course, extent), extent, latency) < 0.35


def test_a_closer_bound_takes_more_points_and_gives_less_error() -> None:
    extent = one_setting()
    loose, close = ProfileCourse(extent, bound=0.2), ProfileCourse(extent, bound=0.01)
    assert len(run(loose, flat_then_linear)) < len(run(close, flat_then_linear))
    errors = [worst_error(profile_of(course, extent), extent, flat_then_linear) for course in (loose, close)]
    assert errors[1] < errors[0]
    assert errors[1] < 0.03


@given(
    base=st.floats(0.5, 50),
    bend=st.integers(1, 40),
    per_row=st.floats(0.1, 20),
    max_rows=st.integers(1, 40),
    max_decodes=st.integers(1, 8),
    bound=st.floats(0.01, 0.5),
)
@settings(max_examples=60)
def test_it_ends_within_the_bound_on_whole_grids(
    base: float, bend: int, per_row: float, max_rows: int, max_decodes: int, bound: float
) -> None:
    extent = one_setting(max_rows, max_decodes)
    course = ProfileCourse(extent, bound=bound)
    run(course, lambda probe: base + per_row * max(probe.rows, bend) + 3.0 * probe.decodes**1.3)
    assert course.error <= bound
    assert course.measurements_left == 0
    assert course.seconds_left == 0
    profile_of(course, extent)  # refuses grids that are not rectangular


def test_a_spent_budget_stops_it_with_what_is_whole() -> None:
    extent = one_setting()
    course = ProfileCourse(extent, bound=0.001, budget_s=20)
    asked = run(course, flat_then_linear)
    assert len(asked) == 20
    profile = profile_of(course, extent)
    assert profile.latency_ms(16, 0) > 0
    assert course.error > 0.001


def test_a_budget_of_nothing_still_measures_the_ends() -> None:
    course = ProfileCourse(one_setting(), budget_s=0)
    asked = run(course, affine)
    corners = [(1, 1), (1, 6), (32, 1), (32, 6)]
    assert [(p.rows, p.decodes) for p in asked] == [(1, 0), (32, 0), (0, 1), (0, 6), *corners]
    assert math.isinf(course.error)


def test_the_time_left_falls_to_nothing() -> None:
    course = ProfileCourse(one_setting(), budget_s=1000)
    assert math.isnan(course.seconds_left)
    took, seen = [], []
    while (probe := course.next()) is not None:
        before = course.measurements_left
        took.append(0.1 * (1 + probe.rows + 4 * probe.decodes))
        course.measured(cell(probe, affine(probe)), took[-1])
        assert course.measurements_left == before - 1
        seen.append(course.seconds_left)
    assert seen == pytest.approx([sum(took[k:]) for k in range(1, len(took) + 1)], abs=1e-9)


def test_the_time_left_is_never_more_than_the_budget() -> None:
    course = ProfileCourse(one_setting(), budget_s=5)
    probe = course.next()
    assert probe is not None
    course.measured(cell(probe, 1.0), 3.0)
    assert course.seconds_left == pytest.approx(2.0)


def test_a_cell_that_nobody_asked_for_is_refused() -> None:
    course = ProfileCourse(one_setting())
    with pytest.raises(ValueError, match="asked for"):
        course.measured(cell(Probe(7, 3, Setting()), 1.0), 0.1)


def test_the_middle_of_an_interval_lies_inside() -> None:
    assert [middle_of(i) for i in ((1, 3), (1, 32), (31, 33), (2, 4))] == [2, 6, 32, 3]


def test_two_cores_are_split_one_to_each() -> None:
    extent = extent_for(16, 4, [1, 2], unet_threads=2, vae_threads=2, cores=2)
    assert extent.unet_alone == (Setting(1, 2, 0), Setting(1, 1, 0))
    assert extent.vae_alone == (Setting(1, 0, 2), Setting(1, 0, 1), Setting(2, 0, 2), Setting(2, 0, 1))
    assert extent.beside == (Setting(1, 1, 1), Setting(2, 1, 1))


def test_more_cores_are_split_several_ways_and_gpus_not_at_all() -> None:
    assert extent_for(16, 4, [1], 16, 16, 16).beside == (Setting(1, 14, 2), Setting(1, 12, 4), Setting(1, 8, 8))
    gpu = extent_for(16, 4, [1, 4], 0, 0, 0)
    assert gpu.beside == gpu.vae_alone == (Setting(1), Setting(4))
