"""Redis loses a key, or everything, while jobs wait and run: what can be known is done, the rest is said."""

import asyncio
from typing import cast

import grpc
import pytest
from redis.asyncio import Redis

from services.scheduler.store import keys
from synerdiff.client import AsyncClient, GenerateResult, ImageReady
from synerdiff.errors import NotFound, SynerDiffError
from tests.services.scheduler.whole import MODEL, whole_scheduler
from tests.waiting import HANG_S, until

JOBS = 8
STEPS = 15
# Kinds of keys whose loss costs no job. The others: "job" is a job's own record; the rest are channels.
RESTORED = sorted(
    {
        *("request", "queue", "queued_models", "waiting", "turns", "deadlines", "leases", "leases_swept", "models"),
        *("callers", "pool", "leader", "last_read", "events", "progress", "images", "ended"),
    }
)
CHANNELS = {"wake", "controls", "accepted"}


def test_every_kind_of_key_is_tried() -> None:
    assert {*RESTORED, *CHANNELS, "job"} == set(keys.PATTERNS)


async def names_like(redis: Redis, pattern: str) -> list[str]:
    return sorted(cast(bytes, name).decode() for name in await redis.keys(pattern))


async def delete_kind(redis: Redis, kind: str) -> int:
    """Delete every key of a kind. Returns how many there were."""
    names = set(await names_like(redis, keys.PATTERNS[kind].replace("%s", "*")))
    if kind in ("job", "pool"):
        names = {name for name in names if name.count(":") == 2}
    if kind == "waiting":
        names -= {name for name in names if not name.startswith("synerdiff:waiting:")}
    return int(await redis.delete(*names)) if names else 0


async def started(redis: Redis, client: AsyncClient) -> list["asyncio.Task[GenerateResult]"]:
    """Jobs of which some run and some wait."""
    jobs = [
        asyncio.create_task(client.generate(f"{index}", model=MODEL, num_inference_steps=STEPS, num_images=2))
        for index in range(JOBS)
    ]
    async with asyncio.timeout(HANG_S):
        while not await redis.keys(keys.PATTERNS["images"] % "*"):
            await asyncio.sleep(0.005)
    return jobs


@pytest.mark.parametrize(
    ("kind", "new_leader"),
    [
        *((kind, False) for kind in RESTORED),
        *((kind, True) for kind in ("queue", "queued_models", "waiting", "deadlines")),
    ],
)
async def test_a_lost_key_costs_no_job(redis: Redis, kind: str, new_leader: bool) -> None:
    async with whole_scheduler(redis) as whole, AsyncClient(whole.scheduler.address) as client:
        jobs = await started(redis, client)
        deleted = await delete_kind(redis, kind)
        assert deleted or kind in ("last_read", "progress", "ended"), "there was nothing to lose"
        if new_leader and whole.pool.leader:
            whole.pool.leader.superseded()
        later = asyncio.create_task(client.generate("later", model=MODEL, num_inference_steps=STEPS))
        outcomes = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), HANG_S)
        served = [outcome for outcome in outcomes if isinstance(outcome, GenerateResult)]
        assert [len(result.images) for result in served] == [2] * len(served)
        if kind == "images":  # those of a job that has just ended are gone for good, and that is said
            refused = [outcome for outcome in outcomes if not isinstance(outcome, GenerateResult)]
            assert all("not kept any more" in str(error) for error in refused), refused
            assert len(served) >= JOBS // 2
        else:
            assert len(served) == JOBS, outcomes
        assert len((await asyncio.wait_for(later, HANG_S)).images) == 1
        for result in served:
            told = [event async for event in client.watch(result.job_id) if isinstance(event, ImageReady)]
            assert {event.image.index for event in told} == {0, 1}, "whoever follows from the start hears less"


async def test_the_loss_of_a_jobs_own_record_is_said_and_costs_no_other(redis: Redis) -> None:
    async with whole_scheduler(redis) as whole, AsyncClient(whole.scheduler.address) as client:
        jobs = await started(redis, client)
        lost = {name.split(":")[2] for name in (await names_like(redis, keys.PATTERNS["events"] % "*"))[:2]}
        await redis.delete(*(keys.job(job_id) for job_id in lost))
        outcomes = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), HANG_S)
        said = [str(outcome) for outcome in outcomes if isinstance(outcome, BaseException)]
        assert len(said) <= 2
        assert all("is lost" in text for text in said), said
        finished = {outcome.job_id for outcome in outcomes if isinstance(outcome, GenerateResult)}
        assert len(finished) + len(said) == JOBS
        async with asyncio.timeout(HANG_S):
            while await redis.zrange(f"synerdiff:waiting:{MODEL}", 0, -1) != [b""]:
                await asyncio.sleep(0.02)
        await until(lambda: not whole.pool.leader or not whole.pool.leader.engine.holdings.jobs)
        assert len((await client.generate("after", model=MODEL)).images) == 1


async def test_an_emptied_redis_ends_what_it_held_and_serves_on(redis: Redis) -> None:
    async with whole_scheduler(redis) as whole, AsyncClient(whole.scheduler.address) as client:
        jobs = await started(redis, client)
        token = whole.unet.guard.token
        await redis.flushall()
        result = await asyncio.wait_for(client.generate("at once", model=MODEL, num_inference_steps=3), HANG_S)
        assert len(result.images) == 1
        assert whole.unet.guard.token > token
        for outcome in await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), HANG_S):
            assert isinstance(outcome, GenerateResult | NotFound), outcome


async def test_a_leader_that_leads_again_is_obeyed_though_redis_gives_it_its_old_token(redis: Redis) -> None:
    async with whole_scheduler(redis) as whole, AsyncClient(whole.scheduler.address) as client:
        await client.generate("before", model=MODEL, num_inference_steps=STEPS)
        assert whole.pool.leader is not None
        whole.pool.leader.superseded()
        await redis.delete(keys.PATTERNS["pool"] % "default")
        result = await asyncio.wait_for(client.generate("after", model=MODEL, num_inference_steps=3), HANG_S)
        assert len(result.images) == 1


async def test_what_can_never_be_written_fails_its_job(redis: Redis) -> None:
    async with whole_scheduler(redis) as whole, AsyncClient(whole.scheduler.address) as client:
        job = asyncio.create_task(client.generate("x", model=MODEL, num_inference_steps=60))
        await until(lambda: whole.unet.counting.residents)
        (name,) = (name for name in await names_like(redis, keys.PATTERNS["job"] % "*") if name.count(":") == 2)
        while await redis.hget(name, "state") != b"RUNNING":
            await asyncio.sleep(0.01)
        await redis.hset(name, "state", "QUEUED")  # which the leader knows to be wrong, and nothing mends
        with pytest.raises(SynerDiffError, match="could not be written") as failed:
            await asyncio.wait_for(job, HANG_S)
        assert failed.value.code is grpc.StatusCode.INTERNAL
