"""The public API over real gRPC and Redis; a leader's part is played by hand."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from redis.asyncio import Redis

from services.scheduler.store.queue import JobStore
from services.scheduler.store.store_base import JobStoreSettings
from synerdiff.client import AsyncClient, Client, Event, Finished, ImageReady, Progress, Queued, Started
from synerdiff.errors import AlreadyExists, Cancelled, DeadlineExceeded, InvalidRequest, NotEnded, NotFound
from synerdiff.jobs import JobState
from synerdiff.rpc import MIB, open_channel
from synerdiff.v1 import images_pb2, images_pb2_grpc
from tests.services.scheduler.api.test_validation import BAD, Spoil
from tests.services.scheduler.harness import Leader, Scheduler, announce, background, png, served, start_scheduler
from tests.values import CARD
from tests.waiting import HANG_S, until


async def sweep(store: JobStore) -> None:
    while True:
        await store.sweep_expired()
        await store.sweep_abandoned()
        await asyncio.sleep(0.05)


async def test_a_generated_job_tells_its_whole_story(client: AsyncClient, leader: Leader) -> None:
    events: list[Event] = []
    results = client.stream("pizza", num_images=2, seed=41, request_id="mine", results_only=True)
    told = [type(await anext(results))]
    generate = client.generate("pizza", num_images=2, seed=41, request_id="mine", on_event=events.append)
    generating = asyncio.create_task(generate)
    job = await leader.take()
    await leader.progress(job, 3, b"preview")
    await until(lambda: any(isinstance(event, Progress) for event in events))
    await leader.complete(job)
    result = await generating
    kinds = [type(event) for event in events]
    assert kinds == [Queued, Started, Progress, ImageReady, ImageReady, Finished]
    assert told + [type(event) async for event in results] == [Queued, ImageReady, ImageReady, Finished]
    assert isinstance(events[2], Progress)
    assert (events[2].step, events[2].num_inference_steps, events[2].preview_png) == (3, 20, b"preview")
    assert [event.sequence for event in events] == sorted({event.sequence for event in events})
    assert [(image.index, image.seed) for image in result.images] == [(0, 41), (1, 42)]
    assert result.images[1].pil.getpixel((0, 0)) == (42, 1, 2)
    assert (result.warnings, result.timings.denoise_s, result.job_id) == (("a warning",), 0.003, job.job_id)


async def test_submit_returns_at_once_and_the_job_is_followed_later(client: AsyncClient, leader: Leader) -> None:
    handle = await client.submit("pizza", seed=5)
    status = await handle.status()
    assert (status.state, status.position, status.seed, status.model) == (JobState.QUEUED, 0, 5, "emoji")
    assert (await (await client.submit("pizza")).status()).position == 1
    await leader.complete(await leader.take())
    result = await handle.result()
    assert result.image.seed == 5
    status = await handle.status()
    assert (status.state, status.progress, len(status.images)) == (JobState.FINISHED, 1.0, 1)
    assert status.images[0].data == result.image.data


async def test_any_scheduler_serves_any_job(redis: Redis, client: AsyncClient, leader: Leader) -> None:
    other = await start_scheduler(redis)
    async with AsyncClient(other.address) as elsewhere:
        job_id = (await client.submit("pizza")).job_id
        watching = asyncio.create_task(asyncio.wait_for(_sequences(elsewhere, job_id), HANG_S))
        job = await leader.take()
        await leader.complete(job)
        sequences = await watching
        assert sequences == await _sequences(client, job_id)
        assert await _sequences(elsewhere, job_id, after=sequences[1]) == sequences[2:]
    await other.stop()


async def _sequences(client: AsyncClient, job_id: str, after: int = 0) -> list[int]:
    return [e.sequence async for e in client.watch(job_id, after_sequence=after) if not isinstance(e, Progress)]


async def test_a_repeated_request_id_is_the_same_job_and_another_body_is_refused(
    redis: Redis, client: AsyncClient
) -> None:
    first = await client.submit("pizza", request_id="mine", seed=1)
    before = sorted(await redis.keys("*"))
    assert (await client.submit("pizza", request_id="mine", seed=1)).job_id == first.job_id
    with pytest.raises(AlreadyExists, match="'mine'"):
        await client.submit("pizza", request_id="mine", seed=2)
    assert sorted(await redis.keys("*")) == before


async def test_cancel_is_immediate_and_known_to_followers(client: AsyncClient, leader: Leader) -> None:
    job_id = (await client.submit("pizza")).job_id
    watching = asyncio.create_task(_sequences(client, job_id))
    await leader.take()
    assert (await client.cancel(job_id)).state is JobState.CANCELLED
    with pytest.raises(Cancelled, match=job_id):
        await asyncio.wait_for(watching, HANG_S)


async def test_a_timeout_holds_while_waiting(client: AsyncClient, scheduler: Scheduler) -> None:
    async with background(sweep(scheduler.store)):
        with pytest.raises(DeadlineExceeded, match="timeout ran out"):
            await client.generate("pizza", timeout=0.2)


@pytest.mark.parametrize("job_id", ["", "nonsense", "x" * 5000])
async def test_unknown_jobs_are_not_found(client: AsyncClient, job_id: str) -> None:
    for call in (client.job(job_id), client.cancel(job_id), _sequences(client, job_id)):
        with pytest.raises(NotFound):
            await call


async def test_a_job_is_accepted_for_the_newest_weights_and_models_tell_all_that_are_served(
    redis: Redis, client: AsyncClient, leader: Leader
) -> None:
    await announce(redis, "unet", worker_id="u1", weights="b" * 64, loaded_at_ms=2)
    await announce(redis, "unet", worker_id="u2", weights="a" * 64, loaded_at_ms=1)
    await announce(redis, "unet", worker_id="u3", weights="a" * 64, loaded_at_ms=1)
    await announce(redis, "unet", worker_id="u4", weights="c" * 64, loaded_at_ms=3, draining=True)
    await client.submit("pizza", exact=True)
    request = (await leader.take()).request
    assert (request.unet_weights, request.vae_weights, request.exact) == ("b" * 64, "", True)
    (model,) = await client.models()
    assert [(one.kind, one.digest[0], one.workers) for one in model.weights] == [("unet", "b", 1), ("unet", "a", 2)]


async def test_models_say_whether_they_are_served_just_now(redis: Redis, client: AsyncClient) -> None:
    assert [(model.card, model.available) for model in await client.models()] == [(CARD, False)]
    await announce(redis, "vae")
    assert [model.available for model in await client.models()] == [True]


@pytest.mark.parametrize("spoil", [spoil for _, _, spoil in BAD], ids=[f"{i}-{f}" for i, (f, _, _) in enumerate(BAD)])
async def test_a_refused_request_leaves_nothing_behind(redis: Redis, scheduler: Scheduler, spoil: Spoil) -> None:
    before = sorted(await redis.keys("*"))
    pb = images_pb2.GenerateRequest(request_id="r", prompt="pizza")
    spoil(pb)
    async with open_channel(scheduler.address) as channel:
        stub = images_pb2_grpc.ImageGenerationStub(channel)
        for call in (stub.Submit(pb), stub.Generate(pb)):
            assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(await redis.keys("*")) == before


async def test_refusals_reach_the_client_typed(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await client.generate("pizza", width=7, num_images=1000)
    assert [violation.field for violation in caught.value.violations] == ["num_images", "width"]
    with pytest.raises(NotFound, match="'nope' is unknown; the models are: emoji"):
        await client.generate("pizza", model="nope")


async def test_a_followed_job_lives_and_a_left_one_is_cancelled(redis: Redis) -> None:
    async with (
        served(redis, settings=JobStoreSettings(follower_lease_s=3.0)) as scheduler,
        AsyncClient(scheduler.address) as client,
        background(sweep(scheduler.store)),
    ):
        kept, left = client.stream("kept"), client.stream("left")
        kept_id, left_id = (await anext(kept)).job_id, (await anext(left)).job_id
        await left.aclose()
        assert (await client.job(left_id)).state is JobState.QUEUED, "leaving alone cancels nothing"
        while (await client.job(left_id)).state is not JobState.CANCELLED:
            await asyncio.sleep(0.05)
        assert (await client.job(kept_id)).state is JobState.QUEUED
        await kept.aclose()


async def test_a_client_comes_back_when_its_scheduler_is_restarted_mid_stream(redis: Redis) -> None:
    await announce(redis, "unet")
    settings = JobStoreSettings(follower_lease_s=HANG_S)
    scheduler = await start_scheduler(redis, settings=settings)
    store = JobStore(redis)
    leader = await Leader.of(redis, store)
    async with AsyncClient(scheduler.address) as client, background(sweep(store)):
        events: list[Event] = []
        generating = asyncio.create_task(client.generate("pizza", on_event=events.append))
        job = await leader.take()
        await until(lambda: any(isinstance(event, Started) for event in events))
        address = scheduler.address
        await scheduler.stop()
        await asyncio.sleep(0.3)
        scheduler = await start_scheduler(redis, listen=address, settings=settings)
        await leader.complete(job)
        result = await asyncio.wait_for(generating, HANG_S)
    assert result.job_id == job.job_id
    kinds = [type(event) for event in events if not isinstance(event, Progress)]
    assert kinds == [Queued, Started, ImageReady, Finished]
    await scheduler.stop()
    await store.close()


async def test_a_draining_scheduler_sends_its_followers_elsewhere_at_once(redis: Redis) -> None:
    await announce(redis, "unet")
    first, second = await start_scheduler(redis), await start_scheduler(redis)
    leader = await Leader.of(redis, second.store)
    streams = []
    async with AsyncClient(f"ipv4:{first.address},{second.address}") as client:
        for _ in range(4):
            stream = client.stream("pizza")
            await anext(stream)
            streams.append(asyncio.create_task(_finish(stream)))
        await asyncio.wait_for(first.stop(grace_s=10 * HANG_S), HANG_S)
        async with background(leader.work()):
            assert await asyncio.wait_for(asyncio.gather(*streams), HANG_S) == [True] * 4
    await second.stop()


async def _finish(stream: AsyncIterator[Event]) -> bool:
    return any([isinstance(event, Finished) async for event in stream])


async def test_the_blocking_client(scheduler: Scheduler, leader: Leader) -> None:
    def use() -> None:
        with Client(scheduler.address) as client:
            assert [model.card for model in client.models()] == [CARD]
            events: list[Event] = []
            result = client.generate("pizza", seed=3, on_event=events.append)
            assert result.image.seed == 3
            assert isinstance(events[-1], Finished)
            kinds = [type(event) for event in client.stream("pizza", seed=4)]
            assert kinds[0] is Queued
            assert kinds[-1] is Finished
            handle = client.submit("pizza", seed=6)
            assert handle.result().image.seed == 6
            assert handle.status().state is JobState.FINISHED
            assert [type(event) for event in handle.events()][-1] is Finished
            with pytest.raises(NotFound):
                client.job("nonsense")
            with pytest.raises(InvalidRequest):
                client.generate("pizza", width=7)
            with contextlib.closing(client.watch(handle.job_id)) as left_early:  # type: ignore[type-var]
                next(left_early)
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.models()

    async with background(leader.work()):
        await asyncio.to_thread(use)


async def test_watching_on_after_the_end_ends_at_once_and_costs_next_to_nothing(
    client: AsyncClient, leader: Leader, scheduler: Scheduler
) -> None:
    job_id = (await client.submit("pizza")).job_id
    await leader.complete(await leader.take())
    last = max(await _sequences(client, job_id))
    assert await asyncio.wait_for(_sequences(client, job_id, after=last), HANG_S) == []
    watches = 0
    async with open_channel(scheduler.address) as channel:
        stub = images_pb2_grpc.ImageGenerationStub(channel)
        request, ends_at = images_pb2.WatchRequest(job_id=job_id, after_sequence=last), time.monotonic() + 1.5
        while time.monotonic() < ends_at:  # as a client does that takes every end for a broken connection
            assert not [event async for event in stub.Watch(request)]
            watches += 1
    assert watches <= 3, "one a second"


async def test_a_client_that_discards_gets_its_pictures_and_leaves_nothing(
    client: AsyncClient, leader: Leader, redis: Redis
) -> None:
    async with background(leader.work()):
        result = await asyncio.wait_for(client.generate("pizza", num_images=2, discard=True), HANG_S)
        assert [image.pil.size for image in result.images] == [(8, 8), (8, 8)]
        assert not [key for key in await redis.keys() if result.job_id.encode() in key]
        with pytest.raises(NotFound):
            await client.job(result.job_id)
        kept = await client.generate("pizza")
        assert (await client.job(kept.job_id)).images


async def test_the_end_is_told_where_the_job_cannot_be_discarded(client: AsyncClient, leader: Leader) -> None:
    """As by a scheduler that is older than the call, or one that knows the job no more."""
    async with background(leader.work()):
        events = [event async for event in client.stream("pizza", discard=True)]
        assert isinstance(events[-1], Finished)
        request = {"request_id": "twice", "seed": 1}
        job_id = (await client.submit("pizza", **request)).job_id  # type: ignore[arg-type]
        await asyncio.wait_for(client.generate("pizza", discard=True, **request), HANG_S)  # type: ignore[arg-type]
        await client.generate("pizza", discard=True, **request)  # type: ignore[arg-type]
        with pytest.raises(NotFound):
            await client.delete(job_id)


async def test_a_job_that_has_not_ended_is_not_deleted(client: AsyncClient) -> None:
    handle = await client.submit("pizza")
    with pytest.raises(NotEnded, match="QUEUED: cancel it"):
        await handle.delete()
    await handle.cancel()
    await handle.delete()
    with pytest.raises(NotFound, match="unknown"):
        await handle.delete()


# ---- image files


async def test_a_job_answers_whatever_its_images_weigh(
    client: AsyncClient, leader: Leader, scheduler: Scheduler
) -> None:
    padding_bytes = 9 * MIB
    request = {"request_id": "heavy", "num_images": 8, "seed": 1}
    handle = await client.submit("pizza", **request)  # type: ignore[arg-type]
    await leader.complete(await leader.take(), padding_bytes)
    assert (await client.submit("pizza", **request)).job_id == handle.job_id  # type: ignore[arg-type]
    for job in (await handle.status(), await handle.cancel()):
        assert job.state is JobState.FINISHED
        assert [len(image.data) - padding_bytes for image in job.images] == [len(png(1 + i)) for i in range(8)]
        assert [image.pil.getpixel((0, 0)) for image in job.images] == [(1 + i, 1, 2) for i in range(8)]
    default_limit_bytes = 4 * MIB  # of a client that was told nothing
    async with open_channel(scheduler.address, max_message_bytes=default_limit_bytes) as channel:
        stub = images_pb2_grpc.ImageGenerationStub(channel)
        repeated = images_pb2.GenerateRequest(request_id="heavy", prompt="pizza", num_images=8, seed=1)
        job_id = handle.job_id
        for call in (
            stub.GetJob(images_pb2.GetJobRequest(job_id=job_id, max_image_bytes=1)),
            stub.CancelJob(images_pb2.CancelJobRequest(job_id=job_id, max_image_bytes=1)),
            stub.Submit(repeated),
        ):
            images = (await call).images
            told = [(image.index, image.seed, image.width, image.data) for image in images]
            assert told == [(i, 1 + i, 8, b"") for i in range(8)]
            assert all(image.size_bytes > padding_bytes for image in images)
    async with open_channel(scheduler.address) as channel:
        stub = images_pb2_grpc.ImageGenerationStub(channel)
        images = (await stub.GetJob(images_pb2.GetJobRequest(job_id=job_id))).images
        assert [bool(image.data) for image in images] == [True] * 6 + [False] * 2, "as many as 60 MiB hold"


async def test_an_image_that_is_not_there_is_not_found(client: AsyncClient, scheduler: Scheduler) -> None:
    job_id = (await client.submit("pizza")).job_id
    async with open_channel(scheduler.address) as channel:
        stub = images_pb2_grpc.ImageGenerationStub(channel)
        for asked, message in ((job_id, "index: the job has no image 3"), ("unknown", "job_id: 'unknown' is unknown")):
            call = stub.GetImage(images_pb2.GetImageRequest(job_id=asked, index=3))
            assert await call.code() is grpc.StatusCode.NOT_FOUND
            assert message in await call.details()
