"""A real Redis in trouble or short of memory: what clients hear, that they keep trying, that the accepted fits."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.scheduler.engine.tasks import Phase
from services.scheduler.process import follow_redis
from services.scheduler.store import keys
from services.scheduler.store.images import DirectoryImages, ImageStore
from services.scheduler.store.queue import JobStore
from services.scheduler.store.store_base import JobStoreSettings, RedisMemory
from services.scheduler.telemetry.metrics import PoolMetrics
from synerdiff.client import AsyncClient
from synerdiff.errors import InvalidRequest, QueueFull, Unavailable
from synerdiff.redis_process import RedisProcess
from synerdiff.rpc import READINESS, ServiceHost, open_channel, serving
from synerdiff.v1 import images_pb2, images_pb2_grpc
from tests.services.scheduler.harness import Leader, background, drawn, served, whole_scheduler
from tests.services.scheduler.redis_jobs import DIGEST, accept, metric, new_leader
from tests.values import CARD, a_request
from tests.waiting import HANG_S, until

Switch = Callable[[Redis], Awaitable[object]]


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


class Trouble(NamedTuple):
    """What a Redis may be in for a while, and how calls say so."""

    begin: Switch
    end: Switch
    message: str


TROUBLES = {
    "full": Trouble(
        lambda redis: redis.config_set("maxmemory", "1"),
        lambda redis: redis.config_set("maxmemory", "0"),
        "Redis is full",
    ),
    "read-only": Trouble(
        lambda redis: redis.replicaof("127.0.0.1", "1"),
        lambda redis: redis.replicaof("NO", "ONE"),
        "Redis is read-only",
    ),
    "misconfigured": Trouble(cannot_save, saves_again, "Redis cannot write to its disk"),
}


@pytest.fixture(params=TROUBLES.values(), ids=[*TROUBLES])
def trouble(request: pytest.FixtureRequest) -> Trouble:
    made: Trouble = request.param
    return made


@pytest.fixture
def redis(own_client: Redis) -> Redis:
    return own_client


async def codes_of_every_call(channel: grpc.aio.Channel, job_id: str) -> set[grpc.StatusCode]:
    stub = images_pb2_grpc.ImageGenerationStub(channel)
    calls = [
        stub.Submit(images_pb2.GenerateRequest(prompt="x")),
        stub.GetJob(images_pb2.GetJobRequest(job_id=job_id)),
        stub.CancelJob(images_pb2.CancelJobRequest(job_id=job_id)),
        stub.ListModels(images_pb2.ListModelsRequest()),
    ]
    codes = {await call.code() for call in calls}
    streams = [
        stub.Generate(images_pb2.GenerateRequest(prompt="x")),
        stub.Watch(images_pb2.WatchRequest(job_id=job_id), timeout=1),
    ]
    for stream in streams:
        try:
            async for _ in stream:
                pass
        except grpc.aio.AioRpcError as error:
            codes.add(error.code())
    return codes


async def test_a_redis_that_refuses_for_a_while_is_unavailable_and_true_and_clients_keep_trying(
    redis: Redis, trouble: Trouble
) -> None:
    settings = JobStoreSettings(api_patience_s=1.0, follower_patience_s=1.0)
    async with (
        served(redis, settings=settings) as scheduler,
        AsyncClient(scheduler.address, patience_s=0.1) as client,
        AsyncClient(scheduler.address, patience_s=HANG_S) as patient,
        open_channel(scheduler.address) as channel,
    ):
        job_id = (await client.submit("pizza")).job_id
        await trouble.begin(redis)
        submitting = asyncio.create_task(patient.submit("pizza"))
        before = metric("requests_refused_total", code="UNAVAILABLE")
        with pytest.raises(Unavailable, match=trouble.message):
            await client.submit("pizza")
        assert metric("requests_refused_total", code="UNAVAILABLE") > before
        with pytest.raises(Unavailable, match=trouble.message):
            await client.cancel(job_id)
        assert (await client.job(job_id)).job_id == job_id, "it can still be read"
        assert len(await client.models()) == 1
        fine = {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        codes = await codes_of_every_call(channel, job_id)
        assert codes <= fine, codes
        assert not submitting.done()
        await trouble.end(redis)
        await client.cancel(job_id)
        assert (await submitting).job_id


async def test_running_work_goes_on_and_is_stored_once_it_has_passed(redis: Redis, trouble: Trouble) -> None:
    async with whole_scheduler(redis) as whole, AsyncClient(whole.scheduler.address, patience_s=HANG_S) as client:
        jobs = drawn(client, 6, steps=20)
        await until(lambda: whole.unet.calls > 10)
        await trouble.begin(redis)
        calls = whole.unet.calls
        await until(lambda: whole.unet.calls > calls + 20, "a step meanwhile")
        await asyncio.sleep(1.0)
        await trouble.end(redis)
        for result in await asyncio.wait_for(asyncio.gather(*jobs), HANG_S):
            assert len(result.images) == 1


async def test_a_scheduler_is_ready_while_redis_takes_what_it_is_given(redis: Redis, trouble: Trouble) -> None:
    host = ServiceHost()
    await host.start("127.0.0.1:0")
    async with background(follow_redis(host, redis, JobStore(redis))), open_channel(host.address) as channel:
        for change, ready in ((None, True), (trouble.begin, False), (trouble.end, True)):
            if change:
                await change(redis)
            async with asyncio.timeout(HANG_S):
                while await serving(channel, READINESS) is not ready:
                    await asyncio.sleep(0.02)
            assert metric("redis_up") == ready
            if ready:
                assert metric("redis_used_bytes") > 0
    await host.drain(0)


async def test_a_redis_that_has_lost_its_data_is_counted_and_a_restart_with_them_is_not(
    redis: Redis, own_redis: RedisProcess
) -> None:
    host, losses = ServiceHost(), "redis_losses_total"
    async with background(follow_redis(host, redis, JobStore(redis))):
        await until(lambda: metric("redis_up"))
        before = metric(losses)
        PoolMetrics.of_process().redis_up.set(0)
        await asyncio.to_thread(own_redis.restart)
        await until(lambda: metric("redis_up"))
        assert metric(losses) == before
        with capture_logs() as lines:
            await redis.flushall()
            await until(lambda: metric(losses) == before + 1)
        assert [line for line in lines if "redis has lost its data" in line["event"]]


async def test_workers_that_a_full_redis_has_forgotten_go_on_with_what_they_have(redis: Redis) -> None:
    """Their records run out, since they cannot be written again; their streams say that they live."""
    async with whole_scheduler(redis) as whole, AsyncClient(whole.scheduler.address, patience_s=HANG_S) as client:
        jobs = drawn(client, 3, steps=300)
        await until(lambda: whole.unet.calls > 10)
        await TROUBLES["full"].begin(redis)
        await redis.delete("synerdiff:worker:unet", "synerdiff:worker:vae")
        leader = whole.pool.leader
        assert leader is not None
        await until(lambda: any(task.phase is Phase.STORING for task in leader.engine.holdings.tasks.values()))
        await TROUBLES["full"].end(redis)
        for result in await asyncio.wait_for(asyncio.gather(*jobs), HANG_S):
            assert len(result.images) == 1


# ---- memory: jobs are refused while the results of all accepted ones still fit


IMAGES = 16
PIXEL_BYTES = 3 * CARD.native_width * CARD.native_height
RESULT_BYTES = ImageStore().redis_bytes(a_request(width=256, height=256, num_images=IMAGES))
SETTINGS = JobStoreSettings(retention_s=4.0, retry_after_s=0.5)


async def room_for(redis: Redis, results: float) -> None:
    used_bytes = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", round((used_bytes + results * RESULT_BYTES) / SETTINGS.memory_share))


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
    async with (
        served(redis, settings=SETTINGS) as scheduler,
        background(follow_redis(ServiceHost(), redis, store := scheduler.store)),
        AsyncClient(scheduler.address, patience_s=HANG_S) as client,
    ):
        leader = await Leader.of(redis, store)
        await until(lambda: store._memory.used_bytes)
        await room_for(redis, 2.5)
        await until(lambda: store._memory.limit_bytes)
        before = metric("requests_refused_total", code="RESOURCE_EXHAUSTED")
        requests = [{"request_id": f"r{number}", "num_images": IMAGES, "seed": 1} for number in range(2)]
        for request in requests:
            await client.submit("x", **request)  # type: ignore[arg-type]
        with pytest.raises(QueueFull, match=r"Redis uses \d+ MB and expects \d+ MB of accepted jobs; .* memory_share"):
            await client.submit("x", num_images=IMAGES)
        assert metric("requests_refused_total", code="RESOURCE_EXHAUSTED") == before + 1
        assert (await client.submit("x", **requests[0])).job_id, "it was accepted before"  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match=r"num_images: the results of this request may take .* more than"):
            await client.submit("x", width=512, height=512, num_images=16)
        for _ in requests:  # as large as images can be: none meets a full Redis
            await leader.complete(await leader.take(), PIXEL_BYTES)
        assert await redis.hget(keys.PATTERNS["callers"], " result_bytes") is None
        assert (await refusal(client)).retry_after_s == SETTINGS.retry_after_s
        async with AsyncClient(scheduler.address, patience_s=HANG_S, wait_when_full=True) as waiting:
            assert (await waiting.submit("x", num_images=IMAGES)).job_id, "their retention ends"


async def test_the_expected_bytes_are_those_of_the_jobs_that_have_not_ended(redis: Redis) -> None:
    store = JobStore(redis)
    await new_leader(redis)

    async def expected() -> int:
        return int(await redis.hget(keys.PATTERNS["callers"], " result_bytes") or 0)

    jobs = [await accept(store) for _ in range(3)]
    one = ImageStore().redis_bytes(a_request())
    assert await expected() == 3 * one
    for _ in range(2):
        await store.cancel(jobs[0], "enough")
    assert await expected() == 2 * one
    await new_leader(redis, instance_id="two")
    assert await expected() == 0, "counted again with the next acceptance"
    await accept(store)
    assert await expected() == 3 * one
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
