"""What a scheduler says of its pool."""

import asyncio
import contextlib
from collections.abc import Callable

import grpc

from synerdiff.rpc import open_channel
from synerdiff.v1 import operations_pb2, operations_pb2_grpc

Status = operations_pb2.GetStatusResponse


async def status_of(address: str) -> Status | None:
    """The status; None where no scheduler answers."""
    async with open_channel(address) as channel:
        with contextlib.suppress(grpc.aio.AioRpcError):
            stub = operations_pb2_grpc.OperationsStub(channel)
            status: Status = await stub.GetStatus(operations_pb2.GetStatusRequest(), timeout=10)
            return status
    return None


async def until(address: str, holds: Callable[[Status], bool], within_s: float = 600.0) -> Status:
    """The status once it is so. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while True:
            status = await status_of(address)
            if status and holds(status):
                return status
            await asyncio.sleep(0.1)
