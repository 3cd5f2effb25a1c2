"""/api: what the pages ask for, as JSON and events: all that a job does, where OpenAI's API tells of pictures alone."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from google.protobuf.json_format import MessageToDict
from grpc.aio import AioRpcError
from starlette.responses import JSONResponse, Response

from services.gateway import sse
from services.gateway.errors import api_error
from services.gateway.following import unless_hung_up
from services.gateway.gateway import Gateway, caller_of, gateway_of
from services.gateway.images.answers import base64_of
from services.gateway.images.bodies import GenerationBody
from services.gateway.images.drawing import drawing
from services.gateway.sse import EventStream
from synerdiff.client import Event, Finished, ImageReady, Progress, Queued
from synerdiff.errors import SynerDiffError
from synerdiff.status import from_rpc_error
from synerdiff.v1 import operations_pb2

router = APIRouter(prefix="/api", tags=["pages"], include_in_schema=False)

_STATUS_EVERY_S = 1.0
_TIMEOUT_S = 5.0


@router.post("/jobs")
async def draw(request: Request, body: Annotated[GenerationBody, Body()]) -> Response:
    """Draw, and tell of everything on the way: queued, started, progress, image, finished, or error."""
    gateway, caller = gateway_of(request), caller_of(request)
    card = await gateway.catalogue.card(caller.client, body.model)
    asked = drawing(body.model_copy(update={"stream": True}), card, caller.request_id)
    events = gateway.following.events(caller, asked.prompt, asked.options)
    first = await unless_hung_up(request.receive, anext(events))
    return EventStream(_told(first, events))


@router.delete("/jobs/{job_id}")
async def cancel(request: Request, job_id: str) -> Response:
    """Cancel a job."""
    job = await caller_of(request).client.cancel(job_id)
    return JSONResponse({"job_id": job.job_id, "state": job.state.name.lower()})


@router.get("/status")
async def status(request: Request) -> Response:
    """Operations.GetStatus every second, as events, for as long as somebody looks."""
    gateway = gateway_of(request)
    return EventStream(_statuses(gateway, await _status(gateway)))


@router.get("/trace")
async def trace(request: Request, domain: str = "") -> Response:
    """The last ticks, in Chrome's trace event format."""
    asked = operations_pb2.GetTraceRequest(domain=domain)
    reply = await _answered(gateway_of(request).operations.GetTrace(asked, timeout=_TIMEOUT_S))
    return Response(reply.trace_json, media_type="application/json")


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
    return sse.event(type(event).__name__.lower(), {"job_id": event.job_id, **_fields(event)})


def _fields(event: Event) -> dict[str, Any]:
    match event:
        case Queued(position=position):
            return {"position": position}
        case Progress():
            preview = base64_of(event.preview_png) or None
            steps = {"index": event.index, "step": event.step, "num_inference_steps": event.num_inference_steps}
            return {**steps, "preview_png": preview}
        case ImageReady(image=image):
            fields = {"index": image.index, "seed": image.seed, "width": image.width, "height": image.height}
            return {
                **fields,
                "format": image.format.name.lower(),
                "flagged": image.flagged,
                "data": base64_of(image.data),
            }
        case Finished():
            skipped = {str(index): list(steps) for index, steps in event.skipped_steps.items()}
            return {"timings": vars(event.timings), "warnings": list(event.warnings), "skipped_steps": skipped}
    return {}


async def _statuses(gateway: Gateway, first: Any) -> AsyncGenerator[bytes, None]:
    yield sse.event("status", first)
    while True:
        await asyncio.sleep(_STATUS_EVERY_S)
        try:
            yield sse.event("status", await _status(gateway))
        except SynerDiffError as error:
            yield sse.event("error", api_error(error).envelope)


async def _status(gateway: Gateway) -> Any:
    reply = await _answered(gateway.operations.GetStatus(operations_pb2.GetStatusRequest(), timeout=_TIMEOUT_S))
    return MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


async def _answered(call: Any) -> Any:
    try:
        return await call
    except AioRpcError as error:
        raise from_rpc_error(error) from error
