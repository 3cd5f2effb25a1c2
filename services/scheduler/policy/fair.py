"""Equal shares between callers: start-time fair queueing (Goyal, Vin, Cheng 1996).

Kept twice, since jobs wait in two places: here for the tasks that a pool has read, of which only the order among each
other matters, and in store/lua/fair.lua for the jobs in Redis. `FairQueue` is the latter's twin for the simulation.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from services.scheduler.policy.snapshots import RunningTask, WaitingTask

T = TypeVar("T", WaitingTask, RunningTask, WaitingTask | RunningTask)


def fair_starts(tasks: Iterable[T], cost: Callable[[T], float]) -> dict[str, float]:
    """By task id, the work of its caller's tasks before it, within its priority class. `tasks` are in order.

    Tasks that go by this first, and by their order second, give callers equal shares. Empty where one caller has all
    tasks: their order is all that matters.
    """
    before: dict[tuple[int, str], float] = {}
    starts: dict[str, float] = {}
    for task in tasks:
        whose = task.claim.priority, task.claim.caller
        starts[task.task_id] = before.get(whose, 0.0)
        before[whose] = starts[task.task_id] + cost(task)
    return starts if len({caller for _, caller in before}) > 1 else {}


class FairQueue:
    """The virtual time of a model's queue, by priority class, and where each caller's last job ends in it."""

    def __init__(self) -> None:
        self._now: dict[int, float] = {}
        self._ends: dict[int, dict[str, float]] = {}
        self._waiting: dict[int, int] = {}

    def start(self, priority: int, caller: str, cost: float) -> float:
        """Where a new job starts: jobs of a class are read by this. `cost`: its share of a device."""
        ends = self._ends.setdefault(priority, {})
        if not self._waiting.get(priority):  # nobody waits: who had what does not matter any more
            self._now[priority] = max(ends.values(), default=0.0)
        start = max(self._now[priority], ends.get(caller, 0.0))
        ends[caller] = start + cost
        self._waiting[priority] = self._waiting.get(priority, 0) + 1
        return start

    def read(self, priority: int, start: float) -> None:
        """The job that started then is read."""
        self._now[priority] = start
        self._waiting[priority] -= 1


def row_calls(num_calls: int, guided: bool, num_images: int, pixels: int, native_pixels: int) -> float:
    """What a request takes of a device, in UNet rows of the model's native size: its cost in the queue.

    A prediction in row-milliseconds but for one factor, a row's time, which all requests of the model share. It takes
    that time to grow as the pixels do.
    """
    return num_calls * (2 if guided else 1) * num_images * pixels / native_pixels
