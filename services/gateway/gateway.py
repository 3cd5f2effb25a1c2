"""The state that the routes of one gateway share. It holds no state of any request."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection

from services.gateway.errors import ApiError, unknown_model
from services.gateway.following import PASSED_ON, Caller, Following, metadata_value
from services.gateway.images.files import Files
from services.gateway.settings import GatewaySettings
from synerdiff.cards import ModelCard
from synerdiff.client import AsyncClient, Model
from synerdiff.proxies import proxy_to
from synerdiff.rpc import open_channel
from synerdiff.v1 import operations_pb2_grpc

# A model whose card changes is served by its old one for this long; an unknown one is looked up again as often.
_FRESH_S = 10.0
_LEAST_AGE_S = 1.0


class Catalogue:
    """Model cards as of the last seconds, and aliases of their names."""

    def __init__(self, default_model: str, aliases: Mapping[str, str]) -> None:
        self._default_model = default_model
        self._aliases = dict(aliases)
        self._cards: dict[str, ModelCard] = {}
        self._read_at_s = -_FRESH_S
        self._reading = asyncio.Lock()

    async def card(self, client: AsyncClient, name: str | None) -> ModelCard:
        """The card of the model that a request names. Raises ApiError, and SynerDiffError when no scheduler answers."""
        wanted = self._wanted(name)
        await self._refresh(client, _FRESH_S if not wanted or wanted in self._cards else _LEAST_AGE_S)
        if not wanted and len(self._cards) != 1:
            known = ", ".join(sorted(self._cards)) or "there are none yet"
            raise ApiError(400, f"model: names none, and there is no default; one of: {known}", param="model")
        card = self._cards.get(wanted) if wanted else next(iter(self._cards.values()))
        if card is None:
            raise unknown_model(wanted, sorted(self._cards))
        return card

    async def models(self, client: AsyncClient) -> dict[str, Model]:
        """Every model just now, by each of its names."""
        found = {model.card.name: model for model in await client.models()}
        return found | {alias: found[name] for alias, name in self._aliases.items() if name in found}

    def _wanted(self, name: str | None) -> str:
        name = name or self._default_model
        return self._aliases.get(name, name)

    async def _refresh(self, client: AsyncClient, age_s: float) -> None:
        async with self._reading:
            if time.monotonic() - self._read_at_s > age_s:
                self._cards = {model.card.name: model.card for model in await client.models()}
                self._read_at_s = time.monotonic()


@dataclass
class Gateway:
    """Its connections to the schedulers, and the parts that every request uses. `ready`: whether it takes work."""

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


# The routes call these: FastAPI's resolution of them would take longer than all its other work for a request.
def gateway_of(request: HTTPConnection) -> Gateway:
    """The gateway that a request has come to."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def caller_of(request: HTTPConnection) -> Caller:
    """The sender of a request. Raises ApiError for a header that gRPC cannot carry."""
    client, headers = gateway_of(request).client, request.headers
    metadata = tuple((name, metadata_value(name, headers[name])) for name in PASSED_ON if headers.get(name))
    returns = bool(headers.get("idempotency-key"))
    return Caller(client.with_metadata(metadata) if metadata else client, request.state.request_id, returns)
