"""Image files: the pixels that went in, and the parameters that made them."""

import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.vae_worker.image_files import encode_image, readable_line
from synerdiff.requests import ImageFormat
from tests.services.vae_worker.parameters import read_parameters

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
