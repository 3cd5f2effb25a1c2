"""Policies as data: each a frozen value with its bounds, chosen by name."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from services.scheduler.snapshots import (
    Admission,
    BatchKey,
    DecodePart,
    DomainSnapshot,
    Item,
    Policy,
    PoolSnapshot,
    ReadyDecode,
    RunningTask,
    TickPlan,
    UnetBatch,
    UnetLane,
    VaeBatch,
    VaeLane,
)
from synerdiff.profiles import Profile


@dataclass(frozen=True)
class PolicyBounds:
    """The settings that every policy shares. Counts are tasks (images), per worker."""

    unet_batch: int = 8
    vae_batch: int = 4
    prepare_ahead: int = 4


@dataclass(frozen=True)
class ContinuousPolicy:
    """Waiting tasks join at the next step up to a cap; finished ones decode as soon as ready; no look ahead.

    A few tasks past the cap are admitted early, so that their prompts are encoded beside the steps of those that run
    and a place that falls free is filled at once.
    """

    bounds: PolicyBounds
    name: str = "continuous"

    def admit(self, snapshot: PoolSnapshot) -> tuple[Admission, ...]:
        """Most urgent first, each to the least loaded worker of its model that has room."""
        load = {lane.worker_id: lane.undecoded for lane in snapshot.unet}
        free = {lane.worker_id: lane.slots - lane.resident for lane in snapshot.unet}
        most = self.bounds.unet_batch + self.bounds.prepare_ahead
        admissions = []
        for task in sorted(snapshot.waiting, key=lambda task: task.claim.priority):
            open_lanes = [
                lane.worker_id
                for lane in snapshot.unet
                if lane.model == task.key.model and free[lane.worker_id] > 0 and load[lane.worker_id] < most
            ]
            if open_lanes:
                worker_id = min(open_lanes, key=lambda w: (load[w], w))
                load[worker_id] += 1
                free[worker_id] -= 1
                admissions.append(Admission(task.task_id, worker_id))
        return tuple(admissions)

    def plan(self, snapshot: DomainSnapshot) -> TickPlan:
        """One step of every running task beside the decodes that are ready."""
        unet = [batch for lane in snapshot.unet if lane.wants_plan for batch in self._unet_batches(lane)]
        vae = self._vae_batches(snapshot.vae, snapshot.decodes)
        return TickPlan(tuple(Item(u, v) for u, v in zip_longest(unet, vae)))

    def plan_ahead(self, profile: Profile | None) -> int:
        """Two: a worker never waits for a plan."""
        return 2

    def _unet_batches(self, lane: UnetLane) -> list[UnetBatch]:
        """The running tasks up to the cap, those under way first; one batch per batch key."""
        in_order = sorted(lane.running, key=lambda task: (not task.started, task.claim.priority))
        return _batches(lane.worker_id, in_order[: self.bounds.unet_batch])

    def _vae_batches(self, lanes: Sequence[VaeLane], decodes: Sequence[ReadyDecode]) -> list[VaeBatch]:
        """For each worker with room, least loaded first: the longest-waiting decode and those that share its key."""
        batches = []
        left = list(decodes)
        for lane in sorted(lanes, key=lambda lane: (lane.decoding, lane.worker_id)):
            first = next((d for d in left if d.key.model == lane.model), None)
            if first is None or not lane.wants_plan:
                continue
            together = [d for d in left if d.key == first.key][: self.bounds.vae_batch]
            left = [d for d in left if d not in together]
            batches.append(VaeBatch(lane.worker_id, tuple(DecodePart(d.task_id) for d in together)))
        return batches


def _batches(worker_id: str, tasks: Iterable[RunningTask]) -> list[UnetBatch]:
    """One batch per batch key, keys in the order of their first task, so that the most urgent key steps first."""
    groups: dict[BatchKey, list[str]] = {}
    for task in tasks:
        groups.setdefault(task.key, []).append(task.task_id)
    return [UnetBatch(worker_id, tuple(task_ids)) for task_ids in groups.values()]


POLICIES: dict[str, Callable[[PolicyBounds], Policy]] = {"continuous": ContinuousPolicy}
