"""Sections as processes: one that fails, one that hangs, one that does not fit. With sections made for this alone."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import runner
from bench.gpu.kit import RESULTS, Kit
from bench.gpu.runner import BY_NAME, RESERVE_S, SECTIONS, Section, Wanted, run_sections


def stand_in(section: Section, wanted: Wanted, limit_s: float) -> None:
    """For the work of a section: none has to be imported."""
    with (wanted.out / "ran").open("a") as ran:
        ran.write(section.name + "\n")
    if section.name == "fails":
        raise ValueError("as planted")
    if section.name == "hangs":
        time.sleep(600)


def section(name: str, limit_s: float = 20, least_s: float = 0) -> Section:
    return Section(name, name, "none.run", limit_s, least_s)


def ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sections: list[Section], seconds: float) -> dict[str, str]:
    monkeypatch.setattr(runner, "SECTIONS", tuple(sections))
    give_up_at = time.monotonic() + RESERVE_S + seconds
    wanted = Wanted(tmp_path, tmp_path, "cuda", give_up_at, [each.name for each in sections])
    return run_sections(wanted, lambda line: None, stand_in)


def records(tmp_path: Path) -> dict[str, Any]:
    lines = (tmp_path / RESULTS).read_text().splitlines()
    return {record["section"]: record for record in map(json.loads, lines) if record["kind"] == "section"}


def test_a_section_that_fails_or_hangs_does_not_stop_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sections = [section("fails"), section("hangs", limit_s=1), section("works")]
    found = ended(monkeypatch, tmp_path, sections, 60)
    assert found == {"fails": "failed", "hangs": "out of time", "works": "done", "models": "done"}
    assert "ValueError: as planted" in records(tmp_path)["fails"]["error"]
    assert records(tmp_path)["hangs"]["seconds"] < 1 + 2 * runner._GRACE_S + 20


def test_what_does_not_fit_before_the_deadline_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = ended(monkeypatch, tmp_path, [section("long", 100, 60), section("short", 100, 1)], 30)
    assert found["long"] == "dropped"
    assert found["short"] == "done"
    assert "long" not in (tmp_path / "ran").read_text().split()


def test_every_section_has_its_module_and_fits_the_deadline() -> None:
    assert list(BY_NAME) == ["models", *(each.name for each in SECTIONS)]
    for each in SECTIONS:
        assert 0 < each.least_s <= each.limit_s < 480
        module, _, function = each.call.rpartition(".")
        source = Path(runner.__file__).with_name(f"{module}.py").read_text()
        assert f"\ndef {function}(kit: Kit" in source


def test_a_model_that_never_comes_is_waited_for_half_of_the_time(tmp_path: Path) -> None:
    kit = Kit("served-sd15", tmp_path, tmp_path, "cpu", time.monotonic() + 1)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no model at"):
        kit.wait_for_model("sd15")
    assert kit.left_s > 0
    assert time.monotonic() - began >= 0.4
