"""Workloads: the rates and mixes asked for, and files read or refused by line and field."""

from pathlib import Path

import pytest

from services.scheduler.simulation.workloads import Arrival, Mix, burst, from_file, poisson
from synerdiff.errors import InvalidRequest
from synerdiff.requests import Priority
from tests.services.scheduler.simulated import PAPER, PAPER_SERIAL


def test_poisson_arrivals_come_at_the_rate_with_the_mix() -> None:
    mix = Mix(steps=((8, 0.25), (50, 0.75)), guided_share=0.6, timed_share=0.1, timeout_s=9.0)
    arrivals = poisson(5.0, 4000, mix, seed=1)
    assert arrivals[-1].at_ms / 1000 == pytest.approx(4000 / 5, rel=0.05)
    assert [a.at_ms for a in arrivals] == sorted(a.at_ms for a in arrivals)
    assert sum(a.steps == 8 for a in arrivals) / 4000 == pytest.approx(0.25, abs=0.03)
    assert sum(a.guided for a in arrivals) / 4000 == pytest.approx(0.6, abs=0.03)
    assert sum(a.timeout_s == 9.0 for a in arrivals) / 4000 == pytest.approx(0.1, abs=0.02)


def test_a_burst_comes_at_once() -> None:
    assert {arrival.at_ms for arrival in burst(64, Mix(), seed=0)} == {0.0}


def test_capacity_is_what_the_best_item_serves() -> None:
    # Three tasks in 56.2 ms on the one, eight in 133 on the other; 21.6 ms for a decode: beside a call, or alone.
    for profile, row_ms in ((PAPER, 56.2 / 6), (PAPER_SERIAL, 133.0 / 16)):
        assert Mix().capacity_per_s(profile) == pytest.approx(1000 / (40 * row_ms + 21.6), rel=1e-3)
        unguided = Mix(guided_share=0.0).capacity_per_s(profile)
        assert unguided == pytest.approx(1000 / (20 * row_ms + 21.6), rel=1e-3)


def test_arrivals_are_read_from_csv_and_json_lines(tmp_path: Path) -> None:
    table, lines = tmp_path / "a.csv", tmp_path / "a.jsonl"
    table.write_text("at_ms,steps,guided,priority,timeout_s\n20,8,false,high,3.5\n10,50,1,2,0\n")
    lines.write_text(
        '{"at_ms": 10, "steps": 50}\n{"at_ms": 20, "steps": 8, "guided": false, "priority": 1, "timeout_s": 3.5}\n'
    )
    expected = (Arrival(10.0, 50), Arrival(20.0, 8, guided=False, priority=Priority.HIGH, timeout_s=3.5))
    assert from_file(table) == expected
    assert from_file(lines) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("at_ms,steps\n1,zero\n", "a.csv:1 steps: 'zero'"),
        ("at_ms,steps\n1,2\n3,0\n", "a.csv:2 steps: 0; must be over 0"),
        ("at_ms,priority\n1,urgent\n", "a.csv:1 priority: 'urgent'"),
        ("at_ms,step\n1,20\n", "a.csv:1: step; the fields are at_ms, steps"),
        ("steps\n20\n", "a.csv:1: at_ms is missing"),
        ("at_ms\n-1\n", "a.csv:1 at_ms: -1.0; must be at least 0"),
        ("at_ms\n", "no requests"),
    ],
)
def test_a_bad_file_is_refused_by_line_and_field(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=problem):
        from_file(path)


@pytest.mark.parametrize("text", ["not json\n", "[1]\n"])
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=r"a\.jsonl:1"):
        from_file(path)
