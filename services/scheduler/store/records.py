"""How jobs and events look in Redis: job fields as readable text, the request as JSON, events as protobuf."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from synerdiff.errors import InvalidRequest, SynerDiffError
from synerdiff.jobs import JobRecord, JobState, JobTimings, SkippedSteps
from synerdiff.json_codec import JsonCodec
from synerdiff.plans import DecodedImage
from synerdiff.requests import ImageRequest
from synerdiff.v1 import images_pb2

DEADLINE_EXCEEDED: int = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
CANCELLED: int = grpc.StatusCode.CANCELLED.value[0]
TERMINAL_EVENTS = frozenset({"finished", "failed", "cancelled"})


@dataclass(frozen=True)
class JobEnd:
    """How a job ended, as Redis has it. `code`: a google.rpc.Code; `images`: those stored; `workers`: as far as known.

    Times in ms, 0 for a state that the job did not come to: `waited_ms` from its acceptance to its first task's
    admission, `denoised_ms` to the last step of all its images, `decoded_ms` from there, `total_ms` from acceptance.
    """

    job_id: str
    request_id: str
    caller: str
    model: str
    state: JobState
    code: int
    reason: str
    images: int
    waited_ms: int
    denoised_ms: int
    decoded_ms: int
    total_ms: int
    workers: tuple[str, ...]
    traceparent: str

    @property
    def outcome(self) -> str:
        """finished, failed, cancelled, or expired: its time ran out."""
        return "expired" if self.code == DEADLINE_EXCEEDED else self.state.name.lower()


_REQUEST = JsonCodec(ImageRequest, "request")
request_to_json = _REQUEST.dump


class UnreadableRecord(SynerDiffError):
    """INTERNAL: the record of a job in Redis is damaged, or of a version that this one cannot read."""

    def __init__(self, job_id: str, error: Exception) -> None:
        reason = error.message if isinstance(error, InvalidRequest) else repr(error)
        super().__init__(f"the record of job {job_id!r} cannot be read: {reason}")
        self.job_id = job_id


def record_from_reply(reply: list[Any], *, to_draw: bool = False) -> JobRecord:
    """A job as scripts return it: [job id, [field, value, ...], [image index, ...]]. With `to_draw` it
    is unreadable where a newer version that accepted it may draw another picture. Raises UnreadableRecord."""
    job_id, flat, image_indices = reply[0].decode(), *reply[1:]
    try:
        fields: dict[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
        return JobRecord(
            job_id=job_id,
            state=JobState[fields[b"state"].decode()],
            request=_REQUEST.parse(fields[b"request"], whole=to_draw),
            accepted_at_ms=int(fields[b"accepted_at_ms"]),
            deadline_ms=int(fields[b"deadline_ms"]),
            abandonable=fields[b"abandonable"] == b"1",
            images_done=tuple(sorted(map(int, image_indices))),
            error_code=int(fields.get(b"error_code", 0)),
            error_message=fields.get(b"error_message", b"").decode(),
            traceparent=fields.get(b"traceparent", b"").decode(),
            caller=fields.get(b"caller", b"").decode(),
        )
    except (InvalidRequest, LookupError, ValueError) as error:
        raise UnreadableRecord(job_id, error) from error


def state_from_reply(job_id: str, name: bytes) -> JobState:
    """The state of a job. Raises UnreadableRecord for one that only another version knows."""
    try:
        return JobState[name.decode()]
    except LookupError as error:
        raise UnreadableRecord(job_id, error) from error


def event_from_entry(job_id: str, sequence: int, form: bytes, value: bytes) -> images_pb2.GenerateEvent:
    """An event from its entry: form `event` holds it serialized, form `position` is a Queued event's number."""
    if form == b"position":
        event = images_pb2.GenerateEvent(queued=images_pb2.Queued(position=int(value)))
    else:
        event = images_pb2.GenerateEvent.FromString(value)
    event.job_id = job_id
    event.sequence = sequence
    return event


def end_from_entry(flat: list[bytes]) -> JobEnd:
    """A job's end from the fields of its entry; a field that a damaged record lacks is empty or 0."""
    texts = [value.decode() for value in flat]
    fields = dict(zip(texts[::2], texts[1::2], strict=True))
    state = JobState[fields["state"]]
    ended = int(fields["ended_at_ms"])
    accepted, running, decoding = (
        int(fields[name] or 0) for name in ("accepted_at_ms", "RUNNING_at_ms", "DECODING_at_ms")
    )
    return JobEnd(
        job_id=fields["job_id"],
        request_id=fields["request_id"].rpartition("\n")[2],  # see keys.request_id_of
        caller=fields["caller"],
        model=fields["model"],
        state=state,
        code=CANCELLED if state is JobState.CANCELLED else int(fields["code"] or 0),
        reason=fields["reason"],
        images=int(fields["images"]),
        waited_ms=_between(accepted, running or ended),
        denoised_ms=_between(running, decoding or ended),
        decoded_ms=_between(decoding, ended),
        total_ms=_between(accepted, ended),
        workers=tuple(fields["workers"].split()),
        traceparent=fields["traceparent"],
    )


def _between(since_ms: int, until_ms: int) -> int:
    return max(0, until_ms - since_ms) if since_ms else 0


def is_terminal(event: images_pb2.GenerateEvent) -> bool:
    """Whether nothing follows this event."""
    return event.WhichOneof("event") in TERMINAL_EVENTS


def started_event() -> bytes:
    """A Started event, ready to store."""
    return images_pb2.GenerateEvent(started=images_pb2.Started()).SerializeToString()


def progress_event(index: int, step: int, total: int, preview: bytes) -> bytes:
    """A Progress event, ready to store."""
    progress = images_pb2.Progress(index=index, step=step, num_inference_steps=total, preview=preview)
    return images_pb2.GenerateEvent(progress=progress).SerializeToString()


def image_message(image: DecodedImage, index: int, seed: int) -> images_pb2.Image:
    """A decoded image as clients get it, its bytes included."""
    return images_pb2.Image(
        index=index,
        seed=seed,
        width=image.width,
        height=image.height,
        format=images_pb2.ImageFormat.ValueType(image.format),
        data=image.data,
        flagged=image.flagged,
        size_bytes=len(image.data),
    )


def image_event(image: images_pb2.Image) -> bytes:
    """An Image event without the image's bytes, ready to store."""
    event = images_pb2.GenerateEvent()
    for field in ("index", "seed", "width", "height", "format", "flagged", "size_bytes"):
        setattr(event.image, field, getattr(image, field))
    return event.SerializeToString()


def finished_event(timings: JobTimings, warnings: Iterable[str], skipped_steps: SkippedSteps = ()) -> bytes:
    """A Finished event, ready to store."""
    finished = images_pb2.Finished(
        timings=images_pb2.Timings(
            queue=_duration(timings.queue_ms),
            encode=_duration(timings.encode_ms),
            denoise=_duration(timings.denoise_ms),
            decode=_duration(timings.decode_ms),
        ),
        skipped_steps=[images_pb2.SkippedSteps(index=index, steps=steps) for index, steps in skipped_steps],
        warnings=list(warnings),
    )
    return images_pb2.GenerateEvent(finished=finished).SerializeToString()


def failed_event(code: int, message: str) -> bytes:
    """A Failed event, ready to store. `code` is a google.rpc.Code."""
    return images_pb2.GenerateEvent(failed=images_pb2.Failed(code=code, message=message)).SerializeToString()


def cancelled_event(reason: str) -> bytes:
    """A Cancelled event, ready to store."""
    return images_pb2.GenerateEvent(cancelled=images_pb2.Cancelled(reason=reason)).SerializeToString()


def _duration(milliseconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(milliseconds * 1000))
    return duration
