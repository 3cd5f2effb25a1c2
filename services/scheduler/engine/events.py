"""The events of a pool, the mirror of `effects`: the engine's driver hands each of them to `Engine.on`.

A leader's profile keeper, observer and traces hear the same events.
"""

from dataclasses import dataclass

from services.scheduler.engine.tasks import UnetLaneState, VaeLaneState
from services.scheduler.policy.snapshots import BatchKey
from synerdiff.jobs import JobRecord
from synerdiff.plans import DecodedImage, Preview, ResidentTask, TaskFailed, TaskReady, UnetTickDone, VaeTickDone
from synerdiff.profiles import Profile
from synerdiff.skip_cfg import SkipCfgBudget

Report = TaskReady | TaskFailed | UnetTickDone | VaeTickDone | DecodedImage | Preview


@dataclass(frozen=True)
class Reported:
    """From a worker: something that it was asked for has been done, or cannot be."""

    worker_id: str
    report: Report


@dataclass(frozen=True)
class UnetAttached:
    """A UNet worker's stream is open. `resident`: the tasks that it still holds."""

    lane: UnetLaneState
    resident: tuple[ResidentTask, ...] = ()


@dataclass(frozen=True)
class VaeAttached:
    """A VAE worker's stream is open."""

    lane: VaeLaneState


@dataclass(frozen=True)
class WorkerLost:
    """A worker's stream has ended."""

    worker_id: str


@dataclass(frozen=True)
class WorkerAnnounced:
    """Whether a worker with a stream announces that it takes new work: one that does not is draining. `suspect`: it has
    been silent for long, and is given none."""

    worker_id: str
    takes_new: bool
    suspect: bool = False


@dataclass(frozen=True)
class DomainGone:
    """No worker of the domain has a stream or is announced any more: its device may never be seen again."""

    domain: str


@dataclass(frozen=True)
class JobArrived:
    """From the store: a job of this pool, new or left by an earlier leader."""

    record: JobRecord


@dataclass(frozen=True)
class JobDropped:
    """From the store: the job was cancelled, swept or claimed by another pool; or Redis has `lost` its record."""

    job_id: str
    lost: bool = False


@dataclass(frozen=True)
class ImageStored:
    """From the store: Redis holds an image."""

    task_id: str


@dataclass(frozen=True)
class JobUnwritable:
    """From the store: an effect of this job can never be written, so the job would never end."""

    job_id: str
    reason: str


@dataclass(frozen=True)
class ProfileKnown:
    """From the profile keeper: how long items of `key` take on a domain."""

    domain: str
    key: BatchKey
    profile: Profile


@dataclass(frozen=True)
class ProfileUnknown:
    """From the profile keeper: the domain's device is another one now."""

    domain: str
    key: BatchKey


@dataclass(frozen=True)
class BudgetKnown:
    """From the profile keeper: how much guidance the pictures of a model can do without."""

    model: str
    budget: SkipCfgBudget


LaneEvent = UnetAttached | VaeAttached | WorkerLost | WorkerAnnounced | DomainGone
JobEvent = JobArrived | JobDropped | ImageStored | JobUnwritable
ProfileEvent = ProfileKnown | ProfileUnknown | BudgetKnown
Event = Reported | LaneEvent | JobEvent | ProfileEvent
