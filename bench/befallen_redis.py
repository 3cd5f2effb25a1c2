"""A Redis behind an address, and what may befall it: full, read-only, killed, flushed, replaced."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.forwarding import forwarding
from services.scheduler.store import keys
from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess

_DOWN = {"alertname": "SynerdiffRedisDown", "severity": "critical"}
_LOSS = {"alertname": "SynerdiffRedisLostData", "severity": "critical"}


@dataclass
class RedisService:
    """An address that leads to a Redis, and later perhaps to its replica or to none. Connections stay as they are."""

    primary: RedisProcess
    replica: RedisProcess | None
    port: int = 0
    leads_to: int = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Yields the URL of the address."""
        self.primary.start()
        if self.replica:
            self.replica.start()
            await self.command("replicaof", "127.0.0.1", self.primary.port, to=self.replica)
        self.leads_to = self.primary.port
        try:
            async with forwarding(lambda: [self.leads_to] if self.leads_to else []) as self.port:
                yield f"redis://127.0.0.1:{self.port}/0"
        finally:
            for redis in filter(None, (self.primary, self.replica)):
                redis.stop()

    async def command(self, *words: object, to: RedisProcess | None = None) -> Any:
        """Say something to the primary, or to another, around the address."""
        async with connect((to or self.primary).url) as redis:
            return await redis.execute_command(*words)  # type: ignore[no-untyped-call]

    async def holds(self, job_ids: Sequence[str]) -> set[str]:
        """Those of which Redis has a record."""
        async with connect(f"redis://127.0.0.1:{self.port}/0") as redis:
            return {job_id for job_id in job_ids if await redis.exists(keys.job(job_id))}


async def _nothing(service: RedisService) -> None:
    pass


async def _flush(service: RedisService) -> None:
    await service.command("flushall")


async def _fill(service: RedisService) -> None:
    await service.command("config", "set", "maxmemory", 1)


async def _make_room(service: RedisService) -> None:
    await service.command("config", "set", "maxmemory", 0)


async def _make_replica(service: RedisService) -> None:
    await service.command("replicaof", "127.0.0.1", 1)


async def _promote(service: RedisService) -> None:
    await service.command("replicaof", "no", "one")


async def _kill(service: RedisService) -> None:
    await asyncio.to_thread(service.primary.kill9)


async def _start_again(service: RedisService) -> None:
    await asyncio.to_thread(service.primary.start)


async def _lose(service: RedisService) -> None:
    service.leads_to = 0
    await _kill(service)


async def _replace(service: RedisService) -> None:
    assert service.replica
    await service.command("replicaof", "no", "one", to=service.replica)
    service.leads_to = service.replica.port


@dataclass(frozen=True)
class Fault:
    """What befalls Redis, and how it passes. `lasts`: else it is over as it has begun. `loses`: it may lose jobs.

    `replica`: it needs one.
    """

    begin: Callable[[RedisService], Awaitable[None]]
    end: Callable[[RedisService], Awaitable[None]]
    alert: Mapping[str, str] = field(default_factory=lambda: _DOWN)
    lasts: bool = True
    loses: bool = False
    replica: bool = False


FAULTS = {
    "full": Fault(_fill, _make_room),
    "read-only": Fault(_make_replica, _promote),
    "killed": Fault(_kill, _start_again),
    "flushed": Fault(_flush, _nothing, _LOSS, lasts=False, loses=True),
    # Its replica takes its place, as after a failover: what had not been replicated is lost.
    "replaced": Fault(_lose, _replace, loses=True, replica=True),
}
