"""What the engine remembers of callers: who is about, and whose turn it is. See `policy.fair`."""

from collections.abc import Iterable

from services.scheduler.engine.tasks import Job, Task
from services.scheduler.policy.fair import CallTurns, call_cost
from services.scheduler.policy.pace import Pace
from services.scheduler.policy.snapshots import Ahead, TurnClass
from synerdiff.profiles import Profile

# A caller whose job came within this time may well send another: its share of the slots is kept within reach.
LATELY_MS = 60_000


class Shares:
    """The turns of callers, and when their jobs came last, by model."""

    def __init__(self) -> None:
        self._turns = CallTurns()
        self._came_ms: dict[str, dict[str, int]] = {}

    def came(self, job: Job, now_ms: int) -> None:
        """The pool takes up a job."""
        self._came_ms.setdefault(job.record.request.model, {})[job.record.caller] = now_ms

    def lately(self, model: str, now_ms: int) -> frozenset[str]:
        """Callers whose jobs came lately."""
        came_ms = self._came_ms.get(model, {})
        for caller in [caller for caller, when_ms in came_ms.items() if now_ms - when_ms > LATELY_MS]:
            del came_ms[caller]
        return frozenset(came_ms)

    def ahead(self) -> Ahead:
        """How far each caller is ahead of the virtual time: a copy."""
        return self._turns.ahead()

    def stepped(self, calls: Iterable[tuple[Job, Task, bool]]) -> None:
        """The UNet calls of a tick, and which of them skip guidance."""
        self._turns.stepped(
            (_turn_class(job), job.record.caller, call_cost(task.key, task.spec.rows - skips))
            for job, task, skips in calls
        )

    def decoded(self, job: Job, task: Task, profile: Profile | None) -> None:
        """A decode, in rows that take as long; by no profile it counts for nothing."""
        if profile:
            pace = Pace.of(profile)
            rows = pace.decode_ms * pace.rows / pace.call_ms
            self._turns.charge(_turn_class(job), job.record.caller, call_cost(task.key, rows))


def _turn_class(job: Job) -> TurnClass:
    return TurnClass(job.record.request.model, job.record.request.priority)
