"""What is measured of skipped guidance, and what is made of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.unet_worker import fidelity
from services.unet_worker.fidelity_cases import (
    Case,
    Grid,
    Pictures,
    Result,
    best_ends,
    choose,
    confirmed,
    longest_run,
    loss,
    table,
)
from synerdiff.cards import Sampler
from tests.tiny_models import tiny_model

GRID = Grid((Sampler.DDIM, Sampler.EULER), (20, 50), ("reuse", "drop"), (0.3, 0.5), 2, (1, 2), (1,))


def result(predictor: str, share: float, mean_db: float, **changes: Any) -> Result:
    case = Case(Sampler.DDIM, 20, predictor, share, 4, 2, 1)
    made = Result(case, 8, 20, round(20 * share), 2, mean_db, mean_db - 5, 0.01)
    return replace(made, case=replace(case, **changes))


def test_a_grid_has_every_pair_of_ends_and_every_point_of_the_curves() -> None:
    assert [(case.head, case.tail) for case in GRID.ends()] == [(1, 1), (2, 1)]
    curve = GRID.curve(2, 1)
    assert len(curve) == len(set(curve)) == 2 * 2 * 2 * 2
    assert {(case.head, case.tail) for case in curve} == {(2, 1)}


def test_the_ends_are_those_of_the_best_pictures() -> None:
    worse, best, no_better = (
        result("reuse", 0.5, mean_db, head=head) for mean_db, head in ((45.0, 1), (50.01, 2), (50.04, 3))
    )
    assert best_ends([worse, best, no_better]) == (2, 1)


def test_the_budget_is_the_largest_share_that_every_sampler_bears() -> None:
    results = [
        result("reuse", 0.5, 50),
        result("reuse", 0.6, 44),
        result("reuse", 0.6, 39, sampler=Sampler.EULER),
        result("extrapolate:0.5", 0.5, 52),
        result("drop", 0.5, 30),
        result("drop", 0.6, 60, num_inference_steps=50),
    ]
    budget = choose(results, 40)
    assert budget is not None
    assert (budget.predictor, budget.share, budget.longest_run) == ("extrapolate:0.5", 0.5, 2)
    assert (budget.head, budget.tail, budget.floor_db, budget.measured_db) == (2, 1, 40, 52)
    assert budget.least_calls == 20
    assert choose(results, 53) is None
    assert confirmed(budget, [result("reuse", 0.5, 48.126), result("reuse", 0.5, 49)]).measured_db == 48.13


def test_longest_run() -> None:
    assert [longest_run(calls) for calls in ((), (3,), (1, 3, 5), (7, 1, 2, 3, 6))] == [0, 1, 1, 3]


def test_the_table_has_a_line_per_result() -> None:
    lines = table(
        [result("reuse", 0.5, 50), replace(result("drop", 0.3, 30), score=99.0, full_score=100.0)]
    ).splitlines()
    assert lines[2] == "| DDIM | 20 | reuse | 2, 1 | 10 | 2 | 0.750 | 8 | 50.0 | 45.0 | 0.0100 |  |"
    assert lines[3].endswith("| 99.0 (100.0) |")
    assert len({line.count("|") for line in lines}) == 1


def test_loss() -> None:
    full = Pictures(torch.ones(2, 4, 2, 2), np.full((2, 8, 8, 3), 100, np.uint8))
    off = full.images.copy()
    off[0] += 10
    found = loss(Pictures(full.latents * 1.5, off), full)
    assert found.worst_db == pytest.approx(20 * np.log10(255 / 10), abs=1e-4)
    assert found.mean_db == pytest.approx((found.worst_db + 88.13) / 2, abs=0.01)
    assert found.latent_error == pytest.approx(0.5)


def test_it_measures_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tiny_model("sd1", tmp_path / "sd1"), tmp_path / "fidelity.json"
    scorer = tmp_path / "shades.py"
    scorer.write_text("def score(images, prompts):\n    return float(images.mean()) + len(prompts)\n")
    options = {
        "--steps": "6",
        "--samplers": "ddim",
        "--predictors": "reuse,drop",
        "--shares": "0.2,0.4",
        "--heads": "2",
        "--tails": "1",
        "--prompts": "2",
        "--confirm-prompts": "3",
        "--floor-db": "5",
        "--threads": "1",
    }
    arguments = [word for option in options.items() for word in option]
    files = ["--model", str(model), "--out", str(out), "--table", str(tmp_path / "table.md"), "--score", str(scorer)]
    assert fidelity.main([*files, *arguments]) == 0

    progress = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["total"] - line["done"] for line in progress][-1] == 0
    measured = json.loads(out.read_text())
    by_case = {(r["predictor"], r["skipped"], r["pictures"]): r for r in measured["results"]}
    chosen = measured["budget"]["predictor"]
    curve = {(predictor, skipped, 2) for predictor in ("reuse", "drop") for skipped in (1, 2)}
    assert set(by_case) == {("reuse", 3, 2), (chosen, 2, 3)} | curve
    assert by_case["drop", 1, 2]["mean_db"] != by_case["drop", 2, 2]["mean_db"] != by_case["reuse", 2, 2]["mean_db"]
    assert all(r["score"] != r["full_score"] for r in measured["results"])
    assert (measured["budget"]["share"], measured["budget"]["head"], measured["budget"]["least_calls"]) == (2 / 6, 2, 6)
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + len(measured["results"])


@pytest.mark.parametrize("arguments", [["--predictors", "guess"], ["--model", "nowhere"], ["--dtype", "int3"]])
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("sd1", tmp_path / "sd1")
    assert fidelity.main(["--model", str(model), "--out", str(tmp_path / "out.json"), *arguments]) == 2
    assert arguments[1] in capsys.readouterr().err
