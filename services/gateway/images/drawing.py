"""From a checked body and its model's card to options for the scheduler; from the scheduler's events to OpenAI's form.

Pure.
"""

import base64
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.gateway.errors import ApiError
from services.gateway.images.bodies import GenerationBody, OutputFormat
from synerdiff.cards import ModelCard, Sampler, SamplerLimits
from synerdiff.client import Finished, GeneratedImage, GenerateOptions, GenerateResult

# Steps by the model's default.
_STEPS: Mapping[str, float] = {"low": 0.5, "medium": 1, "high": 2, "xhigh": 3, "max": 4}
_QUALITIES: Mapping[str, str] = {"auto": "medium", "standard": "medium", "hd": "high"}
LONGEST_PREVIEW_EVERY = 1000
# All the VAEs of the families that are served make 8 x 8 pixels of one position of the latents.
_PIXELS_PER_POSITION = 8


@dataclass(frozen=True)
class Drawing:
    """One request: `options` for the scheduler, and how its pictures are answered.

    `num_inference_steps`: those it is drawn with. `quality`: whose steps these are; "auto" where the request names
    steps. `recompress`: JPEG's or WebP's quality, where pictures are encoded anew; None: the worker's own files.
    """

    prompt: str
    options: GenerateOptions
    card: ModelCard
    num_inference_steps: int
    quality: str
    output_format: OutputFormat
    recompress: int | None
    width: int
    height: int
    prompts: int
    partial_images: int
    safety_identifier: str | None


def drawing(body: GenerationBody, card: ModelCard, request_id: str) -> Drawing:
    """The request in `body`. Raises ApiError for one that the OpenAI API or the model's sampler rules out."""
    limits = _limits(body.sampler, card)
    steps, quality = _steps(body, card, limits)
    width, height = body.sides or (card.native_width, card.native_height)
    output_format = body.output_format or "png"
    recompress = _recompress(body, output_format)
    partial_images = (body.partial_images or 0) if body.stream else 0
    guided = (card.default_guidance_scale if body.guidance_scale is None else body.guidance_scale) > 1
    options: GenerateOptions = {
        "request_id": request_id,
        "model": card.name,
        "num_images": body.n,
        "width": width,
        "height": height,
        "num_inference_steps": steps,
        "negative_prompt": body.negative_prompt,
        "guidance_scale": body.guidance_scale,
        "seed": body.seed,
        "sampler": body.sampler,
        "skip_cfg": body.skip_cfg,
        "image_format": output_format if recompress is None else "webp",
        "results_only": not body.stream,
        "preview_every": _preview_every(partial_images, limits.unet_calls(steps)),
    }
    return Drawing(
        prompt=body.prompt,
        options=options,
        card=card,
        num_inference_steps=steps,
        quality=quality,
        output_format=output_format,
        recompress=recompress,
        width=width,
        height=height,
        prompts=2 if guided else 1,
        partial_images=partial_images,
        safety_identifier=body.safety_identifier or body.user,
    )


def _limits(sampler: str | None, card: ModelCard) -> SamplerLimits:
    default = card.limits(card.default_sampler) or card.samplers[0]
    if sampler is None:
        return default
    try:
        limits = card.limits(Sampler[sampler.upper()])
    except KeyError:
        limits = None
    if limits is None:
        names = ", ".join(limits.sampler.name.lower() for limits in card.samplers)
        raise ApiError(400, f"sampler: {sampler[:64]!r} is none of {card.name}'s: {names}", param="sampler")
    return limits


def _steps(body: GenerationBody, card: ModelCard, limits: SamplerLimits) -> tuple[int, str]:
    """Steps, and the quality that they are. Those by quality keep within the sampler's bounds."""
    if body.num_inference_steps is not None:
        return body.num_inference_steps, "auto"
    asked = body.quality or "auto"
    quality = _QUALITIES.get(asked, asked)
    steps = math.ceil(card.default_num_inference_steps * _STEPS[quality])
    return min(max(steps, limits.min_num_inference_steps), limits.max_num_inference_steps), quality


def _recompress(body: GenerationBody, output_format: OutputFormat) -> int | None:
    if body.output_compression in (None, 100):
        return None
    if output_format == "png":
        message = (
            f"output_compression: {body.output_compression} is for jpeg and webp; png is lossless, and takes 100 alone"
        )
        raise ApiError(400, message, param="output_compression")
    return body.output_compression


def _preview_every(partial_images: int, unet_calls: int) -> int:
    """The UNet calls between previews: so many before the last call, evenly spread."""
    if not partial_images:
        return 0
    return min(math.ceil(unet_calls / (partial_images + 1)), LONGEST_PREVIEW_EVERY)


def images_answer(drawing: Drawing, result: GenerateResult, files: list[bytes]) -> dict[str, Any]:
    """The answer to a request that is not streamed; `files` are those of the result's images, as they are answered."""
    images = [_image(image, file) for image, file in zip(result.images, files, strict=True)]
    answer = {
        "created": int(time.time()),
        "background": "opaque",
        "data": images,
        "output_format": drawing.output_format,
        "quality": drawing.quality,
        "size": _size(drawing),
        "usage": usage(drawing, len(images)),
        "synerdiff": _job(drawing, result.job_id, result),
    }
    return answer | _told_back(drawing)


def partial_event(drawing: Drawing, index: int, partial_index: int, file: bytes) -> dict[str, Any]:
    """`image_generation.partial_image`: preview `partial_index` of picture `index`."""
    return _event(drawing, "image_generation.partial_image", index, file) | {"partial_image_index": partial_index}


def completed_event(drawing: Drawing, image: GeneratedImage, file: bytes) -> dict[str, Any]:
    """`image_generation.completed`: one picture."""
    event = _event(drawing, "image_generation.completed", image.index, file) | {"usage": usage(drawing, 1)}
    return event | {"seed": image.seed, "flagged": image.flagged} | _told_back(drawing)


def job_of(drawing: Drawing, finished: Finished) -> dict[str, Any]:
    """The additional fields of a stream's last event."""
    return {"synerdiff": _job(drawing, finished.job_id, finished)}


def usage(drawing: Drawing, images: int) -> dict[str, Any]:
    """Tokens: the text encoder's whole context per prompt that it reads, and positions of the latents per picture."""
    text = drawing.prompts * drawing.card.max_prompt_tokens
    image = images * (drawing.width // _PIXELS_PER_POSITION) * (drawing.height // _PIXELS_PER_POSITION)
    return {
        "input_tokens": text,
        "input_tokens_details": {"text_tokens": text, "image_tokens": 0},
        "output_tokens": image,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": image},
        "total_tokens": text + image,
    }


def base64_of(file: bytes) -> str:
    """A file as JSON carries it."""
    return base64.b64encode(file).decode("ascii")


def _image(image: GeneratedImage, file: bytes) -> dict[str, Any]:
    return {"b64_json": base64_of(file), "seed": image.seed, "flagged": image.flagged}


def _event(drawing: Drawing, kind: str, index: int, file: bytes) -> dict[str, Any]:
    return {
        "type": kind,
        "b64_json": base64_of(file),
        "created_at": int(time.time()),
        "size": _size(drawing),
        "quality": drawing.quality,
        "background": "opaque",
        "output_format": drawing.output_format,
        "index": index,
    }


def _job(drawing: Drawing, job_id: str, end: GenerateResult | Finished) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "model": drawing.card.name,
        "num_inference_steps": drawing.num_inference_steps,
        "skipped_steps": {str(index): list(steps) for index, steps in end.skipped_steps.items()},
        "warnings": list(end.warnings),
        "timings": vars(end.timings),
    }


def _size(drawing: Drawing) -> str:
    return f"{drawing.width}x{drawing.height}"


def _told_back(drawing: Drawing) -> dict[str, Any]:
    return {"safety_identifier": drawing.safety_identifier} if drawing.safety_identifier else {}
