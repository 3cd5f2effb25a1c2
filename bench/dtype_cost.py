"""What pictures lose where a worker computes in bfloat16: against float32, and in other company.

    python -m bench.dtype_cost [--prompts 64] [--steps 20] [--prompts-file FILE] [--score models/emoji/score.py]

The bundled model through the workers' own denoiser and decoder, sixteen tasks at once, for three samplers: PSNR of each
picture to that of the same seed in float32, mean and worst; PSNR of the first five to the same ones made five at once;
and the alignment score of either dtype, where there is one. Prints a Markdown table.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from bench.reporting import machine, markdown_table
from services.unet_worker.fidelity import load_score, prompts_of
from services.unet_worker.fidelity_pictures import Pictures, Score, Studio, Task, loss
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
    """A worker's pictures in a dtype."""
    return Studio(load_unet_side(BUNDLED_MODEL, dtype), load_vae_side(BUNDLED_MODEL, dtype, safety_checker=False))


def row(task: Task, exact: Studio, rounded: Studio, score: Score | None) -> tuple[str, ...]:
    """The table's row of one task."""
    in_float, in_bfloat = exact.full(task), rounded.full(task)
    first = Pictures(in_bfloat.latents[:_FEW], in_bfloat.images[:_FEW])
    off = loss(in_bfloat, in_float)
    company = loss(first, rounded.full(replace(task, prompts=task.prompts[:_FEW])))
    numbers = [f"{db:.1f}" for db in (off.mean_db, off.worst_db, company.mean_db, company.worst_db)]
    scores = [f"{score(made.images, task.prompts):.1f}" if score else "-" for made in (in_float, in_bfloat)]
    return (task.sampler.name, *numbers, *scores)


def main() -> int:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompts-file", type=Path, help="a prompt a line")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--score", type=Path, help="a Python file with score(images, prompts) -> percent")
    options = parser.parse_args()
    torch.set_num_threads(usable_cores())
    exact, rounded, score = studio(torch.float32), studio(torch.bfloat16), load_score(options.score)
    prompts = tuple(prompts_of(options.prompts_file, options.prompts))
    tasks = [Task(prompts, sampler, options.steps, _GUIDANCE_SCALE) for sampler in _SAMPLERS]
    print(machine())
    print(markdown_table(_HEADINGS, [row(task, exact, rounded, score) for task in tasks]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
