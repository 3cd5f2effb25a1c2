"""OpenAI's own Python client, unchanged, against a gateway before a real scheduler: every call, sync and async."""

import base64
import io
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent
from PIL import Image

from tests.services.gateway.deployment import Door
from tests.waiting import HANG_S

SLOW = 400  # steps, 5 ms each: long enough for the two times a second that progress is told


@pytest.fixture
def client(door: Door) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="sk-test", timeout=HANG_S, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(door: Door) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key="sk-test", timeout=HANG_S) as client:
        yield client


def picture(b64_json: str | None) -> Image.Image:
    assert b64_json is not None
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def test_a_picture_by_the_least_that_can_be_asked(client: openai.OpenAI) -> None:
    response = client.images.generate(prompt="a slice of pizza")
    assert response.data is not None
    (image,) = response.data
    assert (picture(image.b64_json).format, picture(image.b64_json).size) == ("PNG", (512, 512))
    assert image.url is None
    assert (response.output_format, response.size, response.background) == ("png", "512x512", "opaque")
    assert response.quality == "medium"
    assert response.usage is not None
    assert response.usage.output_tokens == 64 * 64
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response._request_id


def test_everything_that_can_be_asked(client: openai.OpenAI) -> None:
    extra = {"seed": 7, "negative_prompt": "blue", "num_inference_steps": 12, "guidance_scale": 4.5}
    response = client.images.generate(
        prompt="a car",
        model="gpt-image-2.5-flare",
        n=3,
        size="256x320",
        quality="high",
        output_format="webp",
        output_compression=60,
        response_format="b64_json",
        background="auto",
        moderation="low",
        user="somebody",
        extra_body=extra | {"sampler": "ddim", "skip_cfg": False},
    )
    assert response.data is not None
    assert [image.model_extra and image.model_extra["seed"] for image in response.data] == [7, 8, 9]
    assert {(p.format, p.size) for p in (picture(image.b64_json) for image in response.data)} == {("WEBP", (256, 320))}
    job = response.model_extra and response.model_extra["synerdiff"]
    assert job
    assert (job["model"], job["num_inference_steps"], job["skipped_steps"]) == ("simulated", 12, {})
    assert (response.safety_identifier, response.output_format) == ("somebody", "webp")


@pytest.mark.parametrize(("quality", "told", "steps"), [("low", "low", 10), ("hd", "high", 40), ("auto", "medium", 20)])
def test_quality_is_steps_and_says_so(client: openai.OpenAI, quality: str, told: str, steps: int) -> None:
    response = client.images.generate(prompt="a car", quality=quality)
    assert response.quality == told
    assert response.model_extra["synerdiff"]["num_inference_steps"] == steps


@pytest.mark.parametrize(("output_format", "compression"), [("jpeg", None), ("jpeg", 40), ("webp", None), ("png", 100)])
def test_formats(client: openai.OpenAI, output_format: str, compression: int | None) -> None:
    response = client.images.generate(prompt="x", output_format=output_format, output_compression=compression)
    assert picture(response.data[0].b64_json).format == output_format.upper()


def test_a_stream_of_partial_images_and_the_picture(client: openai.OpenAI) -> None:
    body = {"num_inference_steps": SLOW}
    events = list(client.images.generate(prompt="x", stream=True, partial_images=2, size="128x128", extra_body=body))
    *partial, completed = events
    assert partial
    for index, event in enumerate(partial):
        assert isinstance(event, ImageGenPartialImageEvent)
        assert event.partial_image_index == index
        assert picture(event.b64_json).size == (128, 128)
    assert isinstance(completed, ImageGenCompletedEvent)
    assert picture(completed.b64_json).size == (128, 128)
    assert completed.usage.output_tokens == 16 * 16
    assert completed.model_extra
    assert completed.model_extra["synerdiff"]["num_inference_steps"] == SLOW


def test_a_stream_of_several_pictures_without_partial_ones(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt="x", n=2, stream=True, partial_images=0))
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert sorted(event.model_extra["index"] for event in events if event.model_extra) == [0, 1]


def test_models(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"simulated", "gpt-image-2.5-flare"}
    for name in ("simulated", "gpt-image-2.5-flare"):
        model = client.models.retrieve(name)
        assert (model.id, model.object, model.owned_by) == (name, "model", "synerdiff")
        assert model.model_extra
        assert model.model_extra["synerdiff"]["name"] == "simulated"


@pytest.mark.parametrize(
    ("asked", "param", "code", "words"),
    [
        ({"n": 11}, "n", "invalid_value", "less than or equal to 10"),
        ({"size": "1x1"}, "size", "invalid_value", "not a multiple of 64"),
        ({"size": "big"}, "size", "invalid_value", "WIDTHxHEIGHT"),
        ({"model": "none"}, "model", "model_not_found", "the models are: "),
        ({"response_format": "url"}, "response_format", "invalid_value", "'url' is not served"),
        ({"background": "transparent"}, "background", "invalid_value", "opaque"),
        ({"style": "vivid"}, "style", "unknown_parameter", "Unknown parameter"),
        ({"output_format": "gif"}, "output_format", "invalid_value", "'png', 'jpeg' or 'webp'"),
        ({"output_compression": 3}, "output_compression", "invalid_value", "jpeg and webp"),
        ({"extra_body": {"sampler": "magic"}}, "sampler", "invalid_value", "ddim"),
        ({"extra_body": {"num_inference_steps": 9999}}, "num_inference_steps", "invalid_value", "2000"),
        ({"extra_body": {"skip_cfg": [0]}}, "skip_cfg", "invalid_value", "always guided"),
        ({"prompt": "x" * 9000}, "prompt", "invalid_value", "at most 8192"),
        ({"stream": True, "prompt": "x" * 9000}, "prompt", "invalid_value", "at most 8192"),
    ],
)
def test_what_cannot_be_is_refused_in_openais_form(
    client: openai.OpenAI, asked: dict[str, object], param: str, code: str, words: str
) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=words) as refused:
        client.images.generate(**{"prompt": "x", **asked})
    assert (refused.value.param, refused.value.code, refused.value.type) == (param, code, "invalid_request_error")


def test_edits_are_refused_in_openais_form(client: openai.OpenAI) -> None:
    large = ("a.png", io.BytesIO(bytes(3_000_000)), "image/png")
    with pytest.raises(openai.BadRequestError, match="cannot be edited") as refused:
        client.images.edit(image=large, prompt="x", mask=large)
    assert refused.value.code == "unsupported_operation"


def test_the_same_idempotency_key_is_the_same_job(client: openai.OpenAI) -> None:
    def job(prompt: str) -> object:
        response = client.images.generate(prompt=prompt, extra_headers={"Idempotency-Key": "one key"})
        assert response._request_id == "one key"
        return response.model_extra and response.model_extra["synerdiff"]["job_id"]

    assert job("a car") == job("a car")
    with pytest.raises(openai.ConflictError) as refused:
        job("a dog")
    assert refused.value.code == "idempotency_key_reused"


async def test_every_call_of_the_async_client(async_client: openai.AsyncOpenAI) -> None:
    response = await async_client.images.generate(prompt="x", n=2)
    assert response.data is not None
    assert [picture(image.b64_json).size for image in response.data] == [(512, 512)] * 2
    stream = await async_client.images.generate(prompt="x", stream=True, partial_images=1)
    assert [event.type async for event in stream][-1] == "image_generation.completed"
    assert {model.id async for model in async_client.models.list()} >= {"simulated"}
    assert (await async_client.models.retrieve("simulated")).id == "simulated"
    with pytest.raises(openai.BadRequestError):
        await async_client.images.edit(image=b"x", prompt="x")
    with pytest.raises(openai.NotFoundError):
        await async_client.images.generate(prompt="x", model="none")
