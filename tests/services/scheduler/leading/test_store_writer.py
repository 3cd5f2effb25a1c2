"""What the writer does where Redis is away, and where it refuses for good."""

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.scheduler.engine.effects import FinishJob, ReportProgress, StoreEffect, StoreImage
from services.scheduler.engine.events import ImageStored, JobUnwritable
from services.scheduler.leading.store_writer import StoreWriter
from services.scheduler.store import keys
from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import Lease
from synerdiff.redis_client import TROUBLE_LOG
from synerdiff.redis_process import RedisProcess
from tests.services.scheduler.harness import Heard, background
from tests.services.scheduler.redis_jobs import TIMINGS, a_picture, new_leader, running_job
from tests.waiting import until


def unwritable(heard: Heard) -> str:
    """Why the only event says that a job cannot be written."""
    (event,) = heard.events
    assert isinstance(event, JobUnwritable)
    return event.reason


def the_image(job_id: str) -> StoreEffect:
    return StoreImage(job_id, 0, 7, a_picture())


async def test_a_write_waits_for_redis_and_says_so_once(own_redis: RedisProcess, own_client: Redis) -> None:
    heard, store, lease = Heard(), JobStore(own_client), await new_leader(own_client)
    job_id, writer = await running_job(store, lease), StoreWriter(store, lease, heard)
    own_redis.kill9()
    with capture_logs() as lines:
        writer.submit(the_image(job_id))
        await until(lambda: TROUBLE_LOG.failed_calls >= 2)
        assert writer.backlog == 1
        own_redis.start()
        await until(lambda: writer.backlog == 0)
    assert heard.events == [ImageStored(f"{job_id}/0")]
    assert [(line["event"], line["reason"][:13]) for line in lines] == [("redis is in trouble", "Redis is away")]


async def test_what_redis_refuses_for_good_fails_its_job_and_waits_for_nothing(
    store: JobStore, lease: Lease, redis: Redis
) -> None:
    heard, job_id = Heard(), await running_job(store, lease)
    writer = StoreWriter(store, lease, heard)
    await redis.set(keys.images(job_id), "no hash")
    with capture_logs() as lines:
        writer.submit(the_image(job_id))
        writer.submit(FinishJob(job_id, 0, TIMINGS, ()))
        await until(lambda: heard.events)
    assert "WRONGTYPE" in unwritable(heard)
    assert (writer.backlog, writer._queues) == (0, {})
    assert [line["log_level"] for line in lines] == ["error"]


async def test_an_end_that_the_states_do_not_have_leaves_no_queue_behind(store: JobStore, lease: Lease) -> None:
    heard, job_id = Heard(), await running_job(store, lease)
    writer = StoreWriter(store, lease, heard)
    await store.store_image(lease, job_id, a_picture(), 0, 7)
    await store._redis.hset(keys.job(job_id), "state", "QUEUED")
    writer.submit(FinishJob(job_id, 0, TIMINGS, ()))
    await until(lambda: heard.events)
    assert "may not become FINISHED" in unwritable(heard)
    assert writer._queues == {}


async def test_progress_that_cannot_be_written_ends_nothing(store: JobStore, lease: Lease, redis: Redis) -> None:
    good, bad = await running_job(store, lease), await running_job(store, lease)
    writer = StoreWriter(store, lease, Heard())
    await redis.set(keys.progress(bad), "no hash")
    async with background(writer.run()):
        with capture_logs() as lines:
            writer.submit(ReportProgress(bad, 0, 1, 4))
            await until(lambda: [line for line in lines if line["event"] == "progress cannot be written"])
        writer.submit(ReportProgress(good, 0, 3, 4))
        progress = 0.0
        while progress != pytest.approx(0.75):
            progress = await store.progress(good)
