"""Images are kept until they are stored, and given again to every newer stream."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.vae_worker.image_outbox import ImageOutbox
from synerdiff.errors import StaleLeader
from synerdiff.plans import DecodedImage
from synerdiff.requests import ImageFormat
from tests.waiting import HANG_S


def image(task_id: str, size: int = 10) -> DecodedImage:
    return DecodedImage(task_id, ImageFormat.PNG, 8, 8, bytes(size), flagged=False, decode_ms=1, encode_ms=1)


async def next_ids(stream: AsyncIterator[DecodedImage], count: int) -> list[str]:
    return [(await asyncio.wait_for(anext(stream), HANG_S)).task_id for _ in range(count)]


async def nothing_comes(stream: AsyncIterator[DecodedImage]) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(stream), 0.05)


async def test_a_newer_stream_gets_what_is_not_stored_and_the_older_one_ends() -> None:
    outbox = ImageOutbox(1000)
    outbox.put(image("a"))
    first = outbox.follow(1)
    assert await next_ids(first, 1) == ["a"]
    outbox.put(image("b"))
    assert await next_ids(first, 1) == ["b"]
    outbox.forget(["a", "unknown"])
    second = outbox.follow(1)
    assert await next_ids(second, 1) == ["b"]
    with pytest.raises(StopAsyncIteration):
        await anext(first)
    outbox.put(image("c"))
    assert await next_ids(second, 1) == ["c"]
    await nothing_comes(second)


async def test_a_stream_that_waits_is_ended_by_a_newer_leader() -> None:
    outbox = ImageOutbox(1000)
    older = asyncio.create_task(next_ids(outbox.follow(1), 1))
    await asyncio.sleep(0)
    newer = asyncio.create_task(next_ids(outbox.follow(2), 1))
    with pytest.raises(StaleLeader):
        await older
    outbox.put(image("a"))
    assert await newer == ["a"]
    with pytest.raises(StaleLeader):
        await next_ids(outbox.follow(1), 1)


async def test_streams_of_older_leaders_can_be_ended() -> None:
    outbox = ImageOutbox(1000)
    stream = asyncio.create_task(next_ids(outbox.follow(3), 1))
    await asyncio.sleep(0)
    outbox.end_streams(older_than=3)
    await asyncio.sleep(0)
    assert not stream.done()
    outbox.end_streams(older_than=4)
    with pytest.raises(StopAsyncIteration):
        await stream


async def test_a_newer_picture_of_a_task_takes_the_older_ones_place() -> None:
    outbox = ImageOutbox(1000)
    outbox.put(image("a", 10))
    outbox.put(image("a", 20))
    assert len(outbox) == 1
    [found] = [await anext(outbox.follow(1))]
    assert len(found.data) == 20


async def test_over_the_bound_the_oldest_goes() -> None:
    outbox = ImageOutbox(100)
    for name in "abcd":
        outbox.put(image(name, 40))
    assert await next_ids(outbox.follow(1), 2) == ["c", "d"]
    outbox.put(image("huge", 1000))
    assert await next_ids(outbox.follow(1), 1) == ["huge"]


async def test_emptied_waits_for_the_last_one() -> None:
    outbox = ImageOutbox(100)
    await outbox.emptied()
    outbox.put(image("a"))
    outbox.put(image("b"))
    waiting = asyncio.create_task(outbox.emptied())
    outbox.forget(["a"])
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.forget(["b"])
    await asyncio.wait_for(waiting, HANG_S)
