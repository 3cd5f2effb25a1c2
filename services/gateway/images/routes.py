"""/v1/images: from HTTP to a job and back."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from services.gateway import sse
from services.gateway.errors import ApiError, api_error
from services.gateway.following import Caller, unless_hung_up
from services.gateway.gateway import Gateway, caller_of, gateway_of
from services.gateway.images.bodies import ErrorAnswer, GenerationBody, ImagesAnswer
from services.gateway.images.drawing import Drawing, completed_event, drawing, images_answer, job_of, partial_event
from services.gateway.images.files import Files
from services.gateway.sse import EventStream
from synerdiff.client import Event, Finished, GeneratedImage, ImageReady, Progress
from synerdiff.client.aio import collect
from synerdiff.errors import SynerDiffError

router = APIRouter(tags=["images"])

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 409, 413, 429, 503, 504)
}
EDITS = "/v1/images/edits"
# Pictures to edit are read and dropped.
MAX_EDIT_BYTES = 64 << 20

_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
_FILE = {"type": "string", "format": "binary"}
_EDIT_FORM = {
    "type": "object",
    "required": ["image", "prompt"],
    "properties": {"image": {"oneOf": [_FILE, {"type": "array", "items": _FILE}]}, "prompt": {"type": "string"}},
}


async def image_stream(
    drawing: Drawing, first: Event, events: AsyncGenerator[Event, None], files: Files
) -> AsyncGenerator[bytes, None]:
    """OpenAI's events for `first` and the events after it. An error becomes the stream's last event.

    A picture is sent after the next event, so that the last one can carry the job's end.
    """
    previews: Counter[int] = Counter()
    held: GeneratedImage | None = None
    try:
        async for event in _chained(first, events):
            if isinstance(event, Progress) and event.preview_png and previews[event.index] < drawing.partial_images:
                file = await files.preview(drawing, event.preview_png)
                yield _written(partial_event(drawing, event.index, previews[event.index], file))
                previews[event.index] += 1
            elif isinstance(event, ImageReady):
                if held is not None:
                    yield _written(await _completed(drawing, held, files))
                held = event.image
            elif isinstance(event, Finished) and held is not None:
                yield _written(await _completed(drawing, held, files) | job_of(drawing, event))
    except SynerDiffError as error:
        yield sse.event("error", {"type": "error", **api_error(error).envelope})
    finally:
        await events.aclose()


async def _completed(drawing: Drawing, image: GeneratedImage, files: Files) -> dict[str, Any]:
    return completed_event(drawing, image, await files.picture(drawing, image.data))


async def _chained(first: Event, events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
    yield first
    async for event in events:
        yield event


def _written(event: dict[str, Any]) -> bytes:
    return sse.event(event["type"], event)


@router.post(
    "/v1/images/generations",
    summary="Draw pictures",
    response_model=ImagesAnswer,
    responses={200: {"content": _STREAM}, **ERRORS},
)
async def generations(request: Request, body: Annotated[GenerationBody, Body()]) -> Response:
    """OpenAI's images.generate, with the extra fields that SynerDiff takes. `stream: true` answers with events."""
    gateway, caller = gateway_of(request), caller_of(request)
    card = await gateway.catalogue.card(caller.client, body.model)
    asked = drawing(body, card, caller.request_id)
    if body.stream:
        return await _streamed(request, asked, caller, gateway)
    return await unless_hung_up(request.receive, _whole(asked, caller, gateway))


@router.post(
    EDITS,
    summary="Not served yet",
    responses=ERRORS,
    openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": _EDIT_FORM}}}},
)
async def edits(request: Request) -> Response:
    """OpenAI's images.edit. There is no image to image yet: every request is refused, once it has been read."""
    async for _ in request.stream():
        pass
    message = "images cannot be edited: this server draws from text alone, by /v1/images/generations"
    raise ApiError(400, message, code="unsupported_operation")


async def _whole(asked: Drawing, caller: Caller, gateway: Gateway) -> Response:
    result = await collect(gateway.following.events(caller, asked.prompt, asked.options), None)
    files = await asyncio.gather(*(gateway.files.picture(asked, image.data) for image in result.images))
    return Response(json.dumps(images_answer(asked, result, files)), media_type="application/json")


async def _streamed(request: Request, asked: Drawing, caller: Caller, gateway: Gateway) -> Response:
    """Answers once the job is accepted: an error before that is the answer's status."""
    events = gateway.following.events(caller, asked.prompt, asked.options)
    first = await unless_hung_up(request.receive, anext(events))
    return EventStream(image_stream(asked, first, events, gateway.files))
