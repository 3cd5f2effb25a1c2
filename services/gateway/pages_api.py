"""/api: the endpoints of the pages.

The drawing page: all events of a job, where OpenAI's API has pictures alone. The monitoring page: the
pool's status and its ticks as events, and the last ticks as a trace.
"""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from grpc.aio import AioRpcError
from pydantic import BeforeValidator, Field
from starlette.responses import Response

from services.gateway import sse
from services.gateway.errors import api_error
from services.gateway.following import unless_hung_up
from services.gateway.gateway import Gateway, caller_of, gateway_of
from services.gateway.images.bodies import GenerationBody
from services.gateway.images.drawing import LONGEST_PREVIEW_EVERY, Drawing, base64_of, drawing
from services.gateway.sse import EventStream
from synerdiff.client import Event, Finished, GenerateOptions, ImageReady, Progress, Queued
from synerdiff.errors import SynerDiffError
from synerdiff.status import from_rpc_error
from synerdiff.v1 import operations_pb2

router = APIRouter(prefix="/api", tags=["pages"], include_in_schema=False)

_PREVIEWS = 10  # of a picture, about
_STATUS_EVERY_S = 1.0
_AGAIN_S = 0.5
_ASK_AROUND = 4  # schedulers, for the one that leads: the others know less
_TIMEOUT_S = 5.0


def _number(value: object) -> object:
    """Digits as a number: JavaScript's own numbers end at 2^53."""
    return (
        int(value) if isinstance(value, str) and len(value) <= 19 and value.isascii() and value.isdecimal() else value
    )


class DrawBody(GenerationBody):
    """The page's request: a body of OpenAI's API, whose seed may be a string of digits."""

    seed: Annotated[int | None, BeforeValidator(_number)] = Field(None, ge=0, lt=2**63)


@router.post("/jobs")
async def draw(request: Request, body: Annotated[DrawBody, Body()]) -> Response:
    """Draw, and send every event of the job: queued, started, progress, image, finished, or error.

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
    return sse.event(name, {"job_id": event.job_id, **_event_fields(event)})


def _event_fields(event: Event) -> dict[str, Any]:
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


@router.get("/status")
async def status(request: Request) -> Response:
    """Operations.GetStatus every second, as events, until the client disconnects."""
    return EventStream(_statuses(gateway_of(request)))


@router.get("/ticks")
async def ticks(request: Request, domain: str = "", last: Annotated[int, Query(ge=0, le=4096)] = 0) -> Response:
    """Operations.WatchTicks as events, started again from the newest leader when one goes."""
    return EventStream(_ticks(gateway_of(request), operations_pb2.WatchTicksRequest(domain=domain, last=last)))


@router.get("/trace")
async def trace(request: Request, domain: str = "") -> Response:
    """The last ticks, in Chrome's trace event format."""
    asked = operations_pb2.GetTraceRequest(domain=domain)
    reply = await _answered(gateway_of(request).operations.GetTrace(asked, timeout=_TIMEOUT_S))
    headers = {"content-disposition": 'attachment; filename="synerdiff-trace.json"'}
    return Response(reply.trace_json, media_type="application/json", headers=headers)


async def _statuses(gateway: Gateway) -> AsyncGenerator[bytes, None]:
    while True:
        try:
            yield sse.event("status", _fields(await _pool_status(gateway), whole=True))
        except SynerDiffError as error:
            yield sse.event("error", api_error(error).envelope)
        await asyncio.sleep(_STATUS_EVERY_S)


async def _pool_status(gateway: Gateway) -> operations_pb2.GetStatusResponse:
    """The leader's, where one of the next few schedulers in turn is it."""
    for _ in range(_ASK_AROUND):
        asked = gateway.operations.GetStatus(operations_pb2.GetStatusRequest(), timeout=_TIMEOUT_S)
        reply: operations_pb2.GetStatusResponse = await _answered(asked)
        if reply.leader:
            break
    return reply


async def _ticks(gateway: Gateway, request: operations_pb2.WatchTicksRequest) -> AsyncGenerator[bytes, None]:
    """Each leader numbers rounds and ticks anew: `begun` says so, and `error` why there are none."""
    while True:
        try:
            async with aclosing(_watched(gateway, request)) as messages:
                yield sse.event("begun", {})
                async for message in messages:
                    yield sse.event("ticks", message)
        except SynerDiffError as error:
            yield sse.event("error", api_error(error).envelope)
        await asyncio.sleep(_AGAIN_S)


async def _watched(gateway: Gateway, request: operations_pb2.WatchTicksRequest) -> AsyncGenerator[dict[str, Any], None]:
    call = gateway.operations.WatchTicks(request)
    try:
        async for message in call:
            yield _fields(message)
    except AioRpcError as error:
        raise from_rpc_error(error) from error
    finally:
        call.cancel()


def _fields(message: Message, whole: bool = False) -> dict[str, Any]:
    """The message as JSON; without the fields that are 0 or empty, unless `whole`."""
    return dict(MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=whole))


async def _answered(call: Any) -> Any:
    try:
        return await call
    except AioRpcError as error:
        raise from_rpc_error(error) from error
