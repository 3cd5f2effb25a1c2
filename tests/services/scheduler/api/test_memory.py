"""New jobs are refused while the results of all accepted ones still fit into a real Redis' memory."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from services.scheduler.process import follow_redis
from services.scheduler.store import keys
from services.scheduler.store.image_files import DirectoryImages
from services.scheduler.store.images import RedisImages
from services.scheduler.store.queue import JobStore, JobStoreSettings
from services.scheduler.store.store_base import RedisMemory
from synerdiff.client import AsyncClient
from synerdiff.errors import InvalidRequest, QueueFull
from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess
from synerdiff.rpc import ServiceHost
from tests.services.scheduler.harness import Leader, announce, background, start_scheduler
from tests.services.scheduler.redis_jobs import DIGEST, new_leader
from tests.values import CARD, a_request
from tests.waiting import HANG_S, until

IMAGES = 16
PIXEL_BYTES = 3 * CARD.native_width * CARD.native_height
RESULT_BYTES = RedisImages().redis_bytes(a_request(width=256, height=256, num_images=IMAGES))
SETTINGS = JobStoreSettings(retention_s=4.0, retry_after_s=0.5)


@pytest.fixture
async def redis(own_redis: RedisProcess) -> AsyncIterator[Redis]:
    client = connect(own_redis.url)
    yield client
    await client.aclose()


async def room_for(redis: Redis, results: float) -> None:
    used_bytes = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", round((used_bytes + results * RESULT_BYTES) / SETTINGS.memory_share))


def refused() -> float:
    return REGISTRY.get_sample_value("synerdiff_requests_refused_total", {"code": "RESOURCE_EXHAUSTED"}) or 0.0


async def refusal(client: AsyncClient) -> QueueFull:
    """The next one: Redis is asked for its memory now and then."""
    async with asyncio.timeout(HANG_S):
        while True:
            try:
                job_id = (await client.submit("x", num_images=IMAGES)).job_id
            except QueueFull as full:
                return full
            await client.cancel(job_id)
            await asyncio.sleep(0.05)


async def test_what_is_accepted_fits_and_the_rest_is_told_when_to_come_back(redis: Redis) -> None:
    await announce(redis, "unet")
    scheduler = await start_scheduler(redis, settings=SETTINGS)
    leader, store = await Leader.of(redis, scheduler.store), scheduler.store
    client, host = AsyncClient(scheduler.address, patience_s=HANG_S), ServiceHost()
    async with background(follow_redis(host, redis, store)), client:
        await until(lambda: store._memory.used_bytes)
        await room_for(redis, 2.5)
        await until(lambda: store._memory.limit_bytes)
        before = refused()
        requests = [{"request_id": f"r{number}", "num_images": IMAGES, "seed": 1} for number in range(2)]
        for request in requests:
            await client.submit("x", **request)  # type: ignore[arg-type]
        with pytest.raises(QueueFull, match=r"Redis uses \d+ MB and expects \d+ MB of accepted jobs; .* memory_share"):
            await client.submit("x", num_images=IMAGES)
        assert refused() == before + 1
        assert (await client.submit("x", **requests[0])).job_id, "it was accepted before"  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match=r"num_images: the results of this request may take .* more than"):
            await client.submit("x", width=512, height=512, num_images=16)
        for _ in requests:  # as large as images can be: none meets a full Redis
            await leader.complete(await leader.take(), PIXEL_BYTES)
        assert await redis.hget(keys.PATTERNS["callers"], " result_bytes") is None
        assert (await refusal(client)).retry_after_s == SETTINGS.retry_after_s
        async with AsyncClient(scheduler.address, patience_s=HANG_S, wait_when_full=True) as waiting:
            assert (await waiting.submit("x", num_images=IMAGES)).job_id, "their retention ends"
    await scheduler.stop()


async def test_the_expected_bytes_are_those_of_the_jobs_that_have_not_ended(redis: Redis) -> None:
    store = JobStore(redis)
    lease = await new_leader(redis)

    async def expected() -> int:
        return int(await redis.hget(keys.PATTERNS["callers"], " result_bytes") or 0)

    jobs = [(await store.accept(a_request(request_id=f"{i}"), DIGEST, abandonable=False)).job_id for i in range(3)]
    one = RedisImages().redis_bytes(a_request())
    assert await expected() == 3 * one
    await store.cancel(jobs[0], "enough")
    await store.cancel(jobs[0], "enough")
    assert await expected() == 2 * one
    await new_leader(redis, instance_id="two")
    assert await expected() == 0, "counted again with the next acceptance"
    await store.accept(a_request(request_id="more"), DIGEST, abandonable=False)
    assert await expected() == 3 * one
    assert lease.token
    await store.close()


async def test_images_apart_from_redis_take_no_room_in_it(redis: Redis, tmp_path: Path) -> None:
    apart, within = JobStore(redis, images=DirectoryImages(tmp_path)), JobStore(redis)
    request = a_request(width=512, height=512, num_images=16)
    for store in (apart, within):
        store.memory_is(2 << 20, 4 << 20)
    with pytest.raises(InvalidRequest):
        await within.accept(request, DIGEST, abandonable=False)
    assert (await apart.accept(request, DIGEST, abandonable=False)).created
    for store in (apart, within):
        await store.close()


def test_a_redis_without_a_limit_has_room_for_all() -> None:
    assert RedisMemory(10, 0).room_bytes is None
    assert RedisMemory(80, 100, 0.9).room_bytes == 10
    assert RedisMemory(95, 100, 0.9).room_bytes == 0
