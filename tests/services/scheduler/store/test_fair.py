"""The queue in Redis is read fairly between callers, and its streams tell of that what autoscaling goes by."""

import random

import pytest
from redis.asyncio import Redis

from services.scheduler.callers import Caller
from services.scheduler.policy.ordering import FairQueue
from services.scheduler.store import keys
from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import Lease
from services.scheduler.store.store_base import JobStoreSettings
from synerdiff.errors import QueueFull
from synerdiff.jobs import JobRecord
from synerdiff.requests import Priority
from tests.services.scheduler.redis_jobs import DIGEST
from tests.values import a_request

STREAM = keys.queue("emoji", Priority.NORMAL)


async def accept(store: JobStore, caller: str, cost: float = 1.0) -> str:
    return (await store.accept(a_request(), DIGEST, False, caller=Caller(caller), cost=cost)).job_id


async def read(store: JobStore, lease: Lease, count: int) -> list[JobRecord]:
    return await store.read_new(lease, ["emoji"], count)


async def lag(redis: Redis) -> int:
    (group,) = await redis.xinfo_groups(STREAM)
    return int(group["lag"])


async def test_it_is_read_as_its_twin_in_python_says(store: JobStore, lease: Lease) -> None:
    source, twin, unread = random.Random(3), FairQueue(), []
    for number in range(120):
        # Costs that binary fractions hold, so that both add up to the same.
        caller, cost = source.choice("aaaabbc"), source.randrange(1, 64) / 4
        job_id = await accept(store, caller, cost)
        unread.append((twin.start(2, caller, cost), number, job_id))
        if source.random() < 0.3:
            (record,) = await read(store, lease, 1)
            first = min(start for start, *_ in unread)
            assert record.job_id in {job_id for start, _, job_id in unread if start == first}
            unread = [entry for entry in unread if entry[2] != record.job_id]
            await store.start(lease, record.job_id)
            twin.began(2, first)


async def test_a_flood_is_passed_by_and_positions_say_so(store: JobStore, lease: Lease) -> None:
    flood = [await accept(store, "flood") for _ in range(30)]
    await read(store, lease, 4)
    few = [await accept(store, "few") for _ in range(3)]
    assert await store.position(few[0]) == 4, "those that were read"
    order = [record.job_id for record in await read(store, lease, 6)]
    assert set(order) == {*few, *flood[4:7]}
    assert [job_id for job_id in order if job_id in few] == few, "one caller's jobs stay in order"


async def test_a_full_pool_reads_on_for_a_caller_with_few_there(store: JobStore, lease: Lease) -> None:
    for _ in range(10):
        await accept(store, "flood")
    await read(store, lease, 4)
    few = [await accept(store, "few") for _ in range(3)]

    async def read_past(most: int, **held: int) -> list[str]:
        return [record.job_id for record in await store.read_new(lease, ["emoji"], 0, most, held)]

    assert await read_past(0) == []
    assert await read_past(2, flood=4) == few[:2]
    assert await read_past(2, flood=4, few=2) == []
    assert await read_past(3, flood=4, few=2) == few[2:]
    assert await read_past(4, flood=4, few=3) == [], "the flood's is next, and it has its share here"
    assert [record.caller for record in await read(store, lease, 1)] == ["flood"]


async def test_a_full_queue_keeps_out_only_those_who_fill_it(redis: Redis) -> None:
    store = JobStore(redis, JobStoreSettings(max_waiting=20))
    for _ in range(20):
        await accept(store, "flood")
    for caller in ("flood", ""):
        with pytest.raises(QueueFull, match="20 jobs are waiting"):
            await accept(store, caller)
    for caller, then_full in (("few", "few"), ("another", "a tenth more is enough")):
        await accept(store, caller)
        with pytest.raises(QueueFull):
            await accept(store, then_full)
    await store.close()


async def test_the_lag_is_what_waits_unread_and_trimming_loses_nothing(
    redis: Redis, store: JobStore, lease: Lease
) -> None:
    flood = [await accept(store, "flood") for _ in range(10)]
    few = [await accept(store, "few") for _ in range(4)]
    assert await lag(redis) == 14
    first = await read(store, lease, 6)
    assert await lag(redis) == 8
    assert (await redis.xpending(STREAM, keys.GROUP))["pending"] == 6
    for record in first:
        await store.fail(lease, record.job_id, 13, "broken")
    await store.trim()
    assert await lag(redis) == 8
    unread = {*flood, *few} - {record.job_id for record in first}
    await store.cancel(next(iter(unread)), "a reason")
    await store.trim()
    assert await lag(redis) == 7
    rest = await read(store, lease, 100)
    assert {record.job_id for record in rest} < unread
    assert len(rest) == 7
    assert await lag(redis) == 0
    for record in rest:
        await store.fail(lease, record.job_id, 13, "broken")
    await store.trim()
    assert await redis.xlen(STREAM) <= 1


async def test_what_an_older_version_left_is_read_first(redis: Redis, store: JobStore, lease: Lease) -> None:
    """It ranked jobs by a count of arrivals, and read in the order of the stream."""
    old = [await accept(store, "") for _ in range(3)]
    for arrival, job_id in enumerate(old, 7):
        await redis.zadd(keys.PATTERNS["waiting"] % "emoji", {job_id: 2 * 2**40 + arrival})
    await redis.xreadgroup(keys.GROUP, "default", {STREAM: ">"}, count=1)
    await redis.hset(keys.job(old[0]), "pool", "default")
    new = await accept(store, "a")
    assert [record.job_id for record in await read(store, lease, 10)] == [*old[1:], new]
    assert await lag(redis) == 0
    assert {record.job_id for record in await store.read_pending(lease)} == {*old, new}


async def test_a_lost_virtual_time_goes_on_from_what_waits(redis: Redis, store: JobStore, lease: Lease) -> None:
    before = [await accept(store, "a") for _ in range(3)]
    await redis.delete(keys.PATTERNS["turns"] % ("emoji", "normal"))
    after = await accept(store, "b")
    assert [record.job_id for record in await read(store, lease, 10)] == [*before, after]
