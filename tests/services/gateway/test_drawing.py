"""What a body asks for, as a scheduler is asked: steps by quality, formats, previews."""

import io
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from bench.simulated_workers import CARD
from services.gateway.errors import ApiError
from services.gateway.images.bodies import GenerationBody
from services.gateway.images.drawing import Drawing, drawing, usage
from services.gateway.images.files import enlarged, recompressed
from synerdiff.cards import ModelCard, Sampler, SamplerLimits

LIMITS = (SamplerLimits(Sampler.DDIM, 8, 50), SamplerLimits(Sampler.HEUN, 1, 1000), SamplerLimits(Sampler.LCM, 1, 6))
MODEL = replace(CARD, samplers=LIMITS)


def drawn(card: ModelCard = MODEL, **asked: Any) -> Drawing:
    return drawing(GenerationBody.model_validate({"prompt": "x", **asked}), card, "id")


@pytest.mark.parametrize(
    ("asked", "steps", "quality"),
    [
        ({}, 20, "medium"),
        ({"quality": "low"}, 10, "medium and below"),
        ({"quality": "standard"}, 20, "medium"),
        ({"quality": "high"}, 40, "high"),
        ({"quality": "max"}, 50, "max"),
        ({"quality": "low", "sampler": "lcm"}, 6, "low"),
        ({"quality": "high", "num_inference_steps": 13}, 13, "auto"),
    ],
)
def test_quality_is_a_multiple_of_the_default_steps_within_the_samplers_bounds(
    asked: dict[str, Any], steps: int, quality: str
) -> None:
    found = drawn(**asked)
    assert found.num_inference_steps == found.options["num_inference_steps"] == steps
    assert found.quality == quality.replace("medium and below", "low")


@pytest.mark.parametrize(
    ("partial_images", "asked", "every"),
    [
        (0, {}, 0),
        (3, {}, 5),  # after 5, 10 and 15 of 20
        (2, {}, 7),  # after 7 and 14
        (3, {"sampler": "heun"}, 10),  # 39 UNet calls: after 10, 20 and 30
        (1, {"num_inference_steps": 1}, 1),
    ],
)
def test_previews_are_spread_over_the_unet_calls(partial_images: int, asked: dict[str, Any], every: int) -> None:
    assert drawn(stream=True, partial_images=partial_images, **asked).options["preview_every"] == every


def test_without_a_stream_there_are_no_previews() -> None:
    found = drawn(partial_images=3)
    assert (found.partial_images, found.options["preview_every"], found.options["results_only"]) == (0, 0, True)


@pytest.mark.parametrize(
    ("asked", "worker_makes", "recompress"),
    [
        ({}, "png", None),
        ({"output_format": "jpeg"}, "jpeg", None),
        ({"output_format": "jpeg", "output_compression": 100}, "jpeg", None),
        ({"output_format": "jpeg", "output_compression": 0}, "webp", 0),
        ({"output_format": "webp", "output_compression": 70}, "webp", 70),
    ],
)
def test_only_a_compression_below_the_best_is_made_here(
    asked: dict[str, Any], worker_makes: str, recompress: int | None
) -> None:
    found = drawn(**asked)
    assert (found.options["image_format"], found.recompress) == (worker_makes, recompress)


def test_a_sampler_that_the_model_lacks_is_refused_by_name() -> None:
    with pytest.raises(ApiError, match="'euler' is none of simulated's: ddim, heun, lcm"):
        drawn(sampler="euler")


def test_usage_counts_the_text_encoders_context_and_positions_of_the_latents() -> None:
    guided, unguided = drawn(size="512x256"), drawn(guidance_scale=1.0)
    assert usage(guided, 2)["input_tokens"] == 2 * CARD.max_prompt_tokens
    assert usage(guided, 2)["output_tokens"] == 2 * 64 * 32
    assert usage(unguided, 1)["input_tokens"] == CARD.max_prompt_tokens


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_a_file_made_anew_is_smaller_and_keeps_what_was_written_into_it(output_format: str) -> None:
    noise = Image.effect_noise((64, 64), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x010E] = '{"prompt": "x"}'
    lossless = io.BytesIO()
    noise.save(lossless, "WEBP", lossless=True, exif=exif)
    low, high = (recompressed(lossless.getvalue(), output_format, quality) for quality in (10, 90))
    assert len(low) < len(high)
    with Image.open(io.BytesIO(low)) as image:
        assert (image.format, image.size) == (output_format.upper(), (64, 64))
        assert image.getexif()[0x010E] == '{"prompt": "x"}'


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_preview_has_the_size_and_format_of_its_picture(output_format: str) -> None:
    small = io.BytesIO()
    Image.new("RGB", (16, 8), (200, 0, 0)).save(small, "PNG")
    with Image.open(io.BytesIO(enlarged(small.getvalue(), (128, 64), output_format))) as image:
        assert (image.format, image.size) == (output_format.upper(), (128, 64))
        red, green, _ = image.convert("RGB").getpixel((60, 30))  # type: ignore[misc]
        assert red > 150 > green
