"""The base of both halves of the job store: one Redis, its scripts, its notifications, and the settings."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from services.scheduler.store.images import ImageStore
from services.scheduler.store.notifications import Notifications
from services.scheduler.store.scripts import Argument, Lease, Scripts
from synerdiff.errors import FieldViolation, InvalidRequest, QueueFull, Unavailable
from synerdiff.stopping import cancel_and_wait

_MB = 1 << 20


class FollowerLeases:
    """Renews the leases of all jobs followed in this process, in one call every third of the lease time.

    Jobs that have no lease (submitted, or ended) get none by this. A follower that goes just stops renewing, so a
    draining scheduler cancels nothing that is followed again elsewhere in time.
    """

    def __init__(self, scripts: Scripts, lease_ms: int, patience_s: float) -> None:
        self._scripts = scripts
        self._lease_ms = lease_ms
        self._patience_s = patience_s
        self._followed: Counter[str] = Counter()
        self._fresh: set[str] = set()
        self._arrival = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def following(self, job_id: str) -> Iterator[None]:
        """Keep the lease of a job while in the context; the first renewal is at once."""
        self._followed[job_id] += 1
        self._fresh.add(job_id)
        self._arrival.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._followed[job_id] -= 1
            if self._followed[job_id] == 0:
                del self._followed[job_id]

    async def close(self) -> None:
        """Renew no more."""
        task, self._task = self._task, None
        if task is not None:
            await cancel_and_wait(task)

    async def _run(self) -> None:
        period_s = self._lease_ms / 3000
        due = time.monotonic() + period_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._arrival.wait()
            self._arrival.clear()
            job_ids, self._fresh = self._fresh, set()
            if time.monotonic() >= due:
                job_ids = set(self._followed)
                due = time.monotonic() + period_s
            if job_ids:
                await self._renew(job_ids)

    async def _renew(self, job_ids: set[str]) -> None:
        with contextlib.suppress(Unavailable):  # the sweep grants everybody one lease time once Redis is back
            await self._scripts.run("renew_follower_leases", self._lease_ms, *job_ids, patience_s=self._patience_s)


@dataclass(frozen=True)
class RedisMemory:
    """The memory that Redis used when last asked, and the limit at which it refuses writes; 0: no limit.

    `share`: of that limit, for all that Redis holds. The rest is for writes between two readings, and for uncounted
    memory: the queue, the registry, buffers of Redis's own.
    """

    used_bytes: int = 0
    limit_bytes: int = 0
    share: float = 0.9

    @property
    def most_bytes(self) -> int:
        """The most bytes that Redis may hold."""
        return round(self.share * self.limit_bytes)

    @property
    def room_bytes(self) -> int | None:
        """The bytes that the results of open jobs may take; None: no bound."""
        return max(0, self.most_bytes - self.used_bytes) if self.limit_bytes else None

    def refusal(self, expected_bytes: int, result_bytes: int, retry_after_s: float) -> QueueFull | InvalidRequest:
        """The refusal of a request whose results may take `result_bytes`, beside `expected_bytes` of accepted jobs."""
        most = f"{self.most_bytes / _MB:.0f} MB ({self.share:g} of Redis' maxmemory, by memory_share)"
        asked = f"the results of this request may take {result_bytes / _MB:.1f} MB"
        if result_bytes > self.most_bytes:
            return InvalidRequest(FieldViolation("num_images", f"{asked}, which is more than {most}"))
        full = f"Redis uses {self.used_bytes / _MB:.0f} MB and expects {expected_bytes / _MB:.0f} MB of accepted jobs"
        return QueueFull(f"{full}; {asked}, and the most is {most}", retry_after_s)


@dataclass(frozen=True)
class JobStoreSettings:
    """How much waits, how long things are kept, and how long to try when Redis is away."""

    max_waiting: int = 10_000  # jobs of one model
    retry_after_s: float = 5.0  # sent to a client when that many wait
    retention_s: float = 600.0  # of an ended job, its events and its images
    memory_share: float = 0.9  # of Redis' memory limit: jobs whose results may take more than this are refused
    follower_lease_s: float = 10.0  # an abandonable job without followers for this long is cancelled
    api_patience_s: float = 2.0  # Redis away for longer than this fails a call with Unavailable
    follower_patience_s: float = 30.0  # likewise for followers; leaders try again by themselves


class StoreBase:
    """Runs scripts for the API and for leaders. Its background tasks start on first need and end with `close`."""

    def __init__(
        self, redis: Redis, settings: JobStoreSettings | None = None, images: ImageStore | None = None
    ) -> None:
        self._redis = redis
        self._images = images or ImageStore()
        self._memory = RedisMemory()
        self._settings = settings or JobStoreSettings()
        self._retention_ms = round(self._settings.retention_s * 1000)
        self._follower_lease_ms = round(self._settings.follower_lease_s * 1000)
        self._scripts = Scripts(redis)
        self._notifications = Notifications(redis)
        self._follower_leases = FollowerLeases(self._scripts, self._follower_lease_ms, self._settings.api_patience_s)

    def memory_is(self, used_bytes: int, limit_bytes: int) -> None:
        """Set Redis' memory use. Call it every second or so: new jobs are refused before Redis is full."""
        self._memory = RedisMemory(used_bytes, limit_bytes, self._settings.memory_share)

    async def close(self) -> None:
        """End the background tasks. The Redis client and the image store stay open: they are the caller's."""
        await self._notifications.close()
        await self._follower_leases.close()

    async def _api(self, name: str, *args: Argument) -> Any:
        return await self._scripts.run(name, *args, patience_s=self._settings.api_patience_s)

    async def _follower(self, name: str, *args: Argument) -> Any:
        return await self._scripts.run(name, *args, patience_s=self._settings.follower_patience_s)

    async def _leader(self, name: str, lease: Lease, *args: Argument) -> Any:
        return await self._scripts.run_as_leader(name, lease, *args)
