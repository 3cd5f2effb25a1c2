"""The input and output of a policy: snapshot in, plan out, pure.

A policy has two methods. `admit` places waiting tasks on UNet workers now. `plan` makes the next tick of a domain.
Both take and return frozen values, so a decision can be replayed, tested and simulated. A value per task is a
NamedTuple: it is made anew every tick, at a fifth of a frozen dataclass's cost.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from services.scheduler.planner.planned_round import RoundReason
from synerdiff.profiles import ItemCaps, Profile
from synerdiff.skip_cfg import SkipCfgBudget


class BatchKey(NamedTuple):
    """The properties that tasks of a batch share. Sizes in pixels; dtype is the worker's. `exact`: see TaskSpec."""

    model: str
    width: int
    height: int
    exact: bool = False

    @property
    def ordinary(self) -> "BatchKey":
        """The key that profiles are measured for; the cost of an exact task is estimated by it."""
        return self._replace(exact=False)


def same_weights(held: str, wanted: str) -> bool:
    """Whether a worker that holds one digest may draw tasks that want the other; an empty one fits all."""
    return not held or not wanted or held == wanted


class TurnClass(NamedTuple):
    """A class of tasks in which callers have equal shares."""

    model: str
    priority: int


# How far callers are ahead of the virtual time of their class, see `ordering.CallTurns`; 0 for one that is not named.
Ahead = Mapping[TurnClass, Mapping[str, float]]


class Claim(NamedTuple):
    """A task's claim to a turn, the same for its whole life. Times in unix ms.

    `priority`: a smaller number goes first. `deadline_ms`: when its request ends unanswered. `timed`: whether the
    client asked for that deadline, not the server by default. `first_come_ms`: from its acceptance to its end, had
    tasks run in order of acceptance, as predicted when the pool read it; `tail_ms`: the P98 of that over the latest
    tasks of its model and class by then. Both are 0 where nothing was measured. `caller`: its owner.
    """

    job_id: str
    image: int
    priority: int
    accepted_at_ms: int
    deadline_ms: int
    timed: bool
    first_come_ms: float = 0.0
    tail_ms: float = 0.0
    caller: str = ""


class WaitingTask(NamedTuple):
    """A task without a worker. `num_calls`: its UNet calls as far as known before it is prepared. `weights`: digest of
    those that alone may draw it; empty: any."""

    task_id: str
    key: BatchKey
    rows: int
    num_calls: int
    claim: Claim
    weights: str = ""


class SkipState(NamedTuple):
    """The skipped guidance of a running task.

    `must`: whether its next call skips, where a list, a replay or a lack of guidance fixes it; else None.
    `max_share`: most of its calls that may skip by its request, 1 where only the profile bounds it. `skipped`: calls
    planned so far that skip; `run`: the last ones of these in a row. `drift`: the last measured error of its predicted
    guidance, relative; 0 before there is one.
    """

    must: bool | None
    max_share: float
    skipped: int
    run: int
    drift: float


class RunningTask(NamedTuple):
    """A prepared task on a UNet worker. `next_call` counts the calls already planned."""

    task_id: str
    key: BatchKey
    rows: int
    next_call: int
    num_calls: int
    claim: Claim
    skip: SkipState

    @property
    def started(self) -> bool:
        """Whether any of its UNet calls has been planned."""
        return self.next_call > 0


class ReadyDecode(NamedTuple):
    """A task past its last step. `domain` is where its latents are. Listed longest-waiting first."""

    task_id: str
    key: BatchKey
    domain: str
    claim: Claim


class BatchSize(NamedTuple):
    """Tasks that step together without a profile: in the next item, and in the largest that may come."""

    now: int
    most: int


@dataclass(frozen=True)
class UnetLane:
    """A UNet worker.

    `resident` counts the tasks that hold a slot, `preparing` those of them that are not prepared yet, `undecoded` those
    not past their last step; `running` lists the prepared ones that have calls left to plan, in order of admission.
    `wants_plan`: there is room for one more plan ahead. `sizes`: of batches, where they were tried. `shares_cores`: it
    computes on cores on which the domain's VAE workers do as well. `weights`: digest of those it holds. `held`: slots
    by caller, for admission where there are several callers; else empty.
    """

    worker_id: str
    domain: str
    model: str
    slots: int
    resident: int
    preparing: int
    undecoded: int
    running: tuple[RunningTask, ...]
    wants_plan: bool
    sizes: Mapping[BatchKey, BatchSize] = field(default_factory=dict)
    shares_cores: bool = False
    weights: str = ""
    held: Mapping[str, int] = field(default_factory=dict)

    def serves(self, task: WaitingTask) -> bool:
        """Whether it holds the weights that the task is to be drawn with."""
        return same_weights(self.weights, task.weights)


@dataclass(frozen=True)
class VaeLane:
    """A VAE worker and the number of images sent to it and not decoded yet."""

    worker_id: str
    domain: str
    model: str
    decoding: int
    wants_plan: bool


@dataclass(frozen=True)
class PoolSnapshot:
    """All that admission may look at. `waiting` is in order of acceptance.

    `profiles`: by domain and batch key, none where nothing was measured. `budgets`: by model, the guidance
    that its pictures can do without. `callers`: by model, those that have work, or had lately; none for a single one.
    """

    now_ms: int
    waiting: tuple[WaitingTask, ...]
    unet: tuple[UnetLane, ...]
    profiles: Mapping[tuple[str, BatchKey], Profile] = field(default_factory=dict)
    budgets: Mapping[str, SkipCfgBudget] = field(default_factory=dict)
    ahead: Ahead = field(default_factory=dict)
    callers: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class DomainSnapshot:
    """All that the plan of one domain's next tick may look at; only decodes that this domain's VAE workers may take.

    `waiting` counts the pool's tasks without a worker. `threshold`: the least share of the fastest round's UNet
    throughput that the tick has to keep. `profiles`: of this domain, by batch key; none where nothing was measured.
    `budgets`: by model, the guidance that its pictures can do without. `memory`: by batch key, the caps of items since
    memory ran out; the caps of `profiles` are within it.
    """

    now_ms: int
    domain: str
    unet: tuple[UnetLane, ...]
    vae: tuple[VaeLane, ...]
    decodes: tuple[ReadyDecode, ...]
    waiting: int = 0
    threshold: float = 1.0
    profiles: Mapping[BatchKey, Profile] = field(default_factory=dict)
    budgets: Mapping[str, SkipCfgBudget] = field(default_factory=dict)
    memory: Mapping[BatchKey, ItemCaps] = field(default_factory=dict)
    ahead: Ahead = field(default_factory=dict)


@dataclass(frozen=True)
class Admission:
    """Place a waiting task on a UNet worker."""

    task_id: str
    worker_id: str


@dataclass(frozen=True)
class UnetBatch:
    """One step of tasks of one batch key on one worker. `skipping` are those of them that skip guidance."""

    worker_id: str
    task_ids: tuple[str, ...]
    skipping: frozenset[str] = frozenset()
    threads: int = 0


class DecodePart(NamedTuple):
    """The chunks [first, end) of `chunks` of one task's decode; those before are in earlier items of the same tick."""

    task_id: str
    chunks: int = 1
    first: int = 0
    end: int = 1


@dataclass(frozen=True)
class VaeBatch:
    """Decodes of one batch key on one worker. Every decode that a tick begins it also ends."""

    worker_id: str
    parts: tuple[DecodePart, ...]
    threads: int = 0


@dataclass(frozen=True)
class Item:
    """One concurrency: a UNet sub-batch beside a VAE sub-batch, either of them possibly none. `predicted_ms`: its time
    by the profile, 0 without one. `reason`: of its round; None where the programme was not asked."""

    unet: UnetBatch | None
    vae: VaeBatch | None
    predicted_ms: float = 0.0
    reason: RoundReason | None = None


@dataclass(frozen=True)
class TickPlan:
    """The items of one tick of one domain, in order. `in_step`: an item begins when the one before has ended on both
    workers. `threshold` and `why` tell people the grounds of the plan."""

    items: tuple[Item, ...]
    in_step: bool = False
    threshold: float = 0.0
    why: str = ""


class Thresholds(Protocol):
    """Says how much UNet throughput the ticks of each domain have to keep. Stateful: asked once per tick, in order."""

    def threshold(self, snapshot: DomainSnapshot, arrived_calls: int) -> float:
        """The threshold of the domain's next tick. `arrived_calls`: UNet calls that the pool's jobs ever asked for."""
