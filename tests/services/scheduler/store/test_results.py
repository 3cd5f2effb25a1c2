"""What followers of a job hear, and when."""

import asyncio
from contextlib import aclosing

import pytest
from redis.asyncio import Redis

from services.scheduler.store import keys, results
from services.scheduler.store.queue import JobStore
from services.scheduler.store.scripts import Lease
from synerdiff.errors import NotFound
from synerdiff.redis_process import RedisProcess
from synerdiff.v1 import images_pb2
from tests.services.scheduler.redis_jobs import TIMINGS, Step, a_picture, accept, new_leader, running_job
from tests.waiting import HANG_S, until


def kinds(events: list[images_pb2.GenerateEvent]) -> list[str]:
    return [event.WhichOneof("event") or "" for event in events]


async def collect(store: JobStore, job_id: str, after: int, into: list[images_pb2.GenerateEvent]) -> None:
    async for event in store.follow(job_id, after):
        into.append(event)


def follow(store: JobStore, job_id: str) -> tuple[list[images_pb2.GenerateEvent], asyncio.Task[None]]:
    """The events that a follower has seen, and its following."""
    seen: list[images_pb2.GenerateEvent] = []
    return seen, asyncio.create_task(collect(store, job_id, 0, seen))


async def subscribed(redis: Redis, job_id: str) -> None:
    """Return once somebody hears the wake-ups of a job."""
    channel = keys.wake(job_id)
    async with asyncio.timeout(HANG_S):
        while not dict(await redis.pubsub_numsub(channel))[channel.encode()]:
            await asyncio.sleep(0.02)


async def test_a_follower_sees_the_whole_life_of_a_job(store: JobStore, lease: Lease) -> None:
    job_id = await accept(store, num_images=2)
    seen, following = follow(store, job_id)
    await asyncio.sleep(0.2)
    await store.read_new(lease, ["emoji"], 1)
    await store.start(lease, job_id)
    await store.append_progress(lease, [Step(job_id, 0, 2, preview=b"PNG"), Step(job_id, 1, 1)])
    await until(lambda: len(seen) == 4)
    await store.store_image(lease, job_id, a_picture(b"one"), 1, 8)
    await store.decoding(lease, job_id)
    await store.store_image(lease, job_id, a_picture(b"zero"), 0, 7)
    await store.finish(lease, job_id, TIMINGS, ["the prompt was cut"])
    await asyncio.wait_for(following, HANG_S)

    assert kinds(seen) == ["queued", "started", "progress", "progress", "image", "image", "finished"]
    assert [event.sequence for event in seen] == sorted({event.sequence for event in seen})
    assert {event.job_id for event in seen} == {job_id}
    assert seen[2].progress.preview == b"PNG"
    assert [(event.image.index, event.image.seed, event.image.data) for event in seen[4:6]] == [
        (1, 8, b"one"),
        (0, 7, b"zero"),
    ]
    assert seen[4].image.flagged
    assert seen[4].image.format == images_pb2.IMAGE_FORMAT_WEBP
    finished = seen[-1].finished
    assert finished.timings.denoise.ToMilliseconds() == 3000
    assert finished.timings.decode.ToMicroseconds() == 4250
    assert list(finished.warnings) == ["the prompt was cut"]


async def test_a_late_follower_gets_what_matters_and_resumes_where_it_was(store: JobStore, lease: Lease) -> None:
    job_id = await running_job(store, lease, num_images=2)
    for step in range(1, 5):
        await store.append_progress(lease, [Step(job_id, 0, step), Step(job_id, 1, step)])
    await store.store_image(lease, job_id, a_picture(), 0, 7)
    events = await store.events(job_id)
    assert kinds(events) == ["queued", "started", "progress", "image"]
    assert (events[2].progress.index, events[2].progress.step) == (1, 4)
    assert events[3].image.data == b""
    assert kinds(await store.events(job_id, events[1].sequence)) == ["progress", "image"]
    assert await store.events(job_id, events[3].sequence) == []

    await store.cancel(job_id, "enough")
    seen: list[images_pb2.GenerateEvent] = []
    await asyncio.wait_for(collect(store, job_id, events[3].sequence, seen), HANG_S)
    assert kinds(seen) == ["cancelled"]
    assert seen[0].cancelled.reason == "enough"
    await asyncio.wait_for(collect(store, job_id, seen[0].sequence, seen), HANG_S)
    assert len(seen) == 1, "nothing comes after the end, and following does not hang"


async def test_an_unknown_job_cannot_be_followed(store: JobStore) -> None:
    with pytest.raises(NotFound, match="no-such-job"):
        await collect(store, "no-such-job", 0, [])
    with pytest.raises(NotFound):
        await store.events("no-such-job")
    assert await store.images("no-such-job", 1000) == []
    assert await store.progress("no-such-job") == 0.0


async def test_an_event_wakes_its_followers_over_one_connection(
    store: JobStore, lease: Lease, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "POLL_S", 60.0)
    job_id = await running_job(store, lease)
    seen, following = zip(*(follow(store, job_id) for _ in range(50)), strict=True)
    await subscribed(redis, job_id)
    assert len(await redis.client_list(_type="pubsub")) == 1
    await until(lambda: all(kinds(events) == ["queued", "started"] for events in seen))
    await store.cancel(job_id, "stop")
    await asyncio.wait_for(asyncio.gather(*following), HANG_S)
    assert all(kinds(events)[-1] == "cancelled" for events in seen)


async def test_without_pubsub_the_poll_finds_everything(store: JobStore, lease: Lease) -> None:
    job_id = await running_job(store, lease)
    _, following = follow(store, job_id)
    await asyncio.sleep(0.2)
    await store._notifications.close()
    await store.cancel(job_id, "stop")
    await asyncio.wait_for(following, HANG_S)


async def test_progress_counts_all_images_and_may_go_back(store: JobStore, lease: Lease) -> None:
    job_id = await running_job(store, lease, num_images=4)
    await store.append_progress(lease, [Step(job_id, 0, 2), Step(job_id, 1, 4)])
    assert await store.progress(job_id) == pytest.approx((0.5 + 1) / 4)
    await store.store_image(lease, job_id, a_picture(), 1, 8)
    assert await store.progress(job_id) == pytest.approx((0.5 + 1) / 4)
    await store.append_progress(lease, [Step(job_id, 0, 1), Step(job_id, 1, 2)])
    assert await store.progress(job_id) == pytest.approx((0.25 + 1) / 4), "a task that runs again; a late report"


async def test_writes_repeated_after_a_lost_reply_change_nothing(store: JobStore, lease: Lease) -> None:
    job_id = await running_job(store, lease)
    for _ in range(2):
        assert await store.start(lease, job_id)
        await store.append_progress(lease, [Step(job_id, 0, 3, preview=b"\x00\n\xff:")])
    told = await store.events(job_id)
    assert (kinds(told), told[-1].sequence) == (["queued", "started", "progress"], 3)
    for _ in range(2):
        assert await store.decoding(lease, job_id)
        assert await store.start(lease, job_id)
    for data in (b"first", b"again, after a death"):
        assert await store.store_image(lease, job_id, a_picture(data), 0, 7)
    for _ in range(2):
        assert await store.finish(lease, job_id, TIMINGS)
    assert not await store.fail(lease, job_id, 13, "too late")
    assert not await store.store_image(lease, job_id, a_picture(), 0, 7)
    await store.append_progress(lease, [Step(job_id, 0, 4)])
    assert kinds(await store.events(job_id)) == ["queued", "started", "image", "finished"]
    assert [image.data for image in await store.images(job_id, 1000)] == [b"first"]
    assert await store.progress(job_id) == 1.0


async def test_a_waiting_follower_hears_when_its_position_moves(store: JobStore, lease: Lease, redis: Redis) -> None:
    *ahead, job_id = [await accept(store) for _ in range(3)]
    seen, following = follow(store, job_id)
    await until(lambda: len(seen) == 1)
    for first in ahead:
        await store.cancel(first, "make way")
    await until(lambda: seen[-1].queued.position == 0)
    positions = [event.queued.position for event in seen]
    assert positions in ([2, 0], [2, 1, 0]), "it may look between the two"
    await asyncio.sleep(1.2)
    assert len(seen) == len(positions), "a position that did not move is not told again"
    assert await redis.xlen(keys.events(job_id)) == 1, "and none but the first is kept"
    await store.cancel(job_id, "done")
    await asyncio.wait_for(following, HANG_S)
    assert [event.sequence for event in seen] == sorted({event.sequence for event in seen})


async def test_following_outlives_a_restart_of_redis(own_redis: RedisProcess, own_client: Redis) -> None:
    store, lease = JobStore(own_client), await new_leader(own_client)
    job_id = await running_job(store, lease)
    seen, following = follow(store, job_id)
    await until(lambda: len(seen) == 2)
    own_redis.kill9()
    await asyncio.sleep(1.2)
    own_redis.start()
    await store.store_image(lease, job_id, a_picture(), 0, 7)
    await until(lambda: len(seen) == 3)
    await subscribed(own_client, job_id)
    await store.finish(lease, job_id, TIMINGS)
    await asyncio.wait_for(following, HANG_S)
    assert kinds(seen) == ["queued", "started", "image", "finished"]
    await store.close()


async def test_following_leaves_nothing_behind(store: JobStore, lease: Lease, redis: Redis) -> None:
    job_id = await running_job(store, lease)
    async with aclosing(store.follow(job_id)) as events:
        await anext(events)
    assert store._follower_leases._followed == {}
    async with asyncio.timeout(HANG_S):
        while await redis.pubsub_channels():
            await asyncio.sleep(0.02)
