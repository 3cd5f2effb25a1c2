"""Steps of the UNet worker's device thread against those of a bare diffusers loop, where steps are quick.

    python -m bench.step_cost [--model DIR] [--tasks 8] [--rounds 5] [--skip]

Three ways to make the same steps, in turns, in one process: calls of the UNet alone; diffusers' own pipeline, which
takes the UNet's answer through guidance and its sampler as well; and the device thread with plans of one item each, two
of them queued, as a scheduler keeps them. Without `--model` it measures a UNet of one block on latents of 8 x 8, whose
call takes a few ms. Prints ms a step, and the loop's over the thread's: 1 is a thread that costs as much as the loop.
"""

import os
import queue
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import typer
from diffusers import DiffusionPipeline, UNet2DConditionModel

from bench.command import ModelDirectory, run
from services.unet_worker.denoiser import Denoiser
from services.unet_worker.preparation import TaskPreparer
from services.unet_worker.residents import Residents
from services.unet_worker.step_loop import StepLoop, StepReport
from synerdiff.cards import Sampler
from synerdiff.host import usable_cores
from synerdiff.latents.arena import Arena
from synerdiff.latents.memory import ProcessMemory
from synerdiff.models.compiled.exported import conditioning_of, unet_inputs
from synerdiff.models.family import UnetSide
from synerdiff.models.loading import load_unet_side
from synerdiff.models.threads import ThreadShare
from synerdiff.pace import Pacer, PaceSide
from synerdiff.plans import Execution, TaskFailed, UnetEntry, UnetItem, UnetPlan
from synerdiff.requests import TaskSpec
from synerdiff.worker.device_thread import DeviceThread
from tests.tiny_models import tiny_model

_AHEAD = 2
_WITHIN_S = 60.0
_GUIDANCE_SCALE = 5.0


def quick_model(path: Path) -> Path:
    """A directory of random weights whose UNet is one block."""
    tiny_model("sd1", path)
    UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    ).save_pretrained(path / "unet")
    return path


@contextmanager
def device_thread(side: UnetSide, slots: int) -> Iterator[Callable[[int, int], float]]:
    """A step loop of its own; what it yields makes n steps of so many tasks, and answers with ms a step."""
    channels, height, width = side.latent_shape(*side.native_size)
    residents = Residents(Arena(slots, channels * height * width * 4, "float32", ProcessMemory()), torch.float32)
    preparer, reports, crashed = TaskPreparer(side), queue.SimpleQueue[StepReport](), list[Exception]()
    with tempfile.TemporaryDirectory() as folder:
        pacer = Pacer(PaceSide.UNET, Path(folder))
        thread = DeviceThread(side.compute, pacer, ThreadShare(usable_cores()), crashed.append)
        loop = StepLoop(Denoiser(side), residents, None, thread)  # type: ignore[arg-type]
        thread.start()

        def made(tasks: int, steps: int) -> float:
            specs = [_spec(side, f"{k}/0", steps) for k in range(tasks)]
            admitted = [residents.admit(spec) for spec in specs]
            for resident, prepared in zip(admitted, preparer.prepare(specs), strict=True):
                residents.make_ready(resident, prepared.task)

            def submit(call: int) -> None:
                entries = tuple(UnetEntry(spec.task_id, call) for spec in specs)
                loop.submit(UnetPlan(1, call + 1, (UnetItem(entries, Execution()),)), reports.put)

            began = time.perf_counter()
            for call in range(steps + _AHEAD):
                if call < steps:
                    submit(call)
                if call >= _AHEAD:
                    report = reports.get(timeout=_WITHIN_S)
                    if isinstance(report, TaskFailed) or crashed:
                        raise RuntimeError(f"a step failed: {report}, {crashed}")
            took_ms = (time.perf_counter() - began) * 1e3
            residents.drop([spec.task_id for spec in specs])
            return took_ms / steps

        try:
            yield made
        finally:
            thread.close()


def _spec(side: UnetSide, task_id: str, steps: int) -> TaskSpec:
    width, height = side.native_size
    return TaskSpec(
        task_id=task_id,
        prompt="a slice of pizza",
        negative_prompt="",
        seed=1,
        num_inference_steps=steps,
        guidance_scale=_GUIDANCE_SCALE,
        width=width,
        height=height,
        sampler=Sampler.DDIM,
        preview_every=0,
    )


def pipeline_loop(model: Path) -> Callable[[int, int], float]:
    """What makes n steps of so many pictures with diffusers' pipeline, timed between its steps."""
    pipeline = DiffusionPipeline.from_pretrained(
        str(model), dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)

    def made(tasks: int, steps: int) -> float:
        ended: list[float] = []

        def note(*_: object) -> dict[str, object]:
            ended.append(time.perf_counter())
            return {}

        pipeline(
            ["a slice of pizza"] * tasks,
            num_inference_steps=steps,
            guidance_scale=_GUIDANCE_SCALE,
            output_type="latent",
            callback_on_step_end=note,
        )
        return (ended[-1] - ended[0]) * 1e3 / (len(ended) - 1)

    return made


def unet_alone(side: UnetSide) -> Callable[[int, int], float]:
    """What makes n calls of the UNet with two rows for each of so many tasks."""

    @torch.inference_mode()
    def made(tasks: int, steps: int) -> float:
        latents, timesteps, *told = unet_inputs(side, side.latent_shape(*side.native_size), 2 * tasks)
        began = time.perf_counter()
        for _ in range(steps):
            side.predict(latents, timesteps, conditioning_of(*told))
        return (time.perf_counter() - began) * 1e3 / steps

    return made


def measure(
    model: ModelDirectory | None = None,
    tasks: Annotated[int, typer.Option(help="Guided tasks of a batch: two rows each.")] = 8,
    steps: int = 50,
    rounds: int = 9,
) -> dict[str, list[float]]:
    """ms a step of each way, round by round, in turns."""
    torch.set_num_threads(usable_cores())
    with tempfile.TemporaryDirectory() as folder:
        path = model or quick_model(Path(folder))
        side = load_unet_side(path, torch.float32)
        with device_thread(side, tasks) as thread:
            ways = {"UNet alone": unet_alone(side), "pipeline": pipeline_loop(path), "device thread": thread}
            for way in ways.values():
                way(tasks, 10)
            taken: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(rounds):
                for name in list(ways)[:: 1 if number % 2 else -1]:
                    taken[name].append(ways[name](tasks, steps))
    return taken


def shown(taken: Mapping[str, list[float]]) -> str:
    """ms a step of each way, and the others' over the device thread's."""
    lines = [f"{name}: {median(times):.2f} ms a step, {min(times):.2f} at best" for name, times in taken.items()]
    for other in ("UNet alone", "pipeline"):
        ratios = [a / b for a, b in zip(taken[other], taken["device thread"], strict=True)]
        lines.append(f"{other} over device thread: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    return "\n".join(lines)


if __name__ == "__main__":
    run(measure, show=shown)
