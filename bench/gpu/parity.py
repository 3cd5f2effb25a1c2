"""Section 2: pictures of the bundled model, served by the whole deployment, against diffusers on the same device.

float32 with TF32 off has to be within a level of 255; float16 is told as PSNR, of ours and of diffusers' own.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from bench.gpu.kit import PICTURES, Kit
from bench.parity import levels, psnr_db
from bench.serving import deployed
from synerdiff.cards import Sampler
from synerdiff.client import AsyncClient
from synerdiff.requests import TaskSpec
from synerdiff_cli.deployment import BUNDLED_MODEL
from tests.parity import Image as Pixels
from tests.reference import reference_image, reference_pipeline, settings_of

SAMPLERS = (Sampler.DDIM, Sampler.EULER_ANCESTRAL, Sampler.DPMSOLVER_MULTISTEP_KARRAS, Sampler.HEUN)
MOST_LEVELS = 1
LEAST_PSNR_DB = 30.0  # other rounding, the same picture
_PROMPTS = ("a red apple", "a rocket", "a cat face", "a slice of pizza")
_STEPS, _TINY_STEPS = 18, 4
_SIDE = 128
_HALF = "float16"
# Convolutions take TF32 by torch's default, in the workers' processes too.
_NO_TF32 = {"NVIDIA_TF32_OVERRIDE": "0"}


@dataclass(frozen=True)
class _Row:
    task: TaskSpec
    pictures: Mapping[str, Pixels]


def run(kit: Kit) -> None:
    """Record each picture's distance. Raises AssertionError where one is too far."""
    os.environ.update(_NO_TF32)
    tasks = _tasks(_TINY_STEPS if kit.tiny else _STEPS)
    pictures = {"diffusers float32": _references(kit, tasks, torch.float32)}
    pictures["served float32"] = asyncio.run(_served(kit, tasks, "float32"))
    if not kit.tiny:
        pictures[f"diffusers {_HALF}"] = _references(kit, tasks, torch.float16)
        pictures[f"served {_HALF}"] = asyncio.run(_served(kit, tasks, _HALF))
    rows = [_Row(task, {who: made[k] for who, made in pictures.items()}) for k, task in enumerate(tasks)]
    _sheet(rows).save(kit.out / PICTURES)
    found = [_distances(row) for row in rows]
    for row, figures in zip(rows, found, strict=True):
        kit.record("parity", sampler=row.task.sampler.name, steps=row.task.num_inference_steps, **figures)
    worst_levels = max(figures["served_levels"] for figures in found)
    assert worst_levels <= MOST_LEVELS, f"float32: {worst_levels} levels off diffusers' picture"
    if not kit.tiny:
        worst_db = min(figures["served_half_db"] for figures in found)
        assert worst_db >= LEAST_PSNR_DB, f"{_HALF}: {worst_db} dB from diffusers' float32 picture"


def _distances(row: _Row) -> dict[str, Any]:
    reference = row.pictures["diffusers float32"]
    found: dict[str, Any] = {
        "contrast": round(float(reference.std()), 1),  # a flat picture would prove nothing
        "served_levels": levels(row.pictures["served float32"], reference),
    }
    for who, name in ((f"served {_HALF}", "served_half_db"), (f"diffusers {_HALF}", "diffusers_half_db")):
        if who in row.pictures:
            found[name] = round(psnr_db(row.pictures[who], reference), 1)
    return found


def _tasks(steps: int) -> list[TaskSpec]:
    return [
        TaskSpec(
            task_id=sampler.name,
            prompt=prompt,
            negative_prompt="",
            width=_SIDE,
            height=_SIDE,
            num_inference_steps=steps + k,
            guidance_scale=4.0 + k,
            seed=100 + k,
            sampler=sampler,
            preview_every=0,
        )
        for k, (sampler, prompt) in enumerate(zip(SAMPLERS, _PROMPTS, strict=True))
    ]


def _references(kit: Kit, tasks: list[TaskSpec], dtype: torch.dtype) -> list[Pixels]:
    reference_pipeline(BUNDLED_MODEL, dtype).to(kit.device)
    return [reference_image(BUNDLED_MODEL, dtype=dtype, **settings_of(task)) for task in tasks]


async def _served(kit: Kit, tasks: list[TaskSpec], dtype: str) -> list[Pixels]:
    """All at once, so that they share batches."""
    settings = {"device": kit.device, "compile": "off"}
    async with deployed(settings, None, dtype, idle_profile=False) as system:
        try:
            async with AsyncClient(system.deployment.addresses[0]) as client:
                return list(await asyncio.gather(*(_picture(client, task) for task in tasks)))
        finally:
            for child in system.deployment.children:
                kit.keep_log(f"{dtype}: {child.name}", child.log)


async def _picture(client: AsyncClient, task: TaskSpec) -> Pixels:
    result = await client.generate(
        task.prompt,
        seed=task.seed,
        num_inference_steps=task.num_inference_steps,
        guidance_scale=task.guidance_scale,
        sampler=task.sampler,
        width=task.width,
        height=task.height,
        skip_cfg=False,
    )
    return np.asarray(result.images[0].pil.convert("RGB"))


def _sheet(rows: list[_Row]) -> Image.Image:
    """A row a sampler, a column for each who drew it."""
    columns, head = list(rows[0].pictures), 28
    sheet = Image.new("RGB", (_SIDE * len(columns), (_SIDE + head) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, who in enumerate(columns):
            sampler = row.task.sampler.name.lower().removesuffix("_karras")
            draw.text((x * _SIDE + 2, y * (_SIDE + head) + 1), f"{who}\n{sampler}", fill="black")
            sheet.paste(Image.fromarray(row.pictures[who]), (x * _SIDE, y * (_SIDE + head) + head))
    return sheet
