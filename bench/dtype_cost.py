"""What pictures lose where a worker computes in bfloat16: against float32, and in other company.

    python -m bench.dtype_cost [--prompts 64] [--steps 20] [--prompts-file FILE] [--score models/emoji/score.py]

The bundled model through the workers' own denoiser and decoder, sixteen tasks at once, for three samplers: PSNR of each
picture to that of the same seed in float32, mean and worst; PSNR of the first five to the same ones made five at once;
and the alignment score of either dtype, where there is one. Prints a Markdown table.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import typer

from bench.command import machine, markdown_table, run
from services.unet_worker.fidelity import load_score, prompts_of
from services.unet_worker.fidelity_cases import Pictures, Score, Studio, Task, loss
from synerdiff.cards import Sampler
from synerdiff.host import usable_cores
from synerdiff.models.loading import load_unet_side, load_vae_side
from synerdiff_cli.deployment import BUNDLED_MODEL

_SAMPLERS = (Sampler.DDIM, Sampler.EULER, Sampler.DPMSOLVER_MULTISTEP)
_GUIDANCE_SCALE = 5.0
_FEW = 5
_HEADINGS = (
    "sampler",
    "to float32, mean dB",
    "worst",
    f"16 at once to {_FEW} at once, mean dB",
    "worst",
    "score, float32",
    "score, bfloat16",
)


def studio(dtype: torch.dtype) -> Studio:
    return Studio(load_unet_side(BUNDLED_MODEL, dtype), load_vae_side(BUNDLED_MODEL, dtype, safety_checker=False))


def row(task: Task, exact: Studio, rounded: Studio, score: Score | None) -> tuple[str, ...]:
    in_float, in_bfloat = exact.full(task), rounded.full(task)
    first = Pictures(in_bfloat.latents[:_FEW], in_bfloat.images[:_FEW])
    off = loss(in_bfloat, in_float)
    company = loss(first, rounded.full(replace(task, prompts=task.prompts[:_FEW])))
    numbers = [f"{db:.1f}" for db in (off.mean_db, off.worst_db, company.mean_db, company.worst_db)]
    scores = [f"{score(made.images, task.prompts):.1f}" if score else "-" for made in (in_float, in_bfloat)]
    return (task.sampler.name, *numbers, *scores)


def measure(
    prompts: int = 64,
    prompts_file: Annotated[Path | None, typer.Option(help="A prompt a line.")] = None,
    steps: int = 20,
    score: Annotated[Path | None, typer.Option(help="A Python file with score(images, prompts) -> percent.")] = None,
) -> str:
    """The table, and on what it was measured."""
    torch.set_num_threads(usable_cores())
    exact, rounded, scored = studio(torch.float32), studio(torch.bfloat16), load_score(score)
    drawn = tuple(prompts_of(prompts_file, prompts))
    tasks = [Task(drawn, sampler, steps, _GUIDANCE_SCALE) for sampler in _SAMPLERS]
    return f"{machine()}\n{markdown_table(_HEADINGS, [row(task, exact, rounded, scored) for task in tasks])}"


if __name__ == "__main__":
    run(measure, show=str)
