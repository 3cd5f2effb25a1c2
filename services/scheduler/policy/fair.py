"""Equal shares between callers: start-time fair queueing (Goyal, Vin, Cheng 1996), of jobs and of UNet calls.

A job gets its turn when it is accepted, by store/lua/fair.lua; `FairQueue` is its twin for the simulation. Jobs are
read by their turns. What a pool has read goes by `CallTurns`: every UNet call has a turn of its own, so that a caller
that comes is served from the next tick on, whatever the others have begun.
"""

from collections.abc import Iterable, Mapping

from services.scheduler.policy.snapshots import Ahead, BatchKey, ReadyDecode, RunningTask, TurnClass, WaitingTask

Task = WaitingTask | RunningTask
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
    """Those among which a task has its turn."""
    return TurnClass(task.key.model, task.claim.priority)


def call_cost(key: BatchKey, rows: float) -> float:
    """What a UNet call takes of a device, in rows times pixels: see `row_calls`."""
    return rows * key.width * key.height


class CallTurns:
    """The virtual time of a pool's UNet calls, and how far each caller is ahead of it, by model and priority class.

    A call starts, in virtual time, where its caller's last one ends, but not before now, and ends its cost later. The
    latest start of a tick is now for those that come after. So a caller that was away, or that has fewer tasks than its
    share would run, has saved nothing up.
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
        """What else the caller takes of the device."""
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
        if not self._waiting.get(priority):  # nobody waits: who had what does not matter any more
            self._now[priority] = max(ends.values(), default=0.0)
        start = max(self._now[priority], ends.get(caller, 0.0))
        ends[caller] = start + cost
        self._waiting[priority] = self._waiting.get(priority, 0) + 1
        return start

    def began(self, priority: int, start: float) -> None:
        """The job that starts then has begun to run."""
        self._now[priority] = max(self._now[priority], start)
        self.left(priority)

    def left(self, priority: int) -> None:
        """A job waits no more."""
        self._waiting[priority] -= 1


def row_calls(num_calls: int, rows: int, num_images: int, pixels: int, native_pixels: int) -> float:
    """What a request takes of a device, in UNet rows of the model's native size: its cost in the queue.

    A prediction in row-milliseconds but for one factor, a row's time, which all requests of the model share. It takes
    that time to grow as the pixels do.
    """
    return num_calls * rows * num_images * pixels / native_pixels
