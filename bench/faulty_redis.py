"""A Redis behind an address that may lead elsewhere, as a Service's, and its faults."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.processes import forwarding
from services.scheduler.store import keys
from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess


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
        """Send a command to the primary, or to another Redis, not through the address."""
        async with connect((to or self.primary).url) as redis:
            return await redis.execute_command(*words)  # type: ignore[no-untyped-call]

    async def holds(self, job_ids: Sequence[str]) -> set[str]:
        """Those of which Redis has a record."""
        async with connect(f"redis://127.0.0.1:{self.port}/0") as redis:
            return {job_id for job_id in job_ids if await redis.exists(keys.job(job_id))}


def _said(*words: object, to_replica: bool = False) -> "Step":
    async def say_it(service: RedisService) -> None:
        await service.command(*words, to=service.replica if to_replica else None)

    return say_it


async def _kill(service: RedisService) -> None:
    await asyncio.to_thread(service.primary.kill9)


async def _start_again(service: RedisService) -> None:
    await asyncio.to_thread(service.primary.start)


async def _lose(service: RedisService) -> None:
    service.leads_to = 0
    await _kill(service)


async def _replace(service: RedisService) -> None:
    assert service.replica
    await _said("replicaof", "no", "one", to_replica=True)(service)
    service.leads_to = service.replica.port


Step = Callable[[RedisService], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """A fault of Redis: its begin and its end; without `end` it is over at once. `loses`: it may lose jobs."""

    begin: Step
    end: Step | None
    alert: str = "SynerdiffRedisDown"
    loses: bool = False
    needs_replica: bool = False


FAULTS = {
    "full": Fault(_said("config", "set", "maxmemory", 1), _said("config", "set", "maxmemory", 0)),
    "read-only": Fault(_said("replicaof", "127.0.0.1", 1), _said("replicaof", "no", "one")),
    "killed": Fault(_kill, _start_again),
    "flushed": Fault(_said("flushall"), None, "SynerdiffRedisLostData", loses=True),
    # Its replica takes its place, as after a failover: writes that were not replicated are lost.
    "replaced": Fault(_lose, _replace, loses=True, needs_replica=True),
}
