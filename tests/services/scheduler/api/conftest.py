"""A scheduler without a pool, a leader's part played by hand, and a client."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from synerdiff.client import AsyncClient
from tests.services.scheduler.harness import Leader, Scheduler, served
from tests.waiting import HANG_S


@pytest.fixture
async def scheduler(redis: Redis) -> AsyncIterator[Scheduler]:
    async with served(redis) as scheduler:
        yield scheduler


@pytest.fixture
async def leader(redis: Redis, scheduler: Scheduler) -> Leader:
    return await Leader.of(redis, scheduler.store)


@pytest.fixture
async def client(scheduler: Scheduler) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(scheduler.address, patience_s=HANG_S) as client:
        yield client
