"""Admission of waiting tasks to UNet workers, by the batching of the policy."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from math import inf

from services.scheduler.policy.ordering import FirstComeOrder, Task, order_of
from services.scheduler.policy.policy_spec import Paces, PolicyBounds, PolicySpec
from services.scheduler.policy.snapshots import Admission, PoolSnapshot, UnetLane, WaitingTask

# At most this part of a worker's slots is left free for callers that have none.
_KEPT_FREE = 1 / 4


@dataclass
class _Room:
    """A worker during admission. `load`: tasks before their last step; `free`: free slots; `held`: slots by caller."""

    lane: UnetLane
    load: int
    free: int
    held: Counter[str] = field(default_factory=Counter)

    def take(self, task: WaitingTask) -> Admission:
        """Admit the task."""
        self.load += 1
        self.free -= 1
        self.held[task.claim.caller] += 1
        return Admission(task.task_id, self.lane.worker_id)

    def free_for(self, caller: str, callers: frozenset[str]) -> int:
        """Free slots that a caller may take. A caller that has its share of all leaves one to each other caller that
        has less and had work lately: a task holds its slot to its end, and the other caller may come at any time.
        """
        share = max(1, self.lane.slots // len(callers)) if callers else self.lane.slots
        if self.held[caller] < share:
            return self.free
        others = sum(other != caller and self.held[other] < share for other in callers)
        return self.free - min(others, int(_KEPT_FREE * self.lane.slots))


def joining(
    snapshot: PoolSnapshot, model: str, spec: PolicySpec, bounds: PolicyBounds, paces: Paces
) -> list[Admission]:
    """Tasks join at any step, first in order first, each to the least loaded worker of its model that has room.

    A worker has room for a task while it has a free slot, and fewer of its tasks go before this one than a batch plus
    `prepare_ahead`. So a few tasks are prepared beside the steps of the running ones, a free place is filled at once,
    and a task that goes before running ones is admitted to set one of them aside.
    """
    waiting, rooms = _waiting(snapshot, model), _rooms(snapshot, model)
    tasks: list[Task] = [*waiting, *(task for room in rooms for task in room.lane.running)]
    workers = max(1, len(rooms))
    order = order_of(tasks, spec.order, paces, snapshot.now_ms, spec.urgency, snapshot.ahead, workers)
    callers = snapshot.callers.get(model, frozenset())
    admissions = []
    for task in order.sorted(waiting):
        open_rooms = [
            room
            for room in rooms
            if room.free_for(task.claim.caller, callers) > 0
            and room.lane.serves(task)
            and _before(task, room, order) < _most_before(task, room.lane, spec, bounds, paces, snapshot)
        ]
        if open_rooms:
            admissions.append(min(open_rooms, key=_least_loaded).take(task))
    return admissions


def whole_requests(snapshot: PoolSnapshot, model: str, cohorts: bool, unet_batch: int) -> list[Admission]:
    """A worker without tasks takes the next request, with `cohorts` also those of its batch key that wait behind it.

    A cohort has at most `unet_batch` tasks, or else one request. Of a request with more images than there are slots,
    the first images go first.
    """
    waiting = _waiting(snapshot, model)
    in_order = FirstComeOrder(waiting, snapshot.ahead).sorted(waiting)
    requests = [list(tasks) for _, tasks in groupby(in_order, lambda task: task.claim.job_id)]
    admissions: list[Admission] = []
    for room in sorted(_rooms(snapshot, model), key=_least_loaded):
        served = [request for request in requests if room.lane.serves(request[0])]
        if not served or room.lane.resident:
            continue
        cohort, *others = served
        requests.remove(cohort)
        if cohorts:
            for request in others:
                if request[0].key == cohort[0].key and len(cohort) + len(request) <= unet_batch:
                    requests.remove(request)
                    cohort += request
        admissions += [room.take(task) for task in cohort[: room.free]]
    return admissions


def _before(task: WaitingTask, room: _Room, order: FirstComeOrder) -> int:
    """The worker's tasks that go before this one: all of them unless the order can set some aside."""
    if not order.sets_aside:
        return room.load
    turn = order.turn(task)
    return room.load - sum(order.turn(other) > turn for other in room.lane.running)


def _most_before(
    task: WaitingTask, lane: UnetLane, spec: PolicySpec, bounds: PolicyBounds, paces: Paces, snapshot: PoolSnapshot
) -> float:
    """Tasks of a batch and those prepared ahead; without a bound under processor sharing."""
    if spec.order == "sharing":
        return inf
    pace = paces.get(task.key)
    if not spec.knee or pace is None:
        grown = lane.sizes.get(task.key)
        return (grown.most if grown else bounds.unet_batch) + bounds.prepare_ahead
    budget = snapshot.budgets.get(task.key.model)
    share = budget.share if spec.skip_cfg and budget and task.rows > 1 else 0.0
    return max(1, int(pace.rows / (task.rows - share))) + bounds.prepare_ahead


def _waiting(snapshot: PoolSnapshot, model: str) -> list[WaitingTask]:
    return [task for task in snapshot.waiting if task.key.model == model]


def _rooms(snapshot: PoolSnapshot, model: str) -> list[_Room]:
    return [
        _Room(lane, lane.undecoded, lane.slots - lane.resident, Counter(lane.held))
        for lane in snapshot.unet
        if lane.model == model
    ]


def _least_loaded(room: _Room) -> tuple[int, str]:
    return room.load, room.lane.worker_id
