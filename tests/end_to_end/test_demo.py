"""`synerdiff demo` as a newcomer runs it: every process for real, and the picture diffusers' own pipeline makes."""

import json
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from synerdiff.cards import Sampler
from synerdiff_cli.deployment import BUNDLED_MODEL
from tests.end_to_end.command import SYNERDIFF, environment, processes
from tests.reference import reference_image
from tests.rounding import A_LEVEL
from tests.waiting import HANG_S


def test_the_demo_makes_the_picture_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    done = subprocess.run(
        [SYNERDIFF, "demo", "a slice of pizza", "--seed", "42", "--steps", "6", "--dtype", "float32"],
        cwd=folder,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a-slice-of-pizza-42.png\n"
    assert "Your picture is a-slice-of-pizza-42.png" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["a-slice-of-pizza-42.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert processes(tmp_path) == {}

    with Image.open(folder / "a-slice-of-pizza-42.png") as picture:
        picture.load()
    made_with = json.loads(picture.info["synerdiff"])
    assert (made_with["seed"], made_with["num_inference_steps"], made_with["width"]) == (42, 6, 128)
    expected = reference_image(
        BUNDLED_MODEL,
        prompt="a slice of pizza",
        seed=42,
        steps=6,
        guidance_scale=made_with["guidance_scale"],
        sampler=Sampler.DDIM,
        width=128,
        height=128,
    )
    assert np.abs(np.asarray(picture).astype(int) - expected.astype(int)).max() <= A_LEVEL
