"""`synerdiff plan`: what it prints, as JSON and for people, and what it refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from synerdiff.profiles import dump, load
from synerdiff_cli.main import app

PAPER = Path(__file__).parents[2] / "bench" / "profiles" / "paper-table.json"


def plan(*arguments: str, profile: Path = PAPER) -> Result:
    return CliRunner().invoke(app, ["plan", "--profile", str(profile), *arguments])


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--unet", "-1", "--vae", "1"), "--unet: -1; must be at least 0"),
        (("--unet", "1", "--vae", "129"), "--vae: 129; at most 128"),
        (("--unet", "0", "--vae", "0"), "nothing to plan"),
        (("--unet", "2", "--vae", "0", "--skips", "3"), "together at most the 2"),
        (("--unet", "2", "--vae", "0", "--one-row", "1", "--skips", "2"), "together at most the 2"),
        (("--unet", "2", "--vae", "0", "--threshold", "0"), "--threshold: 0.0; must be over 0"),
        (("--unet", "2", "--vae", "0", "--threshold", "nan"), "--threshold: nan; must be over 0"),
        (("--unet", "2", "--vae", "0", "--skip-price-ms", "nan"), "--skip-price-ms: nan; must be at least 0"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(arguments: tuple[str, ...], said: str) -> None:
    result = plan(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_a_file_that_is_no_profile_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    result = plan("--unet", "1", "--vae", "0", profile=tmp_path / "bad.json")
    assert result.exit_code == 2
    assert "bad.json: version: missing" in result.stderr


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
