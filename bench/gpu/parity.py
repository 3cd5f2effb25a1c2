"""Section 2: pictures of the bundled model, served by the whole deployment, against diffusers on the same device.

float32 with TF32 off has to be within a level of 255; float16 is reported as PSNR, of ours and of diffusers' own.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw

from bench.gpu.kit import PICTURES, Kit
from bench.load import alone, send_all
from bench.mixed_requests import MixedRequest
from bench.pictures import Picture, levels, pixels, psnr_db
from bench.serving import deployed
from synerdiff.cards import Sampler
from synerdiff_cli.deployment import BUNDLED_MODEL
from tests.reference import reference_pipeline

SAMPLERS = (Sampler.DDIM, Sampler.EULER_ANCESTRAL, Sampler.DPMSOLVER_MULTISTEP_KARRAS, Sampler.HEUN)
MOST_LEVELS = 1
LEAST_PSNR_DB = 30.0  # other rounding, the same picture
_PROMPTS = ("a red apple", "a rocket", "a cat face", "a slice of pizza")
_STEPS, _TINY_STEPS = 18, 4
_SIDE = 128
# Convolutions take TF32 by torch's default, in the workers' processes too.
_NO_TF32 = {"NVIDIA_TF32_OVERRIDE": "0"}


def run(kit: Kit) -> None:
    """Record each picture's distance. Raises AssertionError where one is too far."""
    os.environ.update(_NO_TF32)
    steps = _TINY_STEPS if kit.tiny else _STEPS
    requests = [
        MixedRequest(prompt, 100 + k, steps + k, 4.0 + k, sampler, _SIDE, _SIDE, skip_cfg=False)
        for k, (sampler, prompt) in enumerate(zip(SAMPLERS, _PROMPTS, strict=True))
    ]
    pictures: dict[str, list[Picture]] = {}
    for dtype in ("float32",) if kit.tiny else ("float32", "float16"):
        reference_pipeline(BUNDLED_MODEL, getattr(torch, dtype)).to(kit.device)
        pictures[f"diffusers {dtype}"] = [alone(request, dtype=getattr(torch, dtype)) for request in requests]
        pictures[f"served {dtype}"] = asyncio.run(_served(kit, requests, dtype))
    _sheet(requests, pictures).save(kit.out / PICTURES)
    found = [_distances({who: made[k] for who, made in pictures.items()}) for k in range(len(requests))]
    for request, figures in zip(requests, found, strict=True):
        kit.record("parity", sampler=request.sampler.name, steps=request.num_inference_steps, **figures)
    worst_levels = max(figures["served_levels"] for figures in found)
    assert worst_levels <= MOST_LEVELS, f"float32: {worst_levels} levels off diffusers' picture"
    if not kit.tiny:
        worst_db = min(figures["served_half_db"] for figures in found)
        assert worst_db >= LEAST_PSNR_DB, f"float16: {worst_db} dB from diffusers' float32 picture"


def _distances(pictures: Mapping[str, Picture]) -> dict[str, Any]:
    reference = pictures["diffusers float32"]
    halves = {f"{who}_half_db": pictures.get(f"{who} float16") for who in ("served", "diffusers")}
    return {
        "contrast": round(float(reference.std()), 1),  # a flat picture would prove nothing
        "served_levels": levels(pictures["served float32"], reference),
        **{name: round(psnr_db(made, reference), 1) for name, made in halves.items() if made is not None},
    }


async def _served(kit: Kit, requests: Sequence[MixedRequest], dtype: str) -> list[Picture]:
    """All at once, so that they share batches."""
    settings = {"device": kit.device, "compile": "off"}
    async with deployed(settings, None, dtype, idle_profile=False) as system:
        try:
            window = await send_all(system.deployment.addresses[0], requests, len(requests))
        finally:
            for child in system.deployment.children:
                kit.keep_log(f"{dtype}: {child.name}", child.log)
    failed = [f"{answer.error}: {answer.message}" for answer in window.answers if answer.error]
    assert not failed, failed
    return [pixels(answer.pictures[0]) for answer in window.answers]


def _sheet(requests: Sequence[MixedRequest], pictures: Mapping[str, Sequence[Picture]]) -> Image.Image:
    """A row a sampler, a column for each who drew it."""
    head = 28
    sheet = Image.new("RGB", (_SIDE * len(pictures), (_SIDE + head) * len(requests)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, (who, made) in enumerate(pictures.items()):
        for y, (request, picture) in enumerate(zip(requests, made, strict=True)):
            sampler = request.sampler.name.lower().removesuffix("_karras")
            draw.text((x * _SIDE + 2, y * (_SIDE + head) + 1), f"{who}\n{sampler}", fill="black")
            sheet.paste(Image.fromarray(picture), (x * _SIDE, y * (_SIDE + head) + head))
    return sheet
