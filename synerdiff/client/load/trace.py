"""The scheduler's trace of its last ticks, for the charts of a load."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc

from synerdiff.client.follow import Metadata
from synerdiff.status import from_rpc_error
from synerdiff.v1 import operations_pb2, operations_pb2_grpc

_TIMEOUT_S = 60.0

TraceEvent = dict[str, Any]


async def trace_events(
    channel: grpc.aio.Channel, since_unix_s: float = 0.0, metadata: Metadata = ()
) -> list[TraceEvent]:
    """The events of a running scheduler's last ticks that began after a time; raises the SynerDiffError answered."""
    stub = operations_pb2_grpc.OperationsStub(channel)
    try:
        reply = await stub.GetTrace(operations_pb2.GetTraceRequest(), timeout=_TIMEOUT_S, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    events: list[TraceEvent] = json.loads(reply.trace_json)["traceEvents"]
    return [event for event in events if event.get("ts", 0) >= since_unix_s * 1e6]


def thresholds(events: Iterable[Mapping[str, Any]], since_unix_s: float) -> tuple[tuple[float, float], ...]:
    """The threshold over time: (s since then, value)."""
    return _over_time(events, since_unix_s, "threshold", lambda e: e["ph"] == "C" and e["name"] == "threshold")


def unet_rows(events: Iterable[Mapping[str, Any]], since_unix_s: float) -> tuple[tuple[float, float], ...]:
    """The rows of every UNet call: (s since then, rows), by when it began."""
    return _over_time(events, since_unix_s, "ran_rows", lambda e: e["ph"] == "X" and e["cat"] == "unet")


def _over_time(
    events: Iterable[Mapping[str, Any]], since_unix_s: float, value: str, of: Callable[[Mapping[str, Any]], bool]
) -> tuple[tuple[float, float], ...]:
    return tuple(sorted((each["ts"] / 1e6 - since_unix_s, each["args"][value]) for each in events if of(each)))
