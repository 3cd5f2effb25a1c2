"""Image files: the pixels that went in, and the parameters that made them."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.vae_worker.images import ImageOutbox, encode_image, readable_line
from synerdiff.errors import StaleLeader
from synerdiff.plans import DecodedImage
from synerdiff.requests import ImageFormat
from tests.services.vae_worker.parameters import read_parameters
from tests.waiting import HANG_S

PARAMETERS: dict[str, Any] = {
    "task_id": "job/0",
    "prompt": "a slice of pizza 🍕, naïve\nstyle",
    "negative_prompt": "blurry",
    "width": 16,
    "height": 8,
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
    "seed": 2**63 - 1,
    "sampler": "dpmsolver_multistep",
    "model": "emoji",
}
LINE = (
    "a slice of pizza 🍕, naïve style\nNegative prompt: blurry\n"
    f"Steps: 20, Sampler: dpmsolver_multistep, CFG scale: 7.5, Seed: {2**63 - 1}, Size: 16x8, Model: emoji"
)


def picture(height: int = 8, width: int = 16) -> npt.NDArray[np.uint8]:
    """A smooth picture, which JPEG keeps nearly as it is, with three different channels."""
    rows, columns = np.mgrid[0:height, 0:width] * 255 // max(height, width)
    return np.stack([rows, columns, 255 - columns], axis=-1).astype(np.uint8)


def decoded(data: bytes) -> npt.NDArray[np.int16]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


@pytest.mark.parametrize("image_format", ImageFormat)
def test_pixels_and_parameters_come_back(image_format: ImageFormat) -> None:
    data = encode_image(picture(), image_format, json.dumps(PARAMETERS))
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == image_format.name
        assert image.size == (16, 8)
    most = 4 if image_format is ImageFormat.JPEG else 0
    assert np.abs(decoded(data) - picture()).max() <= most
    assert read_parameters(data) == PARAMETERS


@settings(max_examples=40)
@given(st.sampled_from(ImageFormat), st.text(max_size=300))
def test_any_prompt_comes_back(image_format: ImageFormat, prompt: str) -> None:
    data = encode_image(picture(), image_format, json.dumps({"prompt": prompt}))
    assert read_parameters(data) == {"prompt": prompt}


@pytest.mark.parametrize("image_format", ImageFormat)
@pytest.mark.parametrize("unit", ["a", "é", "漢", "🍕"])
def test_the_longest_prompts_come_back(image_format: ImageFormat, unit: str) -> None:
    longest = unit * (8192 // len(unit.encode()))
    parameters = PARAMETERS | {"prompt": longest, "negative_prompt": longest}
    assert read_parameters(encode_image(picture(), image_format, json.dumps(parameters))) == parameters


def test_parameters_too_long_for_a_jpeg_do_not_cost_the_picture() -> None:
    data = encode_image(picture(), ImageFormat.JPEG, json.dumps({"prompt": "\x01" * 16384}))
    assert read_parameters(data) is None
    assert np.abs(decoded(data) - picture()).max() <= 4


def test_image_tools_find_the_line_for_people() -> None:
    assert readable_line(PARAMETERS) == LINE
    with Image.open(io.BytesIO(encode_image(picture(), ImageFormat.PNG, json.dumps(PARAMETERS)))) as image:
        assert image.info["parameters"] == LINE
    for image_format in (ImageFormat.JPEG, ImageFormat.WEBP):
        with Image.open(io.BytesIO(encode_image(picture(), image_format, json.dumps(PARAMETERS)))) as image:
            comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment == b"UNICODE\0" + LINE.encode("utf-16-be")


@pytest.mark.parametrize("image_format", ImageFormat)
def test_without_parameters_there_is_no_metadata(image_format: ImageFormat) -> None:
    assert read_parameters(encode_image(picture(), image_format, "")) is None


@pytest.mark.parametrize("bad", ["[1]", '"text"', "{"])
def test_parameters_that_are_no_object_are_refused(bad: str) -> None:
    with pytest.raises(ValueError):
        encode_image(picture(), ImageFormat.PNG, bad)


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
