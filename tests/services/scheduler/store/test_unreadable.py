"""One job whose record cannot be read: it ends, with the reason, and costs no other and no leadership."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.scheduler.store import keys
from services.scheduler.store.queue import JobStore
from services.scheduler.store.records import UnreadableRecord
from services.scheduler.store.scripts import Lease
from synerdiff.client import AsyncClient
from synerdiff.errors import SynerDiffError
from synerdiff.jobs import JobRecord, JobState
from tests.services.scheduler.redis_jobs import DIGEST, new_leader
from tests.services.scheduler.whole import MODEL, whole_scheduler
from tests.values import a_request
from tests.waiting import HANG_S, until

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


def counted() -> float:
    return REGISTRY.get_sample_value("synerdiff_unreadable_jobs_total") or 0.0


@pytest.mark.parametrize("read", [newly, again, claimed])
@pytest.mark.parametrize("fields", DAMAGES.values(), ids=DAMAGES)
async def test_every_way_of_reading_passes_it_over_and_ends_it(
    store: JobStore, redis: Redis, lease: Lease, read: Read, fields: dict[str, str | None]
) -> None:
    job_ids = [(await store.accept(a_request(), DIGEST, abandonable=False)).job_id for _ in range(3)]
    if read is not newly:
        await store.read_new(lease, ["emoji"], 9)
    await damage(redis, job_ids[1], fields)
    before = counted()
    with capture_logs() as lines:
        records = await read(store, redis, lease)
    assert [record.job_id for record in records] == [job_ids[0], job_ids[2]]
    assert counted() == before + 1
    assert [line["job_id"] for line in lines if line["log_level"] == "error"] == [job_ids[1]]
    assert await redis.hget(keys.job(job_ids[1]), "state") == b"FAILED"
    (*_, last) = await store.events(job_ids[1])
    assert "cannot be read" in last.failed.message
    assert await store.ended(job_ids) == {job_ids[1]}


async def test_what_only_a_newer_version_can_draw_is_not_drawn_but_shown(
    store: JobStore, redis: Redis, lease: Lease
) -> None:
    """As in a rolling upgrade, where a leader may be older than the scheduler that accepts."""
    newer, good = [(await store.accept(a_request(), DIGEST, abandonable=False)).job_id for _ in range(2)]
    for job_id, style in ((newer, "3d"), (good, "")):
        request = json.loads(cast(bytes, await redis.hget(keys.job(job_id), "request")))
        await redis.hset(keys.job(job_id), "request", json.dumps(request | {"style": style}))
    assert [record.job_id for record in await store.read_new(lease, ["emoji"], 9)] == [good]
    record = await store.job(newer)
    assert record is not None
    assert record.state is JobState.FAILED
    assert "style: '3d'; this version of SynerDiff does not know this field" in record.error_message


async def test_a_job_of_a_state_that_nobody_knows_is_told_as_such(store: JobStore, redis: Redis) -> None:
    job_id = (await store.accept(a_request(), DIGEST, abandonable=False)).job_id
    await damage(redis, job_id, DAMAGES["a state of tomorrow"])
    with pytest.raises(UnreadableRecord, match="PAUSED"):
        await store.job(job_id)
    with pytest.raises(UnreadableRecord, match="PAUSED"):
        await store.events(job_id)


@pytest.mark.parametrize("fields", DAMAGES_TO_SWEEPS.values(), ids=DAMAGES_TO_SWEEPS)
async def test_sweeps_go_on(store: JobStore, redis: Redis, fields: dict[str, str | None]) -> None:
    job_ids = [(await store.accept(a_request(timeout_ms=1), DIGEST, abandonable=True)).job_id for _ in range(3)]
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
        jobs = [asyncio.create_task(client.generate(f"{k}", model=MODEL, num_inference_steps=30)) for k in range(3)]
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
