"""`synerdiff simulate`: what it prints, and that its search finds what it looks for."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from services.scheduler.simulation.simulation_results import Outcome, SimulationResult
from synerdiff_cli.simulate import highest_load
from tests.synerdiff_cli.fake_scheduler import synerdiff

PAPER = "bench/profiles/paper-table.json"


def simulate(*options: str) -> Result:
    return synerdiff("simulate", "--profile", PAPER, *options)


def fields(*options: str) -> dict[str, Any]:
    result = simulate(*options, "--json")
    assert result.exit_code == 0, result.output
    parsed: dict[str, Any] = json.loads(result.output)
    assert parsed["simulated"] is True
    return parsed


def test_it_says_that_it_is_simulated_and_compares_policies_on_the_same_requests() -> None:
    result = simulate("--burst", "8", "--steps", "4", "--compare", "continuous,synerdiff")
    assert result.exit_code == 0, result.output
    assert all("simulated" in line for line in result.output.splitlines() if ":" in line)
    assert "continuous" in result.output
    assert "synerdiff" in result.output


def test_the_same_seed_gives_the_same_numbers() -> None:
    options = ("--requests", "12", "--steps-mix", "4:0.5,8:0.5", "--rate", "2")
    assert fields(*options) == fields(*options)
    assert fields(*options) != fields(*options, "--seed", "1")


def test_recorded_arrivals_are_served(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("at_ms,steps\n0,4\n5000,4\n")
    policies = fields("--arrivals", str(path), "--policy", "continuous")["policies"]
    assert policies["continuous"]["requests"] == 2
    assert policies["continuous"]["requests_per_s"] == pytest.approx(2 / 5.13, rel=0.01)


def test_a_setting_changes_what_it_names() -> None:
    at_once = fields("--burst", "6", "--steps", "4", "--policy", "continuous")["policies"]["continuous"]
    one_by_one = fields("--burst", "6", "--steps", "4", "--policy", "continuous", "--set", "unet_batch=1")
    slow_start = fields("--burst", "6", "--steps", "4", "--policy", "continuous", "--set", "overheads.prepare_ms=500")
    assert one_by_one["policies"]["continuous"]["ticks"] == 24
    assert at_once["ticks"] < 24
    assert slow_start["policies"]["continuous"]["p50_s"] > at_once["p50_s"] + 0.45


def test_the_search_finds_the_highest_load_that_keeps_to_the_target() -> None:
    def served(share: float) -> SimulationResult:
        outcome = Outcome(0.0, 0.0, 1000 * share, 0.0, 20, failed=False)
        return SimulationResult((outcome,), (), 1, 1.0)

    assert highest_load(served, 0.7) == pytest.approx(0.7, abs=0.011)
    assert highest_load(served, 0.001) == 0.0


def test_the_highest_load_is_found_for_every_policy() -> None:
    options = ("--requests", "10", "--steps", "4", "--target-p99-s", "0.4", "--compare", "static,continuous")
    highest = fields(*options)["highest_load"]
    assert 0 < highest["static"] < highest["continuous"]
