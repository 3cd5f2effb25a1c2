"""images.proto <-> the domain: model cards and jobs."""

from collections.abc import Iterable

from google.protobuf import timestamp_pb2

from synerdiff.cards import ModelCard, Sampler, ServedWeights
from synerdiff.jobs import JobRecord, JobState
from synerdiff.v1 import images_pb2
from synerdiff.wire.codec import codec

# Fields kept beside the card, and fields of it that only schedulers know.
_BESIDE = ("available", "weights", "skip_cfg", "latent_channels", "calls_per_step", "extra_calls")

_SAMPLERS = frozenset(sampler.value for sampler in Sampler)

_card_to_pb, _card_from_pb = codec(ModelCard, images_pb2.ModelCard, leave_out=_BESIDE)
_weights_to_pb, _ = codec(ServedWeights, images_pb2.Weights)


def model_card_to_pb(
    card: ModelCard, *, available: bool = False, weights: Iterable[ServedWeights] = ()
) -> images_pb2.ModelCard:
    """ModelCard as its message; `available` says whether a UNet and a VAE worker serve it just now, with `weights`."""
    pb = _card_to_pb(card)
    pb.available = available
    pb.weights.extend(map(_weights_to_pb, weights))
    return pb


def model_card_from_pb(pb: images_pb2.ModelCard) -> ModelCard:
    """ModelCard without samplers unknown to this version. Raises ValueError where the default is one of those."""
    known = images_pb2.ModelCard()
    known.CopyFrom(pb)
    known.ClearField("samplers")
    known.samplers.extend(limits for limits in pb.samplers if limits.sampler in _SAMPLERS)
    return _card_from_pb(known)


def job_to_pb(
    record: JobRecord, *, position: int = 0, progress: float = 0.0, images: Iterable[images_pb2.Image] = ()
) -> images_pb2.Job:
    """JobRecord as its message, with values kept beside the record: queue position, progress (0 to 1) and images."""
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
