"""Who skips guidance in a tick: what a budget and a request allow, spread over a task's calls and over the tasks.

A task has one skip to spend when its head is over, earns `pace` of another with every call, and spends one whenever it
skips; so its skips are spread over its calls as evenly as the longest run allows. Of those that have earned one, as
many skip per tick as the tasks earn together, those with most credit first; so rows per tick stay even, also for tasks
that began together.
"""

import math
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from services.scheduler.policy.snapshots import RunningTask
from synerdiff.skip_cfg import SkipCfgBudget

# Credit is a sum of products: what should be 1 may come out a little less.
_ROUNDING = 1e-9


class Stance(Enum):
    """What a task's next call may do."""

    GUIDED = "guided"  # two rows
    ONE_ROW = "one row"  # unguided, or its request or an earlier life of it says that it skips
    CHOICE = "choice"  # the planner's


class Standing(NamedTuple):
    """A task's stance; how much it earns per call, and what it has earned and not spent. 0 where it never skips."""

    stance: Stance
    pace: float = 0.0
    credit: float = 0.0


def standing(task: RunningTask, budget: SkipCfgBudget | None, drift_gate: float) -> Standing:
    """Where a task stands. Without a budget only requests themselves say who skips.

    A task whose last prediction was off by more than `drift_gate` needs more credit, and so waits some calls longer.
    """
    skip = task.skip
    if task.rows < 2 or skip.must:
        return Standing(Stance.ONE_ROW)
    if skip.must is False or budget is None or task.num_calls < budget.least_calls:
        return Standing(Stance.GUIDED)
    calls = task.num_calls - budget.head - budget.tail
    allowed = math.floor(min(budget.share, skip.max_share) * task.num_calls + _ROUNDING)
    if not 0 <= task.next_call - budget.head < calls or allowed == 0:
        return Standing(Stance.GUIDED)
    pace = min(1.0, allowed / calls)
    earned = 1 + pace * (task.next_call - budget.head)
    credit = min(allowed, earned) - skip.skipped
    needed = max(1.0, skip.drift / drift_gate)
    may = credit >= needed - _ROUNDING and skip.run < min(budget.longest_run, _run_at(pace))
    return Standing(Stance.CHOICE if may else Stance.GUIDED, pace, credit)


def rows(standings: Iterable[Standing], skips: int) -> int:
    """UNet rows of one call of each task, if `skips` of those with a choice skip."""
    return sum(1 if one.stance is Stance.ONE_ROW else 2 for one in standings) - skips


def even_skips(standings: Iterable[Standing]) -> int:
    """How many of the tasks may skip in one tick: those with the choice, at most what all of them earn per tick."""
    listed = list(standings)
    choices = sum(one.stance is Stance.CHOICE for one in listed)
    return min(choices, math.ceil(sum(one.pace for one in listed) - _ROUNDING))


def _run_at(pace: float) -> int:
    """The longest run of an even spread: a task that has not skipped for long does not make up for it in a row."""
    return math.ceil(pace / (1 - pace) - _ROUNDING) if pace < 1 else 1 << 30
