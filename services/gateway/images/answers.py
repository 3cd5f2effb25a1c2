"""What comes of a drawing, in OpenAI's form. Pure."""

import base64
import time
from typing import Any

from services.gateway.images.drawing import Drawing
from synerdiff.client import Finished, GeneratedImage, GenerateResult

# All the VAEs of the families that are served make 8 x 8 pixels of one position of the latents.
_PIXELS_PER_POSITION = 8


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
    """What the last event of a stream has beside its picture."""
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
    timings = end.timings
    return {
        "job_id": job_id,
        "model": drawing.card.name,
        "num_inference_steps": drawing.num_inference_steps,
        "skipped_steps": {str(index): list(steps) for index, steps in end.skipped_steps.items()},
        "warnings": list(end.warnings),
        "timings": {
            "queue_s": timings.queue_s,
            "encode_s": timings.encode_s,
            "denoise_s": timings.denoise_s,
            "decode_s": timings.decode_s,
        },
    }


def _size(drawing: Drawing) -> str:
    return f"{drawing.width}x{drawing.height}"


def _told_back(drawing: Drawing) -> dict[str, Any]:
    return {"safety_identifier": drawing.safety_identifier} if drawing.safety_identifier else {}
