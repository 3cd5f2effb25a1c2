"""A pool: every scheduler runs one beside the public API. One of them leads it; the others wait for the lock."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from redis.exceptions import RedisError

from services.scheduler.engine.ticks import TickLog
from services.scheduler.leading.leader import Leader, LeaderOptions
from services.scheduler.store.leadership import Leadership
from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import Lease
from services.scheduler.store.sweeps import IMAGES_EVERY_S
from services.scheduler.telemetry.job_ends import tell_ended
from synerdiff.errors import StaleLeader, Unavailable
from synerdiff.redis_client import TROUBLE_LOG, trouble
from synerdiff.registry import WorkerRegistry
from synerdiff.stopping import cancel_and_wait
from synerdiff.telemetry import get_logger
from synerdiff.tracing import Tracer

log = get_logger("pool")

T = TypeVar("T")


class Pool:
    """Leads its pool whenever it can get the lock, and sweeps jobs, queues and image files of all pools."""

    def __init__(
        self,
        name: str,
        options: LeaderOptions,
        store: JobStore,
        registry: WorkerRegistry,
        leadership: Leadership,
        leader_ttl_s: float = 3.0,
        tracer: Tracer | None = None,
    ) -> None:
        self.name = name
        self.options = options
        self.store = store
        self.registry = registry
        self.leadership = leadership
        self.leader: Leader | None = None
        self.ticks = TickLog()
        self._renew_every_s = leader_ttl_s / 3
        self._pause_s = leader_ttl_s  # after a fault: long enough that any other scheduler takes the lock first
        self._newest_token = 0
        self._tracer = tracer

    async def run(self) -> None:
        """Wait for the lock, lead, and again, until cancelled. The lock is given up on the way out.

        A fault ends the leadership and not the process: clients of its API would gain nothing by a restart, and where
        the fault is one that every leader meets, none of the pool's schedulers would be left to ask or to cancel a job.
        """
        while True:
            lease = await self._try(lambda: self.leadership.acquire(self._newest_token))
            if lease is None:
                await asyncio.sleep(self._renew_every_s)
                continue
            log.info("leading", pool=self.name, token=lease.token)
            whole = await self._lead(lease)
            log.info("not leading any more", pool=self.name, token=lease.token)
            if not whole:
                await asyncio.sleep(self._pause_s)

    async def _lead(self, lease: Lease) -> bool:
        """Lead until that ends. False where a fault ended it: the log has its traceback."""
        leader = Leader(lease, self.options, self.store, self.registry, self.ticks, self._tracer)
        self.leader = leader
        renewing = asyncio.create_task(self._renew(lease, leader))
        try:
            await leader.lead()
        except (StaleLeader, RedisError, Unavailable, OSError) as error:
            log.warning("cannot lead", error=trouble(error) or str(error))
        except Exception:
            log.exception("a fault ends this leadership", pool=self.name, token=lease.token)
            return False
        finally:
            self.leader = None
            self._newest_token = leader.newest_token
            if leader.newest_token > lease.token:
                log.warning("workers know a newer leader", token=lease.token, newest_token=leader.newest_token)
            await cancel_and_wait(renewing)
            with contextlib.suppress(RedisError, Unavailable, OSError):
                await asyncio.shield(self.leadership.resign(lease))
        return True

    async def _renew(self, lease: Lease, leader: Leader) -> None:
        """Hold the lock. While Redis is away no other scheduler can take it either, so leading goes on."""
        try:
            while True:
                await asyncio.sleep(self._renew_every_s)
                if await self._try(lambda: self.leadership.renew(lease)) is False:
                    leader.superseded()
        except Exception as error:
            leader.failed(error)

    async def sweep(self) -> None:
        """End jobs whose time is up or whose followers are gone, in any pool; restore and trim the queues. Log the
        jobs that have ended."""
        while True:
            steps = (self.store.sweep_expired, self.store.sweep_abandoned, self.store.restore, self.store.trim)
            for step in (*steps, partial(tell_ended, self.store)):
                await self._try(step)
            await asyncio.sleep(0.5)

    async def sweep_images(self) -> None:
        """Delete image files of jobs that are no more."""
        while True:
            with contextlib.suppress(Unavailable):  # of Redis or the image store, logged already
                await self.store.sweep_images()
            await asyncio.sleep(IMAGES_EVERY_S)

    async def _try(self, call: Callable[[], Awaitable[T]]) -> T | None:
        try:
            return await call()
        except (RedisError, Unavailable, OSError) as error:
            if not TROUBLE_LOG.failed(error):
                log.warning("redis cannot be used", error=str(error))
            return None
