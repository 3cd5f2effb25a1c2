"""How long a worker may take for what it was asked for.

A device that hangs leaves its process well, its stream open and its health SERVING: only reports that do not come tell.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.scheduler.engine import effects
from services.scheduler.engine.events import Report
from synerdiff.plans import TaskFailed, TaskReady, UnetTickDone, VaeTickDone

# What a plan may take of its prediction. A machine slowed tenfold by its neighbours takes ten times as long, and waits
# three times as long for the other worker (`dispatch`): less than half of this.
TIMES_PREDICTED = 30
# However short the prediction: a graph is captured, a compiled package comes into use, a host is moved.
LEAST_S = 60.0
SUSPECT_AT = 0.5


@dataclass(frozen=True)
class Patience:
    """`unpredicted_s`: for a prompt, each item of a plan that no profile predicts, and at least for a first plan."""

    unpredicted_s: float = 600.0

    def of(self, plan: effects.SendUnetPlan | effects.SendVaePlan, *, warm: bool) -> float:
        """For the plan, in seconds, from when the worker is done with the one before. `warm`: it has run one before."""
        if not plan.predicted_ms:
            return self.unpredicted_s * len(plan.plan.items)
        least_s = min(LEAST_S, self.unpredicted_s) if warm else self.unpredicted_s
        return max(TIMES_PREDICTED * plan.predicted_ms / 1000, least_s)


@dataclass
class _Line:
    """What is done one after the other: for the first of it the worker may take `allowed_s`, and took `taken_s`."""

    allowed_s: dict[int | str, float] = field(default_factory=dict)
    taken_s: float = 0.0

    def expect(self, key: int | str, allowed_s: float) -> None:
        if not self.allowed_s:
            self.taken_s = 0.0
        self.allowed_s[key] = allowed_s

    def is_over(self, *keys: int | str) -> bool:
        """Whether one of these was expected: then the next has its time from now on."""
        known = [self.allowed_s.pop(key, None) for key in keys]
        over = any(allowed_s is not None for allowed_s in known)
        if over:
            self.taken_s = 0.0
        return over

    def used(self) -> float:
        return self.taken_s / next(iter(self.allowed_s.values())) if self.allowed_s else 0.0


class PlanWatch:
    """What one worker was asked for on one stream, and is still to answer. Knows no clock: see `after`.

    `stretch`: how much more patience than usual. `warm`: this life of the worker has run a plan before. `answered`:
    something that takes the device has been answered.
    """

    def __init__(self, patience: Patience, stretch: float = 1.0, *, warm: bool = False) -> None:
        self.answered = False
        self._warm = warm
        self._patience = patience
        self._stretch = stretch
        self._plans, self._prompts = _Line(), _Line()

    def sent(self, effect: effects.WorkerEffect) -> None:
        """The worker was asked for something, or told to let go of tasks."""
        match effect:
            case effects.SendUnetPlan() | effects.SendVaePlan():
                self._plans.expect(effect.plan.tick, self._patience.of(effect, warm=self._warm) * self._stretch)
            case effects.Admit(task=task):
                self._prompts.expect(task.task_id, self._patience.unpredicted_s * self._stretch)
            case effects.CancelOnWorker(task_ids=task_ids) | effects.ReleaseSlots(task_ids=task_ids):
                self._prompts.is_over(*task_ids)

    def reported(self, report: Report) -> None:
        """The worker has answered."""
        match report:
            case UnetTickDone() | VaeTickDone():
                if self._plans.is_over(report.tick):
                    self.answered = self._warm = True
            case TaskReady() | TaskFailed():
                self.answered |= self._prompts.is_over(report.task_id)

    def after(self, seconds: float) -> float:
        """Let time pass, by how often this is called, not by the clock. Returns how much patience is used up, of 1."""
        for line in (self._plans, self._prompts):
            line.taken_s += seconds
        return max(self._plans.used(), self._prompts.used())

    def awaited(self) -> Iterable[str]:
        """What is waited for, in words."""
        for what, line in (("tick", self._plans), ("prompt of task", self._prompts)):
            for key, allowed_s in list(line.allowed_s.items())[:1]:
                yield f"{what} {key}: {line.taken_s:g} of {allowed_s:g} s"
