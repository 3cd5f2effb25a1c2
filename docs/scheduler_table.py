"""Writes the table of docs/schedulers.md, one line a scheduler class of diffusers, and prints a row for each option.

    python docs/scheduler_table.py              # all of them: some minutes
    python docs/scheduler_table.py DDIMScheduler PNDMScheduler
    python docs/scheduler_table.py --check      # only whether the page has each class and option

A row is one option of a class, the others as Stable Diffusion 1.5 has them. A served option is drawn twice, by a UNet
and a VAE worker's code and by diffusers' StableDiffusionPipeline, with a tiny model of random weights.
"""

import argparse
import inspect
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import diffusers
import numpy as np
import torch
from diffusers.utils.import_utils import DummyObject

from services.unet_worker.sampler_probe import UnsupportedScheduler, UnsupportedSteps
from services.unet_worker.samplers import default_sampler
from synerdiff.models.family import UnetSide, VaeSide
from synerdiff.models.layout import ModelLoadError, in_one_line
from synerdiff.models.loading import load_unet_side, load_vae_side, read_scheduler_config
from synerdiff.requests import TaskSpec
from tests.parity import served_latents
from tests.reference import drawing_in
from tests.tiny_models import NATIVE_SIZE, tiny_model

PAGE = Path(__file__).parent / "schedulers.md"
BEGIN, END = "<!-- made by docs/scheduler_table.py -->", "<!-- end of the table -->"
HEAD = "| scheduler | served of the options tried | worst difference | refused |\n|---|---|---|---|"
TRIED = "Options tried, one at a time: "
STEPS = (1, 2, 7, 20)

# As Stable Diffusion 1.5 has them, of those that a class takes.
BASE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
# Values to try of options whose type does not tell them.
VALUES: dict[str, list[Any]] = {
    "algorithm_type": ["noise_prediction"],
    "beta_max": [10],
    "corrector_selection": ["lowest_confidence"],
    "editing_threshold": [0.5],
    "mask_token_id": [1],
    "noise_mode": ["uniform"],
    "num_vec_classes": [16],
    "sampling_method": ["greedy"],
    "scale_factors": [[1.0, 2.0]],
    "schedule_mode": ["uniform"],
    "scheduler_type": ["euler"],
    "stage_range": [[0, 0.5, 1]],
    "tsr_k": [1.0],
    "tsr_sigma": [1.0],
    "beta_end": [0.02],
    "beta_schedule": ["linear", "squaredcos_cap_v2"],
    "beta_start": [0.0001],
    "clip_sample_range": [2.0],
    "corrector_order": [1, 3],
    "disable_corrector": [[0, 1]],
    "dynamic_thresholding_ratio": [0.9],
    "flow_shift": [3.0],
    "interpolation_type": ["log_linear"],
    "lambda_min_clipped": [-5.1],
    "num_train_timesteps": [500],
    "original_inference_steps": [25],
    "prediction_type": ["sample", "v_prediction"],
    "predictor_order": [1, 3],
    "rho": [5.0],
    "sample_max_value": [2.0],
    "shift_terminal": [0.1],
    "sigma_data": [1.0],
    "sigma_max": [20.0],
    "sigma_min": [0.05],
    "snr_shift_scale": [1.0],
    "solver_order": [1, 3],
    "solver_type": ["bh1"],
    "solver_p": [{"_class_name": "DDIMScheduler"}],
    "steps_offset": [0],
    "tau_func": ["x"],
    "timestep_scaling": [5.0],
    "timestep_spacing": ["leading", "linspace", "trailing"],
    "trained_betas": [[0.001 + 0.00002 * i for i in range(1000)]],
    "use_beta_sigmas": [True],
    "use_exponential_sigmas": [True],
    "use_karras_sigmas": [True],
    "variance_type": ["learned", "learned_range"],
}
# Of one class: its betas are its calls, whatever the number of steps.
OF_A_CLASS: dict[tuple[str, str], list[Any]] = {
    ("IPNDMScheduler", "trained_betas"): [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]]
}
# What diffusers asks for together with a value.
TOGETHER: dict[tuple[str, Any], dict[str, Any]] = {
    ("algorithm_type", "dpmsolver"): {"final_sigmas_type": "sigma_min"},
    ("algorithm_type", "sde-dpmsolver"): {"final_sigmas_type": "sigma_min"},
    ("solver_type", "bh1"): {"final_sigmas_type": "sigma_min"},
    ("prediction_type", "flow_prediction"): {"use_flow_sigmas": True},
    ("use_flow_sigmas", True): {"prediction_type": "flow_prediction"},
}


def scheduler_names() -> list[str]:
    """Every scheduler that diffusers registers, those among them that lack a package."""
    return sorted(name for name in dir(diffusers.schedulers) if name.endswith("Scheduler"))


def cases(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a class: a label, and the options of its config."""
    scheduler_class = getattr(diffusers.schedulers, name)
    yield "as Stable Diffusion 1.5", base(name)
    if isinstance(scheduler_class, DummyObject):
        return
    for option, parameter in inspect.signature(scheduler_class.__init__).parameters.items():
        if option in ("self", "kwargs"):
            continue
        for value in values(name, option, parameter):
            together = TOGETHER.get((option, value), {}) if not isinstance(value, list | dict) else {}
            changed = {option: value} | {key: other for key, other in together.items() if key in taken(name)}
            yield label(changed), base(name) | changed


def base(name: str) -> dict[str, Any]:
    """The options that are not varied."""
    return {option: value for option, value in BASE.items() if option in taken(name)}


def taken(name: str) -> set[str]:
    """The options that a class takes."""
    scheduler_class = getattr(diffusers.schedulers, name)
    return (
        set()
        if isinstance(scheduler_class, DummyObject)
        else set(inspect.signature(scheduler_class.__init__).parameters)
    )


def values(name: str, option: str, parameter: inspect.Parameter) -> list[Any]:
    """What to try of an option: all others that its type allows, what VALUES says, or another number.

    ValueError where none of them tells.
    """
    usual = base(name).get(option, parameter.default)
    if isinstance(usual, bool):
        return [not usual]
    choices = [value for kind in (parameter.annotation, *get_args(parameter.annotation)) for value in literal(kind)]
    choices = OF_A_CLASS.get((name, option)) or choices or VALUES.get(option, [])
    if not choices and isinstance(usual, int | float):
        choices = [usual * 2 + (usual == 0)]
    if not choices:
        raise ValueError(f"{name}: say in VALUES what to try of {option}")
    return [value for value in choices if value != usual] or [usual]


def literal(kind: Any) -> list[Any]:
    """The values of a Literal."""
    return list(get_args(kind)) if get_origin(kind) is Literal else []


def label(changed: Mapping[str, Any]) -> str:
    """Options as the table shows them."""
    return ", ".join(f"`{option}: {shown(value)}`" for option, value in changed.items())


def shown(value: Any) -> str:
    """A value as JSON has it, a long one cut."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:30]}...]"


class Studio:
    """Draws with any scheduler, both ways."""

    def __init__(self, folder: Path) -> None:
        self.path = tiny_model("sd1", folder / "model")
        self.unet_side: UnetSide = load_unet_side(self.path, torch.float32)
        self.vae_side: VaeSide = load_vae_side(self.path, torch.float32)
        self.pipeline = diffusers.StableDiffusionPipeline.from_pretrained(self.path, local_files_only=True)

    def row(self, name: str, options: dict[str, Any]) -> str:
        """The cells of a row: the worst level at each number of steps, or why it is refused."""
        index = json.loads((self.path / "model_index.json").read_text())
        (self.path / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", name]}))
        (self.path / "scheduler" / "scheduler_config.json").write_text(json.dumps(options | {"_class_name": name}))
        try:
            config = read_scheduler_config(self.path)
            sampler = default_sampler(config).sampler
        except (ModelLoadError, UnsupportedScheduler) as error:
            return f"refused: {cell(error)} | | | "
        side = replace(self.unet_side, scheduler_config=config)
        return " | ".join(self.level(side, name, self.task(sampler, steps)) for steps in STEPS)

    def task(self, sampler: Any, steps: int) -> TaskSpec:
        """What is drawn."""
        return TaskSpec("table/0", "a red car", "", NATIVE_SIZE, NATIVE_SIZE, steps, 5.0, 7, sampler, 0)

    def level(self, side: UnetSide, name: str, task: TaskSpec) -> str:
        """The worst difference of any pixel, in levels of 255; in float64 too where it is more than one."""
        said = ""
        try:
            expected = self.by_diffusers(name, task, torch.float32)
        except Exception as error:
            expected, said = None, in_one_line(error)
        try:
            (latents,) = served_latents(side, [task])
        except (UnsupportedSteps, UnsupportedScheduler) as error:
            if expected is None or not np.isfinite(expected).all():
                return "refused"
            raise RuntimeError(f"{name} {task}: refused here, drawn by diffusers") from error
        if expected is None:
            raise RuntimeError(f"{name} {task}: served, but diffusers says {said}")
        served = self.vae_side.decode(latents[None])[0]
        if (level := apart(served, expected)) <= 1:
            return str(level)
        with drawing_in(torch.float32):
            return f"{apart(served, self.by_diffusers(name, task, torch.float64))} ({level} in float32)"

    def by_diffusers(self, name: str, task: TaskSpec, dtype: torch.dtype) -> Any:
        """The picture [H, W, 3], 0 to 1, of diffusers' own pipeline."""
        scheduler = getattr(diffusers, name).from_pretrained(self.path, subfolder="scheduler")
        components = self.components(dtype) | {"scheduler": scheduler, "requires_safety_checker": False}
        pipeline = diffusers.StableDiffusionPipeline(**components)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            task.prompt,
            num_inference_steps=task.num_inference_steps,
            guidance_scale=task.guidance_scale,
            generator=torch.Generator().manual_seed(task.seed),
            output_type="np",
        ).images[0]

    def components(self, dtype: torch.dtype) -> dict[str, Any]:
        """Those of diffusers' pipeline."""
        kept = self.pipeline.components
        return kept if dtype == torch.float32 else {key: in_float64(part) for key, part in kept.items()}


def in_float64(part: Any) -> Any:
    """A component of a pipeline in float64."""
    return deepcopy(part).double() if isinstance(part, torch.nn.Module) else part


def apart(served: Any, expected: Any) -> int:
    """How many levels of 255 two pictures differ by at most: whole levels, and values from 0 to 1."""
    return int(np.abs(served.astype(int) - (expected * 255).round().astype(int)).max())


def cell(error: Exception) -> str:
    """An error as a cell."""
    words = getattr(error, "reason", None) or in_one_line(error).removeprefix(f"{type(error).__name__}: ")
    return str(words if len(words) <= 200 else f"{words[:200]}...").replace("|", "\\|")


def line(name: str, rows: list[tuple[str, str]]) -> str:
    """The line of a class on the page: how many options are served, the worst difference, the refused options."""
    served = [cells for _, cells in rows if not cells.startswith("refused: ")]
    levels = [level for cells in served for level in cells.split(" | ") if level != "refused"]
    worst = max(levels, key=lambda level: [int(number) for number in re.findall(r"\d+", level)][:2], default="")
    refused: dict[str, list[str]] = {}
    for what, cells in rows:
        if cells.startswith("refused: "):
            refused.setdefault(reason(cells), []).append(what)
        elif steps := [
            str(count) for count, level in zip(STEPS, cells.split(" | "), strict=True) if level == "refused"
        ]:
            refused.setdefault(f"diffusers fails at {', '.join(steps)} steps", []).append(what)
    if not served:
        return f"| {name} | none | | {reason(rows[0][1])} |"
    said = "<br>".join(f"{why}: {'; '.join(labels)}" for why, labels in refused.items())
    return f"| {name} | {len(served)} of {len(rows)} | {worst} | {said} |"


def reason(cells: str) -> str:
    """Why an option is refused, in short; the server gives the whole reason."""
    if found := re.search(r"(?:needs|Make sure to install) (\w+)", cells):
        return f"needs {found[1]}"
    if found := re.search(r"is not one of the schedulers of (diffusers [\d.]+)", cells):
        return f"not in {found[1]}"
    return "not linear" if "is not linear" in cells else "diffusers fails"


def parts() -> tuple[str, dict[str, str], str]:
    """The page before the table, its line for each class, and the page after it."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    lines = {text.split()[1]: text for text in table.splitlines() if re.match(r"\| [A-Z]", text)}
    return before, lines, after


def tried(lines: Mapping[str, str]) -> str:
    """Every option of the classes that are served."""
    served = [name for name, text in lines.items() if name in scheduler_names() and text.split(" | ")[1] != "none"]
    labels = {what for name in served for what, _ in cases(name) if what.startswith("`")}
    return f"{TRIED}{'; '.join(sorted(labels))}."


def missing() -> list[str]:
    """The classes and options that the page does not have, or has and diffusers has not."""
    _, lines, _ = parts()
    found = [f"{name}, which diffusers does not have" for name in lines if name not in scheduler_names()]
    for name in scheduler_names():
        _, served, *_, refused = lines.get(name, f"{name} | 0 of 0 | | ").split(" | ")
        labels = [what for what, _ in cases(name)]
        if served != "none" and int(served.split(" of ")[1]) != len(labels):
            found.append(f"{name}: {len(labels)} options")
        named = [what for part in refused.split("<br>") for what in part.rstrip("| ").partition(": ")[2].split("; ")]
        found += [f"{name} {what}" for what in named if what and what not in labels]
    return found + [TRIED] * (tried(lines) not in PAGE.read_text(encoding="utf-8"))


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="classes; none: all")
    parser.add_argument("--check", action="store_true", help="only say what the table lacks")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.check:
        sys.exit("\n".join(missing()))
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(Path(folder))
        for name in given.names or scheduler_names():
            rows = [(what, studio.row(name, options)) for what, options in cases(name)]
            print("\n".join(f"| {name} | {what} | {cells} |" for what, cells in rows), flush=True)
            before, lines, after = parts()
            lines[name] = line(name, rows)
            table = "\n".join(lines[key] for key in sorted(lines))
            PAGE.write_text(f"{before}{BEGIN}\n{HEAD}\n{table}\n\n{tried(lines)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
