"""Equal shares between callers: start-time fair queueing (Goyal, Vin, Cheng 1996).

A job gets its turn when it is accepted, by store/lua/fair.lua; `FairQueue` is its twin for the simulation. Jobs are
read by their turns, and the tasks that a pool has read go by them.
"""

from collections.abc import Iterable
from typing import TypeVar

from services.scheduler.policy.snapshots import RunningTask, WaitingTask

T = TypeVar("T", WaitingTask, RunningTask, WaitingTask | RunningTask)


def are_shared(tasks: Iterable[WaitingTask | RunningTask]) -> bool:
    """Whether tasks are of more than one caller: else their order is all that matters."""
    return len({task.claim.caller for task in tasks}) > 1


def fair_starts(tasks: Iterable[T]) -> dict[str, float]:
    """By task id, its turn in virtual time. A caller's turns go to its tasks of a priority class as these are ordered,
    those of waiting tasks to waiting ones: else they would take the turns, and then the slots, of those set aside.
    """
    whose: dict[tuple[int, str, bool], list[T]] = {}
    for task in tasks:
        waits = isinstance(task, WaitingTask)
        whose.setdefault((task.claim.priority, task.claim.caller, waits), []).append(task)
    return {
        task.task_id: start
        for theirs in whose.values()
        for task, start in zip(theirs, sorted(other.claim.start for other in theirs), strict=True)
    }


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
