"""The whole kit on a CPU, with tiny models: every section with real processes, so that no GPU minute meets its bugs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.gpu.kit import PICTURES, PYTEST_LOG, RESULTS, SUMMARY, WORKERS_LOG
from bench.gpu.runner import ROOT, SECTIONS
from synerdiff.profiles import load

# What each does runs for the other model as well: with real processes, a model costs half a minute a section.
PLANTED = {"served-sd15", "contention-sdxl"}
KINDS = {"machine", "ceiling", "mps", "cost", "test", "parity", "sweep", "load", "graphs", "profile", "overlap", "call"}


def kit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)


@pytest.mark.timeout(600)
def test_every_section_runs_and_those_that_fail_stop_no_other(tmp_path: Path) -> None:
    done = kit("--out", str(tmp_path), "--deadline-s", "560", "--plant-failure", ",".join(PLANTED))
    records = [json.loads(line) for line in (tmp_path / RESULTS).read_text().splitlines()]
    ended = {record["section"]: record for record in records if record["kind"] == "section"}
    failed = {name: record["error"] for name, record in ended.items() if record["status"] != "done"}
    assert failed.keys() == PLANTED, failed
    assert all("planted" in error for error in failed.values())
    assert set(ended) == {"models", *(section.name for section in SECTIONS)}
    assert done.returncode == 1
    assert {record["kind"] for record in records} >= KINDS | {"quality", "latents"}
    _check_loads([record for record in records if record["kind"] == "load"])
    assert "no GPU (tiny models on a CPU)" in done.stdout
    assert (tmp_path / SUMMARY).read_text().startswith(done.stdout[:80])
    assert "skipped" in (tmp_path / PYTEST_LOG).read_text()
    assert "unet-sd15" in (tmp_path / WORKERS_LOG).read_text()
    with Image.open(tmp_path / PICTURES) as sheet:
        assert sheet.width == 2 * 128
    profile = tmp_path / "profile-sd15.json"
    assert load(profile).subject.model == "sd15"
    command = [sys.executable, "-m", "synerdiff_cli.main", "simulate", "--profile", str(profile), "--requests", "20"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)


def _check_loads(loads: list[dict[str, Any]]) -> None:
    assert {record["model"] for record in loads} == {"sd15", "sdxl"}
    assert all(record["images"] and not record.get("errors") for record in loads)
    served = [record for record in loads if record["who"].startswith("served")]
    # A task has a skip to spend when its head is over, so no picture goes without one.
    assert all(
        record["skipped_share"] >= 1 / record["steps"] if "skips on" in record["who"] else record["skipped_share"] == 0
        for record in served
    ), served
    assert any(record["who"].startswith("served by a profile") for record in loads)


def test_a_folder_with_results_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / RESULTS).touch()
    done = kit("--out", str(tmp_path))
    assert done.returncode == 2
    assert "has the results of another run" in done.stderr
