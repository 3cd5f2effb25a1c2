"""The job store on the shared Redis, and a leader of its default pool."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import Lease
from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess
from tests.services.scheduler.redis_jobs import new_leader


@pytest.fixture
async def own_client(own_redis: RedisProcess) -> AsyncIterator[Redis]:
    """A client of the test's own Redis."""
    async with connect(own_redis.url) as client:
        yield client


@pytest.fixture
async def store(redis: Redis) -> AsyncIterator[JobStore]:
    job_store = JobStore(redis)
    yield job_store
    await job_store.close()


@pytest.fixture
async def lease(redis: Redis) -> Lease:
    return await new_leader(redis)
