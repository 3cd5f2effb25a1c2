"""The typed answers to a client: events while a job runs, images, and the result at its end."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from PIL import Image

from synerdiff.cards import ModelCard, ServedWeights
from synerdiff.errors import Cancelled, SynerDiffError
from synerdiff.jobs import JobState
from synerdiff.requests import ImageFormat
from synerdiff.status import error_for
from synerdiff.v1 import images_pb2
from synerdiff.wire.public import model_card_from_pb


@dataclass(frozen=True)
class GeneratedImage:
    """Image `index` of a job: an image file and its generation parameters. `flagged`: the safety checker objected."""

    index: int
    seed: int
    width: int
    height: int
    format: ImageFormat
    data: bytes = field(repr=False)
    flagged: bool

    @cached_property
    def pil(self) -> Image.Image:
        """The picture, decoded."""
        image = Image.open(io.BytesIO(self.data))
        image.load()
        return image

    def save(self, path: str | Path) -> Path:
        """Write the image file and return its path.

        The bytes are written as they came, with the generation parameters inside, unless the path's suffix names
        another format: then the picture is encoded anew as that, without them. Raises OSError when it cannot be written
        and ValueError for a suffix that is no image format.
        """
        path = Path(path)
        wanted = Image.registered_extensions().get(path.suffix.lower()) if path.suffix else self.format.name
        if wanted == self.format.name:
            path.write_bytes(self.data)
        else:
            self.pil.save(path)
        return path


@dataclass(frozen=True)
class Timings:
    """Where a job's time went, in seconds; encode, denoise and decode are those of its slowest image."""

    queue_s: float
    encode_s: float
    denoise_s: float
    decode_s: float


@dataclass(frozen=True)
class Event:
    """An event of a job. `watch` can continue after its `sequence`."""

    job_id: str
    sequence: int


@dataclass(frozen=True)
class Queued(Event):
    """The job waits; `position` jobs of the same model are ahead of it."""

    position: int


@dataclass(frozen=True)
class Started(Event):
    """Work on the job has begun."""


@dataclass(frozen=True)
class Progress(Event):
    """Image `index` has `step` of `num_inference_steps` UNet calls behind it; `preview_png` is often empty."""

    index: int
    step: int
    num_inference_steps: int
    preview_png: bytes = field(repr=False)

    @cached_property
    def preview(self) -> Image.Image | None:
        """A small picture of the image so far, or None."""
        if not self.preview_png:
            return None
        image = Image.open(io.BytesIO(self.preview_png))
        image.load()
        return image


@dataclass(frozen=True)
class ImageReady(Event):
    """One image of the job is there; others may follow."""

    image: GeneratedImage


@dataclass(frozen=True)
class Finished(Event):
    """Every image is there. `skipped_steps`: by image index, the zero-based steps on which guidance was skipped."""

    timings: Timings
    warnings: tuple[str, ...]
    skipped_steps: Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class GenerateResult:
    """A finished job. `images` are in order of their index."""

    job_id: str
    images: tuple[GeneratedImage, ...]
    timings: Timings
    warnings: tuple[str, ...]
    skipped_steps: Mapping[int, tuple[int, ...]]

    @property
    def image(self) -> GeneratedImage:
        """The first image."""
        return self.images[0]


@dataclass(frozen=True)
class Job:
    """A job as it stands. `position` counts the jobs ahead while queued; `progress` is 0 to 1 over all images."""

    job_id: str
    request_id: str
    model: str
    state: JobState
    position: int
    progress: float
    seed: int
    accepted_at: datetime
    error: SynerDiffError | None
    images: tuple[GeneratedImage, ...]


@dataclass(frozen=True)
class Model:
    """A model of the deployment; `available` when workers serve it just now (else its jobs wait), with `weights`."""

    card: ModelCard
    available: bool
    weights: tuple[ServedWeights, ...] = ()


def image_from_pb(pb: images_pb2.Image) -> GeneratedImage:
    """GeneratedImage from its message."""
    return GeneratedImage(pb.index, pb.seed, pb.width, pb.height, ImageFormat(pb.format), pb.data, pb.flagged)


def event_from_pb(pb: images_pb2.GenerateEvent) -> Event | None:
    """A typed event from its message; None for a kind that this version does not know.

    Raises the job's own error for a failed job, and Cancelled for a cancelled one.
    """
    kind = pb.WhichOneof("event")
    if kind == "queued":
        return Queued(pb.job_id, pb.sequence, pb.queued.position)
    if kind == "started":
        return Started(pb.job_id, pb.sequence)
    if kind == "progress":
        p = pb.progress
        return Progress(pb.job_id, pb.sequence, p.index, p.step, p.num_inference_steps, p.preview)
    if kind == "image":
        return ImageReady(pb.job_id, pb.sequence, image_from_pb(pb.image))
    if kind == "finished":
        return _finished(pb)
    if kind == "failed":
        raise error_for(pb.failed.code, f"job {pb.job_id} failed: {pb.failed.message}")
    if kind == "cancelled":
        raise Cancelled(f"job {pb.job_id} was cancelled: {pb.cancelled.reason}")
    return None


def job_from_pb(pb: images_pb2.Job) -> Job:
    """Job from its message."""
    return Job(
        job_id=pb.job_id,
        request_id=pb.request_id,
        model=pb.model,
        state=JobState(pb.state),
        position=pb.position,
        progress=pb.progress,
        seed=pb.seed,
        accepted_at=pb.accepted_at.ToDatetime(tzinfo=UTC),
        error=error_for(pb.error.code, pb.error.message) if pb.HasField("error") else None,
        images=tuple(sorted(map(image_from_pb, pb.images), key=lambda image: image.index)),
    )


def model_from_pb(pb: images_pb2.ModelCard) -> Model:
    """Model from its message."""
    weights = (ServedWeights(one.kind, one.digest, one.workers) for one in pb.weights)
    return Model(model_card_from_pb(pb), pb.available, tuple(weights))


def _finished(pb: images_pb2.GenerateEvent) -> Finished:
    timings = pb.finished.timings
    return Finished(
        pb.job_id,
        pb.sequence,
        timings=Timings(
            *(d.ToTimedelta().total_seconds() for d in (timings.queue, timings.encode, timings.denoise, timings.decode))
        ),
        warnings=tuple(pb.finished.warnings),
        skipped_steps={skipped.index: tuple(skipped.steps) for skipped in pb.finished.skipped_steps},
    )
