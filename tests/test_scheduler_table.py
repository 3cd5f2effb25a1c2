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


def test_there_is_a_row_for_each_class_and_option(table: dict[str, Any]) -> None:
    assert table["missing"]() == [], "run `python docs/scheduler_table.py`"


def test_each_row_is_served_to_a_level_or_refused_with_a_reason(table: dict[str, Any]) -> None:
    _, lines, _ = table["parts"]()
    for row in (row for rows in lines.values() for row in rows):
        cells = row.strip("| ").split(" | ", 2)[2]
        if cells.startswith("refused: "):
            assert re.fullmatch(r"refused: .{10,}", cells.rstrip("| "))
            continue
        levels = cells.split(" | ")
        assert len(levels) == len(table["STEPS"]), row
        assert all(level == "refused" or int(level.split()[0]) <= A_LEVEL for level in levels), row
        assert any(level != "refused" for level in levels), row


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "SASolverScheduler"])
def test_a_row_is_what_is_measured(table: dict[str, Any], name: str, tmp_path: Path) -> None:
    studio = table["Studio"](tmp_path)
    _, options = next(table["cases"](name))
    levels = studio.row(name, options).split(" | ")
    assert [int(level) <= A_LEVEL for level in levels] == [True] * len(table["STEPS"])
