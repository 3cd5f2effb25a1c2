"""What the routes of one gateway share. It holds no state of any request."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection

from services.gateway.callers import Caller, caller
from services.gateway.catalogue import Catalogue
from services.gateway.following import Following
from services.gateway.images.files import Files
from services.gateway.settings import GatewaySettings
from synerdiff.client import AsyncClient
from synerdiff.proxies import proxy_to
from synerdiff.rpc import open_channel
from synerdiff.v1 import operations_pb2_grpc


@dataclass
class Gateway:
    """Its connections to the schedulers, and what serves every request. `ready`: whether it takes work."""

    client: AsyncClient
    operations: Any
    catalogue: Catalogue
    following: Following
    files: Files
    ready: bool = False


@contextlib.asynccontextmanager
async def open_gateway(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    """A gateway whose connections last as long as the block."""
    tls, target = settings.scheduler_tls(), settings.scheduler
    client = AsyncClient(target, tls=tls, patience_s=settings.patience_s)
    channel = open_channel(target, tls=tls, round_robin=True, through_proxy=bool(proxy_to(target)))
    files, following = Files(), Following()
    catalogue = Catalogue(settings.default_model, settings.model_aliases)
    try:
        yield Gateway(client, operations_pb2_grpc.OperationsStub(channel), catalogue, following, files)
    finally:
        await following.close()
        files.close()
        await client.close()
        await channel.close()


# Called by the routes: resolved by FastAPI they would take it longer than all else that it does for a request.
def gateway_of(request: HTTPConnection) -> Gateway:
    """The gateway that a request has come to."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def caller_of(request: HTTPConnection) -> Caller:
    """The sender of a request. Raises ApiError for a header that gRPC cannot carry."""
    return caller(gateway_of(request).client, request.headers, request.state.request_id)
