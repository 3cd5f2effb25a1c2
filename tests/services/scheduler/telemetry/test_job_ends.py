"""Every job's end is one log line and one count, whoever ended it and whatever went wrong beside it."""

import asyncio
from collections import Counter
from typing import Any

import grpc
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.scheduler.callers import Caller
from services.scheduler.store import keys
from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import Lease
from services.scheduler.store.sweeps import TELL_WITHIN_S
from services.scheduler.telemetry.job_ends import tell_ended
from services.scheduler.telemetry.metrics import PoolMetrics
from synerdiff.client import AsyncClient, GenerateResult
from tests.services.scheduler.harness import MODEL, drawn, whole_scheduler
from tests.services.scheduler.redis_jobs import DIGEST, TIMINGS, a_picture, metric
from tests.values import a_request
from tests.waiting import HANG_S, until

INTERNAL = grpc.StatusCode.INTERNAL.value[0]


def ended_total(outcome: str, code: str) -> float:
    PoolMetrics.of_process()
    return metric("jobs_ended_total", outcome=outcome, code=code)


async def lines_of(store: JobStore) -> list[Any]:
    with capture_logs() as lines:
        await tell_ended(store)
    return lines


async def a_job(store: JobStore, request_id: str) -> str:
    request = a_request(request_id=request_id, timeout_ms=3_600_000)
    return (await store.accept(request, DIGEST, abandonable=True, caller=Caller("ann"))).job_id


async def test_a_line_says_how_a_job_ended_and_where_its_time_went(store: JobStore, lease: Lease) -> None:
    before = ended_total("finished", "OK")
    job_id = await a_job(store, "r1")
    await store.read_new(lease, ["emoji"], 1)
    for step in (store.start(lease, job_id), store.decoding(lease, job_id)):
        await asyncio.sleep(0.02)
        assert await step
    await asyncio.sleep(0.02)
    assert await store.store_image(lease, job_id, a_picture(), 0, 7)
    assert await store.finish(lease, job_id, TIMINGS, workers=("unet-1", "vae-1"))
    assert await store.finish(lease, job_id, TIMINGS, workers=("unet-1", "vae-1")), "as after a lost reply"
    (line,) = await lines_of(store)
    assert (line["event"], line["log_level"]) == ("ended", "info")
    told = [line[name] for name in ("job_id", "request_id", "caller", "model", "outcome", "code", "images", "workers")]
    assert told == [job_id, "r1", "ann", "emoji", "finished", "OK", 1, ["unet-1", "vae-1"]]
    parts = [line[f"{stage}_ms"] for stage in ("waited", "denoised", "decoded")]
    assert all(part >= 20 for part in parts)
    assert sum(parts) == line["total_ms"]
    assert ended_total("finished", "OK") == before + 1
    assert await lines_of(store) == []


async def test_every_way_to_end_is_told_with_its_code(store: JobStore, lease: Lease) -> None:
    names = ("failed", "cancelled", "abandoned", "expired")
    jobs = {name: await a_job(store, name) for name in names}
    await store.read_new(lease, ["emoji"], 1)
    assert await store.fail(lease, jobs["failed"], INTERNAL, "no luck", workers=("unet-1",))
    await store.cancel(jobs["cancelled"], "a client cancelled it")
    await store.sweep_abandoned()  # the first one grants everybody a lease
    now_ms = int((await store._redis.time())[0]) * 1000
    await store._redis.zadd(keys.PATTERNS["leases"], {jobs["abandoned"]: 1, jobs["expired"]: now_ms + 1_000_000})
    await store.sweep_abandoned()
    await store.sweep_expired(now_ms + 4_000_000)
    told = {line["request_id"]: (line["outcome"], line["code"], line["reason"]) for line in await lines_of(store)}
    assert told == {
        "failed": ("failed", "INTERNAL", "no luck"),
        "cancelled": ("cancelled", "CANCELLED", "a client cancelled it"),
        "abandoned": ("cancelled", "CANCELLED", "nobody followed the job any more"),
        "expired": ("expired", "DEADLINE_EXCEEDED", "the request's timeout ran out before its last image"),
    }


async def test_an_end_is_given_to_one_teller_and_again_only_once_that_one_is_gone(store: JobStore) -> None:
    for number in range(3):
        await store.cancel(await a_job(store, str(number)), "done")
    other = JobStore(store._redis)
    (taken, none) = await asyncio.gather(store.take_ended(), other.take_ended())
    assert sorted(map(len, (taken, none))) == [0, 3]
    assert await lines_of(other) == []
    gone_ms = round(TELL_WITHIN_S * 1000) + 1
    for entry in await store._redis.xpending_range(keys.PATTERNS["ended"], keys.GROUP, "-", "+", 10):
        ids: Any = [entry["message_id"]]
        await store._redis.xclaim(keys.PATTERNS["ended"], keys.GROUP, "anybody", 0, ids, idle=gone_ms, justid=True)
    assert len(await lines_of(other)) == 3, "the teller died before its lines"
    assert await store._redis.xlen(keys.PATTERNS["ended"]) == 0


async def test_an_end_that_cannot_be_read_keeps_no_other_back(store: JobStore) -> None:
    await store._redis.xadd(keys.PATTERNS["ended"], {"job_id": "x", "state": "GONE"})
    await store.cancel(await a_job(store, "r"), "done")
    lines = await lines_of(store)
    assert [line["event"] for line in lines] == ["the end of a job cannot be read", "ended"]
    assert await lines_of(store) == []


async def test_no_end_is_missed_or_told_twice_over_changes_of_leader(redis: Redis) -> None:
    async with whole_scheduler(redis) as whole, AsyncClient(whole.scheduler.address, patience_s=HANG_S) as client:
        with capture_logs() as lines:
            drawing = drawn(client, 24, steps=15)
            for calls in (20, 60, 120):
                await until(lambda calls=calls: whole.unet.calls > calls)  # type: ignore[misc]
                if whole.pool.leader:
                    whole.pool.leader.superseded()
            results = await asyncio.wait_for(asyncio.gather(*drawing), HANG_S)
            await until(lambda: sum(line["event"] == "ended" for line in lines) >= len(results))
    told = Counter(line["job_id"] for line in lines if line["event"] == "ended")
    assert told == {result.job_id: 1 for result in results}
    workers = [line["workers"] for line in lines if line["event"] == "ended"]
    assert all({*named} <= {"unet", "vae"} for named in workers), "none where a leader found all images stored"
    assert ["unet", "vae"] in workers


async def test_jobs_that_redis_has_lost_are_told_of_once(redis: Redis) -> None:
    before = ended_total("lost", "NOT_FOUND")
    async with whole_scheduler(redis) as whole, AsyncClient(whole.scheduler.address) as client:
        with capture_logs() as lines:
            drawing = drawn(client, 6, steps=400)
            await until(lambda: whole.pool.leader and len(whole.pool.leader.engine.holdings.jobs) == 6)
            token = whole.unet.guard.token
            await redis.flushall()
            outcomes = await asyncio.wait_for(asyncio.gather(*drawing, return_exceptions=True), HANG_S)
            await until(lambda: sum(line["event"] == "ended" for line in lines) >= 6)
        assert len((await client.generate("after", model=MODEL, num_inference_steps=3)).images) == 1
        assert whole.unet.guard.token > token
    assert not [outcome for outcome in outcomes if isinstance(outcome, GenerateResult)]
    lost = [line for line in lines if line["event"] == "ended"]
    assert {line["job_id"] for line in lost} == {str(error).split("'")[1] for error in outcomes}
    assert len(lost) == 6
    assert {(line["outcome"], line["code"], line["model"]) for line in lost} == {("lost", "NOT_FOUND", MODEL)}
    assert ended_total("lost", "NOT_FOUND") == before + 6
