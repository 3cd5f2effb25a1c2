"""A round as items: a planned round's counts filled with tasks and decodes, or plain rounds that need no planner."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from services.scheduler.planner.planned_round import PlannedItem, PlannedRound, PlanQuery, RoundReason
from services.scheduler.policy.running_set import Seat
from services.scheduler.policy.skip_policy import Stance
from services.scheduler.policy.snapshots import DecodePart, Item, ReadyDecode, UnetBatch, VaeBatch
from synerdiff.profiles import ItemCaps, Profile, Setting


class RoundSource(Protocol):
    """Where planned rounds come from."""

    def lookup(self, profile: Profile, query: PlanQuery) -> PlannedRound | None:
        """The best round for the query, or None while it is not known."""


@dataclass(frozen=True)
class Work:
    """What a round of one batch key serves, on one pair of workers: most urgent first, all of it.

    `skips`: most of the seats with a choice that may skip guidance.
    """

    unet_worker: str
    vae_worker: str
    seats: tuple[Seat, ...]
    decodes: tuple[ReadyDecode, ...]
    skips: int = 0

    @property
    def one_row(self) -> int:
        """Seats that take one row whatever is planned."""
        return sum(seat.standing.stance is Stance.ONE_ROW for seat in self.seats)

    def first(self, most: int) -> "Work":
        """The most urgent part: at most so many tasks, and so many decodes."""
        seats = self.seats[:most]
        choices = sum(seat.standing.stance is Stance.CHOICE for seat in seats)
        return replace(self, seats=seats, decodes=self.decodes[:most], skips=min(self.skips, choices))

    def skipping(self, skips: int) -> list[Seat]:
        """The seats that take one row when `skips` of those with a choice skip: those with most credit."""
        choices = (seat for seat in self.seats if seat.standing.stance is Stance.CHOICE)
        chosen = {seat.task.task_id for seat in islice(sorted(choices, key=_least_credit_last), skips)}
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


def _least_credit_last(seat: Seat) -> float:
    return -seat.standing.credit
