"""Foresight: how long the tasks of a new job would take in order of acceptance, and the latest tasks before them."""

from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heapreplace

from services.scheduler.engine.holdings import Holdings
from services.scheduler.engine.tasks import Phase, Task
from services.scheduler.policy.policy_spec import Pace
from synerdiff.jobs import JobRecord

_LATELY = 1024
# Less than the P99 that is to be kept: of a hundred tasks that is the longest but one, and here many come near it.
_TAIL = 0.98


def first_come_ms(pace: Pace, ahead: Iterable[float], calls: int, workers: int) -> float:
    """From now to a task's decode, if those ahead of it run first, each in the first place that falls free.

    `ahead`: UNet calls of two rows that each of them has left, in order of acceptance; 0 for one that only has to be
    decoded. `calls`: the task's own.
    """
    free, decodes = [0.0] * (workers * pace.seats), 1
    for left in ahead:
        heapreplace(free, free[0] + left)
        decodes += 1
    return (free[0] + calls) * pace.call_ms + decodes * pace.decode_ms / workers


class Tails:
    """The P98 of the times that a model and class's latest tasks would have taken in order of acceptance."""

    def __init__(self) -> None:
        self._lately: dict[tuple[str, int], deque[float]] = {}

    def after(self, model: str, priority: int, first_come_ms: float) -> float:
        """With one more task: the P98 of the latest 1,024, this one among them."""
        lately = self._lately.setdefault((model, priority), deque(maxlen=_LATELY))
        lately.append(first_come_ms)
        return sorted(lately)[int(_TAIL * (len(lately) - 1))]


class Foresight:
    """Predicts the times of new jobs' tasks. Stateful: `look` sees every job once, as it is read."""

    def __init__(self) -> None:
        self._tails = Tails()

    def look(self, holdings: Holdings, record: JobRecord, tasks: Sequence[Task], now_ms: int) -> None:
        """Set `first_come_ms` and `tail_ms` of a job's tasks, if items of their kind were measured. The job is not
        among the holdings yet."""
        model, priority = record.request.model, record.request.priority
        unread_ms = max(0, now_ms - record.accepted_at_ms)
        workers = max(1, sum(lane.model == model and lane.takes_new for lane in holdings.unet.values()))
        ahead = _calls_ahead(holdings, model, priority)
        for task in tasks:
            profile = next((known for (_, key), known in holdings.profiles.items() if key == task.key.ordinary), None)
            if profile:
                served_ms = first_come_ms(Pace.of(profile), ahead, task.calls_left, workers)
                task.first_come_ms = unread_ms + served_ms
                task.tail_ms = self._tails.after(model, priority, task.first_come_ms)
            ahead.append(_wide_calls(task))


def _calls_ahead(holdings: Holdings, model: str, priority: int) -> list[float]:
    """The UNet calls of two rows left of each task that goes before a new job in order of acceptance."""
    jobs = holdings.jobs
    ahead = [
        task
        for task in holdings.tasks.values()
        if task.key.model == model
        and task.phase.value < Phase.STORING.value
        and jobs[task.job_id].record.request.priority <= priority
    ]
    ahead.sort(key=lambda task: jobs[task.job_id].record.accepted_at_ms)
    return [_wide_calls(task) for task in ahead]


def _wide_calls(task: Task) -> float:
    return task.calls_left * task.spec.rows / 2
