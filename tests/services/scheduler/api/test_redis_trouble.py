"""What clients hear while a real Redis is full or read-only, and that they keep trying."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from services.scheduler.store.queue import JobStoreSettings
from synerdiff.client import AsyncClient
from synerdiff.errors import Unavailable
from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess
from synerdiff.rpc import open_channel
from synerdiff.v1 import images_pb2, images_pb2_grpc
from tests.services.scheduler.harness import Scheduler, announce, start_scheduler
from tests.services.scheduler.whole import MODEL, whole_scheduler
from tests.waiting import HANG_S, until

Switch = Callable[[Redis], Coroutine[Any, Any, object]]


async def full(redis: Redis) -> None:
    await redis.config_set("maxmemory", "1")


async def room_again(redis: Redis) -> None:
    await redis.config_set("maxmemory", "0")


async def read_only(redis: Redis) -> None:
    await redis.replicaof("127.0.0.1", "1")


async def primary_again(redis: Redis) -> None:
    await redis.replicaof("NO", "ONE")


TROUBLES = [
    pytest.param(full, room_again, "Redis is full", id="full"),
    pytest.param(read_only, primary_again, "Redis is read-only", id="read-only"),
]


@pytest.fixture
async def redis(own_redis: RedisProcess) -> AsyncIterator[Redis]:
    client = connect(own_redis.url)
    yield client
    await client.aclose()


@pytest.fixture
async def scheduler(redis: Redis) -> AsyncIterator[Scheduler]:
    await announce(redis, "unet")
    scheduler = await start_scheduler(redis, settings=JobStoreSettings(api_patience_s=1.0, follower_patience_s=1.0))
    yield scheduler
    await scheduler.stop()


@pytest.mark.parametrize(("begin", "end", "message"), TROUBLES)
async def test_a_redis_that_refuses_for_a_while_is_unavailable_and_true(
    redis: Redis, scheduler: Scheduler, begin: Switch, end: Switch, message: str
) -> None:
    async with AsyncClient(scheduler.address, patience_s=0.1) as client:
        job_id = (await client.submit("pizza")).job_id
        await begin(redis)
        with pytest.raises(Unavailable, match=message):
            await client.submit("pizza")
        with pytest.raises(Unavailable, match=message):
            await client.cancel(job_id)
        assert (await client.job(job_id)).job_id == job_id, "it can still be read"
        assert len(await client.models()) == 1
        await end(redis)
        await client.cancel(job_id)


@pytest.mark.parametrize(("begin", "end", "message"), TROUBLES)
async def test_no_call_is_internal_meanwhile(
    redis: Redis, scheduler: Scheduler, begin: Switch, end: Switch, message: str
) -> None:
    async with AsyncClient(scheduler.address) as client:
        job_id = (await client.submit("pizza")).job_id
    await begin(redis)
    async with open_channel(scheduler.address) as channel:
        stub = images_pb2_grpc.ImageGenerationStub(channel)
        calls = [
            stub.Submit(images_pb2.GenerateRequest(prompt="x")),
            stub.GetJob(images_pb2.GetJobRequest(job_id=job_id)),
            stub.CancelJob(images_pb2.CancelJobRequest(job_id=job_id)),
            stub.ListModels(images_pb2.ListModelsRequest()),
        ]
        codes = [await call.code() for call in calls]
        streams = [
            stub.Generate(images_pb2.GenerateRequest(prompt="x")),
            stub.Watch(images_pb2.WatchRequest(job_id=job_id), timeout=1),
        ]
        for stream in streams:
            try:
                async for _ in stream:
                    pass
            except grpc.aio.AioRpcError as error:
                codes.append(error.code())
    fine = {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert set(codes) <= fine, codes


@pytest.mark.parametrize(("begin", "end", "message"), TROUBLES)
async def test_clients_keep_trying_until_it_has_passed(
    redis: Redis, scheduler: Scheduler, begin: Switch, end: Switch, message: str
) -> None:
    await begin(redis)
    async with AsyncClient(scheduler.address, patience_s=HANG_S) as client:
        submitting = asyncio.create_task(client.submit("pizza"))
        await asyncio.sleep(1.2)  # long enough for a refusal
        assert not submitting.done()
        await end(redis)
        assert (await submitting).job_id


@pytest.mark.parametrize(("begin", "end", "message"), TROUBLES)
async def test_running_work_goes_on_and_is_stored_once_it_has_passed(
    redis: Redis, begin: Switch, end: Switch, message: str
) -> None:
    async with whole_scheduler(redis) as whole, AsyncClient(whole.scheduler.address, patience_s=HANG_S) as client:
        jobs = [asyncio.create_task(client.generate("x", model=MODEL, num_inference_steps=20)) for _ in range(6)]
        await until(lambda: whole.unet.calls > 10)
        await begin(redis)
        calls = whole.unet.calls
        await until(lambda: whole.unet.calls > calls + 20, "a step meanwhile")
        await asyncio.sleep(1.0)
        await end(redis)
        for result in await asyncio.wait_for(asyncio.gather(*jobs), HANG_S):
            assert len(result.images) == 1
