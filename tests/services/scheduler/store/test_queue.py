"""The queue in Redis: who is read when, what ends by itself, and what an outage leaves."""

import asyncio
import time

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.scheduler.store import keys
from services.scheduler.store.queue import JobStore, QueueDepth
from services.scheduler.store.scripts import Lease, TransitionRefused
from services.scheduler.store.store_base import JobStoreSettings
from synerdiff.errors import QueueFull, Unavailable
from synerdiff.jobs import JobState
from synerdiff.redis_process import RedisProcess
from synerdiff.requests import Priority
from tests.services.scheduler.harness import the_line_it_ends_with
from tests.services.scheduler.redis_jobs import DIGEST, TIMINGS, a_picture, accept, job_of, new_leader, running_job
from tests.values import a_request
from tests.waiting import HANG_S, until


async def test_a_job_keeps_its_request_to_the_last_field(store: JobStore) -> None:
    request = a_request(request_id="r1", prompt='tab\t"quotes" \u2028 \x00 und mehr', num_images=3)
    accepted = await store.accept(request, DIGEST, abandonable=True)
    record = await job_of(store, accepted.job_id)
    assert accepted.created
    assert record.request == request
    assert record.state is JobState.QUEUED
    assert record.abandonable
    assert record.deadline_ms - record.accepted_at_ms == request.timeout_ms
    assert await store.job("no-such-job") is None


async def test_submitting_a_generated_job_makes_it_outlive_its_followers(store: JobStore) -> None:
    job_id = await accept(store, request_id="r1", abandonable=True)
    assert await accept(store, request_id="r1", abandonable=False) == job_id
    record = await job_of(store, job_id)
    assert not record.abandonable
    for after_ms in (0, 4_000, 8_000, 12_000):
        assert await store.sweep_abandoned(record.accepted_at_ms + after_ms) == 0


async def test_a_full_queue_refuses_only_its_own_model_and_leaves_nothing(redis: Redis) -> None:
    store = JobStore(redis, JobStoreSettings(max_waiting=2, retry_after_s=7.0))
    await accept(store)
    first = await accept(store, request_id="kept")
    before = sorted(await redis.keys())
    with pytest.raises(QueueFull, match="2 jobs are waiting for model 'emoji'") as refusal:
        await accept(store, request_id="new")
    assert refusal.value.retry_after_s == 7.0
    assert sorted(await redis.keys()) == before
    assert await accept(store, request_id="kept") == first
    await accept(store, model="other")


async def test_jobs_are_read_by_priority_and_then_by_arrival(store: JobStore, lease: Lease) -> None:
    low = await accept(store, priority=Priority.LOW)
    normal = [await accept(store) for _ in range(3)]
    high = await accept(store, priority=Priority.HIGH)
    other = await accept(store, model="other", priority=Priority.HIGH)
    assert [await store.position(job_id) for job_id in [high, *normal, low, other]] == [0, 1, 2, 3, 4, 0]

    first = await store.read_new(lease, ["emoji", "other"], 3)
    assert [record.job_id for record in first] == [high, other, normal[0]]
    assert await store.position(normal[0]) == 1, "read ahead, but still waiting"
    assert [record.job_id for record in await store.read_new(lease, ["emoji"], 100)] == [*normal[1:], low]
    assert await store.read_new(lease, ["emoji", "other", "unknown"], 100) == []


async def test_a_new_leader_finds_more_than_one_page_of_pending_jobs(store: JobStore, redis: Redis) -> None:
    jobs = set(await asyncio.gather(*(accept(store) for _ in range(130))))
    await store.read_new(await new_leader(redis), ["emoji"], 200)
    pending = await store.read_pending(await new_leader(redis, instance_id="two"))
    assert len(pending) == 130
    assert {record.job_id for record in pending} == jobs


async def test_depths_count_what_waits(store: JobStore, lease: Lease) -> None:
    assert await store.queue_depths() == []
    began = time.monotonic()
    for _ in range(2):
        await accept(store)
    await asyncio.sleep(0.02)
    depths = {depth.priority: depth for depth in await store.queue_depths()}
    assert depths.keys() == set(Priority)
    depth = depths[Priority.NORMAL]
    assert depth[:3] == ("emoji", Priority.NORMAL, 2)
    assert 0.02 <= depth.oldest_age_s < time.monotonic() - began + 0.01  # Redis counts in whole ms
    for record in await store.read_new(lease, ["emoji"], 2):
        await store.start(lease, record.job_id)
    assert await store.queue_depths() == [QueueDepth("emoji", priority, 0, 0.0) for priority in sorted(Priority)]


async def test_cancelling_a_running_job_tells_its_pool_and_only_that(store: JobStore, redis: Redis) -> None:
    leases = [await new_leader(redis, pool) for pool in ("a", "b")]
    heard: dict[str, list[str]] = {"a": [], "b": []}

    async def hear(pool: str) -> None:
        async for job_id in store.controls(pool):
            heard[pool].append(job_id)

    hearing = [asyncio.create_task(hear(pool)) for pool in heard]
    while [count for _, count in await redis.pubsub_numsub(*map(keys.controls, heard))] != [1, 1]:
        await asyncio.sleep(0.02)
    job_id, waiting = await running_job(store, leases[0]), await accept(store)
    record = await store.cancel(job_id, "changed my mind")
    assert record is not None
    assert record.state is JobState.CANCELLED
    await store.cancel(job_id, "again")
    await store.cancel(waiting, "nobody has it")
    await until(lambda: heard["a"])
    await asyncio.sleep(0.2)
    assert heard == {"a": [job_id], "b": []}
    assert await store.ended([job_id, waiting]) == {job_id, waiting}
    assert not await store.start(leases[0], job_id)
    assert await store.cancel("no-such-job", "") is None
    for task in hearing:
        task.cancel()


async def test_a_deserted_pools_jobs_are_claimed_and_its_old_leader_is_shut_out(store: JobStore, redis: Redis) -> None:
    old, new = await new_leader(redis, "old"), await new_leader(redis, "new")
    job_id = await running_job(store, old)
    assert await store.claim_stale(new, ["emoji"], 10, 0.0) == [], "it has a leader"
    await redis.delete(keys.PATTERNS["leader"] % "old")
    assert await store.claim_stale(new, ["emoji"], 10, 60.0) == [], "its leader may come back"
    (record,) = await store.claim_stale(new, ["emoji"], 10, 0.0)
    assert (record.job_id, record.state) == (job_id, JobState.RUNNING)
    # The old leader's token is still its pool's newest; the job is not its pool's any more.
    assert not await store.store_image(old, job_id, a_picture(), 0, 7)
    assert await store.read_pending(old) == []
    assert await store.ended([job_id], "old") == {job_id}
    assert await store.ended([job_id], "new") == set()
    assert await store.store_image(new, job_id, a_picture(), 0, 7)
    assert await store.finish(new, job_id, TIMINGS)


async def test_deadlines_end_waiting_and_running_jobs_once(store: JobStore, lease: Lease) -> None:
    running, waiting = await running_job(store, lease, timeout_ms=1000), await accept(store, timeout_ms=1000)
    patient = await accept(store)
    deadline_ms = (await job_of(store, waiting)).deadline_ms
    assert [await store.sweep_expired(at_ms) for at_ms in (deadline_ms - 500, deadline_ms, deadline_ms)] == [0, 2, 0]
    for job_id in (running, waiting):
        ended = await job_of(store, job_id)
        assert (ended.state, ended.error_code) == (JobState.FAILED, 4)
        assert "timeout" in ended.error_message
    assert await store.ended([patient]) == set()
    assert not await store.start(lease, running)


async def test_no_time_at_all_is_over_at_once(store: JobStore) -> None:
    record = await job_of(store, await accept(store, timeout_ms=0))
    assert record.deadline_ms == record.accepted_at_ms, "what the engine ends it by"
    assert await store.sweep_expired(record.deadline_ms) == 1


async def test_a_sweep_goes_through_more_than_one_batch(store: JobStore) -> None:
    await asyncio.gather(*(accept(store, timeout_ms=1) for _ in range(230)))
    await asyncio.sleep(0.01)
    assert await store.sweep_expired() == 230


async def test_an_abandoned_job_is_cancelled_after_its_lease_and_its_request_may_come_back(store: JobStore) -> None:
    abandoned, kept = await accept(store, request_id="back", abandonable=True), await accept(store)
    cancelled = await accept(store, request_id="cancelled", abandonable=True)
    await store.cancel(cancelled, "not wanted")
    start_ms = (await job_of(store, abandoned)).accepted_at_ms
    swept = [await store.sweep_abandoned(start_ms + after_ms) for after_ms in (0, 4_000, 8_000, 11_000)]
    assert swept == [0, 0, 0, 1]
    again = await accept(store, request_id="back", abandonable=True)
    assert again != abandoned
    assert await accept(store, request_id="back", abandonable=True) == again
    assert await store.ended([abandoned, again, kept]) == {abandoned}
    assert await accept(store, request_id="cancelled", abandonable=True) == cancelled


@pytest.mark.parametrize("away_ms", [60_000, 9_000])
async def test_a_pause_in_sweeping_gives_followers_a_whole_lease_again(store: JobStore, away_ms: int) -> None:
    """Redis or all schedulers away, for long or for most of a lease: nobody could renew, and all need time again."""
    start_ms = (await job_of(store, await accept(store, abandonable=True))).accepted_at_ms
    await store.sweep_abandoned(start_ms)
    swept = [await store.sweep_abandoned(start_ms + away_ms + after_ms) for after_ms in (0, 4_900, 9_800, 10_100)]
    assert swept == [0, 0, 0, 1]


async def test_an_ended_job_goes_after_its_retention_and_a_live_one_never(redis: Redis) -> None:
    store = JobStore(redis, JobStoreSettings(retention_s=0.2))
    lease = await new_leader(redis)
    ended, live = [await running_job(store, lease, request_id=name) for name in ("r1", "r2")]
    for job_id in (ended, live):
        await store.store_image(lease, job_id, a_picture(), 0, 7)
    await store.finish(lease, ended, TIMINGS)
    await asyncio.sleep(0.3)
    left = {str(key, "utf-8") for key in await redis.keys() if isinstance(key, bytes)}
    assert not {key for key in left if ended in key or key.endswith("r1")}
    assert {keys.job(live), keys.events(live), keys.images(live)} <= left
    assert await accept(store, request_id="r1") != ended
    assert await store.trim() == 1


async def test_the_first_job_of_a_model_makes_the_groups_of_every_class(store: JobStore, redis: Redis) -> None:
    await accept(store, priority=Priority.NORMAL)
    for priority in Priority:
        (group,) = await redis.xinfo_groups(keys.queue("emoji", priority))
        assert (group["name"], group["pending"]) == (keys.GROUP.encode(), 0)
        assert group["lag"] == (priority is Priority.NORMAL)


async def test_nothing_accepted_or_delivered_is_lost_by_kill_9(own_redis: RedisProcess, own_client: Redis) -> None:
    store, lease = JobStore(own_client), await new_leader(own_client)
    delivered, waiting = await accept(store, request_id="r1"), await accept(store)
    await store.read_new(lease, ["emoji"], 1)
    own_redis.restart()
    assert await accept(store, request_id="r1") == delivered
    assert [record.job_id for record in await store.read_pending(lease)] == [delivered]
    assert [record.job_id for record in await store.read_new(lease, ["emoji"], 9)] == [waiting]
    own_redis.restart()
    assert [record.job_id for record in await store.read_pending(lease)] == [delivered, waiting]


async def test_a_leader_hears_at_once_that_redis_is_away_and_the_api_soon(
    own_redis: RedisProcess, own_client: Redis
) -> None:
    store, lease = JobStore(own_client), await new_leader(own_client)
    job_id = await accept(store)
    await store.read_new(lease, ["emoji"], 1)
    own_redis.kill9()
    with capture_logs() as lines:
        with pytest.raises(Unavailable, match="Redis is away"):
            await store.start(lease, job_id)
        with pytest.raises(Unavailable, match="Redis is away"):
            await JobStore(own_client, JobStoreSettings(api_patience_s=0.3)).job(job_id)
    assert [line["event"] for line in lines] == ["redis is in trouble"]
    own_redis.start()
    assert await store.start(lease, job_id)


async def test_a_hung_redis_is_away_within_the_patience(own_redis: RedisProcess, own_client: Redis) -> None:
    await accept(JobStore(own_client))
    store = JobStore(own_client, JobStoreSettings(api_patience_s=0.3))
    await own_client.client_pause(int(HANG_S * 1000))
    with pytest.raises(Unavailable, match="no answer within"):
        await accept(store)
    own_redis.kill9()


async def test_on_a_redis_that_would_drop_what_it_is_given_a_scheduler_ends_with_one_line(
    own_redis: RedisProcess, own_client: Redis
) -> None:
    await own_client.config_set("maxmemory-policy", "allkeys-lru")
    said = await the_line_it_ends_with("--redis-url", own_redis.url)
    assert b"maxmemory-policy is allkeys-lru" in said


async def test_ended_jobs_are_passed_over_without_costing_room(store: JobStore, lease: Lease, redis: Redis) -> None:
    jobs = [await accept(store) for _ in range(5)]
    for job_id in jobs[:3]:
        await store.cancel(job_id, "not any more")
    assert [record.job_id for record in await store.read_new(lease, ["emoji"], 2)] == jobs[3:]
    assert (await redis.xpending(keys.queue("emoji", Priority.NORMAL), keys.GROUP))["pending"] == 2


async def test_finishing_without_every_image_is_refused(store: JobStore, lease: Lease) -> None:
    job_id = await running_job(store, lease, num_images=2)
    await store.store_image(lease, job_id, a_picture(), 1, 8)
    with pytest.raises(TransitionRefused, match="before all its images"):
        await store.finish(lease, job_id, TIMINGS)
    await store.store_image(lease, job_id, a_picture(), 0, 7)
    assert await store.finish(lease, job_id, TIMINGS)


async def test_a_job_that_waits_has_no_images_and_no_pool_touches_it_before_it_has_read_it(
    store: JobStore, redis: Redis
) -> None:
    mine, theirs = await new_leader(redis, "mine"), await new_leader(redis, "theirs")
    job_id = await accept(store)
    assert not await store.start(theirs, job_id), "nobody has read it"
    await store.read_new(mine, ["emoji"], 1)
    with pytest.raises(TransitionRefused, match="QUEUED"):
        await store.store_image(mine, job_id, a_picture(), 0, 7)
    assert not await store.start(theirs, job_id)
    assert not await store.fail(theirs, job_id, 13, "no")


async def test_trimming_keeps_the_lag_known(store: JobStore, lease: Lease, redis: Redis) -> None:
    stream = keys.queue("emoji", Priority.NORMAL)
    jobs = [await accept(store) for _ in range(5)]
    await store.read_new(lease, ["emoji"], 3)
    await store.fail(lease, jobs[0], 13, "no")
    await store.cancel(jobs[2], "no")
    await store.cancel(jobs[4], "undelivered")
    assert await store.trim() == 1, "all before the second, which is pending"
    (group,) = await redis.xinfo_groups(stream)
    assert (group["pending"], group["lag"]) == (1, 1), "what was cancelled unread waits no more"
    await store.fail(lease, jobs[1], 13, "no")
    await store.read_new(lease, ["emoji"], 9)
    await store.fail(lease, jobs[3], 13, "no")
    await store.trim()
    (group,) = await redis.xinfo_groups(stream)
    assert (group["pending"], group["lag"]) == (0, 0)
    assert await redis.xlen(stream) == 1
