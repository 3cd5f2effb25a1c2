"""The page of the peers from canned numbers: all of it derived, losses named."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.peers.measuring import ALONE, BATCHED, BURST, LOOP, ONE, OURS, SATURATED
from bench.peers.report import best_baseline, document, losses, median, over, values, write
from tests.test_house import ROOT

CONTENDERS = {
    "one at a time, eager": ONE,
    "batched, eager": BATCHED,
    "bare loop, eager": LOOP,
    "ours, skipping off": OURS,
}


def window(images_per_s: float, mean_s: float, cores_of_others: float = 0.01) -> dict[str, Any]:
    numbers = {"images_per_s": images_per_s, "mean_s": mean_s, "p50_s": mean_s, "p99_s": 2 * mean_s}
    return {**numbers, "latencies_s": [mean_s, 2 * mean_s], "errors": {}, "cores_of_others": cores_of_others}


def one_round(saturated: Sequence[float], means: Sequence[float], slowness: float) -> dict[str, Any]:
    """A round in which the machine is so much slower; the order is that of CONTENDERS."""
    rows = zip(CONTENDERS, saturated, means, strict=True)
    results = {name: window(rate / slowness, mean * slowness) for name, rate, mean in rows}
    served = {name: of for name, of in results.items() if CONTENDERS[name] != LOOP}
    return {
        "loads": {
            name: {"rate_per_s": 0, "results": results if name != BURST else served}
            for name in (SATURATED, ALONE, BURST)
        }
    }


def result_of(ours_images_per_s: float, ours_mean_s: float, dtype: str = "float32") -> dict[str, Any]:
    saturated, means = (2.0, 5.0, 5.5, ours_images_per_s), (0.5, 0.6, 0.45, ours_mean_s)
    return {
        "date": "2026-11-26",
        "machine": {
            "cpu": "Fast CPU",
            "cores": 2,
            "flags": ["amx_bf16"],
            "memory_gib": 24,
            "system": "Linux",
            "python": "3.11",
            "torch": "2.13",
            "diffusers": "0.42",
        },
        "command": f"python -m bench.peers --dtype {dtype}",
        "model": "the bundled model",
        "dtype": dtype,
        "steps": 20,
        "guidance_scale": 5.0,
        "amounts": {"clients": 48, "clients_of_one": 4, "turns": 4, "alone": 6, "poisson_s": 30, "burst": 64},
        "peers": {
            "eager": {
                "best_size": 16,
                "threads": 2,
                "start_s": 30.0,
                "sweep": {"seconds": {"contiguous": {"1": 1.0, "16": 3.0}, "channels_last": {"1": 1.1, "16": 2.9}}},
            }
        },
        "ours": {"ours": {"policy": "synerdiff"}},
        "contenders": {name: {"kind": kind, "system": "x"} for name, kind in CONTENDERS.items()},
        "rounds": [one_round(saturated, means, slowness) for slowness in (1.0, 1.5, 1.2)],
    }


def test_ratios_do_not_see_that_the_machine_was_slower() -> None:
    result = result_of(4.4, 0.6)
    of = over(result, SATURATED, "ours, skipping off", "bare loop, eager", "images_per_s")
    assert of.per_round == pytest.approx((0.8, 0.8, 0.8))
    assert median(result, SATURATED, "batched, eager", "images_per_s") == pytest.approx(5 / 1.2)


def test_the_best_baseline_is_a_server_that_was_in_every_round() -> None:
    result = result_of(4.4, 0.6)
    assert best_baseline(result, SATURATED, "images_per_s") == "batched, eager"
    assert best_baseline(result, ALONE, "mean_s") == "one at a time, eager"
    del result["rounds"][0]["loads"][ALONE]["results"]["one at a time, eager"]
    assert math.isnan(values(result, ALONE, "one at a time, eager", "mean_s")[0])
    assert best_baseline(result, ALONE, "mean_s") == "batched, eager"
    assert best_baseline(result, "Poisson 70 %", "mean_s") is None


def test_losses_are_what_is_worse_and_nothing_else() -> None:
    found = losses(result_of(5.2, 0.4))
    assert [(loss.load, loss.value, loss.other) for loss in found] == [(SATURATED, "images_per_s", "bare loop, eager")]
    assert found[0].ratio.median == pytest.approx(5.2 / 5.5)
    assert losses(result_of(6.0, 0.4)) == []
    worst = losses(result_of(1.0, 0.9))
    assert [loss.factor for loss in worst] == sorted((loss.factor for loss in worst), reverse=True)
    assert {loss.load for loss in worst} == {SATURATED, ALONE, BURST}


def test_the_document_says_it_all_by_numbers_alone() -> None:
    text = document([result_of(4.4, 0.6), result_of(6.0, 0.4, "bfloat16")], {"float32": "pictures/peers-float32.png"})
    assert "2 cores of an Fast CPU (amx_bf16), 24 GiB" in text
    assert "\npython -m bench.peers --dtype bfloat16\n" in text
    assert "best batch 16 of 1, 16, weights channels last" in text
    assert "| bare loop, eager | 4.58 | 0.80 (0.80 to 0.80) |" in text
    assert "| alone | one at a time, eager | 0.60 | 0.60 | 1.20 | best | best |" in text
    lost = text.partition("## What we lose at")[2]
    assert "saturated, ours, skipping off: 0.80 (0.80 to 0.80) times the images/s of *bare loop, eager*" in lost
    assert "bfloat16: at nothing that was measured here." in lost
    assert "](pictures/peers-float32.png)" in text
    assert "nan" not in text


def test_who_serves_less_than_arrives_is_said_to() -> None:
    result = result_of(4.4, 0.6)
    for one in result["rounds"]:
        results = {"batched, eager": window(3.0, 0.8)}
        one["loads"]["Poisson 70 %"] = {"rate_per_s": 3.5, "results": results}
    text = document([result])
    assert "| Poisson 70 % | ours, skipping off | saturated | - | - | - | - |" in text
    assert "- Poisson 70 %, ours, skipping off: serves less than arrives" in text
    assert "Poisson 90 %" not in text


def test_it_is_written_with_its_pictures(tmp_path: Path) -> None:
    file, out = tmp_path / "peers-float32.json", tmp_path / "docs" / "benchmarks-peers.md"
    file.write_text(json.dumps(result_of(4.4, 0.6)))
    write([file], out)
    assert out.read_text().startswith("# Benchmarks")
    assert (tmp_path / "docs/pictures/benchmarks-peers-float32.png").read_bytes().startswith(b"\x89PNG")


def test_the_product_knows_nothing_of_peers() -> None:
    offenders = [
        path
        for package in ("synerdiff", "services", "synerdiff_cli")
        for path in (ROOT / package).rglob("*.py")
        if "bench.peers" in path.read_text()
    ]
    assert offenders == []
