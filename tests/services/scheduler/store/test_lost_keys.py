"""Redis loses a key or everything, or a record cannot be read: what can be known is done, the rest is said."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, cast

import grpc
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.scheduler.store import keys
from services.scheduler.store.queue import JobStore
from services.scheduler.store.records import UnreadableRecord
from services.scheduler.store.scripts import Lease
from synerdiff.client import AsyncClient, GenerateResult, ImageReady
from synerdiff.errors import SynerDiffError
from synerdiff.jobs import JobRecord, JobState
from tests.services.scheduler.harness import MODEL, drawn, whole_scheduler
from tests.services.scheduler.redis_jobs import accept, job_of, metric, new_leader
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
    jobs = drawn(client, JOBS, STEPS, num_images=2)
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


# ---- a record that cannot be read: its job ends, with the reason, and costs no other and no leadership


Read = Callable[[JobStore, Redis, Lease], Coroutine[Any, Any, list[JobRecord]]]

DAMAGES: dict[str, dict[str, str | None]] = {
    "no request": {"request": None},
    "a request that is no JSON": {"request": "{"},
    "a sampler of tomorrow": {"request": '{"sampler": "TOMORROW"}'},
    "a state of tomorrow": {"state": "PAUSED"},
    "no time": {"accepted_at_ms": "noon"},
}
DAMAGES_TO_SWEEPS: dict[str, dict[str, str | None]] = DAMAGES | {
    "no model": {"model": None},
    "no class": {"priority": None},
}


async def damage(redis: Redis, job_id: str, fields: dict[str, str | None]) -> None:
    for name, value in fields.items():
        if value is None:
            await redis.hdel(keys.job(job_id), name)
        else:
            await redis.hset(keys.job(job_id), name, value)


async def newly(store: JobStore, redis: Redis, lease: Lease) -> list[JobRecord]:
    return await store.read_new(lease, ["emoji"], 9)


async def again(store: JobStore, redis: Redis, lease: Lease) -> list[JobRecord]:
    return await store.read_pending(lease)


async def claimed(store: JobStore, redis: Redis, lease: Lease) -> list[JobRecord]:
    other = await new_leader(redis, pool="other")
    await redis.delete(keys.PATTERNS["leader"] % lease.pool)
    return await store.claim_stale(other, ["emoji"], 9, 0.0)


@pytest.mark.parametrize("read", [newly, again, claimed])
@pytest.mark.parametrize("fields", DAMAGES.values(), ids=DAMAGES)
async def test_every_way_of_reading_passes_it_over_and_ends_it(
    store: JobStore, redis: Redis, lease: Lease, read: Read, fields: dict[str, str | None]
) -> None:
    job_ids = [await accept(store) for _ in range(3)]
    if read is not newly:
        await store.read_new(lease, ["emoji"], 9)
    await damage(redis, job_ids[1], fields)
    before = metric("unreadable_jobs_total")
    with capture_logs() as lines:
        records = await read(store, redis, lease)
    assert [record.job_id for record in records] == [job_ids[0], job_ids[2]]
    assert metric("unreadable_jobs_total") == before + 1
    assert [line["job_id"] for line in lines if line["log_level"] == "error"] == [job_ids[1]]
    assert await redis.hget(keys.job(job_ids[1]), "state") == b"FAILED"
    (*_, last) = await store.events(job_ids[1])
    assert "cannot be read" in last.failed.message
    assert await store.ended(job_ids) == {job_ids[1]}


async def test_what_only_a_newer_version_can_draw_is_not_drawn_but_shown(
    store: JobStore, redis: Redis, lease: Lease
) -> None:
    """As in a rolling upgrade, where a leader may be older than the scheduler that accepts."""
    newer, good = [await accept(store) for _ in range(2)]
    for job_id, style in ((newer, "3d"), (good, "")):
        request = json.loads(cast(bytes, await redis.hget(keys.job(job_id), "request")))
        await redis.hset(keys.job(job_id), "request", json.dumps(request | {"style": style}))
    assert [record.job_id for record in await store.read_new(lease, ["emoji"], 9)] == [good]
    record = await job_of(store, newer)
    assert record.state is JobState.FAILED
    assert "style: '3d'; this version of SynerDiff does not know this field" in record.error_message


async def test_a_job_of_a_state_that_nobody_knows_is_told_as_such(store: JobStore, redis: Redis) -> None:
    job_id = await accept(store)
    await damage(redis, job_id, DAMAGES["a state of tomorrow"])
    for read in (store.job, store.events):
        with pytest.raises(UnreadableRecord, match="PAUSED"):
            await read(job_id)


@pytest.mark.parametrize("fields", DAMAGES_TO_SWEEPS.values(), ids=DAMAGES_TO_SWEEPS)
async def test_sweeps_go_on(store: JobStore, redis: Redis, fields: dict[str, str | None]) -> None:
    job_ids = [await accept(store, timeout_ms=1, abandonable=True) for _ in range(3)]
    await damage(redis, job_ids[1], fields)
    await store.queue_depths()
    await asyncio.sleep(0.01)
    assert await store.sweep_expired() == 3
    await store.sweep_abandoned()
    await store.restore()
    await store.trim()
    assert await store.ended(job_ids) == set(job_ids)


async def test_a_leadership_and_the_next_go_on_beside_it(redis: Redis) -> None:
    async with whole_scheduler(redis) as whole, AsyncClient(whole.scheduler.address) as client:
        jobs = drawn(client, 3, steps=30)
        await until(lambda: len(whole.unet.counting.residents) == 3)
        names = [cast(bytes, name).decode().split(":")[-1] for name in await redis.keys(keys.PATTERNS["job"] % "*")]
        damaged = next(name for name in names if len(name) == 32)
        await damage(redis, damaged, DAMAGES["a sampler of tomorrow"])
        first = whole.pool.leader
        assert first is not None
        first.superseded()
        outcomes = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), HANG_S)
        (failed,) = [outcome for outcome in outcomes if isinstance(outcome, SynerDiffError)]
        assert "cannot be read" in str(failed)
        second = whole.pool.leader
        assert second is not None
        assert len((await client.generate("later", model=MODEL)).images) == 1
        assert whole.pool.leader is second, "it ended another leadership"
