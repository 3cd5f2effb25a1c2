"""Who runs: which of a worker's tasks step in a tick; the others are set aside, with their latents in their slots."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import NamedTuple

from services.scheduler.policy.ordering import ordered
from services.scheduler.policy.pace import Paces
from services.scheduler.policy.policy_spec import PolicyBounds, PolicySpec
from services.scheduler.policy.skip_policy import Standing, even_skips, rows, standing
from services.scheduler.policy.snapshots import BatchKey, RunningTask, UnetLane
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

    def batch(self, lane: UnetLane, key: BatchKey) -> int:
        """Most tasks of one step where no knee is known."""
        return lane.sizes[key].now if key in lane.sizes else self.bounds.unet_batch


def running_set(lane: UnetLane, waiting: int, now_ms: int, rules: Rules) -> RunningSet:
    """The first tasks in order that fit in a step. `waiting`: tasks of the pool without a worker.

    Of a key with a knee fit as many rows as that, of others a batch of tasks; of several keys as large a part of each
    as makes one in all. Never fewer than one task. Rows are counted after the skips of this tick, while tasks wait.
    Under processor sharing everybody runs.
    """
    spec = rules.spec
    budget = rules.budgets.get(lane.model) if spec.skip_cfg else None
    order = ordered(lane.running, spec.order, rules.paces, now_ms, spec.urgency)
    first, again = tee(Seat(task, standing(task, budget, spec.skip_prices.drift_gate)) for task in order)
    if spec.order == "sharing":
        return RunningSet(tuple(first), busy=waiting > 0, set_aside=0)
    chosen = _that_fit(first, lane, rules, skipping=False)
    busy = waiting > 0 or len(chosen) < len(order)
    if busy:
        chosen = _that_fit(again, lane, rules, skipping=True)
    return RunningSet(tuple(chosen), busy, len(order) - len(chosen))


def _that_fit(seats: Iterable[Seat], lane: UnetLane, rules: Rules, skipping: bool) -> list[Seat]:
    chosen: list[Seat] = []
    by_key: dict[BatchKey, list[Standing]] = {}
    for seat in seats:
        standings = by_key.setdefault(seat.task.key, [])
        standings.append(seat.standing)
        if chosen and sum(_part(key, of_key, lane, rules, skipping) for key, of_key in by_key.items()) > 1:
            break
        chosen.append(seat)
    return chosen


def _part(key: BatchKey, standings: Sequence[Standing], lane: UnetLane, rules: Rules, skipping: bool) -> float:
    """The part of a full batch that tasks of one key make."""
    pace = rules.paces.get(key)
    if pace is None or not rules.spec.knee:
        return len(standings) / rules.batch(lane, key)
    skips = even_skips(standings) if skipping else 0
    return rows(standings, skips) / pace.rows
