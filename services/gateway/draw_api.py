"""/api/jobs: what the page to draw with asks for. All that a job does, where OpenAI's API tells of pictures alone."""

import math
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import BeforeValidator, Field
from starlette.responses import Response

from services.gateway import sse
from services.gateway.errors import api_error
from services.gateway.following import unless_hung_up
from services.gateway.gateway import caller_of, gateway_of
from services.gateway.images.bodies import GenerationBody
from services.gateway.images.drawing import LONGEST_PREVIEW_EVERY, Drawing, base64_of, drawing
from services.gateway.sse import EventStream
from synerdiff.client import Event, Finished, GenerateOptions, ImageReady, Progress, Queued
from synerdiff.errors import SynerDiffError

router = APIRouter(prefix="/api", tags=["pages"], include_in_schema=False)

_PREVIEWS = 10  # of a picture, about


def _number(value: object) -> object:
    """Digits as a number: JavaScript's own numbers end at 2^53."""
    return (
        int(value) if isinstance(value, str) and len(value) <= 19 and value.isascii() and value.isdecimal() else value
    )


class DrawBody(GenerationBody):
    """What the page asks for: a body of OpenAI's API, whose seed may be a string of digits."""

    seed: Annotated[int | None, BeforeValidator(_number)] = Field(None, ge=0, lt=2**63)


@router.post("/jobs")
async def draw(request: Request, body: Annotated[DrawBody, Body()]) -> Response:
    """Draw, and tell of everything on the way: queued, started, progress, image, finished, or error.

    Hanging up cancels the job.
    """
    gateway, caller = gateway_of(request), caller_of(request)
    card = await gateway.catalogue.card(caller.client, body.model)
    asked = drawing(body, card, caller.request_id)
    events = gateway.following.events(caller, asked.prompt, _with_previews(asked))
    first = await unless_hung_up(request.receive, anext(events))
    return EventStream(_told(first, events))


def _with_previews(asked: Drawing) -> GenerateOptions:
    every = min(math.ceil(asked.num_inference_steps / _PREVIEWS), LONGEST_PREVIEW_EVERY)
    return {**asked.options, "preview_every": every, "results_only": False}


async def _told(first: Event, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    try:
        yield _written(first)
        async for event in events:
            yield _written(event)
    except SynerDiffError as error:
        yield sse.event("error", api_error(error).envelope)
    finally:
        await events.aclose()


def _written(event: Event) -> bytes:
    name = "image" if isinstance(event, ImageReady) else type(event).__name__.lower()
    return sse.event(name, {"job_id": event.job_id, **_fields(event)})


def _fields(event: Event) -> dict[str, Any]:
    match event:
        case Queued(position=position):
            return {"position": position}
        case Progress():
            preview = base64_of(event.preview_png) or None
            steps = {"index": event.index, "step": event.step, "num_inference_steps": event.num_inference_steps}
            return {**steps, "preview_png": preview}
        case ImageReady(image=image):
            fields = {"index": image.index, "seed": str(image.seed), "width": image.width, "height": image.height}
            file = {"format": image.format.name.lower(), "flagged": image.flagged, "data": base64_of(image.data)}
            return {**fields, **file}
        case Finished():
            skipped = {str(index): list(steps) for index, steps in event.skipped_steps.items()}
            return {"timings": vars(event.timings), "warnings": list(event.warnings), "skipped_steps": skipped}
    return {}
