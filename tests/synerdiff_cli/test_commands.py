"""The commands that ask a scheduler: files, output, exit codes. The answers are canned, the wire is real."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from synerdiff import errors
from synerdiff.redis_process import free_port
from synerdiff.v1 import images_pb2, operations_pb2
from tests.synerdiff_cli.fake_scheduler import Script, synerdiff
from tests.waiting import HANG_S, wait_until


def test_generate_writes_and_names_the_file(script: Script) -> None:
    script.succeed()
    result = synerdiff("generate", "A slice of pizza!")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "a-slice-of-pizza-7.png\n"
    with Image.open("a-slice-of-pizza-7.png") as picture:
        assert picture.getpixel((0, 0)) == (200, 30, 30)


def test_generate_asks_for_what_was_said_and_nothing_else(script: Script) -> None:
    script.succeed()
    assert synerdiff("generate", "a cat").exit_code == 0
    plain = script.requests[-1]
    assert not plain.HasField("seed")
    assert not plain.HasField("guidance_scale")
    assert not plain.HasField("exact")
    assert (plain.prompt, plain.num_inference_steps, plain.sampler, plain.model) == ("a cat", 0, 0, "")

    options = "--steps 9 --guidance-scale 1.5 --seed 0 --width 64 --height 96 --sampler euler_ancestral --no-skip-cfg"
    assert synerdiff("generate", "a cat", *options.split(), "--negative-prompt", "a dog", "-n", "2").exit_code == 0
    full = script.requests[-1]
    assert (full.num_inference_steps, full.width, full.height, full.num_images) == (9, 64, 96, 2)
    assert full.HasField("seed")
    assert (full.seed, full.guidance_scale, full.negative_prompt) == (0, 1.5, "a dog")
    assert full.sampler == images_pb2.SAMPLER_EULER_ANCESTRAL
    assert full.skip_cfg.mode == images_pb2.SKIP_CFG_MODE_OFF
    for flag, exact in (("--exact", True), ("--no-exact", False)):
        assert synerdiff("generate", "a cat", flag).exit_code == 0
        assert (script.requests[-1].HasField("exact"), script.requests[-1].exact) == (True, exact)


def test_several_pictures_go_to_numbered_files(script: Script) -> None:
    script.succeed(num_images=3)
    result = synerdiff("generate", "a cat", "-n", "3", "-o", "cat.png")
    assert result.stdout.split() == ["cat.png", "cat-1.png", "cat-2.png"]
    assert sorted(p.name for p in Path().iterdir()) == ["cat-1.png", "cat-2.png", "cat.png"]


def test_the_suffix_says_the_format(script: Script) -> None:
    script.succeed()
    assert synerdiff("generate", "a cat", "-o", "cat.webp").exit_code == 0
    assert script.requests[-1].image_format == images_pb2.IMAGE_FORMAT_WEBP


def test_a_folder_gets_a_file_of_the_default_name(script: Script, tmp_path: Path) -> None:
    script.succeed()
    (tmp_path / "out").mkdir()
    assert synerdiff("generate", "a cat", "-o", "out").stdout == "out/a-cat-7.png\n"


def test_warnings_are_shown(script: Script) -> None:
    script.succeed(warnings=("cut: 'and [a] hat'",))
    assert "warning: cut: 'and [a] hat'" in synerdiff("generate", "a cat").stderr


def test_a_detached_job_is_named_and_not_followed(script: Script) -> None:
    result = synerdiff("generate", "a cat", "--detach")
    assert (result.exit_code, result.stdout) == (0, "job-1\n")
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequest(errors.FieldViolation("width", "7 is not a multiple of 8 from 8 to 256")), 2),
        (errors.NotFound("model: 'x' is unknown; the models are: emoji"), 2),
        (errors.AlreadyExists("request_id was used with another body"), 2),
        (errors.QueueFull("the queue is full", 0.0), 3),
        (errors.Cancelled("nobody followed the job"), 4),
        (errors.DeadlineExceeded("the timeout of 1 s ran out"), 124),
        (errors.SynerDiffError("the decoder failed"), 1),
    ],
)
def test_an_answered_error_is_one_line_and_an_exit_code(
    script: Script, error: errors.SynerDiffError, code: int
) -> None:
    script.error = error
    result = synerdiff("generate", "a cat")
    assert result.exit_code == code
    assert result.stderr == f"error: {error.message}\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"failed": images_pb2.Failed(code=13, message="the decoder failed")}, 1),
        ({"failed": images_pb2.Failed(code=4, message="the timeout of 1 s ran out")}, 124),
        ({"cancelled": images_pb2.Cancelled(reason="by request")}, 4),
    ],
)
def test_a_job_that_ends_badly_has_its_exit_code(script: Script, event: dict[str, object], code: int) -> None:
    script.happen(started=images_pb2.Started())
    script.happen(**event)
    result = synerdiff("generate", "a cat")
    assert result.exit_code == code
    assert result.stderr.startswith("error: job job-1 ")
    assert len(result.stderr.splitlines()) == 1


def test_an_address_where_nobody_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synerdiff_cli.server._CONTACT_S", 0.3)
    address = f"127.0.0.1:{free_port()}"
    result = synerdiff("generate", "a cat", "--address", address)
    assert result.exit_code == 3
    assert f"no scheduler answers at {address}" in result.stderr


def test_ctrl_c_cancels_the_job(script: Script, tmp_path: Path) -> None:
    script.succeed()
    script.events.pop()
    script.hangs = True
    command = [sys.executable, "-m", "synerdiff_cli.main", "generate", "a cat", "-n", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: (tmp_path / "a-cat-7.png").exists(), "the first of two pictures")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert script.cancelled == ["job-1"]
    assert stderr == "job job-1 is cancelled\n"


def test_jobs_get_watch_and_cancel(script: Script) -> None:
    assert synerdiff("jobs", "get", "job-1").stdout.startswith("job job-1: queued, 2 ahead\n  model emoji, seed 7")
    assert synerdiff("jobs", "cancel", "job-1").stdout.startswith("job job-1: cancelled\n")
    assert script.cancelled == ["job-1"]
    script.succeed(num_images=2)
    assert synerdiff("jobs", "watch", "job-1").stdout.split() == ["job-1-7.png", "job-1-8.png"]


def test_jobs_delete(script: Script) -> None:
    assert synerdiff("jobs", "delete", "job-1").stdout == "job job-1 is deleted\n"
    assert script.deleted == ["job-1"]
    script.error = errors.NotEnded("job 'job-1' is RUNNING")
    result = synerdiff("jobs", "delete", "job-1")
    assert (result.exit_code, result.stderr) == (1, "error: job 'job-1' is RUNNING\n")


def test_an_unknown_job(script: Script) -> None:
    script.error = errors.NotFound("job: 'job-1' is unknown")
    result = synerdiff("jobs", "get", "job-1")
    assert (result.exit_code, result.stderr) == (2, "error: job: 'job-1' is unknown\n")


def test_models_are_listed(script: Script) -> None:
    result = synerdiff("models")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split()[:3] == ["emoji", "sd1", "256x256"]
    assert "weights" not in result.stdout
    served = (("unet", "b", 1), ("unet", "a", 2), ("vae", "c", 1))
    script.weights = [images_pb2.Weights(kind=k, digest=d * 64, workers=n) for k, d, n in served]
    *_, last = synerdiff("models").stdout.splitlines()
    assert last == "emoji: unet workers draw new requests with weights bbbbbbbb (by 1), older ones with aaaaaaaa (by 2)"


def test_status_as_a_table_and_as_json(script: Script) -> None:
    table = synerdiff("status")
    assert "leads pool default, policy continuous" in table.stdout
    assert "3/32" in table.stdout
    reply = json.loads(synerdiff("status", "--json").stdout)
    assert reply["workers"][0]["worker_id"] == "unet-emoji-0"
    assert reply["workers"][0]["running"] == 0
    assert "threshold" not in table.stdout


def test_status_shows_what_is_planned_by(script: Script) -> None:
    made_at = (datetime.now(UTC) - timedelta(hours=3)).isoformat()
    profiled = operations_pb2.PlanningStatus(
        domain="gpu-0",
        model="emoji",
        width=128,
        height=128,
        threshold=0.84,
        knee_rows=12,
        profile_digest="abc123",
        profile_made_at=made_at,
        profile_origin="measured",
        profile_drift=0.07,
        profile_corrected=True,
    )
    script.planning = [profiled, operations_pb2.PlanningStatus(domain="gpu-1")]
    lines = [line.split() for line in synerdiff("status").stdout.splitlines()]
    assert lines[-2] == ["gpu-0", "emoji", "128x128", "0.84", "12", "abc123", "measured", "3", "h", "7%"]
    assert lines[-1] == ["gpu-1", "none", "none"]
