"""Measure how much guidance a model's pictures can do without.

    python -m services.unet_worker.fidelity --model DIR --out FILE.json

Started by `synerdiff profile --fidelity`. Progress goes to the standard output as lines of JSON: {"done": cases,
"total": cases, "eta_s": seconds, "result": the last one}. The file holds the budget that was chosen (null where no
share holds the floor) and all results.
"""

import argparse
import importlib.util
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from services.unet_worker.fidelity_cases import (
    Case,
    Grid,
    Result,
    Score,
    Studio,
    Task,
    best_ends,
    choose,
    confirmed,
    longest_run,
    loss,
    of_budget,
    table,
)
from synerdiff.cards import Sampler
from synerdiff.errors import InvalidRequest
from synerdiff.host import usable_cores
from synerdiff.models.device import open_device
from synerdiff.models.device.opening import dtype_from_name
from synerdiff.models.layout import ModelLoadError
from synerdiff.models.loading import load_unet_side, load_vae_side
from synerdiff.models.threads import limit_torch_threads
from synerdiff.skip_cfg import SkipPredictor

# Prompts for any model, used for models that come without prompts of their own.
_PROMPTS = (
    "a slice of pizza",
    "a red apple on a table",
    "a lighthouse on a cliff at sunset",
    "a portrait of an old man with a hat",
    "a cat asleep on a sofa",
    "a mountain lake in the morning",
    "a racing car on a wet street",
    "a vase of sunflowers",
    "a castle in the snow",
    "a bowl of ramen",
    "an astronaut riding a horse",
    "a wooden desk with books and a lamp",
)
_SHUFFLE_SEED = 7


class Measurement:
    """Runs cases and reports its progress. `score`, if given, is computed for full guidance and for every result."""

    def __init__(self, studio: Studio, guidance_scale: float, score: Score | None) -> None:
        self._studio = studio
        self._guidance_scale = guidance_scale
        self._score = score
        self._results: dict[tuple[Task, str, tuple[int, ...]], Result] = {}
        self._started = time.monotonic()
        self.results: list[Result] = []

    def run(self, cases: Sequence[Case], prompts: Sequence[str], still_to_come: int = 0) -> list[Result]:
        """The result of every case, in order; a case that leads to the same calls as one before is not run again."""
        results = []
        for place, case in enumerate(cases, start=1):
            results.append(self._result(case, tuple(prompts)))
            done = len(self.results)
            total = done + len(cases) - place + still_to_come
            eta_s = (time.monotonic() - self._started) / done * (total - done)
            progress = {"done": done, "total": total, "eta_s": round(eta_s), "result": _fields(results[-1])}
            print(json.dumps(progress), flush=True)
        return results

    def _result(self, case: Case, prompts: tuple[str, ...]) -> Result:
        task = Task(prompts, case.sampler, case.num_inference_steps, self._guidance_scale)
        num_calls = self._studio.num_calls(task)
        calls = case.calls(num_calls)
        known = self._results.get((task, case.predictor, calls))
        if known is not None:
            return known
        pictures = self._studio.skipping(task, case.predictor, calls)
        full = self._studio.full(task)
        scores = [self._score(made.images, prompts) if self._score else None for made in (pictures, full)]
        lost = asdict(loss(pictures, full))
        result = Result(case, len(prompts), num_calls, len(calls), longest_run(calls), **lost)
        result = replace(result, score=scores[0], full_score=scores[1])
        self._results[task, case.predictor, calls] = result
        self.results.append(result)
        return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the file. Returns the exit status."""
    given = _parse(arguments)
    try:
        measurement, grid = _measurement(given), _grid(given)
    except (ModelLoadError, InvalidRequest, ValueError, OSError) as error:
        print(f"fidelity: {error}", file=sys.stderr)
        return 2
    prompts = prompts_of(given.prompts_file, max(given.prompts, given.confirm_prompts))
    scanned = prompts[: given.prompts]
    per_curve = len(grid.curve(0, 0))
    ends = best_ends(measurement.run(grid.ends(), scanned, per_curve + len(grid.samplers)))
    curve = measurement.run(grid.curve(*ends), scanned, len(grid.samplers))
    budget = choose(curve, given.floor_db)
    if budget is not None and given.confirm_prompts:
        cases = [of_budget(budget, sampler, grid.steps[0]) for sampler in grid.samplers]
        budget = confirmed(budget, measurement.run(cases, prompts[: given.confirm_prompts]))
    measured = {
        "budget": asdict(budget) if budget else None,
        "guidance_scale": given.guidance_scale,
        "dtype": given.dtype,
        "made_at": time.strftime("%Y-%m-%d", time.gmtime()),
        "results": [_fields(result) for result in measurement.results],
    }
    given.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if given.table:
        given.table.write_text(table(measurement.results), encoding="utf-8")
    return 0


def _measurement(given: argparse.Namespace) -> Measurement:
    limit_torch_threads(given.threads)
    device = open_device(given.device)
    dtype = dtype_from_name(given.dtype, device)
    unet_side = load_unet_side(given.model, dtype, device=device)
    vae_side = load_vae_side(given.model, dtype, safety_checker=False, device=device)
    return Measurement(Studio(unet_side, vae_side), given.guidance_scale, load_score(given.score))


def _grid(given: argparse.Namespace) -> Grid:
    samplers = tuple(Sampler[name.upper()] for name in given.samplers)
    for predictor in given.predictors:
        SkipPredictor.parse(predictor)
    return Grid(
        samplers,
        tuple(given.steps),
        tuple(given.predictors),
        tuple(given.shares),
        given.longest_run,
        tuple(given.heads),
        tuple(given.tails),
    )


def prompts_of(file: Path | None, count: int) -> list[str]:
    """`count` prompts: those of the file, shuffled, or of the built-in list, repeated where there are too few."""
    if file is None:
        known = list(_PROMPTS)
    else:
        known = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        random.Random(_SHUFFLE_SEED).shuffle(known)
    return [known[k % len(known)] for k in range(count)]


def load_score(file: Path | None) -> Score | None:
    """The function `score(images, prompts)` of a Python file; None without one."""
    if file is None:
        return None
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"--score: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    spec.loader.exec_module(module)
    scorer: Score = module.score
    return scorer


def _fields(result: Result) -> dict[str, Any]:
    fields = asdict(result)
    case = fields.pop("case")
    return {**case, "sampler": result.case.sampler.name, **fields, "rows": result.rows}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fidelity", description="Measure how much guidance can be skipped.")
    parser.add_argument("--model", type=Path, required=True, help="a model directory in diffusers' layout")
    parser.add_argument("--out", type=Path, required=True, help="where the results go, as JSON")
    parser.add_argument("--table", type=Path, help="where they go as Markdown")
    parser.add_argument("--steps", type=_list_of(int), default=[20])
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--samplers", type=_list_of(str), default=["ddim", "euler", "dpmsolver_multistep"])
    parser.add_argument("--predictors", type=_list_of(str), default=["drop", "reuse", "extrapolate:0.5"])
    parser.add_argument("--shares", type=_list_of(float), default=[0.3, 0.4, 0.5, 0.55, 0.6, 0.65])
    parser.add_argument("--heads", type=_list_of(int), default=[1, 2, 3], help="first calls that never skip, to try")
    parser.add_argument("--tails", type=_list_of(int), default=[1, 2, 3], help="last calls that never skip, to try")
    parser.add_argument("--longest-run", type=int, default=4, help="most skips in a row")
    parser.add_argument("--floor-db", type=float, default=40.0, help="least mean PSNR against full guidance")
    parser.add_argument("--prompts", type=int, default=16, help="pictures per result")
    parser.add_argument("--confirm-prompts", type=int, default=64, help="pictures for the chosen budget; 0: as before")
    parser.add_argument("--prompts-file", type=Path, help="a prompt a line")
    parser.add_argument("--score", type=Path, help="a Python file with score(images, prompts) -> percent")
    parser.add_argument("--device", default="cpu", help="as torch names it")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=usable_cores())
    return parser.parse_args(arguments)


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def read(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    return read


if __name__ == "__main__":
    sys.exit(main())
