"""The loss of the bundled model's pictures by the way they are computed, over several subjects and three samplers.

    python -m bench.fidelity compiled [--prompts 64] [--steps 20] [--dtype float32]
    python -m bench.fidelity bfloat16 [--prompts 64] [--steps 20] [--prompts-file FILE] [--score models/emoji/score.py]

"compiled": for each share of skipped guidance, the PSNR of the pictures that skip against those of the same seeds with
full guidance, with every UNet call eager and with every one by the compiled package; and, with full guidance, of the
compiled against the eager. The decodes are eager. "bfloat16", by the workers' own denoiser and decoder, sixteen tasks
at once: PSNR of each picture to that of the same seed in float32; of the first five to the same made five at once; and
the alignment score of either dtype, where there is one. Prints JSON.
"""

import enum
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import typer

from bench.command import machine, run, say
from bench.parity import package_of
from services.unet_worker.denoiser import Denoiser
from services.unet_worker.fidelity import load_score, prompts_of
from services.unet_worker.fidelity_cases import Pictures, Score, Studio, Task, loss
from synerdiff.cards import Sampler
from synerdiff.host import usable_cores
from synerdiff.skip_cfg import spread
from synerdiff_cli.deployment import BUNDLED_MODEL
from tests.parity import PackagedUnet, unet_side, vae_side

SAMPLERS = (Sampler.DDIM, Sampler.EULER, Sampler.DPMSOLVER_MULTISTEP)
GUIDANCE_SCALE = 5.0
SHARES = (0.5, 0.6, 0.65)
PREDICTOR, LONGEST_RUN, HEAD, TAIL = "reuse", 3, 1, 2  # as docs/skip_cfg.md measures the bundled model
_FEW = 5


class Way(enum.StrEnum):
    COMPILED = "compiled"
    BFLOAT16 = "bfloat16"


def subjects(count: int) -> tuple[str, ...]:
    """`count` of the bundled model's subjects, drawn once and for all."""
    lines = (BUNDLED_MODEL.parent / "core.txt").read_text(encoding="utf-8").split("|")
    return tuple(random.Random(7).sample([subject.strip() for subject in lines if subject.strip()], count))


def of_compiled(task: Task, eager: Studio, compiled: Studio) -> Iterator[dict[str, Any]]:
    full_db = loss(compiled.full(task), eager.full(task)).mean_db
    for share in SHARES:
        calls = spread(eager.num_calls(task), share, LONGEST_RUN, HEAD, TAIL)
        losses = {
            name: asdict(loss(studio.skipping(task, PREDICTOR, calls), studio.full(task)))
            for name, studio in (("eager", eager), ("compiled", compiled))
        }
        yield {"sampler": task.sampler.name, "skipped": len(calls), "full_compiled_db": full_db, **losses}


def of_bfloat16(task: Task, exact: Studio, rounded: Studio, score: Score | None) -> dict[str, Any]:
    in_float, in_bfloat = exact.full(task), rounded.full(task)
    first = Pictures(in_bfloat.latents[:_FEW], in_bfloat.images[:_FEW])
    return {
        "sampler": task.sampler.name,
        "to_float32": asdict(loss(in_bfloat, in_float)),
        f"16_at_once_to_{_FEW}_at_once": asdict(loss(first, rounded.full(replace(task, prompts=task.prompts[:_FEW])))),
        "scores": {
            name: score(made.images, task.prompts) if score else None
            for name, made in (("float32", in_float), ("bfloat16", in_bfloat))
        },
    }


def measure(
    way: Way,
    prompts: int = 64,
    steps: int = 20,
    dtype: Annotated[str, typer.Option(help="Of compiled and eager steps.")] = "float32",
    prompts_file: Annotated[
        Path | None, typer.Option(help="A prompt a line. Default: the bundled model's subjects.")
    ] = None,
    score: Annotated[Path | None, typer.Option(help="A Python file with score(images, prompts) -> percent.")] = None,
) -> dict[str, Any]:
    torch.set_num_threads(usable_cores())
    drawn = tuple(prompts_of(prompts_file, prompts)) if prompts_file else subjects(prompts)
    tasks = [Task(drawn, sampler, steps, GUIDANCE_SCALE) for sampler in SAMPLERS]
    computed = torch.float32 if way is Way.BFLOAT16 else getattr(torch, dtype)
    side, decoder = unet_side(BUNDLED_MODEL, computed), vae_side(BUNDLED_MODEL, computed)
    eager, rows = Studio(side, decoder), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        if way is Way.COMPILED:
            package = package_of("unet", BUNDLED_MODEL, computed, Path(folder))
            other = Studio(side, decoder, Denoiser(side, PackagedUnet(side, package)))
        else:
            other = Studio(unet_side(BUNDLED_MODEL, torch.bfloat16), vae_side(BUNDLED_MODEL, torch.bfloat16))
        scored = load_score(score)
        for task in tasks:
            if way is Way.COMPILED:
                rows += of_compiled(task, eager, other)
            else:
                rows.append(of_bfloat16(task, eager, other, scored))
            say(str(rows[-1]))
    return {"machine": machine(), "way": way, "dtype": dtype, "steps": steps, "prompts": prompts, "rows": rows}


if __name__ == "__main__":
    run(measure)
