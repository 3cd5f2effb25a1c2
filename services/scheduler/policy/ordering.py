"""Orders over tasks, waiting or running, from the snapshot alone.

Callers have equal shares: start-time fair queueing (Goyal, Vin, Cheng 1996), of jobs and of UNet calls. A job gets its
turn when it is accepted, by store/lua/fair.lua; `FairQueue` is its twin for the simulation. The pool reads jobs by
their turns, and orders the tasks that it has read by `CallTurns`: every UNet call has a turn of its own, so that a new
caller is served from the next tick on, even while tasks of others run.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import inf
from operator import itemgetter
from types import MappingProxyType
from typing import TypeVar

from services.scheduler.policy.policy_spec import Order, Paces, Urgency
from services.scheduler.policy.snapshots import Ahead, BatchKey, ReadyDecode, RunningTask, TurnClass, WaitingTask

Task = WaitingTask | RunningTask
T = TypeVar("T", WaitingTask, RunningTask, Task)

NOBODY_AHEAD: Ahead = MappingProxyType({})
# A decode is pressed when its client's deadline is nearer than this.
_PRESSED_DECODE_MS = 2000
_NOBODY: Mapping[str, float] = {}


def are_shared(tasks: Iterable[Task | ReadyDecode]) -> bool:
    """Whether tasks are of more than one caller: else their order is all that matters."""
    return len({task.claim.caller for task in tasks}) > 1


def fair_starts(tasks: Iterable[Task], ahead: Ahead) -> dict[str, float]:
    """By task id, the turn of its next UNet call in virtual time. `tasks`: each caller's in its own order."""
    ends: dict[tuple[TurnClass, str], float] = {}
    starts: dict[str, float] = {}
    for task in tasks:
        turn_class, caller = turn_class_of(task), task.claim.caller
        start = ends.get((turn_class, caller))
        if start is None:
            start = ahead.get(turn_class, _NOBODY).get(caller, 0.0)
        starts[task.task_id] = start
        ends[turn_class, caller] = start + call_cost(task.key, task.rows)
    return starts


def turn_class_of(task: Task | ReadyDecode) -> TurnClass:
    """The class in which a task has its turn."""
    return TurnClass(task.key.model, task.claim.priority)


def call_cost(key: BatchKey, rows: float) -> float:
    """The cost of a UNet call on a device, in rows times pixels: see `row_calls`."""
    return rows * key.width * key.height


class CallTurns:
    """The virtual time of a pool's UNet calls, and how far each caller is ahead of it, by model and priority class.

    A call starts, in virtual time, where its caller's last one ends, but not before now, and ends its cost later. The
    latest start of a tick becomes now. So a caller saves up nothing while it is away, or while it has fewer tasks than
    its share would run.
    """

    def __init__(self) -> None:
        self._ahead: dict[TurnClass, dict[str, float]] = {}

    def ahead(self) -> dict[TurnClass, dict[str, float]]:
        """As of now, a copy."""
        return {turn_class: dict(callers) for turn_class, callers in self._ahead.items()}

    def stepped(self, calls: Iterable[tuple[TurnClass, str, float]]) -> None:
        """The UNet calls of a tick, with their callers and costs."""
        latest: dict[TurnClass, float] = {}
        for turn_class, caller, cost in calls:
            ends = self._ahead.setdefault(turn_class, {})
            start = ends.get(caller, 0.0)
            ends[caller] = start + cost
            latest[turn_class] = max(latest.get(turn_class, 0.0), start)
        for turn_class, now in latest.items():
            ends = self._ahead[turn_class]
            self._ahead[turn_class] = {caller: end - now for caller, end in ends.items() if end > now}

    def charge(self, turn_class: TurnClass, caller: str, cost: float) -> None:
        """Charge the caller for other use of the device."""
        ends = self._ahead.setdefault(turn_class, {})
        ends[caller] = ends.get(caller, 0.0) + cost


class FairQueue:
    """The virtual time of a model's queue, by priority class, and where each caller's last job ends in it."""

    def __init__(self) -> None:
        self._now: dict[int, float] = {}
        self._ends: dict[int, dict[str, float]] = {}
        self._waiting: dict[int, int] = {}

    def start(self, priority: int, caller: str, cost: float) -> float:
        """Where a new job starts: jobs of a class have their turns by this. `cost`: its share of a device."""
        ends = self._ends.setdefault(priority, {})
        if not self._waiting.get(priority):  # no job waits: earlier shares no longer matter
            self._now[priority] = max(ends.values(), default=0.0)
        start = max(self._now[priority], ends.get(caller, 0.0))
        ends[caller] = start + cost
        self._waiting[priority] = self._waiting.get(priority, 0) + 1
        return start

    def began(self, priority: int, start: float) -> None:
        """The job with this start has begun to run."""
        self._now[priority] = max(self._now[priority], start)
        self.left(priority)

    def left(self, priority: int) -> None:
        """A job waits no more."""
        self._waiting[priority] -= 1


def row_calls(num_calls: int, rows: int, num_images: int, pixels: int, native_pixels: int) -> float:
    """A request's cost in the queue: its use of a device, in UNet rows of the model's native size.

    A prediction in row-milliseconds but for one factor, a row's time, which all requests of the model share. It assumes
    that this time is proportional to the pixels.
    """
    return num_calls * rows * num_images * pixels / native_pixels


def order_of(
    tasks: Sequence[Task],
    order: Order,
    paces: Paces,
    now_ms: int,
    constants: Urgency,
    ahead: Ahead = NOBODY_AHEAD,
    workers: int = 1,
) -> "FirstComeOrder":
    """The order of these tasks. Urgency needs the pace of every task; without one, they go first come, first served."""
    if order == "urgency" and all(task.key in paces for task in tasks):
        return UrgencyOrder(tasks, paces, now_ms, constants, workers, ahead)
    return FirstComeOrder(tasks, ahead)


def ordered(
    tasks: Iterable[T], order: Order, paces: Paces, now_ms: int, constants: Urgency, ahead: Ahead = NOBODY_AHEAD
) -> list[T]:
    """The tasks, first to go first."""
    listed = list(tasks)
    return order_of(listed, order, paces, now_ms, constants, ahead).sorted(listed)


class FirstComeOrder:
    """One caller's tasks: those under way go on to their end; then by priority class and acceptance. Of several
    callers: priority class first, then fairly between callers. So a task may make way for another caller's."""

    def __init__(self, tasks: Sequence[Task], ahead: Ahead) -> None:
        self.sets_aside = are_shared(tasks)
        self._starts = fair_starts(sorted(tasks, key=_first_come), ahead) if self.sets_aside else {}

    def sorted(self, tasks: Iterable[T]) -> list[T]:
        """First to go first."""
        return sorted(tasks, key=self.turn)

    def turn(self, task: Task) -> tuple[float | str, ...]:
        """Sorts tasks: the smallest goes first. For tasks that this order was made from."""
        if not self.sets_aside:
            return _first_come(task)
        return task.claim.priority, self._starts[task.task_id], *_first_come(task)


class UrgencyOrder(FirstComeOrder):
    """Priority class first; then fairly between callers, and of one caller's the pressed, by their bounds; then the
    request with the least work left.

    Every task has a bound, a time by which it is to end: see `Urgency`. Least work first makes the mean small. A task
    is pressed once its bound, or a later one that it has to end before, could not be kept if others went first; so
    bounds that could be kept in order of acceptance are kept in this one. A client's deadline presses its own
    task alone, and only while it can be met. Between equals, the one that has begun goes on.
    `workers`: the number that share `tasks`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        paces: Paces,
        now_ms: int,
        constants: Urgency,
        workers: int = 1,
        ahead: Ahead = NOBODY_AHEAD,
    ) -> None:
        self.sets_aside = True
        self._paces, self._now_ms, self._constants, self._workers = paces, now_ms, constants, workers
        self._job_ms: dict[str, float] = {}
        self._pressed_by_ms: dict[str, float] = {}
        for task in tasks:
            job_id, alone_ms = task.claim.job_id, _calls_left(task) * paces[task.key].call_ms * task.rows / 2
            self._job_ms[job_id] = self._job_ms.get(job_id, 0.0) + alone_ms
        work_ms = 0.0
        for _, of_class in groupby(sorted(tasks, key=_priority), _priority):
            work_ms = self._press(list(of_class), work_ms)
        self._starts: dict[str, float] = {}
        if are_shared(tasks):
            self._starts = fair_starts(sorted(tasks, key=self.turn), ahead)

    def turn(self, task: Task) -> tuple[float | str, ...]:  # noqa: D102
        pressed_by_ms, left_ms = self._pressed_by_ms[task.task_id], self._job_ms[task.claim.job_id]
        start = self._starts.get(task.task_id, 0.0)
        return task.claim.priority, start, pressed_by_ms, left_ms, *_first_come(task)

    def _press(self, tasks: Sequence[Task], work_ms: float) -> float:
        """Find the bound that presses each task of a priority class, infinity for none.

        `work_ms`: the work of the classes before it. Returns the sum with this class's. Work that is not spread evenly
        ends later than its sum says, by no more than the longest task takes beyond its share.
        """
        tail_ms = self._constants.tail_factor * max(task.claim.tail_ms for task in tasks)
        lag_ms, due = 0.0, []
        for bound_ms, task in sorted(((self._bound_ms(t, tail_ms), t) for t in tasks), key=itemgetter(0)):
            share_ms = self._share_ms(task)
            work_ms += share_ms
            lag_ms = max(lag_ms, self._alone_ms(task) - share_ms)
            due.append((task, bound_ms, self._tight(task, bound_ms, work_ms + lag_ms)))
        pressed_by_ms = inf
        for task, bound_ms, tight in reversed(due):
            pressed_by_ms = bound_ms if tight else pressed_by_ms
            self._pressed_by_ms[task.task_id] = min(pressed_by_ms, self._deadline_ms(task))
        return work_ms

    def _bound_ms(self, task: Task, tail_ms: float) -> float:
        claim = task.claim
        most_ms = min(self._constants.fair_factor * claim.first_come_ms, tail_ms)
        return claim.accepted_at_ms + max(claim.first_come_ms, most_ms)

    def _deadline_ms(self, task: Task) -> float:
        """The client's, if it presses: infinity while there is time, and once it cannot be met any more."""
        claim = task.claim
        if not claim.timed:
            return inf
        reachable = self._now_ms + _calls_left(task) * self._paces[task.key].least_call_ms <= claim.deadline_ms
        pressing = reachable and self._tight(task, claim.deadline_ms, self._alone_ms(task))
        return claim.deadline_ms if pressing else inf

    def _tight(self, task: Task, end_ms: float, work_ms: float) -> bool:
        """Whether so much work leaves too little time until then."""
        allowance_ms = end_ms - task.claim.accepted_at_ms
        return end_ms - self._now_ms - work_ms < self._constants.guard_share * allowance_ms

    def _share_ms(self, task: Task) -> float:
        """The task's time, spread over all workers."""
        pace = self._paces[task.key]
        return (_calls_left(task) * task.rows * pace.call_ms / pace.rows + pace.decode_ms) / self._workers

    def _alone_ms(self, task: Task) -> float:
        """The task's time if it is never set aside."""
        return _calls_left(task) * self._paces[task.key].call_ms


def decodes_in_order(decodes: Sequence[ReadyDecode], now_ms: int, ahead: Ahead = NOBODY_AHEAD) -> list[ReadyDecode]:
    """Priority class first, then one of each caller in turn; of one caller's those about to miss a client's deadline,
    then the longest waiting."""

    def turn(decode: ReadyDecode) -> tuple[int, float]:
        claim = decode.claim
        pressed = claim.timed and claim.deadline_ms - now_ms < _PRESSED_DECODE_MS
        return claim.priority, claim.deadline_ms if pressed else inf

    listed = sorted(decodes, key=turn)
    if are_shared(listed):
        rounds = Counter[tuple[int, str]]()
        turns = {}
        for decode in listed:
            claim = decode.claim
            lead = ahead.get(turn_class_of(decode), {}).get(claim.caller, 0.0)
            turns[decode.task_id] = claim.priority, rounds[claim.priority, claim.caller], lead
            rounds[claim.priority, claim.caller] += 1
        listed.sort(key=lambda decode: turns[decode.task_id])
    return listed


def _first_come(task: Task) -> tuple[bool, int, int, str, int]:
    claim = task.claim
    return not _started(task), claim.priority, claim.accepted_at_ms, claim.job_id, claim.image


def _priority(task: Task) -> int:
    return task.claim.priority


def _started(task: Task) -> bool:
    return isinstance(task, RunningTask) and task.started


def _calls_left(task: Task) -> int:
    return task.num_calls - task.next_call if isinstance(task, RunningTask) else task.num_calls
