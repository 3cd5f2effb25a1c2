"""The life of a job: its states, and the one table of their transitions."""

from dataclasses import dataclass
from enum import IntEnum

from synerdiff.requests import ImageRequest

# By image index: the steps on which its guidance was skipped.
SkippedSteps = tuple[tuple[int, tuple[int, ...]], ...]


class JobState(IntEnum):
    """Job states of the public API, by the proto's numbers."""

    QUEUED = 1
    RUNNING = 2
    DECODING = 3
    FINISHED = 4
    FAILED = 5
    CANCELLED = 6


# A job never goes back: a task that has to run again after a death runs again inside the state its job is in.
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.DECODING, JobState.FINISHED, JobState.FAILED, JobState.CANCELLED}),
    JobState.DECODING: frozenset({JobState.FINISHED, JobState.FAILED, JobState.CANCELLED}),
    JobState.FINISHED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

ENDED = frozenset(state for state, following in TRANSITIONS.items() if not following)


@dataclass(frozen=True)
class JobTimings:
    """Where a job's time went, in ms; denoise, encode and decode are those of its slowest image."""

    queue_ms: float
    encode_ms: float
    denoise_ms: float
    decode_ms: float


@dataclass(frozen=True)
class JobRecord:
    """A job as Redis holds it. Times in Unix ms; `images_done`: indices stored; `traceparent`: W3C, or empty.

    `caller`: the client that made it, and alone may see it; empty: anonymous.
    """

    job_id: str
    state: JobState
    request: ImageRequest
    accepted_at_ms: int
    deadline_ms: int
    abandonable: bool
    images_done: tuple[int, ...] = ()
    error_code: int = 0
    error_message: str = ""
    traceparent: str = ""
    caller: str = ""
