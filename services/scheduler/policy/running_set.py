"""Who runs: which of a worker's tasks step in a tick; the others are set aside, with their latents in their slots."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import tee
from math import inf
from typing import NamedTuple

from services.scheduler.policy.fair import are_shared
from services.scheduler.policy.ordering import ordered
from services.scheduler.policy.pace import Paces
from services.scheduler.policy.policy_spec import PolicyBounds, PolicySpec
from services.scheduler.policy.skip_policy import Stance, Standing, even_skips, rows, standing
from services.scheduler.policy.snapshots import Ahead, BatchKey, RunningTask, UnetLane
from synerdiff.profiles import Profile
from synerdiff.skip_cfg import SkipCfgBudget


class Seat(NamedTuple):
    """A task that steps, and where it stands with skipping guidance."""

    task: RunningTask
    standing: Standing


@dataclass(frozen=True)
class RunningSet:
    """The tasks that step, first to go first. `busy`: others wait; `set_aside` of them on this worker."""

    seats: tuple[Seat, ...]
    busy: bool
    set_aside: int

    def of(self, key: BatchKey) -> tuple[Seat, ...]:
        """The seats of one batch key."""
        return tuple(seat for seat in self.seats if seat.task.key == key)

    def batch_keys(self) -> list[BatchKey]:
        """Batch keys in the order of their first task."""
        return list(dict.fromkeys(seat.task.key for seat in self.seats))


@dataclass(frozen=True)
class Rules:
    """What decides who runs."""

    spec: PolicySpec
    bounds: PolicyBounds
    paces: Paces
    budgets: Mapping[str, SkipCfgBudget]
    profiles: Mapping[BatchKey, Profile] = field(default_factory=dict)
    ahead: Ahead = field(default_factory=dict)

    def batch(self, lane: UnetLane, key: BatchKey) -> int:
        """Most tasks of one step where no knee is known."""
        return lane.sizes[key].now if key in lane.sizes else self.bounds.unet_batch


def running_set(lane: UnetLane, waiting: int, now_ms: int, rules: Rules) -> RunningSet:
    """The first tasks in order that fit in a step. `waiting`: tasks of the pool without a worker.

    Of a key with a knee fit as many rows as that, of others a batch of tasks; of several keys as large a part of each
    as makes one in all. Never fewer than one task. Rows are counted after the skips of this tick, while tasks wait.
    Of several callers fit no more than leave each a step as quick as on its share of the device. Under processor
    sharing everybody runs.
    """
    spec = rules.spec
    budget = rules.budgets.get(lane.model) if spec.skip_cfg else None
    order = ordered(lane.running, spec.order, rules.paces, now_ms, spec.urgency, rules.ahead)
    first, again = tee(Seat(task, standing(task, budget, spec.skip_prices.drift_gate)) for task in order)
    if spec.order == "sharing":
        return RunningSet(tuple(first), busy=waiting > 0, set_aside=0)
    most_ms = _shared_step_ms(order, lane, rules) if are_shared(order) else inf
    chosen = _that_fit(first, lane, rules, False, most_ms)
    busy = waiting > 0 or len(chosen) < len(order)
    if busy:
        chosen = _that_fit(again, lane, rules, True, most_ms)
    return RunningSet(tuple(chosen), busy, len(order) - len(chosen))


def _that_fit(seats: Iterable[Seat], lane: UnetLane, rules: Rules, skipping: bool, most_ms: float) -> list[Seat]:
    chosen: list[Seat] = []
    by_key: dict[BatchKey, list[Standing]] = {}
    for seat in seats:
        standings = by_key.setdefault(seat.task.key, [])
        standings.append(seat.standing)
        if chosen and sum(_part(key, of_key, lane, rules, skipping) for key, of_key in by_key.items()) > 1:
            break
        if chosen and most_ms < inf and _step_ms(by_key, rules, skipping) > most_ms:
            break
        chosen.append(seat)
    return chosen


def _part(key: BatchKey, standings: Sequence[Standing], lane: UnetLane, rules: Rules, skipping: bool) -> float:
    """The part of a full batch that tasks of one key make."""
    pace = rules.paces.get(key)
    if pace is None or not rules.spec.knee:
        return len(standings) / rules.batch(lane, key)
    return _rows(standings, skipping) / pace.rows


def _shared_step_ms(order: Sequence[RunningTask], lane: UnetLane, rules: Rules) -> float:
    """How long a step of several callers may take: what it may take any of them on its share of a device.

    That is the quickest step of those that they would make alone, times the number of callers. Counted are callers of
    the first priority class. Infinity where the profile does not say what a step takes.
    """
    if any(task.key.ordinary not in rules.profiles for task in order):
        return inf
    whose: dict[str, list[Seat]] = {}
    for task in order:
        if task.claim.priority == order[0].claim.priority:
            guided = Standing(Stance.GUIDED if task.rows > 1 else Stance.ONE_ROW)
            whose.setdefault(task.claim.caller, []).append(Seat(task, guided))
    if len(whose) < 2:
        return inf
    alone_ms = []
    for theirs in whose.values():
        by_key: dict[BatchKey, list[Standing]] = {}
        for seat in _that_fit(theirs, lane, rules, False, inf):
            by_key.setdefault(seat.task.key, []).append(seat.standing)
        alone_ms.append(_step_ms(by_key, rules, skipping=False))
    return len(whose) * min(alone_ms)


def _step_ms(by_key: Mapping[BatchKey, Sequence[Standing]], rules: Rules, skipping: bool) -> float:
    """What a step takes by the profile."""
    return sum(
        rules.profiles[key.ordinary].latency_ms(_rows(standings, skipping), 0) for key, standings in by_key.items()
    )


def _rows(standings: Sequence[Standing], skipping: bool) -> int:
    return rows(standings, even_skips(standings) if skipping else 0)
