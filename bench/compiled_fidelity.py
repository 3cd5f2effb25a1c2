"""What skipping guidance costs the bundled model's pictures on compiled steps, beside eager ones.

    python -m bench.compiled_fidelity [--prompts 64] [--steps 20] [--dtype float32]

Each share and sampler: the PSNR of the pictures that skip against those of the same seeds with full guidance, once with
every UNet call eager and once with every one by the compiled package; and, of the pictures with full guidance, the PSNR
of the compiled against the eager. The decodes are eager. Prints JSON.
"""

import json
import os
import random
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import typer

from bench.command import run, say
from bench.parity import packages_of
from services.unet_worker.denoiser import Denoiser
from services.unet_worker.fidelity import prompts_of
from services.unet_worker.fidelity_cases import Studio, Task, loss
from synerdiff.cards import Sampler
from synerdiff.skip_cfg import spread
from synerdiff_cli.deployment import BUNDLED_MODEL
from tests.parity import PackagedUnet, unet_side, vae_side

SAMPLERS = (Sampler.DDIM, Sampler.EULER, Sampler.DPMSOLVER_MULTISTEP)
SHARES = (0.5, 0.6, 0.65)
PREDICTOR, LONGEST_RUN, HEAD, TAIL = "reuse", 3, 1, 2  # as docs/skip_cfg.md measures the bundled model
GUIDANCE_SCALE = 5.0


def subjects(count: int) -> tuple[str, ...]:
    """`count` of the bundled model's subjects, drawn once and for all."""
    lines = (BUNDLED_MODEL.parent / "core.txt").read_text(encoding="utf-8").split("|")
    return tuple(random.Random(7).sample([subject.strip() for subject in lines if subject.strip()], count))


def measure(studios: dict[str, Studio], prompts: tuple[str, ...], steps: int) -> list[dict[str, object]]:
    rows = []
    for sampler in SAMPLERS:
        task = Task(prompts, sampler, steps, GUIDANCE_SCALE)
        full = {name: studio.full(task) for name, studio in studios.items()}
        compiled_db = loss(full["compiled"], full["eager"]).mean_db
        for share in SHARES:
            calls = spread(studios["eager"].num_calls(task), share, LONGEST_RUN, HEAD, TAIL)
            row: dict[str, object] = {"sampler": sampler.name, "skipped": len(calls), "full_compiled_db": compiled_db}
            for name, studio in studios.items():
                row[name] = asdict(studio.loss(task, studio.skipping(task, PREDICTOR, calls)))
            rows.append(row)
            say(json.dumps(row))
    return rows


def command(
    prompts: int = 64,
    steps: int = 20,
    dtype: str = "float32",
    prompts_file: Annotated[
        Path | None, typer.Option(help="A prompt a line. Default: the bundled model's subjects.")
    ] = None,
) -> dict[str, Any]:
    torch_dtype: torch.dtype = getattr(torch, dtype)
    drawn = tuple(prompts_of(prompts_file, prompts)) if prompts_file else subjects(prompts)
    side, decoder = unet_side(BUNDLED_MODEL, torch_dtype), vae_side(BUNDLED_MODEL, torch_dtype)
    with tempfile.TemporaryDirectory() as folder:
        package = packages_of(BUNDLED_MODEL, torch_dtype, Path(folder)).unet
        compiled = Studio(side, decoder, Denoiser(side, PackagedUnet(side, package)))
        rows = measure({"eager": Studio(side, decoder), "compiled": compiled}, drawn, steps)
    return {"dtype": dtype, "steps": steps, "prompts": prompts, "rows": rows}


if __name__ == "__main__":
    run(command)
