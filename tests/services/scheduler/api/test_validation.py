"""Admission: every bad field is refused by name, value and bound; what passes satisfies every bound."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.api.validation import DRAWN_SEED_BOUND, AdmissionLimits, body_digest, resolve
from synerdiff.cards import Sampler, SamplerLimits
from synerdiff.errors import InvalidRequest, NotFound, SynerDiffError
from synerdiff.requests import ImageFormat, Priority
from synerdiff.v1 import images_pb2
from tests import values

CARD = replace(values.CARD, native_height=320)
LIMITS = AdmissionLimits()

Spoil = Callable[[images_pb2.GenerateRequest], None]


def setting(**fields: object) -> Spoil:
    """Set plain fields of a request, `a__b` meaning a.b."""

    def spoil(pb: images_pb2.GenerateRequest) -> None:
        for path, value in fields.items():
            *parents, name = path.split("__")
            target: object = pb
            for parent in parents:
                target = getattr(target, parent)
            setattr(target, name, value)

    return spoil


def fixed_steps(*steps: int) -> Spoil:
    """A fixed list of steps to skip, of a request for 20."""

    def spoil(pb: images_pb2.GenerateRequest) -> None:
        pb.num_inference_steps = 20
        pb.skip_cfg.mode = images_pb2.SKIP_CFG_MODE_FIXED
        pb.skip_cfg.ClearField("steps")
        pb.skip_cfg.steps.extend(steps)

    return spoil


def good(**fields: Any) -> images_pb2.GenerateRequest:
    return images_pb2.GenerateRequest(**{"request_id": "r1", "model": "emoji", "prompt": "a slice of pizza"} | fields)


BAD: list[tuple[str, str, Spoil]] = [
    ("request_id", "129 bytes.*128", setting(request_id="x" * 129)),
    ("request_id", "130 bytes.*128", setting(request_id="é" * 65)),
    ("request_id", r"'a\\nb'", setting(request_id="a\nb")),
    ("prompt", "8193 bytes.*8192", setting(prompt="x" * 8193)),
    ("prompt", "8194 bytes.*8192", setting(prompt="é" * 4097)),
    ("prompt", "NUL character at index 1", setting(prompt="a\0b")),
    ("negative_prompt", "9000 bytes.*8192", setting(negative_prompt="x" * 9000)),
    ("width", "7 is not a multiple of 64 from 64 to 512", setting(width=7)),
    ("width", "100000 .*64 to 512", setting(width=100000)),
    ("width", "576 .*64 to 512", setting(width=576)),
    ("height", "7 .*64 to 512", setting(height=7)),
    ("height", "4294967295 .*64 to 512", setting(height=2**32 - 1)),
    ("num_inference_steps", "100001 .*SAMPLER_PNDM: from 4 to 1000", setting(num_inference_steps=100001)),
    ("num_inference_steps", "3 .*from 4 to 1000", setting(num_inference_steps=3)),
    ("num_inference_steps", "9 .*SAMPLER_LCM: from 1 to 8", setting(num_inference_steps=9, sampler=Sampler.LCM)),
    ("guidance_scale", "nan .*0 to 100", setting(guidance_scale=math.nan)),
    ("guidance_scale", "inf .*0 to 100", setting(guidance_scale=math.inf)),
    ("guidance_scale", r"1e\+09 .*0 to 100", setting(guidance_scale=1e9)),
    ("guidance_scale", "-1 .*0 to 100", setting(guidance_scale=-1)),
    ("seed", f"{2**63} .*{2**63}", setting(seed=2**63)),
    ("seed", f"{2**63 - 2} .*last image seed {2**63 + 1}", setting(seed=2**63 - 2, num_images=4)),
    ("sampler", "4242 is not a value", setting(sampler=4242)),
    ("sampler", "-1 is not a value", setting(sampler=-1)),
    ("sampler", "SAMPLER_HEUN is not offered.*SAMPLER_PNDM, SAMPLER_LCM", setting(sampler=Sampler.HEUN)),
    ("num_images", "1000 .*1 to 16", setting(num_images=1000)),
    ("image_format", "77 is not a value", setting(image_format=77)),
    ("priority", "9 is not a value", setting(priority=9)),
    ("timeout", "0 s .*above 0, to 3600 s", setting(timeout__seconds=0)),
    ("timeout", "-5 s .*above 0", setting(timeout__seconds=-5)),
    ("timeout", "3601 s .*to 3600 s", setting(timeout__seconds=3601)),
    ("timeout", "nanos 1000000000 are not a Duration", setting(timeout__nanos=10**9)),
    ("timeout", "not a Duration", setting(timeout__seconds=1, timeout__nanos=-1)),
    ("preview_every", "1001 .*0 .none. to 1000", setting(preview_every=1001)),
    ("skip_cfg.mode", "8 is not a value", setting(skip_cfg__mode=8)),
    ("skip_cfg.steps", "0 is out of bounds: from 1", fixed_steps(0, 3)),
    ("skip_cfg.steps", "21 is out of bounds: .* to 20", fixed_steps(3, 21)),
    ("skip_cfg.max_fraction", "nan .*0 to 1", setting(skip_cfg__max_fraction=math.nan)),
    ("skip_cfg.max_fraction", "1.5 .*0 to 1", setting(skip_cfg__max_fraction=1.5)),
    ("skip_cfg.steps", "2 steps", lambda pb: pb.skip_cfg.steps.extend([1, 2])),
]


@pytest.mark.parametrize(
    ("field", "pattern", "spoil"), BAD, ids=[f"{i}-{field}" for i, (field, _, _) in enumerate(BAD)]
)
def test_a_bad_field_is_refused_by_name_value_and_bound(field: str, pattern: str, spoil: Spoil) -> None:
    pb = good()
    pb.timeout.seconds = 60
    resolve(pb, [CARD], LIMITS)
    spoil(pb)
    with pytest.raises(InvalidRequest) as caught:
        resolve(pb, [CARD], LIMITS)
    assert [v.field for v in caught.value.violations] == [field]
    assert re.search(pattern, caught.value.violations[0].description), caught.value.violations[0].description


def test_all_violations_are_reported_together() -> None:
    pb = good()
    for spoil in {field: spoil for field, _, spoil in reversed(BAD)}.values():
        spoil(pb)
    with pytest.raises(InvalidRequest) as caught:
        resolve(pb, [CARD], LIMITS)
    assert {v.field for v in caught.value.violations} == {field for field, _, _ in BAD}


def test_an_unknown_model_is_answered_with_the_list() -> None:
    with pytest.raises(NotFound, match="unknown; the models are: emoji") as caught:
        resolve(good(model="m" * 5000), [CARD], LIMITS)
    assert len(caught.value.message) < 300
    with pytest.raises(NotFound, match="there are no models"):
        resolve(good(), [], LIMITS)


def test_an_empty_model_is_the_default_or_the_only_one() -> None:
    other = replace(CARD, name="other")
    pb = good(model="")
    assert resolve(pb, [CARD], LIMITS).model == "emoji"
    assert resolve(pb, [CARD, other], AdmissionLimits(default_model="other")).model == "other"
    with pytest.raises(InvalidRequest, match=r"model: .*no default; one of: emoji, other"):
        resolve(pb, [CARD, other], LIMITS)


def test_every_default_is_filled_in() -> None:
    request = resolve(images_pb2.GenerateRequest(prompt="x"), [CARD], LIMITS)
    assert (request.width, request.height, request.num_inference_steps, request.guidance_scale) == (256, 320, 20, 7.5)
    assert (request.sampler, request.num_images, request.preview_every) == (Sampler.PNDM, 1, 0)
    assert (request.image_format, request.priority, request.timeout_ms) == (ImageFormat.PNG, Priority.NORMAL, 600_000)
    assert request.request_id
    assert 0 <= request.seed < DRAWN_SEED_BOUND


def test_what_is_given_is_kept() -> None:
    pb = images_pb2.GenerateRequest(
        request_id="r",
        prompt="p",
        negative_prompt="n",
        width=64,
        height=512,
        num_inference_steps=5,
        guidance_scale=0,
        seed=0,
        sampler=images_pb2.SAMPLER_LCM,
        num_images=16,
        image_format=images_pb2.IMAGE_FORMAT_WEBP,
        priority=images_pb2.PRIORITY_LOW,
        preview_every=3,
    )
    pb.timeout.FromNanoseconds(1_500_000_001)
    request = resolve(pb, [CARD], LIMITS)
    assert (request.width, request.height, request.num_inference_steps, request.guidance_scale) == (64, 512, 5, 0.0)
    assert (request.seed, request.sampler, request.num_images) == (0, Sampler.LCM, 16)
    assert (request.image_format, request.priority) == (ImageFormat.WEBP, Priority.LOW)
    assert (request.timeout_ms, request.preview_every) == (1501, 3)


def test_guidance_scale_is_what_the_client_wrote() -> None:
    assert resolve(good(guidance_scale=7.3), [CARD], LIMITS).guidance_scale == 7.3


def test_default_steps_are_kept_within_the_samplers_limits() -> None:
    assert resolve(good(sampler=images_pb2.SAMPLER_LCM), [CARD], LIMITS).num_inference_steps == 8


def test_drawn_seeds_differ() -> None:
    assert len({resolve(good(), [CARD], LIMITS).seed for _ in range(20)}) > 15


def test_the_digest_is_of_the_body_alone() -> None:
    one, two = good(), good(request_id="another", results_only=True)
    assert body_digest(one) == body_digest(two)
    two.seed = 0
    assert body_digest(one) != body_digest(two), "seed 0 is not an absent seed"
    assert two.request_id == "another", "the message itself is left alone"


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
uint32 = st.one_of(st.integers(0, 700), st.integers(0, 2**32 - 1))
int32 = st.one_of(st.integers(-1, 25), st.integers(-(2**31), 2**31 - 1))
floats = st.floats(width=32)


@st.composite
def generate_requests(draw: st.DrawFn) -> images_pb2.GenerateRequest:
    pb = images_pb2.GenerateRequest(
        request_id=draw(text),
        model=draw(st.sampled_from(["", "emoji", "unknown"])),
        prompt=draw(st.one_of(text, st.just("x" * 9000))),
        negative_prompt=draw(text),
        width=draw(uint32),
        height=draw(uint32.map(lambda v: v // 64 * 64)),
        num_inference_steps=draw(uint32),
        sampler=draw(int32),  # type: ignore[arg-type]
        num_images=draw(st.one_of(st.integers(0, 20), uint32)),
        image_format=draw(int32),  # type: ignore[arg-type]
        priority=draw(int32),  # type: ignore[arg-type]
        preview_every=draw(uint32),
    )
    if draw(st.booleans()):
        pb.guidance_scale = draw(floats)
    if draw(st.booleans()):
        pb.seed = draw(st.integers(0, 2**64 - 1))
    if draw(st.booleans()):
        pb.timeout.seconds = draw(st.integers(-(2**63), 2**63 - 1))
        pb.timeout.nanos = draw(int32)
    if draw(st.booleans()):
        pb.skip_cfg.mode = draw(int32)  # type: ignore[assignment]
        pb.skip_cfg.max_fraction = draw(floats)
        pb.skip_cfg.steps.extend(draw(st.lists(st.integers(0, 2**32 - 1), max_size=3)))
    return pb


@given(generate_requests())
@settings(max_examples=400)
def test_arbitrary_requests_are_resolved_within_bounds_or_refused(pb: images_pb2.GenerateRequest) -> None:
    try:
        request = resolve(pb, [CARD], LIMITS)
    except SynerDiffError:
        return
    limits = CARD.limits(request.sampler)
    assert limits is not None
    assert limits.min_num_inference_steps <= request.num_inference_steps <= limits.max_num_inference_steps
    for side in (request.width, request.height):
        assert 64 <= side <= 512
        assert side % 64 == 0
    assert 0 <= request.guidance_scale <= 100
    assert 1 <= request.num_images <= 16
    assert 0 <= request.seed <= request.seed + request.num_images - 1 < 2**63
    assert 0 < request.timeout_ms <= 3_600_000
    assert 0 < len(request.request_id.encode()) <= 128
    assert len(request.prompt.encode()) <= 8192
    assert len(request.negative_prompt.encode()) <= 8192
    assert isinstance(request.image_format, ImageFormat)
    assert isinstance(request.priority, Priority)


@given(
    st.integers(1, 8).map(lambda n: n * 64),
    st.integers(4, 1000),
    st.floats(0, 100, width=32),
    st.integers(0, 2**63 - 16),
    st.integers(1, 16),
)
def test_requests_within_bounds_pass(side: int, steps: int, guidance_scale: float, seed: int, num_images: int) -> None:
    pb = good(width=side, height=side, num_inference_steps=steps, num_images=num_images)
    pb.guidance_scale, pb.seed = guidance_scale, seed
    request = resolve(pb, [CARD], LIMITS)
    assert (request.width, request.num_inference_steps, request.seed) == (side, steps, seed)


@pytest.mark.parametrize("sampler", [Sampler.HEUN, Sampler.OWN])
def test_steps_to_skip_are_counted_in_unet_calls_of_the_sampler_or_a_models_own_scheduler(sampler: Sampler) -> None:
    calls = {"calls_per_step": 2, "extra_calls": -1} if sampler is Sampler.OWN else {}
    card = replace(CARD, default_sampler=sampler, samplers=(SamplerLimits(sampler, 1, 1000, **calls),))
    pb = good()
    fixed_steps(3, 38)(pb)
    request = resolve(pb, [card], LIMITS)
    assert (request.sampler, request.skip_cfg.steps) == (sampler, (3, 38))
    fixed_steps(39)(pb)
    with pytest.raises(InvalidRequest, match=r"39 is out of bounds: .* to 38"):
        resolve(pb, [card], LIMITS)
