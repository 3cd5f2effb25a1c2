"""Tables and floors from a results.jsonl."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.report import Floors, render

COST = {
    "kind": "cost",
    "section": "models",
    "model": "sd15",
    "title": "SD 1.5",
    "row_tflop": 1.0,
    "decode_tflop": 3.0,
    "unet_parameters_m": 1000.0,
    "decoder_parameters_m": 50.0,
}
CEILINGS = [
    {"kind": "ceiling", "section": "machine", "what": "matmul float16", "tflops": 500.0},
    {"kind": "ceiling", "section": "machine", "what": "copy", "tb_per_s": 2.0},
]
MACHINE = {
    "kind": "machine",
    "section": "machine",
    "card": "NVIDIA X",
    "gpu": "NVIDIA X",
    "cpu": "a CPU",
    "cores": 16,
    "memory_gib": 128,
    "python": "3.12",
    "torch": "2.11",
    "diffusers": "0.42",
    "driver": "1",
    "cuda": "13",
    "cudnn": 9,
    "packages": {"redis": "8"},
}
LOAD = {
    "kind": "load",
    "section": "served-sd15",
    "model": "sd15",
    "who": "served, skips on",
    "way": "MPS",
    "load": "burst",
    "steps": 20,
    "images": 64,
    "images_per_s": 6.0,
    "p50_s": 4.0,
    "p99_s": 8.0,
    "skipped_share": 0.5,
    "errors": {},
}


def written(tmp_path: Path, records: list[dict[str, Any]]) -> Path:
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + '\n{"kind": "call", "cut sh')
    return path


def test_floors_are_operations_or_bytes_whichever_takes_longer() -> None:
    floors = Floors.of([COST, *CEILINGS])
    assert floors.item_ms("sd15", 16, 0, "float16") == pytest.approx(16 / 500 * 1000)
    assert floors.item_ms("sd15", 0.1, 0, "float16") == pytest.approx(1e9 * 2 / 2e12 * 1000), "weights are read once"
    assert floors.item_ms("sd15", 0, 2, "float16") == pytest.approx(6 / 500 * 1000)
    assert floors.images_per_s("sd15", 20, "float16") == pytest.approx(500 / 43)
    assert floors.images_per_s("sd15", 20, "float16", skipped_share=0.5) == pytest.approx(500 / 33)
    assert floors.item_ms("sdxl", 2, 0, "float16") is None
    assert Floors().item_ms("sd15", 2, 0, "float16") is None


def test_a_load_is_set_against_what_arithmetic_allows_on_the_card_of_its_run(tmp_path: Path) -> None:
    offline = LOAD | {"who": "diffusers eager, batches of 32", "load": "offline", "images_per_s": 4.0}
    shown = render(written(tmp_path, [MACHINE, COST, *CEILINGS, LOAD, offline]))
    [row] = [line for line in shown.splitlines() if "served, skips on" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["NVIDIA X", "SD 1.5", "served, skips on", "MPS", "burst"]
    assert cells[5:13] == ["6.000", "15.152", "40%", "1.50", "4.00", "8.00", "50%", "64"]
    assert "random weights" in shown
    assert "MLPerf" in shown


def test_what_failed_is_shown(tmp_path: Path) -> None:
    failed = {"kind": "section", "section": "parity", "title": "parity", "status": "failed", "seconds": 3.0}
    trouble = {"kind": "trouble", "section": "served-sd15", "what": "served under MPS", "error": "a\nlast | words"}
    shown = render(written(tmp_path, [failed | {"error": "Traceback\nValueError: x"}, trouble]))
    assert "| parity | failed | 3 | ValueError: x |" in shown
    assert "| served-sd15 | served under MPS | last / words |" in shown


def test_a_brief_one_leaves_the_long_tables_out(tmp_path: Path) -> None:
    call = {"kind": "call", "section": "choices", "model": "sd15", "part": "UNet", "count": 2, "how": "x", "ms": 9.0}
    results = written(tmp_path, [MACHINE, COST, *CEILINGS, call])
    assert "| NVIDIA X | SD 1.5 | UNet | 2 rows | x | 9.00 | 4.00 | 2.2 | - |" in render(results)
    assert "2 rows | x" not in render(results, brief=True)
