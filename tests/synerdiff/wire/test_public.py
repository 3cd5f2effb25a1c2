"""Model cards and jobs keep everything on their way through proto."""

from hypothesis import given
from hypothesis import strategies as st

from synerdiff.cards import ModelCard, Sampler, SamplerLimits
from synerdiff.jobs import JobRecord, JobState
from synerdiff.requests import ImageFormat, ImageRequest, Priority
from synerdiff.v1 import images_pb2
from synerdiff.wire.public import job_to_pb, model_card_from_pb, model_card_to_pb

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
