"""The operators' API: what runs where, the last ticks as a trace, and ticks as they come."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

from synerdiff.rpc import ServiceHost
from synerdiff.v1 import operations_pb2, operations_pb2_grpc

SERVICE = "synerdiff.v1.Operations"


class PoolView(Protocol):
    """What operators may see of a pool."""

    async def status(self) -> operations_pb2.GetStatusResponse:
        """Workers, queues and tasks; on the leader from its own books, elsewhere from Redis."""

    async def trace(self, domain: str) -> bytes:
        """The last ticks of `domain`, or of every domain when it is empty, in Chrome's trace event format.

        Raises Unavailable where nothing is led, and NotFound for a domain without a worker or ticks.
        """

    def watch_ticks(self, domain: str, last: int) -> AsyncGenerator[operations_pb2.WatchTicksResponse, None]:
        """What is new, as it comes, beginning with the `last` parts of ticks that came before.

        Raises Unavailable as soon as nothing is led, NotFound for a domain without a worker, and QueueFull where too
        many watch.
        """


class OperationsService(operations_pb2_grpc.OperationsServicer):
    """synerdiff.v1.Operations."""

    def __init__(self, pool: PoolView) -> None:
        self._pool = pool

    def add_to(self, host: ServiceHost) -> None:
        """Serve on `host`."""
        host.add(SERVICE, operations_pb2_grpc.add_OperationsServicer_to_server, self)

    async def GetStatus(
        self, request: operations_pb2.GetStatusRequest, context: Any
    ) -> operations_pb2.GetStatusResponse:
        """The pool as this scheduler sees it."""
        return await self._pool.status()

    async def GetTrace(self, request: operations_pb2.GetTraceRequest, context: Any) -> operations_pb2.GetTraceResponse:
        """The last ticks, as a trace."""
        return operations_pb2.GetTraceResponse(trace_json=await self._pool.trace(request.domain))

    async def WatchTicks(
        self, request: operations_pb2.WatchTicksRequest, context: Any
    ) -> AsyncIterator[operations_pb2.WatchTicksResponse]:
        """Ticks and ended jobs as they come."""
        async with aclosing(self._pool.watch_ticks(request.domain, request.last)) as messages:
            async for message in messages:
                yield message
