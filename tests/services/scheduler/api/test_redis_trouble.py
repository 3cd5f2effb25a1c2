"""What clients hear while a real Redis is full or read-only, and that they keep trying."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.scheduler.engine.tasks import Phase
from services.scheduler.process import follow_redis
from services.scheduler.store.queue import JobStore, JobStoreSettings
from services.scheduler.telemetry.metrics import PoolMetrics
from synerdiff.client import AsyncClient
from synerdiff.errors import Unavailable
from synerdiff.redis_client import connect
from synerdiff.redis_process import RedisProcess
from synerdiff.rpc import READINESS, ServiceHost, open_channel, serving
from synerdiff.v1 import images_pb2, images_pb2_grpc
from tests.services.scheduler.harness import Scheduler, announce, background, start_scheduler
from tests.services.scheduler.whole import MODEL, whole_scheduler
from tests.waiting import HANG_S, until

REFUSED = "synerdiff_requests_refused_total", {"code": "UNAVAILABLE"}
Switch = Callable[[Redis], Coroutine[Any, Any, object]]


async def full(redis: Redis) -> None:
    await redis.config_set("maxmemory", "1")


async def room_again(redis: Redis) -> None:
    await redis.config_set("maxmemory", "0")


async def read_only(redis: Redis) -> None:
    await redis.replicaof("127.0.0.1", "1")


async def primary_again(redis: Redis) -> None:
    await redis.replicaof("NO", "ONE")


async def cannot_save(redis: Redis) -> None:
    """What is in the way of the dump is a folder; Redis takes no writes while its last dump has failed."""
    (dump_file(await redis.config_get()) / "in the way").mkdir(parents=True)
    await redis.config_set("save", "3600 1000000")
    await redis.bgsave()
    while (await redis.info("persistence"))["rdb_last_bgsave_status"] != "err":
        await asyncio.sleep(0.01)


async def saves_again(redis: Redis) -> None:
    shutil.rmtree(dump_file(await redis.config_get()))
    await redis.bgsave()
    while (await redis.info("persistence"))["rdb_last_bgsave_status"] != "ok":
        await asyncio.sleep(0.01)


def dump_file(config: dict[str | None, str | None]) -> Path:
    return Path(str(config["dir"])) / str(config["dbfilename"])


TROUBLES = [
    pytest.param(full, room_again, "Redis is full", id="full"),
    pytest.param(read_only, primary_again, "Redis is read-only", id="read-only"),
    pytest.param(cannot_save, saves_again, "Redis cannot write to its disk", id="misconfigured"),
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
        before = REGISTRY.get_sample_value(*REFUSED) or 0.0
        with pytest.raises(Unavailable, match=message):
            await client.submit("pizza")
        assert (REGISTRY.get_sample_value(*REFUSED) or 0.0) > before
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


@pytest.mark.parametrize(("begin", "end", "message"), TROUBLES)
async def test_a_scheduler_is_ready_while_redis_takes_what_it_is_given(
    redis: Redis, begin: Switch, end: Switch, message: str
) -> None:
    host = ServiceHost()
    await host.start("127.0.0.1:0")
    async with background(follow_redis(host, redis, JobStore(redis))), open_channel(host.address) as channel:
        for change, ready in ((None, True), (begin, False), (end, True)):
            if change:
                await change(redis)
            async with asyncio.timeout(HANG_S):
                while await serving(channel, READINESS) is not ready:
                    await asyncio.sleep(0.02)
            assert REGISTRY.get_sample_value("synerdiff_redis_up") == ready
            if ready:
                assert (REGISTRY.get_sample_value("synerdiff_redis_used_bytes") or 0) > 0
    await host.drain(0)


async def test_a_redis_that_has_lost_its_data_is_counted_and_a_restart_with_them_is_not(
    redis: Redis, own_redis: RedisProcess
) -> None:
    host, losses = ServiceHost(), "synerdiff_redis_losses_total"
    async with background(follow_redis(host, redis, JobStore(redis))):
        await until(lambda: REGISTRY.get_sample_value("synerdiff_redis_up"))
        before = REGISTRY.get_sample_value(losses) or 0.0
        PoolMetrics.of_process().redis_up.set(0)
        await asyncio.to_thread(own_redis.restart)
        await until(lambda: REGISTRY.get_sample_value("synerdiff_redis_up"))
        assert REGISTRY.get_sample_value(losses) == before
        with capture_logs() as lines:
            await redis.flushall()
            await until(lambda: REGISTRY.get_sample_value(losses) == before + 1)
        assert [line for line in lines if "redis has lost its data" in line["event"]]


async def test_workers_that_a_full_redis_has_forgotten_go_on_with_what_they_have(redis: Redis) -> None:
    """Their records run out, since they cannot be written again; their streams say that they live."""
    async with whole_scheduler(redis) as whole, AsyncClient(whole.scheduler.address, patience_s=HANG_S) as client:
        jobs = [asyncio.create_task(client.generate("x", model=MODEL, num_inference_steps=300)) for _ in range(3)]
        await until(lambda: whole.unet.calls > 10)
        await full(redis)
        await redis.delete("synerdiff:worker:unet", "synerdiff:worker:vae")
        leader = whole.pool.leader
        assert leader is not None
        await until(lambda: any(task.phase is Phase.STORING for task in leader.engine.holdings.tasks.values()))
        await room_again(redis)
        for result in await asyncio.wait_for(asyncio.gather(*jobs), HANG_S):
            assert len(result.images) == 1
