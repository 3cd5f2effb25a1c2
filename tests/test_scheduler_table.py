"""docs/schedulers.md: every scheduler and option of diffusers is served right, or refused."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.rounding import A_LEVEL

SCRIPT = Path(__file__).parents[1] / "docs" / "scheduler_table.py"


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_the_page_has_each_class_and_option(table: dict[str, Any]) -> None:
    assert table["missing"]() == [], "run `python docs/scheduler_table.py`"


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("| DDIMScheduler |", "| DDIMSchedulers |", "DDIMSchedulers, which diffusers does not have"),
        ("| DDIMScheduler | 18 of 19 |", "| DDIMScheduler | 18 of 18 |", "DDIMScheduler: 19 options"),
        ("needs scipy: `use_beta_sigmas", "needs scipy: `use_betas", "EulerDiscreteScheduler `use_betas: true`"),
        ("; `s_noise: 2.0`; `sample", "; `sample", "Options tried, one at a time: "),
    ],
)
def test_a_page_that_lacks_one_is_found(
    table: dict[str, Any], tmp_path: Path, old: str, new: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "schedulers.md"
    page.write_text(table["PAGE"].read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    monkeypatch.setitem(table["missing"].__globals__, "PAGE", page)
    assert found in table["missing"]()


def test_each_class_is_served_to_a_level_or_refused_with_a_reason(table: dict[str, Any]) -> None:
    reasons = r"not linear|diffusers fails( at [\d, ]+ steps)?|needs \w+|not in diffusers [\d.]+"
    _, lines, _ = table["parts"]()
    for row in lines.values():
        served, worst, refused = (cell.strip() for cell in row.strip("|").split(" |")[1:])
        if served == "none":
            assert re.fullmatch(reasons, refused), row
            continue
        assert int(worst.split()[0]) <= A_LEVEL, row
        parts = [part for part in refused.split("<br>") if part]
        assert all(re.fullmatch(reasons, part.partition(": ")[0]) for part in parts), row
        whole = [label for part in parts if " steps: " not in part for label in part.split("; ")]
        assert served == f"{tried(row) - len(whole)} of {tried(row)}", row


def tried(row: str) -> int:
    """How many options of a class were tried."""
    return int(row.split(" of ")[1].split()[0])


def test_the_line_of_a_class_has_its_worst_difference_and_every_refusal(table: dict[str, Any]) -> None:
    rows = [
        ("as Stable Diffusion 1.5", "0 | 1 | 2 (30 in float32) | 1"),
        ("`a: 1`", "refused | 2 | 0 | 0"),
        ("`b: 2`", "refused: XScheduler.step is not linear at call 0 | | | "),
        ("`c: 3`", "refused: XScheduler.step is not linear at call 7 | | | "),
    ]
    said = "diffusers fails at 1 steps: `a: 1`<br>not linear: `b: 2`; `c: 3`"
    assert table["line"]("XScheduler", rows) == f"| XScheduler | 2 of 4 | 2 (30 in float32) | {said} |"
    assert table["line"]("XScheduler", rows[2:]) == "| XScheduler | none | | not linear |"


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "SASolverScheduler"])
def test_a_row_is_what_is_measured(table: dict[str, Any], name: str, tmp_path: Path) -> None:
    studio = table["Studio"](tmp_path)
    _, options = next(table["cases"](name))
    levels = studio.row(name, options).split(" | ")
    assert [int(level) <= A_LEVEL for level in levels] == [True] * len(table["STEPS"])
