"""A tick's round: the tasks that run, those that skip guidance, and their items.

A task has one skip to spend when its head is over, earns `pace` of another with every call, and spends one whenever it
skips; so its skips are spread over its calls as evenly as the longest run allows. Of those that have earned one, as
many skip per tick as the tasks earn together, those with most credit first; so rows per tick stay even, also for tasks
that began together.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice, tee
from math import inf
from typing import NamedTuple

from services.scheduler.planner.planned_round import PlannedItem, PlannedRound, RoundReason
from services.scheduler.policy.ordering import are_shared, ordered
from services.scheduler.policy.policy_spec import Paces, PolicyBounds, PolicySpec
from services.scheduler.policy.snapshots import (
    Ahead,
    BatchKey,
    DecodePart,
    Item,
    ReadyDecode,
    RunningTask,
    UnetBatch,
    UnetLane,
    VaeBatch,
)
from synerdiff.profiles import ItemCaps, Profile, Setting
from synerdiff.skip_cfg import SkipCfgBudget

# Credit is a sum of products: a credit of 1 may come out a little less.
_ROUNDING = 1e-9


class Stance(Enum):
    """The rows that a task's next call may have."""

    GUIDED = "guided"  # two rows
    ONE_ROW = "one row"  # unguided, or bound to skip by its request or an earlier life of it
    CHOICE = "choice"  # the planner's


class Standing(NamedTuple):
    """A task's stance. `pace`: skips earned per call; `credit`: skips earned and not spent; 0 where it never skips."""

    stance: Stance
    pace: float = 0.0
    credit: float = 0.0


def standing(task: RunningTask, budget: SkipCfgBudget | None, drift_gate: float) -> Standing:
    """The standing of a task. Without a budget only its request decides its skips. A task whose last prediction was
    off by more than `drift_gate` needs more credit, and so waits some calls longer."""
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
    # The longest run of an even spread: a task that has not skipped for long does not make up for it in a row.
    longest = math.ceil(pace / (1 - pace) - _ROUNDING) if pace < 1 else inf
    may = credit >= needed - _ROUNDING and skip.run < min(budget.longest_run, longest)
    return Standing(Stance.CHOICE if may else Stance.GUIDED, pace, credit)


def rows(standings: Iterable[Standing], skips: int) -> int:
    """UNet rows of one call of each task, if `skips` of those with a choice skip."""
    return sum(1 if one.stance is Stance.ONE_ROW else 2 for one in standings) - skips


def even_skips(standings: Iterable[Standing]) -> int:
    """The number of tasks that may skip in one tick: those with the choice, at most the earnings of all per tick."""
    listed = list(standings)
    choices = sum(one.stance is Stance.CHOICE for one in listed)
    return min(choices, math.ceil(sum(one.pace for one in listed) - _ROUNDING))


class Seat(NamedTuple):
    """A task that steps, and its standing with skipped guidance."""

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
    """The grounds for choosing the tasks that run."""

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

    A key with a knee has that many rows in a full batch, another key `Rules.batch` tasks; the parts of several keys
    add up to one at most. At least one task fits. While tasks wait, rows are counted after the skips of this tick.
    Tasks of several callers fit while each caller's step is as quick as on its share of the device. Under processor
    sharing every task runs.
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
    """The longest that a step of several callers may take, no slower for any of them than on its share of a device.

    That is the quickest step of those that they would make alone, times the number of callers. Counted are callers of
    the first priority class. Infinity where a step has no profile.
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
    """The time of a step by the profile."""
    return sum(
        rules.profiles[key.ordinary].latency_ms(_rows(standings, skipping), 0) for key, standings in by_key.items()
    )


def _rows(standings: Sequence[Standing], skipping: bool) -> int:
    return rows(standings, even_skips(standings) if skipping else 0)


@dataclass(frozen=True)
class Work:
    """The tasks and decodes that a round of one batch key serves on one pair of workers, most urgent first. `skips`:
    the most seats with a choice that may skip guidance."""

    unet_worker: str
    vae_worker: str
    seats: tuple[Seat, ...]
    decodes: tuple[ReadyDecode, ...]
    skips: int = 0

    @property
    def one_row(self) -> int:
        """Seats that take one row under every plan."""
        return sum(seat.standing.stance is Stance.ONE_ROW for seat in self.seats)

    def first(self, most: int) -> "Work":
        """The most urgent part: at most so many tasks, and so many decodes."""
        seats = self.seats[:most]
        choices = sum(seat.standing.stance is Stance.CHOICE for seat in seats)
        return replace(self, seats=seats, decodes=self.decodes[:most], skips=min(self.skips, choices))

    def skipping(self, skips: int) -> list[Seat]:
        """The seats that take one row when `skips` of those with a choice skip: those with most credit."""
        choices = (seat for seat in self.seats if seat.standing.stance is Stance.CHOICE)
        chosen = {seat.task.task_id for seat in islice(sorted(choices, key=lambda seat: -seat.standing.credit), skips)}
        return [s for s in self.seats if s.standing.stance is Stance.ONE_ROW or s.task.task_id in chosen]


def filled(planned: PlannedRound, work: Work, reason: RoundReason | None = None) -> list[Item]:
    """The items of a planned round of `work`, with its tasks and decodes."""
    one_row = work.skipping(planned.skips - work.one_row)
    names = {seat.task.task_id for seat in one_row}
    narrow = iter(one_row)
    wide = iter([seat for seat in work.seats if seat.task.task_id not in names])
    items = []
    for item in planned.items:
        seats = [*islice(narrow, item.skips), *islice(wide, item.unet - item.skips)]
        unet = _unet_batch(work.unet_worker, seats, names, item.setting) if seats else None
        parts = _parts(item, work.decodes)
        vae = VaeBatch(work.vae_worker, parts, item.setting.vae_threads) if parts else None
        items.append(Item(unet, vae, item.ms, reason))
    return items


def decodes_first(work: Work, profile: Profile | None, caps: ItemCaps, reason: RoundReason | None = None) -> list[Item]:
    """Every decode alone, then the UNet steps alone, in batches up to `caps`."""
    one_row = {seat.task.task_id for seat in work.skipping(work.skips)}
    items = []
    for start in range(0, len(work.decodes), caps.vae):
        together = work.decodes[start : start + caps.vae]
        choice = profile.choice(0, len(together), 1) if profile else None
        parts = tuple(DecodePart(decode.task_id) for decode in together)
        threads = choice.setting.vae_threads if choice else 0
        items.append(Item(None, VaeBatch(work.vae_worker, parts, threads), choice.ms if choice else 0.0, reason))
    for start in range(0, len(work.seats), caps.unet):
        seats = work.seats[start : start + caps.unet]
        rows = sum(1 if seat.task.task_id in one_row else 2 for seat in seats)
        choice = profile.choice(rows, 0) if profile else None
        batch = _unet_batch(work.unet_worker, seats, one_row, choice.setting if choice else Setting())
        items.append(Item(batch, None, choice.ms if choice else 0.0, reason))
    return items


def plain_unet_batches(work: Work, unet_batch: int) -> list[UnetBatch]:
    """The UNet steps alone, run as the worker likes."""
    return [item.unet for item in decodes_first(work, None, ItemCaps(unet_batch, 1)) if item.unet]


def _unet_batch(worker_id: str, seats: Sequence[Seat], one_row: set[str], setting: Setting) -> UnetBatch:
    ids = tuple(seat.task.task_id for seat in seats)
    skipping = frozenset(seat.task.task_id for seat in seats if seat.task.task_id in one_row and seat.task.rows > 1)
    return UnetBatch(worker_id, ids, skipping, setting.unet_threads)


def _parts(item: PlannedItem, decodes: Sequence[ReadyDecode]) -> tuple[DecodePart, ...]:
    """The bands of each decode that the item does. Decode d owns the units from d * chunks."""
    parts = []
    for d in range(item.first_unit // item.chunks, -(-item.end_unit // item.chunks)):
        first, end = max(item.first_unit - d * item.chunks, 0), min(item.end_unit - d * item.chunks, item.chunks)
        parts.append(DecodePart(decodes[d].task_id, item.chunks, first, end))
    return tuple(parts)
