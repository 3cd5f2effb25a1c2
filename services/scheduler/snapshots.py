"""What a policy sees and what it answers: snapshot in, plan out, pure.

A policy is asked two things. `admit`: which waiting tasks go to which UNet worker now. `plan`: what the next tick of a
domain does. Both get frozen values and give frozen values back, so a decision can be replayed, tested and simulated.
What there is one of per task is a NamedTuple: it is made anew every tick, at a fifth of a frozen dataclass's cost.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class BatchKey(NamedTuple):
    """What must be equal for tasks to share a batch. Sizes in pixels; dtype is the worker's."""

    model: str
    width: int
    height: int


class WaitingTask(NamedTuple):
    """A task without a worker. The snapshot lists them most urgent first."""

    task_id: str
    key: BatchKey
    rows: int
    priority: int
    deadline_ms: int


class RunningTask(NamedTuple):
    """A prepared task on a UNet worker. `next_call` counts the calls already planned, `started` is whether any was."""

    task_id: str
    key: BatchKey
    rows: int
    next_call: int
    num_calls: int
    priority: int
    deadline_ms: int

    @property
    def started(self) -> bool:
        """Whether any of its UNet calls has been planned."""
        return self.next_call > 0


class ReadyDecode(NamedTuple):
    """A task past its last step. `domain` is where its latents are. Listed longest-waiting first."""

    task_id: str
    key: BatchKey
    domain: str


@dataclass(frozen=True)
class UnetLane:
    """A UNet worker.

    `resident` counts the tasks that hold a slot, `undecoded` those of them not past their last step; `running` lists
    the prepared ones that have calls left to plan. `wants_plan`: there is room for one more plan ahead.
    """

    worker_id: str
    domain: str
    model: str
    slots: int
    resident: int
    undecoded: int
    running: tuple[RunningTask, ...]
    wants_plan: bool


@dataclass(frozen=True)
class VaeLane:
    """A VAE worker and the number of images it has been told to decode and has not yet."""

    worker_id: str
    domain: str
    model: str
    decoding: int
    wants_plan: bool


@dataclass(frozen=True)
class PoolSnapshot:
    """All that admission may look at."""

    now_ms: int
    waiting: tuple[WaitingTask, ...]
    unet: tuple[UnetLane, ...]


@dataclass(frozen=True)
class DomainSnapshot:
    """All that the plan of one domain's next tick may look at; only decodes that this domain's VAE workers may take."""

    now_ms: int
    domain: str
    unet: tuple[UnetLane, ...]
    vae: tuple[VaeLane, ...]
    decodes: tuple[ReadyDecode, ...]


@dataclass(frozen=True)
class Admission:
    """Place a waiting task on a UNet worker."""

    task_id: str
    worker_id: str


@dataclass(frozen=True)
class Batch:
    """Tasks of one batch key for one worker."""

    worker_id: str
    task_ids: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """One concurrency: a UNet sub-batch beside a VAE sub-batch, either of them possibly none."""

    unet: Batch | None
    vae: Batch | None


@dataclass(frozen=True)
class TickPlan:
    """The items of one tick of one domain, in order."""

    items: tuple[Item, ...]


class Policy(Protocol):
    """Decides who runs and what a tick does. Implementations are pure: the same snapshot gives the same answer."""

    @property
    def name(self) -> str:
        """The name it is chosen by in settings."""

    def admit(self, snapshot: PoolSnapshot) -> tuple[Admission, ...]:
        """Which waiting tasks to place, and where."""

    def plan(self, snapshot: DomainSnapshot) -> TickPlan:
        """The next tick of a domain; no items when there is nothing to do."""
