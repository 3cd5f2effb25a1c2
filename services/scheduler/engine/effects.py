"""The engine's effects, the mirror of `events`: its driver carries them out, since the engine does no I/O."""

from dataclasses import dataclass

from synerdiff.jobs import JobTimings, SkippedSteps
from synerdiff.plans import DecodedImage, UnetPlan, VaePlan
from synerdiff.requests import TaskSpec


@dataclass(frozen=True)
class Admit:
    """To a UNet worker: prepare this task."""

    worker_id: str
    task: TaskSpec


@dataclass(frozen=True)
class SendUnetPlan:
    """To a UNet worker: its part of a tick. `predicted_ms`: of the whole tick; 0 where no profile predicts it."""

    worker_id: str
    plan: UnetPlan
    predicted_ms: float = 0.0


@dataclass(frozen=True)
class SendVaePlan:
    """To a VAE worker: its part of a tick. `predicted_ms`: as for a UNet worker."""

    worker_id: str
    plan: VaePlan
    predicted_ms: float = 0.0


@dataclass(frozen=True)
class CancelOnWorker:
    """To a worker: drop these tasks and free their resources."""

    worker_id: str
    task_ids: tuple[str, ...]


@dataclass(frozen=True)
class ReleaseSlots:
    """To a UNet worker: the images are stored, free their slots."""

    worker_id: str
    task_ids: tuple[str, ...]


@dataclass(frozen=True)
class ForgetImages:
    """To a VAE worker: the images are stored, or not wanted any more."""

    worker_id: str
    task_ids: tuple[str, ...]


@dataclass(frozen=True)
class StartJob:
    """To the store: the job's first task has been admitted."""

    job_id: str


@dataclass(frozen=True)
class ReportProgress:
    """To the store: a task's UNet calls done; may be coalesced with later ones. `preview`: PNG or empty."""

    job_id: str
    index: int
    step: int
    total: int
    preview: bytes = b""


@dataclass(frozen=True)
class MarkDecoding:
    """To the store: every task of the job has made its last step."""

    job_id: str


@dataclass(frozen=True)
class StoreImage:
    """To the store: an image file. Answered by `ImageStored` once Redis holds it."""

    job_id: str
    index: int
    seed: int
    image: DecodedImage


@dataclass(frozen=True)
class FinishJob:
    """To the store: every image is stored. `skipped_steps`: by image index, the calls that skipped guidance. `workers`:
    the ids of the workers that drew it, as far as this leader knows."""

    job_id: str
    accepted_at_ms: int
    timings: JobTimings
    warnings: tuple[str, ...]
    skipped_steps: SkippedSteps = ()
    workers: tuple[str, ...] = ()


@dataclass(frozen=True)
class FailJob:
    """To the store: the job failed; `code` is a google.rpc.Code, `workers` as of FinishJob."""

    job_id: str
    accepted_at_ms: int
    code: int
    message: str
    workers: tuple[str, ...] = ()


@dataclass(frozen=True)
class LetJobGo:
    """To the observers alone: the leader drops a job that others ended. `outcome`: "cancelled", "expired" or "lost"."""

    job_id: str
    accepted_at_ms: int
    outcome: str


WorkerEffect = Admit | SendUnetPlan | SendVaePlan | CancelOnWorker | ReleaseSlots | ForgetImages
StoreEffect = StartJob | ReportProgress | MarkDecoding | StoreImage | FinishJob | FailJob
Effect = WorkerEffect | StoreEffect | LetJobGo
