"""What both halves of the job store stand on: one Redis, its scripts, its notifications, and the settings."""

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from services.scheduler.store.followers import FollowerLeases
from services.scheduler.store.images import ImageStore, RedisImages
from services.scheduler.store.memory import RedisMemory
from services.scheduler.store.notifications import Notifications
from services.scheduler.store.scripts import Argument, Lease, Scripts


@dataclass(frozen=True)
class JobStoreSettings:
    """How much waits, how long things are kept, and how long to try when Redis is away."""

    max_waiting: int = 10_000  # jobs of one model
    retry_after_s: float = 5.0  # what a client is told when that many wait
    retention_s: float = 600.0  # of an ended job, its events and its images
    memory_share: float = 0.9  # of Redis' memory limit: jobs whose results may take more than this are refused
    follower_lease_s: float = 10.0  # an abandonable job that nobody follows for this long is cancelled
    api_patience_s: float = 2.0  # Redis away for longer than this fails a call with Unavailable
    follower_patience_s: float = 30.0  # likewise for followers; leaders try again by themselves


class StoreBase:
    """Runs scripts for the API and for leaders. Its background tasks start on first need and end with `close`."""

    def __init__(
        self, redis: Redis, settings: JobStoreSettings | None = None, images: ImageStore | None = None
    ) -> None:
        self._redis = redis
        self._images = images or RedisImages()
        self._memory = RedisMemory()
        self._settings = settings or JobStoreSettings()
        self._retention_ms = round(self._settings.retention_s * 1000)
        self._follower_lease_ms = round(self._settings.follower_lease_s * 1000)
        self._scripts = Scripts(redis)
        self._notifications = Notifications(redis)
        self._follower_leases = FollowerLeases(self._scripts, self._follower_lease_ms, self._settings.api_patience_s)

    def memory_is(self, used_bytes: int, limit_bytes: int) -> None:
        """Tell what Redis uses: every second or so, for new jobs to be refused before it is full."""
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
