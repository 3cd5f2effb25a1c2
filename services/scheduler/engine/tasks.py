"""The engine's records: tasks, jobs and lanes. Mutable, and owned by the engine alone."""

from dataclasses import dataclass, field
from enum import Enum, auto

from services.scheduler.engine.item_sizes import BatchGrowth
from services.scheduler.engine.ticks import PlannedPart
from services.scheduler.policy.snapshots import BatchKey
from synerdiff.jobs import JobRecord, JobTimings, SkippedSteps
from synerdiff.plans import ItemRef, ItemTiming, SlotRef
from synerdiff.requests import TaskSpec


class Phase(Enum):
    """Where a task stands. It goes forward only, or back to WAITING when the worker that held its latents is lost.
    `MAY_BECOME` lists every move, and `Holdings` alone makes them."""

    WAITING = auto()
    PREPARING = auto()
    RUNNING = auto()
    READY_TO_DECODE = auto()
    DECODING = auto()
    STORING = auto()
    DONE = auto()


MAY_BECOME = {
    # Admitted; or found on a worker by a new leader, as far as the worker has come with it.
    Phase.WAITING: {Phase.PREPARING, Phase.RUNNING, Phase.READY_TO_DECODE},
    # The worker says that it is ready; that it has no room, or it is lost.
    Phase.PREPARING: {Phase.RUNNING, Phase.WAITING},
    # The last UNet call is made; the worker is lost.
    Phase.RUNNING: {Phase.READY_TO_DECODE, Phase.WAITING},
    # A plan names it; the file comes from a VAE worker that was asked before; the UNet worker is lost.
    Phase.READY_TO_DECODE: {Phase.DECODING, Phase.STORING, Phase.WAITING},
    # The file comes; the VAE worker is lost; the latents are gone.
    Phase.DECODING: {Phase.STORING, Phase.READY_TO_DECODE, Phase.WAITING},
    # Redis holds the image.
    Phase.STORING: {Phase.DONE},
    Phase.DONE: set[Phase](),
}


class IllegalMove(Exception):
    """A move that `MAY_BECOME` does not have: the holdings are wrong, and no plan may use them any more."""


@dataclass
class Task:
    """One image on its way. `planned_calls` runs ahead of `done_calls` by the plans under way.

    `skipped` are the planned calls that skip guidance, ascending. `replay`: the calls before `replay_until` that
    skipped guidance in an earlier run of the task, and skip it again for the same picture. `drift`: see `SkipState`.
    `first_come_ms`, `tail_ms`: see `Claim`.
    """

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
    skipped: list[int] = field(default_factory=list)
    replay: frozenset[int] = frozenset()
    replay_until: int = 0
    drift: float = 0.0
    first_come_ms: float = 0.0
    tail_ms: float = 0.0

    def become(self, phase: Phase) -> None:
        """Change phase. Raises IllegalMove for a move outside `MAY_BECOME`."""
        if phase not in MAY_BECOME[self.phase]:
            raise IllegalMove(f"{self.spec.task_id}: {self.phase.name} cannot become {phase.name}")
        self.phase = phase

    @property
    def calls_left(self) -> int:
        """UNet calls still to make, as far as known."""
        if self.phase.value > Phase.RUNNING.value:
            return 0
        return (self.num_calls or self.spec.num_inference_steps) - self.done_calls

    @property
    def skip_run(self) -> int:
        """How many of the last planned calls in a row skip guidance."""
        run = 0
        while run < len(self.skipped) and self.skipped[-1 - run] == self.planned_calls - 1 - run:
            run += 1
        return run

    def plan_call(self, skip: bool) -> int:
        """Mark the next call as planned; returns its number."""
        call = self.planned_calls
        self.planned_calls += 1
        if skip:
            self.skipped.append(call)
        return call

    def stands_at(self, call: int) -> None:
        """Forget the plans past `call`, the number of calls that were made."""
        self.done_calls = self.planned_calls = call
        while self.skipped and self.skipped[-1] >= call:
            self.skipped.pop()

    def back_to_waiting(self) -> None:
        """Forget everything a worker held of it. The picture will be the same: it depends on the spec and the calls
        that skipped guidance, which are repeated."""
        self.stands_at(self.done_calls)
        if self.done_calls > self.replay_until:
            self.replay, self.replay_until = frozenset(self.skipped), self.done_calls
        self.skipped, self.drift = [], 0.0
        self.become(Phase.WAITING)
        self.unet_worker = self.vae_worker = ""
        self.slot = None
        self.num_calls = self.done_calls = self.planned_calls = 0


@dataclass
class Job:
    """A job the pool holds, with the tasks that still have to run.

    `unet_weights`, `vae_weights`: digests of those that it is drawn with, empty until a worker has them. `lacking_ms`:
    since when no worker serves these, though some serve others; 0 while one does.
    """

    record: JobRecord
    tasks: list[Task]
    started: bool
    decoding: bool
    started_ms: int = 0
    warnings: list[str] = field(default_factory=list)
    unet_weights: str = ""
    vae_weights: str = ""
    lacking_ms: int = 0

    def __post_init__(self) -> None:
        self.unet_weights = self.unet_weights or self.record.request.unet_weights
        self.vae_weights = self.vae_weights or self.record.request.vae_weights

    def skipped_steps(self) -> SkippedSteps:
        """The calls that skipped guidance, for every image that has any."""
        return tuple((task.index, tuple(task.skipped)) for task in self.tasks if task.skipped)

    def workers(self) -> tuple[str, ...]:
        """The workers that have its tasks, or had them last."""
        return tuple(sorted({name for task in self.tasks for name in (task.unet_worker, task.vae_worker) if name}))

    def timings(self, now_ms: int) -> JobTimings:
        """Where the time went; the slowest image of each stage."""
        queue_ms = max(0, (self.started_ms or now_ms) - self.record.accepted_at_ms)
        stages = ("encode_ms", "denoise_ms", "decode_ms")
        return JobTimings(queue_ms, *(max((getattr(t, ms) for t in self.tasks), default=0.0) for ms in stages))


@dataclass
class Lane:
    """A worker with a stream. `plans` holds its parts of the ticks under way.

    `last_in_step`: the pace and the place of the last item that was planned in step. `rows`: UNet rows or decodes of
    the last item that ran. `weights`: digest of those it holds. `suspect`: its reports are overdue.
    """

    worker_id: str
    domain: str
    model: str
    plans: dict[int, PlannedPart] = field(default_factory=dict)
    draining: bool = False
    suspect: bool = False
    last_in_step: tuple[str, ItemRef] | None = None
    rows: int = 0
    weights: str = ""

    @property
    def takes_new(self) -> bool:
        """Whether it is to be given new work."""
        return not self.draining and not self.suspect

    def tick_done(self, tick: int, items: tuple[ItemTiming, ...]) -> PlannedPart | None:
        """One of its plans has run. Returns the plan; None where this leader made none."""
        if items:
            self.rows = items[-1].rows
        return self.plans.pop(tick, None)


@dataclass
class UnetLaneState(Lane):
    """A UNet worker: its arena, and the tasks that hold a slot there. `no_room`: it has refused a task just now.
    `growth`: how large its batches are, by key. `shares_cores`: it computes on cores that VAE workers use too."""

    slots: int = 0
    shares_cores: bool = False
    growth: dict[BatchKey, BatchGrowth] = field(default_factory=dict)
    no_room: bool = False
    arena_address: str = ""
    tasks: dict[str, Task] = field(default_factory=dict)


@dataclass
class VaeLaneState(Lane):
    """A VAE worker, and the tasks given to it."""

    tasks: dict[str, Task] = field(default_factory=dict)
