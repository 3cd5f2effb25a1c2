"""The process that measures fidelity: what it says on the way, what it finds, how it fails. It is canned here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from synerdiff.skip_cfg import SkipCfgBudget
from synerdiff_cli import measuring

CANNED = """
import json, pathlib, sys
assert sys.argv[1::2] == ["--model", "--out", "--floor-db", "--dtype"], sys.argv
print("loading")
for done in (1, 2):
    print(json.dumps({"done": done, "total": 2, "eta_s": 2 - done}), flush=True)
pathlib.Path(sys.argv[4]).write_text(json.dumps({"budget": BUDGET}))
"""


Can = Callable[[str], None]


@pytest.fixture
def canned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Can:
    """Says what the process's code is."""
    monkeypatch.setattr(measuring, "MODULE", "canned_fidelity")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(code: str) -> None:
        (tmp_path / "canned_fidelity.py").write_text(code)

    return write


async def test_progress_is_passed_on_and_the_budget_read(canned: Can) -> None:
    budget = {"predictor": "reuse", "share": 0.5, "longest_run": 1, "measured_db": 41.5}
    canned(CANNED.replace("BUDGET", repr(budget)))
    told: list[tuple[int, int, float]] = []
    found = await measuring.measured_budget(Path("m"), "float32", lambda *progress: told.append(progress))
    assert found == SkipCfgBudget("reuse", 0.5, 1, measured_db=41.5)
    assert told == [(1, 2, 1), (2, 2, 0)]


async def test_no_budget_is_an_answer(canned: Can) -> None:
    canned(CANNED.replace("BUDGET", "None"))
    assert await measuring.measured_budget(Path("m"), "float32", lambda *progress: None) is None


async def test_a_failure_is_told_with_its_last_words(canned: Can) -> None:
    canned("import sys\nsys.exit('there is no such model')")
    with pytest.raises(measuring.MeasuringFailed, match="exit status 1\nthere is no such model"):
        await measuring.measured_budget(Path("m"), "float32", lambda *progress: None)
