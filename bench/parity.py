"""Served pictures against diffusers' own pipelines, for every sampler of every model family.

    python -m bench.parity [--steps 8] [--dtype float32|bfloat16] [--compiled]

For the bundled model and a tiny randomly initialised one of each family, and every sampler: the picture made alone, and
the one made in a batch with seven others of other samplers, steps and guidance scales that join at other steps, each
against the picture that diffusers' pipeline of that family makes of the same seed, prompts, steps and guidance scale.
In float32 the largest difference of any pixel counts, in levels of 255. In bfloat16 the rounding depends on the shape
of a batch: the PSNR of the batched picture against the one made alone in the same dtype counts. Prints JSON.

With --compiled every UNet call and every decode is made by a compiled package, which is made first, in a minute or two.
"""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast, get_args

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import typer

from bench.command import run, some_of
from bench.pictures import levels, psnr_db
from synerdiff.cards import Sampler
from synerdiff.models.compiled.background import BackgroundCompiler
from synerdiff.models.compiled.calls import Call
from synerdiff.models.compiled.components import compile_subject
from synerdiff.models.compiled.store import Component
from synerdiff.models.family import UnetSide, VaeSide
from synerdiff.requests import TaskSpec
from synerdiff.settings import load
from synerdiff.worker_settings import WorkerSettings
from synerdiff_cli.deployment import BUNDLED_MODEL
from tests.parity import Packages, served_images, unet_side, vae_side
from tests.reference import reference_image, settings_of
from tests.tiny_models import FamilyName, tiny_model

BATCH = 8
GUIDANCE_SCALES = (1.0, 3.0, 4.0, 7.5)
NEGATIVE_PROMPTS = ("", "blue", "")


def tasks(samplers: list[Sampler], side: int, steps: int, seed: int) -> list[TaskSpec]:
    """A task of each sampler, all of them different."""
    return [
        TaskSpec(
            task_id=f"{sampler.name}/{k}",
            prompt=("a red apple", "a rocket", "a cat face", "a slice of pizza")[k % 4],
            negative_prompt=NEGATIVE_PROMPTS[k % 3],
            width=side,
            height=side,
            num_inference_steps=steps + k % 4,
            guidance_scale=GUIDANCE_SCALES[(k + seed) % 4],
            seed=seed + k,
            sampler=sampler,
            preview_every=0,
        )
        for k, sampler in enumerate(samplers)
    ]


def package_of(component: Component, model: Path, dtype: torch.dtype, folder: Path) -> Call:
    """The package of a model's UNet or VAE, made in `folder`. Raises RuntimeError where it cannot be made."""
    got: list[Call] = []
    settings = load(WorkerSettings, ["--compile", "wait", "--compile-cache", str(folder)])
    side: UnetSide | VaeSide = unet_side(model, dtype) if component == "unet" else vae_side(model, dtype)
    with contextlib.closing(BackgroundCompiler(settings)) as compiler:
        compiler.request(compile_subject(component, model, side), got.append)
        compiler.wait()
    if not got:
        raise RuntimeError(f"{model}: {component} not compiled; the log says why")
    return got[0]


def measure(
    model: Path, side: int, steps: int, dtype: torch.dtype, packages: Packages | None = None
) -> dict[str, dict[str, float]]:
    """Every sampler of one model, alone and in batches of eight."""
    samplers: list[Sampler] = [sampler for sampler in Sampler if sampler is not Sampler.OWN]
    rotated = itertools.cycle(samplers)
    batches = [[next(rotated) for _ in range(BATCH)] for _ in range(-(-len(samplers) // BATCH))]
    found: dict[str, dict[str, float]] = {}
    for number, batch in enumerate(batches):
        requests = tasks(batch, side, steps, seed=100 * number)
        alone = served_images(model, requests, together=False, dtype=dtype, packages=packages)
        together = served_images(model, requests, together=True, dtype=dtype, packages=packages)
        for task, one, batched in zip(requests, alone, together, strict=True):
            if dtype is torch.float32:
                expected = reference_image(model, dtype=dtype, **settings_of(task))
                row: dict[str, float] = {
                    "alone_levels": levels(one, expected),
                    "batched_levels": levels(batched, expected),
                }
            else:
                row = {"batched_psnr_db": round(psnr_db(batched, one), 1)}
            row["contrast"] = round(float(one.std()), 1)  # a flat picture would prove nothing
            found[f"{task.sampler.name} {task.num_inference_steps} steps, seed {task.seed}"] = row
    return found


def command(
    steps: int = 8,
    dtype: str = "float32",
    models: str = "",
    compiled: Annotated[bool, typer.Option("--compiled", help="Compute with compiled packages only.")] = False,
) -> dict[str, Any]:
    """Every model by comma: the worst of any picture, and each."""
    results = {}
    torch_dtype: torch.dtype = getattr(torch, dtype)
    with tempfile.TemporaryDirectory() as folder:
        for name in some_of(models, ("emoji", *get_args(FamilyName)), "--models"):
            model = BUNDLED_MODEL if name == "emoji" else tiny_model(cast(FamilyName, name), Path(folder) / name)
            made_in = Path(folder) / f"{name} packages"
            made = [package_of(part, model, torch_dtype, made_in) for part in get_args(Component)] if compiled else []
            packages = Packages(*made) if made else None
            results[name] = measure(model, 128 if name == "emoji" else 64, steps, torch_dtype, packages)
    rows = [row for found in results.values() for row in found.values()]
    least = ("batched_psnr_db", "contrast")
    worst = {name: (min if name in least else max)(row[name] for row in rows) for name in rows[0]}
    return {"dtype": dtype, "compiled": compiled, "worst": worst, "pictures": len(rows), "models": results}


def well(found: Mapping[str, Any]) -> bool:
    worst = found["worst"]
    close = worst.get("alone_levels", 0) <= 1 and worst.get("batched_levels", 0) <= 2
    return bool(close and worst.get("batched_psnr_db", 99) >= 40)


if __name__ == "__main__":
    run(command, well=well)
