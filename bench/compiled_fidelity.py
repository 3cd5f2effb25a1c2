"""What skipping guidance costs the bundled model's pictures on compiled steps, beside eager ones.

    python -m bench.compiled_fidelity [--prompts 64] [--steps 20] [--dtype float32]

Each share and sampler: the PSNR of the pictures that skip against those of the same seeds with full guidance, once with
every UNet call eager and once with every one by the compiled package; and, of the pictures with full guidance, the PSNR
of the compiled against the eager. The decodes are eager. Prints JSON.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from bench.parity import packages_of
from services.unet_worker.denoiser import Denoiser
from services.unet_worker.fidelity import prompts_of
from services.unet_worker.fidelity_pictures import Studio, Task, loss
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
            print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prompts-file", type=Path, help="a prompt a line; default: the bundled model's subjects")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    prompts = (
        tuple(prompts_of(options.prompts_file, options.prompts)) if options.prompts_file else subjects(options.prompts)
    )
    side, decoder = unet_side(BUNDLED_MODEL, dtype), vae_side(BUNDLED_MODEL, dtype)
    with tempfile.TemporaryDirectory() as folder:
        package = packages_of(BUNDLED_MODEL, dtype, Path(folder)).unet
        studios = {
            "eager": Studio(side, decoder),
            "compiled": Studio(side, decoder, Denoiser(side, PackagedUnet(side, package))),
        }
        rows = measure(studios, prompts, options.steps)
    print(
        json.dumps({"dtype": options.dtype, "steps": options.steps, "prompts": options.prompts, "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
