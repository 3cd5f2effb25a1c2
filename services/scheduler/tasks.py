"""The engine's records: tasks, jobs and lanes. Mutable, and owned by the engine alone."""

from dataclasses import dataclass, field
from enum import Enum, auto

from services.scheduler.snapshots import BatchKey
from synerdiff.jobs import JobRecord, JobTimings
from synerdiff.plans import SlotRef
from synerdiff.requests import TaskSpec


class Phase(Enum):
    """Where a task stands. It goes forward only, or back to WAITING when the worker that held its latents is lost."""

    WAITING = auto()
    PREPARING = auto()
    RUNNING = auto()
    READY_TO_DECODE = auto()
    DECODING = auto()
    STORING = auto()
    DONE = auto()


@dataclass
class Task:
    """One image on its way. `planned_calls` runs ahead of `done_calls` by the plans under way."""

    spec: TaskSpec
    job_id: str
    index: int
    key: BatchKey
    phase: Phase = Phase.WAITING
    unet_worker: str = ""
    vae_worker: str = ""
    slot: SlotRef | None = None
    num_calls: int = 0
    done_calls: int = 0
    planned_calls: int = 0
    deaths: int = 0
    admitted_ms: int = 0
    denoised_ms: int = 0
    encode_ms: float = 0.0
    denoise_ms: float = 0.0
    decode_ms: float = 0.0

    def back_to_waiting(self) -> None:
        """Forget everything a worker held of it. The picture will be the same: it depends on the spec alone."""
        self.phase = Phase.WAITING
        self.unet_worker = self.vae_worker = ""
        self.slot = None
        self.num_calls = self.done_calls = self.planned_calls = 0


@dataclass
class Job:
    """A job the pool holds, with the tasks that still have to run."""

    record: JobRecord
    tasks: list[Task]
    started: bool
    decoding: bool
    started_ms: int = 0
    warnings: list[str] = field(default_factory=list)

    def timings(self, now_ms: int) -> JobTimings:
        """Where the time went; the slowest image of each stage."""
        started = self.started_ms or now_ms
        return JobTimings(
            queue_ms=max(0, started - self.record.accepted_at_ms),
            encode_ms=max((t.encode_ms for t in self.tasks), default=0.0),
            denoise_ms=max((t.denoise_ms for t in self.tasks), default=0.0),
            decode_ms=max((t.decode_ms for t in self.tasks), default=0.0),
        )


@dataclass
class Lane:
    """A worker with a stream. `plans` holds the ticks under way, each with the task ids it names."""

    worker_id: str
    domain: str
    model: str
    plans: dict[int, tuple[str, ...]] = field(default_factory=dict)
    draining: bool = False


@dataclass
class UnetLaneState(Lane):
    """A UNet worker: its arena, and the tasks that hold a slot there. `no_room`: it has refused a task just now."""

    slots: int = 0
    no_room: bool = False
    arena_address: str = ""
    tasks: dict[str, Task] = field(default_factory=dict)


@dataclass
class VaeLaneState(Lane):
    """A VAE worker, and the tasks it has been told to decode."""

    tasks: dict[str, Task] = field(default_factory=dict)
