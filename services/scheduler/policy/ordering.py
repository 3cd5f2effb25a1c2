"""Who goes first: orders over tasks, from what the snapshot says of them alone.

`Task` is a waiting or a running one: both have a batch key, rows, calls and a claim.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.scheduler.policy.policy_spec import Order, Urgency
from services.scheduler.snapshots import BatchKey, ReadyDecode, RunningTask, WaitingTask
from synerdiff.profiles import Profile

Task = WaitingTask | RunningTask
T = TypeVar("T", WaitingTask, RunningTask, Task)

# A decode is pressed when its client's deadline is nearer than this.
_PRESSED_DECODE_MS = 2000


@dataclass(frozen=True)
class Pace:
    """How fast tasks of a batch key advance on one worker.

    A call of `knee_rows` rows takes `call_ms`; `least_call_ms` is that of a guided task which has the worker to itself.
    """

    knee_rows: int
    call_ms: float
    least_call_ms: float

    @classmethod
    def of(cls, profile: Profile) -> "Pace":
        """The pace that the profile implies."""
        knee_rows = min(profile.knee_rows(), profile.caps.rows)
        return cls(knee_rows, profile.latency_ms(knee_rows, 0), profile.latency_ms(2, 0))


Paces = Mapping[BatchKey, Pace]


def ordered(tasks: Iterable[T], order: Order, paces: Paces, now_ms: int, constants: Urgency) -> list[T]:
    """The tasks, first to go first. Urgency needs the pace of every one of them; without, they go first come first."""
    listed = list(tasks)
    if order != "urgency" or any(task.key not in paces for task in listed):
        return first_come_first(listed)
    return UrgencyOrder(listed, paces, now_ms, constants).sorted(listed)


def first_come_first(tasks: Iterable[T]) -> list[T]:
    """Those under way go on to their end; then by priority class and acceptance."""
    return sorted(tasks, key=_first_come)


class UrgencyOrder:
    """Priority class first; then the pressed, least slack first; then the request with the least work left.

    The deadline of a task is its client's, or the fairness bound if that is earlier: `fair_factor` times what serving
    in order of acceptance would have taken, as predicted when the task arrived. Least work first makes the mean small;
    the bound is what keeps the long ones from starving. A client's deadline that cannot be met any more presses nobody.
    Between equals, the one that has begun goes on.
    """

    def __init__(self, tasks: Sequence[Task], paces: Paces, now_ms: int, constants: Urgency) -> None:
        self._paces = paces
        self._now_ms = now_ms
        self._constants = constants
        self._job_ms: dict[str, float] = {}
        for task in tasks:
            job_id, pace = task.claim.job_id, paces[task.key]
            alone_ms = _calls_left(task) * pace.call_ms * task.rows / 2
            self._job_ms[job_id] = self._job_ms.get(job_id, 0.0) + alone_ms

    def sorted(self, tasks: Iterable[T]) -> list[T]:
        """First to go first."""
        return sorted(tasks, key=self.turn)

    def turn(self, task: Task) -> tuple[float | str, ...]:
        """Sorts tasks: the smallest goes first. For tasks of the jobs that this order was made from."""
        claim, pace = task.claim, self._paces[task.key]
        slack_ms, allowance_ms = self._slack(task, pace)
        pressed = slack_ms < self._constants.guard_share * allowance_ms
        quantum_ms = self._constants.slack_quantum_calls * pace.call_ms
        rank = slack_ms // quantum_ms if pressed else self._job_ms[claim.job_id]
        return claim.priority, not pressed, rank, not _started(task), claim.accepted_at_ms, claim.job_id, claim.image

    def _slack(self, task: Task, pace: Pace) -> tuple[float, float]:
        """How long the task could stand still, and how long it may take in all, in ms."""
        claim, calls = task.claim, _calls_left(task)
        allowance_ms = self._constants.fair_factor * self._first_come_ms(task, pace)
        own_ms = claim.deadline_ms - claim.accepted_at_ms
        reachable = self._now_ms + calls * pace.least_call_ms <= claim.deadline_ms
        if claim.timed and reachable and own_ms < allowance_ms:
            allowance_ms = own_ms
        return claim.accepted_at_ms + allowance_ms - self._now_ms - calls * pace.call_ms, allowance_ms

    def _first_come_ms(self, task: Task, pace: Pace) -> float:
        """How long the task would take from acceptance if tasks were served in order of acceptance."""
        claim = task.claim
        unread_ms = max(0, claim.read_at_ms - claim.accepted_at_ms)
        return unread_ms + (2 * claim.calls_ahead / pace.knee_rows + task.num_calls) * pace.call_ms


def decodes_in_order(decodes: Sequence[ReadyDecode], now_ms: int) -> list[ReadyDecode]:
    """Priority class first, then those about to miss a client's deadline, then the longest waiting."""

    def turn(decode: ReadyDecode) -> tuple[int, float]:
        claim = decode.claim
        pressed = claim.timed and claim.deadline_ms - now_ms < _PRESSED_DECODE_MS
        return claim.priority, claim.deadline_ms if pressed else float("inf")

    return sorted(decodes, key=turn)


def _first_come(task: Task) -> tuple[bool, int, int, str, int]:
    claim = task.claim
    return not _started(task), claim.priority, claim.accepted_at_ms, claim.job_id, claim.image


def _started(task: Task) -> bool:
    return isinstance(task, RunningTask) and task.started


def _calls_left(task: Task) -> int:
    return task.num_calls - task.next_call if isinstance(task, RunningTask) else task.num_calls
