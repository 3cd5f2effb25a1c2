"""`synerdiff plan`: what it prints, as JSON and for people."""

import json
from pathlib import Path

from typer.testing import Result

from synerdiff.profiles import dump, load
from tests.synerdiff_cli.fake_scheduler import synerdiff

PAPER = Path(__file__).parents[2] / "bench" / "profiles" / "paper-table.json"


def plan(*arguments: str, profile: Path = PAPER) -> Result:
    return synerdiff("plan", "--profile", str(profile), *arguments)


def test_json_has_the_items_in_order() -> None:
    result = plan("--unet", "8", "--vae", "6", "--threshold", "1.0", "--skips", "0", "--json")
    assert result.exit_code == 0, result.output
    planned = json.loads(result.stdout)
    assert planned["total_ms"] == 286.2
    assert planned["mean_decode_ms"] == 186.8
    assert planned["skips"] == 0
    assert planned["items"] == [
        {"unet": 2, "skips": 0, "decodes": 2.0, "chunks": 1, "ms": 87.4, "starts_ms": 0.0},
        {"unet": 3, "skips": 0, "decodes": 2.0, "chunks": 1, "ms": 99.4, "starts_ms": 87.4},
        {"unet": 3, "skips": 0, "decodes": 2.0, "chunks": 1, "ms": 99.4, "starts_ms": 186.8},
    ]


def test_people_see_why_it_beat_the_others() -> None:
    result = plan("--unet", "8", "--vae", "6", "--threshold", "0.98")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["planned", "291.4", "27.5", "146.3", "877.8", "yes"] in rows
    assert ["fine", "322.0", "24.8", "162.0", "972.3", "no"] in rows
    assert "coarse: objective 291.0 ms worse" in result.stdout
    assert "fine: 30.0 ms slower than allowed" in result.stdout
    assert "vae-first: 33.0 ms slower than allowed" in result.stdout


def test_a_threshold_out_of_reach_is_said_so() -> None:
    result = plan("--unet", "8", "--vae", "6", "--threshold", "1.2")
    assert "no round keeps to the threshold" in result.stdout
    assert json.loads(plan("--unet", "8", "--vae", "6", "--threshold", "1.2", "--json").stdout)["feasible"] is False


def test_a_round_that_was_never_measured_is_refused(tmp_path: Path) -> None:
    whole = load(PAPER)
    path = tmp_path / "halves.json"
    halves = (
        c if not c.decodes else c.__class__(**vars(c) | {"setting": c.setting._replace(chunks=2)}) for c in whole.cells
    )
    path.write_text(dump(whole.with_cells(halves)))
    assert plan("--unet", "2", "--vae", "1", profile=path).exit_code == 0
    refused = plan("--unet", "2", "--vae", "1", "--no-chunking", profile=path)
    assert refused.exit_code == 2
    assert "no round of 2 UNet steps and 1 decodes" in refused.stderr
