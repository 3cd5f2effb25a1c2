"""Every plan and report comes back from its message as it went in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synerdiff import plans
from synerdiff.cards import ModelCard, Sampler, SamplerLimits
from synerdiff.jobs import JobRecord, JobState
from synerdiff.plans import DecodedImage, Execution, ItemRef
from synerdiff.requests import ImageFormat, ImageRequest, Priority, TaskSpec
from synerdiff.v1 import images_pb2, stages_pb2
from synerdiff.wire import stages
from synerdiff.wire.codec import codec
from synerdiff.wire.public import job_to_pb, model_card_from_pb, model_card_to_pb
from synerdiff.wire.stages import unet_plan_from_pb, unet_tick_done_from_pb

SLOT = plans.SlotRef("arena", 3, 2**40)
IN_STEP = plans.Execution(place=2, threads=1, after=plans.ItemRef(2**40, 7), patience_ms=250, pace="ab12")
TIMING = plans.ItemTiming(10**18, 10**18 + 5_000_000, 12, waited_ms=1.5)
SKIPPED = plans.SkippedEntry("j/1", plans.SkipReason.OTHER_CALL, 4)
ENTRY = plans.DecodeEntry(
    "j/0", "host:1", SLOT, 128, 64, ImageFormat.WEBP, '{"seed": 1}', chunks=4, first_chunk=1, end_chunk=3
)

PAIRS: list[tuple[Any, Callable[..., Any], Callable[..., Any]]] = [
    (
        plans.UnetPlan(
            3,
            9,
            (plans.UnetItem((plans.UnetEntry("j/0", 4, True), plans.UnetEntry("j/1", 5)), IN_STEP), plans.UnetItem(())),
        ),
        stages.unet_plan_to_pb,
        stages.unet_plan_from_pb,
    ),
    (plans.VaePlan(3, 9, (plans.VaeItem((ENTRY,), IN_STEP),)), stages.vae_plan_to_pb, stages.vae_plan_from_pb),
    (
        plans.UnetTickDone(9, (TIMING,), (SKIPPED,), (("j/0", SLOT),), (plans.GuidanceDrift("j/0", 6, 0.25),)),
        stages.unet_tick_done_to_pb,
        stages.unet_tick_done_from_pb,
    ),
    (plans.VaeTickDone(9, (TIMING,), (SKIPPED,), ("j/0",)), stages.vae_tick_done_to_pb, stages.vae_tick_done_from_pb),
    (plans.ResidentTask("j/0", 4, 20, SLOT, (1, 3)), stages.resident_task_to_pb, stages.resident_task_from_pb),
    (plans.ResidentTask("j/0", 0, 0, None), stages.resident_task_to_pb, stages.resident_task_from_pb),
    (
        TaskSpec("j/0", "a", "b", 128, 64, 20, 4.5, 2**40, Sampler.HEUN, 5, "extrapolate:0.5"),
        stages.task_spec_to_pb,
        stages.task_spec_from_pb,
    ),
]


@pytest.mark.parametrize(("value", "to_pb", "from_pb"), PAIRS, ids=[type(value).__name__ for value, _, _ in PAIRS])
def test_it_comes_back_as_it_went(value: Any, to_pb: Callable[..., Any], from_pb: Callable[..., Any]) -> None:
    message = to_pb(value)
    assert from_pb(type(message).FromString(message.SerializeToString())) == value


uint32 = st.integers(0, 2**32 - 1)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
limits = st.builds(
    SamplerLimits, st.sampled_from(Sampler), min_num_inference_steps=uint32, max_num_inference_steps=uint32
)
cards = st.builds(
    ModelCard,
    name=text,
    family=text,
    native_width=uint32,
    native_height=uint32,
    size_multiple=uint32,
    max_side=uint32,
    default_num_inference_steps=uint32,
    default_guidance_scale=st.floats(0, 100, width=32),
    default_sampler=st.sampled_from(Sampler),
    samplers=st.lists(limits, max_size=4).map(tuple),
    max_prompt_tokens=uint32,
    prediction_type=text,
    scheduler=text,
    scheduler_refused=text,
)


@given(cards, st.booleans())
def test_a_model_card_comes_back_as_it_went(card: ModelCard, available: bool) -> None:
    pb = images_pb2.ModelCard.FromString(model_card_to_pb(card, available=available).SerializeToString())
    assert model_card_from_pb(pb) == card
    assert pb.available is available


def test_samplers_of_a_newer_server_are_left_out() -> None:
    pb = images_pb2.ModelCard(default_sampler=images_pb2.SAMPLER_DDIM)
    pb.samplers.add(sampler=4242)
    pb.samplers.add(sampler=images_pb2.SAMPLER_DDIM, max_num_inference_steps=9)
    assert model_card_from_pb(pb).samplers == (SamplerLimits(Sampler.DDIM, 0, 9),)


@given(st.sampled_from(JobState), st.integers(0, 2**42))
def test_a_job_says_what_its_record_says(state: JobState, accepted_at_ms: int) -> None:
    request = ImageRequest(
        "r", "m", "p", "n", 64, 64, 1, 1.0, 7, Sampler.DDIM, 1, ImageFormat.PNG, Priority.LOW, 1000, 0
    )
    record = JobRecord("j", state, request, accepted_at_ms, 0, False, error_code=4, error_message="late")
    pb = job_to_pb(record, position=3, progress=0.5, images=[images_pb2.Image(index=1)])
    assert (pb.job_id, pb.model, pb.request_id, pb.seed, pb.position, pb.progress) == ("j", "m", "r", 7, 3, 0.5)
    assert pb.accepted_at.ToMilliseconds() == accepted_at_ms
    assert JobState(pb.state) is state
    assert len(pb.images) == 1
    assert pb.HasField("error") == (state is JobState.FAILED), "only a failed job has an error"
    assert (pb.error.code, pb.error.message) == ((4, "late") if state is JobState.FAILED else (0, ""))


@dataclass(frozen=True)
class Weights:
    kind: str
    digest: str
    colour: str = "blue"


def test_a_field_that_one_side_lacks_is_named() -> None:
    with pytest.raises(TypeError, match=r"Weights and synerdiff\.v1\.Weights do not both have: colour, workers"):
        codec(Weights, images_pb2.Weights)


def test_what_is_left_out_is_not_written_and_read_as_its_default() -> None:
    to_pb, from_pb = codec(Weights, images_pb2.Weights, leave_out=("colour", "workers"))
    assert to_pb(Weights("unet", "d", "red")) == images_pb2.Weights(kind="unet", digest="d")
    assert from_pb(images_pb2.Weights(kind="unet", digest="d", workers=3)) == Weights("unet", "d")


def test_a_message_that_is_not_set_is_none_and_an_empty_one_is_not() -> None:
    to_pb, from_pb = codec(Execution, stages_pb2.Execution)
    assert from_pb(to_pb(Execution())).after is None
    assert from_pb(to_pb(Execution(after=ItemRef(0, 0)))).after == ItemRef(0, 0)


def test_an_enum_of_a_newer_version_is_refused() -> None:
    _, from_pb = codec(DecodedImage, stages_pb2.DecodedImage)
    with pytest.raises(ValueError, match="99"):
        from_pb(stages_pb2.DecodedImage(task_id="a", format=99))  # type: ignore[arg-type]


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert unet_plan_from_pb(stages_pb2.UnetPlan.FromString(b"\x08\x03\xfa\x07\x01x")).leader_token == 3
    assert unet_tick_done_from_pb(stages_pb2.UnetTickDone(tick=3)).items == ()
