"""images.proto <-> the domain: model cards and jobs."""

from collections.abc import Iterable

from google.protobuf import timestamp_pb2

from synerdiff.cards import ModelCard, Sampler, SamplerLimits, ServedWeights
from synerdiff.jobs import JobRecord, JobState
from synerdiff.v1 import images_pb2


def model_card_to_pb(
    card: ModelCard, *, available: bool = False, weights: Iterable[ServedWeights] = ()
) -> images_pb2.ModelCard:
    """ModelCard as its message; `available` says whether a UNet and a VAE worker serve it just now, with `weights`."""
    return images_pb2.ModelCard(
        name=card.name,
        family=card.family,
        native_width=card.native_width,
        native_height=card.native_height,
        size_multiple=card.size_multiple,
        max_side=card.max_side,
        default_num_inference_steps=card.default_num_inference_steps,
        default_guidance_scale=card.default_guidance_scale,
        default_sampler=images_pb2.Sampler.ValueType(card.default_sampler),
        samplers=[
            images_pb2.SamplerLimits(
                sampler=images_pb2.Sampler.ValueType(limits.sampler),
                min_num_inference_steps=limits.min_num_inference_steps,
                max_num_inference_steps=limits.max_num_inference_steps,
            )
            for limits in card.samplers
        ],
        max_prompt_tokens=card.max_prompt_tokens,
        prediction_type=card.prediction_type,
        available=available,
        scheduler=card.scheduler,
        scheduler_refused=card.scheduler_refused,
        weights=[images_pb2.Weights(kind=one.kind, digest=one.digest, workers=one.workers) for one in weights],
    )


def model_card_from_pb(pb: images_pb2.ModelCard) -> ModelCard:
    """ModelCard from its message. A newer server's samplers that this version does not know are left out.

    Raises ValueError when the default sampler is one of those.
    """
    known = {sampler.value for sampler in Sampler}
    return ModelCard(
        name=pb.name,
        family=pb.family,
        native_width=pb.native_width,
        native_height=pb.native_height,
        size_multiple=pb.size_multiple,
        max_side=pb.max_side,
        default_num_inference_steps=pb.default_num_inference_steps,
        default_guidance_scale=pb.default_guidance_scale,
        default_sampler=Sampler(pb.default_sampler),
        samplers=tuple(
            SamplerLimits(Sampler(s.sampler), s.min_num_inference_steps, s.max_num_inference_steps)
            for s in pb.samplers
            if s.sampler in known
        ),
        max_prompt_tokens=pb.max_prompt_tokens,
        prediction_type=pb.prediction_type,
        scheduler=pb.scheduler,
        scheduler_refused=pb.scheduler_refused,
    )


def job_to_pb(
    record: JobRecord, *, position: int = 0, progress: float = 0.0, images: Iterable[images_pb2.Image] = ()
) -> images_pb2.Job:
    """JobRecord as its message, with what is kept beside the record: queue position, progress (0 to 1) and images."""
    job = images_pb2.Job(
        job_id=record.job_id,
        state=images_pb2.JobState.ValueType(record.state),
        position=position,
        progress=progress,
        images=images,
        model=record.request.model,
        request_id=record.request.request_id,
        seed=record.request.seed,
        accepted_at=timestamp_pb2.Timestamp(
            seconds=record.accepted_at_ms // 1000, nanos=record.accepted_at_ms % 1000 * 1_000_000
        ),
    )
    if record.state is JobState.FAILED:
        job.error.CopyFrom(images_pb2.Failed(code=record.error_code, message=record.error_message))
    return job
