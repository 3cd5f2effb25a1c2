"""How long tasks would take in order of acceptance: the measure that the order of urgency is held to."""

from collections import deque
from collections.abc import Iterable
from heapq import heapreplace

from services.scheduler.policy.pace import Pace

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
    """The P98 of what the latest tasks of a model and priority class would have taken in order of acceptance."""

    def __init__(self) -> None:
        self._lately: dict[tuple[str, int], deque[float]] = {}

    def after(self, model: str, priority: int, first_come_ms: float) -> float:
        """With one more task: the P98 of the latest 1,024, this one among them."""
        lately = self._lately.setdefault((model, priority), deque(maxlen=_LATELY))
        lately.append(first_come_ms)
        return sorted(lately)[int(_TAIL * (len(lately) - 1))]
