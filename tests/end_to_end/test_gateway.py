"""The gateway that `up` starts, before real workers: OpenAI's own client gets the pictures that gRPC gets."""

import asyncio
import base64
import contextlib
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import openai
import pytest
from PIL import Image

from synerdiff.client import AsyncClient
from tests.end_to_end.command import Up
from tests.rounding import A_LEVEL
from tests.waiting import HANG_S, until

DRAW: dict[str, Any] = {"prompt": "a red car", "extra_body": {"seed": 3, "num_inference_steps": 8}}
LONG: dict[str, Any] = {"prompt": "a red car", "extra_body": {"num_inference_steps": 80}}


def client_of(up: Up) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{up.gateway_url()}/v1", api_key="sk-1", timeout=HANG_S)


def pixels(b64_json: str | None) -> npt.NDArray[np.int64]:
    assert b64_json is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))).convert("RGB")).astype(np.int64)


async def test_a_picture_over_http_is_the_one_over_grpc(up: Up, client: AsyncClient) -> None:
    async with client_of(up) as http:
        response = await http.images.generate(**DRAW, n=2, output_format="webp")
        made = await client.generate(DRAW["prompt"], num_images=2, **DRAW["extra_body"])
    assert response.data is not None
    for image, other in zip(response.data, made.images, strict=True):
        assert np.abs(pixels(image.b64_json) - np.asarray(other.pil.convert("RGB"))).max() <= A_LEVEL


async def test_a_stream_shows_the_picture_on_its_way(up: Up) -> None:
    async with client_of(up) as http:
        stream = await http.images.generate(**LONG, stream=True, partial_images=3)
        events = [event async for event in stream]
    partial = [event for event in events if event.type == "image_generation.partial_image"]
    assert 1 <= len(partial) <= 3
    assert pixels(partial[-1].b64_json).shape == (128, 128, 3)
    # A preview shows the picture roughly: noise would be far from it.
    assert np.abs(pixels(partial[-1].b64_json) - pixels(events[-1].b64_json)).mean() < 64
    assert events[-1].type == "image_generation.completed"


@pytest.mark.usefixtures("all_slots_end_free")
async def test_a_client_that_hangs_up_frees_its_slot(up: Up) -> None:
    async with client_of(up) as http:
        with contextlib.suppress(openai.APITimeoutError):
            stream = await http.images.generate(**LONG, stream=True)
            await stream.close()


async def test_a_gateway_that_is_killed_comes_back_and_a_key_finds_the_same_job(up: Up) -> None:
    async with client_of(up).with_options(max_retries=20) as http:
        key = {"Idempotency-Key": "survivor"}
        drawing = asyncio.create_task(http.images.generate(**LONG, extra_headers=key))
        await asyncio.sleep(0.5)
        ((name, pid),) = up.kill("gateway").items()
        await until(lambda: up.pids().get(name) not in (None, pid), "a new gateway")
        response = await asyncio.wait_for(drawing, HANG_S)
        again = await http.images.generate(**LONG, extra_headers=key)
    jobs = {answer.model_extra["synerdiff"]["job_id"] for answer in (response, again) if answer.model_extra}
    assert len(jobs) == 1
