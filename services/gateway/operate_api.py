"""/api for the page to watch it run: the pool's status and its ticks as events, and the last ticks as a trace."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from grpc.aio import AioRpcError
from starlette.responses import Response

from services.gateway import sse
from services.gateway.errors import api_error
from services.gateway.gateway import Gateway, gateway_of
from services.gateway.sse import EventStream
from synerdiff.errors import SynerDiffError
from synerdiff.status import from_rpc_error
from synerdiff.v1 import operations_pb2

router = APIRouter(prefix="/api", tags=["pages"], include_in_schema=False)

_STATUS_EVERY_S = 1.0
_AGAIN_S = 0.5
_ASK_AROUND = 4  # schedulers, for the one that leads: the others know less
_TIMEOUT_S = 5.0


@router.get("/status")
async def status(request: Request) -> Response:
    """Operations.GetStatus every second, as events, for as long as somebody looks."""
    return EventStream(_statuses(gateway_of(request)))


@router.get("/ticks")
async def ticks(request: Request, domain: str = "", last: Annotated[int, Query(ge=0, le=4096)] = 0) -> Response:
    """Operations.WatchTicks as events, over again from the newest leader where one goes."""
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
        request = operations_pb2.GetStatusRequest()
        reply: operations_pb2.GetStatusResponse = await _answered(
            gateway.operations.GetStatus(request, timeout=_TIMEOUT_S)
        )
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
    fields: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=whole
    )
    return fields


async def _answered(call: Any) -> Any:
    try:
        return await call
    except AioRpcError as error:
        raise from_rpc_error(error) from error
