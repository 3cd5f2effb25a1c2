"""Jobs deleted by clients that have their pictures, over real gRPC and Redis."""

import asyncio

import pytest
from redis.asyncio import Redis

from synerdiff.client import AsyncClient, Finished
from synerdiff.errors import NotEnded, NotFound
from tests.services.scheduler.harness import Leader, Scheduler, background
from tests.waiting import HANG_S


async def test_a_client_that_discards_gets_its_pictures_and_leaves_nothing(
    client: AsyncClient, leader: Leader, redis: Redis
) -> None:
    async with background(leader.work()):
        result = await asyncio.wait_for(client.generate("pizza", num_images=2, discard=True), HANG_S)
        assert [image.pil.size for image in result.images] == [(8, 8), (8, 8)]
        assert not [key for key in await redis.keys() if result.job_id.encode() in key]
        with pytest.raises(NotFound):
            await client.job(result.job_id)
        kept = await client.generate("pizza")
        assert (await client.job(kept.job_id)).images


async def test_the_end_is_told_where_the_job_cannot_be_discarded(
    client: AsyncClient, leader: Leader, redis: Redis
) -> None:
    """As by a scheduler that is older than the call, or one that knows the job no more."""
    async with background(leader.work()):
        events = [event async for event in client.stream("pizza", discard=True)]
        assert isinstance(events[-1], Finished)
        request = {"request_id": "twice", "seed": 1}
        job_id = (await client.submit("pizza", **request)).job_id  # type: ignore[arg-type]
        await asyncio.wait_for(client.generate("pizza", discard=True, **request), HANG_S)  # type: ignore[arg-type]
        await client.generate("pizza", discard=True, **request)  # type: ignore[arg-type]
        with pytest.raises(NotFound):
            await client.delete(job_id)


async def test_a_job_that_has_not_ended_is_not_deleted(
    client: AsyncClient, leader: Leader, scheduler: Scheduler
) -> None:
    handle = await client.submit("pizza")
    with pytest.raises(NotEnded, match="QUEUED: cancel it"):
        await handle.delete()
    await handle.cancel()
    await handle.delete()
    with pytest.raises(NotFound, match="unknown"):
        await handle.delete()
