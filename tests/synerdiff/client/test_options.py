"""Keyword options become the message they say; what cannot be sent is refused by name."""

import math
from typing import Any

import pytest

from synerdiff.cards import Sampler
from synerdiff.client.options import GenerateOptions, generate_request
from synerdiff.errors import InvalidRequest
from synerdiff.requests import ImageFormat, Priority
from synerdiff.v1 import images_pb2


def test_what_is_left_out_stays_unset() -> None:
    pb = generate_request("a slice of pizza", {"seed": None, "guidance_scale": None, "timeout": None})
    assert pb.request_id
    pb.ClearField("request_id")
    assert pb == images_pb2.GenerateRequest(prompt="a slice of pizza")


def test_request_ids_are_drawn_anew() -> None:
    assert generate_request("x", {}).request_id != generate_request("x", {}).request_id


def test_every_option_arrives() -> None:
    options = GenerateOptions(
        model="emoji",
        negative_prompt="blurry",
        width=64,
        height=128,
        num_inference_steps=7,
        guidance_scale=0.0,
        seed=0,
        sampler="euler-ancestral",
        num_images=3,
        image_format=ImageFormat.WEBP,
        priority="high",
        timeout=1.5,
        skip_cfg=[1, 3],
        skip_cfg_max_fraction=0.5,
        preview_every=2,
        exact=False,
        results_only=True,
        request_id="mine",
    )
    assert set(options) == set(GenerateOptions.__annotations__), "this test must cover every option"
    pb = generate_request("x", options)
    assert (pb.model, pb.negative_prompt, pb.width, pb.height, pb.num_inference_steps) == (
        "emoji",
        "blurry",
        64,
        128,
        7,
    )
    assert (pb.HasField("guidance_scale"), pb.guidance_scale, pb.HasField("seed"), pb.seed) == (True, 0.0, True, 0)
    assert (pb.sampler, pb.num_images, pb.preview_every) == (images_pb2.SAMPLER_EULER_ANCESTRAL, 3, 2)
    assert (pb.image_format, pb.priority) == (images_pb2.IMAGE_FORMAT_WEBP, images_pb2.PRIORITY_HIGH)
    assert pb.timeout.ToMilliseconds() == 1500
    assert (pb.skip_cfg.mode, list(pb.skip_cfg.steps)) == (images_pb2.SKIP_CFG_MODE_FIXED, [1, 3])
    assert pb.skip_cfg.max_fraction == 0.5
    assert (pb.HasField("exact"), pb.exact) == (True, False)
    assert (pb.results_only, pb.request_id) == (True, "mine")


@pytest.mark.parametrize("name", ["ddim", "DDIM", "SAMPLER_DDIM", Sampler.DDIM])
def test_samplers_go_by_any_of_their_names(name: Any) -> None:
    assert generate_request("x", {"sampler": name}).sampler == images_pb2.SAMPLER_DDIM


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("width", {"width": -1}),
        ("height", {"height": 2**32}),
        ("num_images", {"num_images": "many"}),
        ("seed", {"seed": -5}),
        ("guidance_scale", {"guidance_scale": "high"}),
        ("sampler", {"sampler": "banana"}),
        ("sampler", {"sampler": 3.5}),
        ("priority", {"priority": "urgent"}),
        ("image_format", {"image_format": "gif"}),
        ("timeout", {"timeout": math.nan}),
        ("timeout", {"timeout": math.inf}),
        ("timeout", {"timeout": "soon"}),
        ("skip_cfg", {"skip_cfg": [-1]}),
        ("negative_prompt", {"negative_prompt": 7}),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(field: str, options: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        generate_request("x", options)
    (violation,) = caught.value.violations
    assert violation.field == field
    assert repr(next(iter(options.values()))) in violation.description


def test_an_unknown_name_is_answered_with_the_list() -> None:
    with pytest.raises(InvalidRequest, match="'urgent' is unknown; one of: high, normal, low"):
        generate_request("x", {"priority": "urgent"})


def test_an_option_that_does_not_exist_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unknown options: stepps"):
        generate_request("x", {"stepps": 3})  # type: ignore[typeddict-unknown-key]


def test_priorities_are_the_protos() -> None:
    assert [p.name for p in Priority] == [n.removeprefix("PRIORITY_") for n in images_pb2.Priority.keys()[1:]]
    assert [s.name for s in Sampler] == [n.removeprefix("SAMPLER_") for n in images_pb2.Sampler.keys()[1:]]
    assert [f.name for f in ImageFormat] == [n.removeprefix("IMAGE_FORMAT_") for n in images_pb2.ImageFormat.keys()[1:]]
